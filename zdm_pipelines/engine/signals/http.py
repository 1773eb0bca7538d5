"""HTTP: a signal of the user's own, a number that a web service gives, or Prometheus."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO, Any, cast
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from zdm_pipelines.engine.signals.protocol import DEADLINE, Measured
from zdm_pipelines.model.throttle import HttpLimit

_LARGEST = 64 * 1024  # bytes; a number is shorter
_SOURCE = 100  # characters of a series' labels

# No message may show what the library says of a failure: it quotes URLs, headers and bodies.


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


class _SameOrigin(request.HTTPRedirectHandler):
    """Redirects only within one server: the next would be given the token too."""

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> request.Request | None:
        fp.close()  # else its body is read to the end, however long
        if _origin(newurl) != _origin(req.full_url):
            raise HTTPError(req.full_url, code, "redirects elsewhere", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> request.OpenerDirector:
    """One that speaks HTTP and nothing else; it goes through the proxy that the environment names."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        _SameOrigin(),
    ):
        opener.add_handler(handler)
    return opener


def _finite(value: object) -> float:
    """A number from JSON, or from text.

    Raises:
        ValueError: it is none, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"the answer is {type(value).__name__}, which is no number")
    try:
        number = math.nan if isinstance(value, str) and "_" in value else float(value)
    except (ValueError, OverflowError):
        raise ValueError("the answer is no number") from None
    if not math.isfinite(number):
        raise ValueError("the answer is no finite number")
    return number


def _json(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the answer is no JSON") from None


def of_text(body: str) -> Measured:
    """A body that is a number and nothing else."""
    return Measured(value=_finite(body.strip()))


def of_field(body: str, field: str) -> Measured:
    """The number at a dotted path of a JSON answer; in a list, the path names the position, from 0."""
    found = _json(body)
    for name in field.split("."):
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isascii() and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            raise ValueError(f"the answer has no {field}")
    if isinstance(found, str):
        raise ValueError(f"{field} of the answer is text, which is no number")
    return Measured(value=_finite(found), source=field)


def of_prometheus(body: str) -> Measured:
    """The largest sample of an instant query's answer, and the labels of its series."""
    answer = _json(body)
    try:
        if answer["status"] != "success":
            raise ValueError("Prometheus refuses the query")
        kind, result = answer["data"]["resultType"], answer["data"]["result"]
        if kind == "scalar":
            return Measured(value=_finite(result[1]))
        if kind != "vector":
            raise ValueError("the query gives neither a vector nor a scalar")
        samples = [(_finite(series["value"][1]), _labels(series.get("metric", {}))) for series in result]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the answer is none of Prometheus") from None
    if not samples:
        raise ValueError("the query has no result")
    value, labels = max(samples)
    return Measured(value=value, source=labels)


def _labels(metric: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in metric.items())[:_SOURCE]


class Http:
    """What a GET request gives."""

    every = 1.0
    samples = 1

    def __init__(self, limit: HttpLimit) -> None:
        self._token_env = limit.token_env
        self._opener = _opener()
        parts = urlsplit(limit.url)
        self._where = parts.netloc.rpartition("@")[2]  # all that messages say of the URL
        self._understand: Callable[[str], Measured] = of_text
        if (query := limit.query) is not None:
            parts = _query_url(parts, query)
            self._understand = of_prometheus
        elif (field := limit.field) is not None:
            self._understand = lambda body: of_field(body, field)
        self._parts = parts

    def read(self) -> Measured:
        """Ask it.

        Raises:
            ValueError: the answer is no number, or the token is missing.
            OSError: there is no answer in time.
        """
        try:
            return self._understand(self._get(self._headers()))
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from None

    def close(self) -> None:
        """Nothing is kept open."""

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "*/*", "User-Agent": "zdm-pipelines"}
        if self._token_env is not None:
            token = os.environ.get(self._token_env, "").strip()  # each time: tokens are replaced
            if not token:
                raise ValueError(f"the environment variable {self._token_env} is not set")
            if not token.isascii() or not token.isprintable():
                raise ValueError(f"the environment variable {self._token_env} holds what is no token")
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _get(self, headers: dict[str, str]) -> str:
        if self._parts.scheme not in ("http", "https"):
            raise ValueError("only http and https can be asked")
        deadline = time.monotonic() + DEADLINE
        body = b""
        try:
            asked = request.Request(urlunsplit(self._parts), headers=headers)  # noqa: S310 - the scheme is checked above
            with cast(HTTPResponse, self._opener.open(asked, timeout=DEADLINE)) as answer:
                while len(body) <= _LARGEST and (part := answer.read1(_LARGEST)):
                    body += part
                    if time.monotonic() > deadline:  # the library's timeout is of each packet
                        raise TimeoutError
                broken = len(body) <= _LARGEST and bool(answer.length)
        except HTTPError as error:
            error.close()
            elsewhere = ", a redirect that is not followed" if 300 <= error.code < 400 else ""
            raise OSError(f"{self._where}: it answers HTTP {error.code}{elsewhere}") from None
        except (OSError, HTTPException, ValueError) as error:
            raise OSError(f"{self._where}: {_said(error)}") from None
        if broken:
            raise OSError(f"{self._where}: the answer breaks off")
        if len(body) > _LARGEST:
            raise ValueError(f"the answer is longer than {_LARGEST // 1024} kB")
        try:
            return body.decode()
        except UnicodeDecodeError:
            raise ValueError("the answer is no text") from None


def _query_url(root: SplitResult, query: str) -> SplitResult:
    """The URL of an instant query of a Prometheus server."""
    asked = f"query={quote(query, safe='')}"
    return root._replace(
        path=f"{root.path.rstrip('/')}/api/v1/query",
        query=f"{root.query}&{asked}" if root.query else asked,
    )


def _said(error: Exception) -> str:
    """What went wrong, in words of our own or of the system's: unknown host, a certificate that is not trusted."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {DEADLINE:g} s"
    if isinstance(cause, OSError):
        return f"cannot be reached ({cause.strerror or type(cause).__name__})"
    return "what it answers, or its URL, is no HTTP"
