"""HTTP: a signal of the user's own, a number that a web service gives, or Prometheus."""

from __future__ import annotations

import functools
import logging
import os
import ssl
from collections.abc import Callable
from contextlib import closing
from contextvars import ContextVar
from urllib.parse import quote, urlsplit, urlunsplit

import httpx

from zdm_pipelines.engine.signals.answers import read_field, read_prometheus, read_text
from zdm_pipelines.model.clock import SYSTEM, Clock
from zdm_pipelines.model.signals import DEADLINE, Measured
from zdm_pipelines.model.throttle import HttpLimit

_LARGEST = 64 * 1024  # bytes; a number is shorter
_REDIRECTS = 5  # a service that sends us on more often sends us in circles
_BRIEFEST = 0.001  # seconds; the library takes no time-out of 0

# No message and no log may show what the library says: it quotes URLs, headers and bodies, which may hold secrets.
_asking: ContextVar[bool] = ContextVar("zdm_asks_http", default=False)
for _name in ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "httpcore.socks"):
    logging.getLogger(_name).addFilter(lambda record: not _asking.get())


@functools.cache
def _trusted() -> ssl.SSLContext:
    """The system's certificates: a service of one's own has its certificate from an authority of one's own."""
    return ssl.create_default_context()


class _Unanswered(OSError):
    """There is no answer; says why in words of our own, which are safe to show."""


class Http:
    """The number that the answer to a GET request holds."""

    every = 1.0
    samples = 1

    def __init__(self, limit: HttpLimit, *, clock: Clock = SYSTEM) -> None:
        self._limit = limit
        self._clock = clock
        self._where = urlsplit(limit.url).netloc.rpartition("@")[2]  # all that messages say of the URL
        self._understand: Callable[[str], Measured] = read_text
        if limit.query is not None:
            self._understand = read_prometheus
        elif (field := limit.field) is not None:
            self._understand = lambda body: read_field(body, field)

    def read(self) -> Measured:
        """Ask the service for the number.

        Raises:
            ValueError: the answer is no number, or the token is missing.
            OSError: there is no answer in time.
        """
        ours = _asking.set(True)
        try:
            return self._understand(self._get(self._headers()))
        except ValueError as error:
            raise ValueError(f"{self._where}: {error}") from None
        except (OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise OSError(f"{self._where}: {_reason(error)}") from None
        finally:
            _asking.reset(ours)

    def close(self) -> None:
        """Nothing is kept open."""

    def _headers(self) -> dict[str, str]:
        # Compressed, a short answer could be a long one.
        headers = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "zdm-pipelines"}
        if (variable := self._limit.token_env) is not None:
            token = os.environ.get(variable, "").strip()  # each time: tokens are replaced
            if not token:
                raise ValueError(f"the environment variable {variable} is not set")
            if not token.isascii() or not token.isprintable():
                raise ValueError(f"the environment variable {variable} holds what is no token")
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _url(self) -> httpx.URL:
        parts = urlsplit(self._limit.url)
        if parts.scheme not in ("http", "https"):
            raise ValueError("only http and https can be asked")
        if not self._limit.url.isascii():
            raise httpx.InvalidURL("not ASCII")
        if self._limit.query is not None:
            asked = f"query={quote(self._limit.query, safe='')}"
            query = f"{parts.query}&{asked}" if parts.query else asked
            parts = parts._replace(path=f"{parts.path.rstrip('/')}/api/v1/query", query=query)
        return httpx.URL(urlunsplit(parts))

    def _get(self, headers: dict[str, str]) -> str:
        deadline = self._clock.monotonic() + DEADLINE

        def left() -> float:
            return deadline - self._clock.monotonic()

        url = self._url()
        with _client(headers) as client:
            answer = _ask(client, client.build_request("GET", url, timeout=DEADLINE), left)
            with closing(answer):
                if not answer.is_success:
                    elsewhere = ", a redirect that is not followed" if answer.is_redirect else ""
                    raise _Unanswered(f"it answers HTTP {answer.status_code}{elsewhere}")
                body = _body(answer, left)
        try:
            return body.decode()
        except UnicodeDecodeError:
            raise ValueError("the answer is no text") from None


def _client(headers: dict[str, str]) -> httpx.Client:
    """A client for one question, which goes through the proxy that the environment names."""
    try:
        return httpx.Client(verify=_trusted(), headers=headers)
    except (ImportError, ValueError, httpx.InvalidURL):
        raise _Unanswered("the proxy that the environment names cannot be used") from None


def _ask(client: httpx.Client, request: httpx.Request, left: Callable[[], float]) -> httpx.Response:
    """The head of the answer. Redirects are followed within one server only: the next would be given the token too.

    Args:
        left: seconds until the deadline.
    """
    answer = client.send(request, stream=True)
    for _ in range(_REDIRECTS):
        following = answer.next_request
        if following is None or _origin(following.url) != _origin(request.url):
            break
        answer.close()  # else the body of a redirect would be read to its end, however long
        following.extensions["timeout"] = httpx.Timeout(max(_BRIEFEST, left())).as_dict()
        answer = client.send(following, stream=True)
    return answer


def _origin(url: httpx.URL) -> tuple[str, bytes, bytes]:
    return url.scheme, url.netloc, url.userinfo


def _body(answer: httpx.Response, left: Callable[[], float]) -> bytes:
    body = b""
    try:
        for part in answer.iter_raw():
            body += part
            if len(body) > _LARGEST:
                raise ValueError(f"the answer is longer than {_LARGEST // 1024} kB")
            if left() < 0:  # the library's timeout is of each packet
                raise TimeoutError
    except httpx.RemoteProtocolError:
        raise _Unanswered("the answer breaks off") from None
    return body


def _reason(error: BaseException) -> str:
    """What went wrong, in words of our own or of the system's: unknown host, a certificate that is not trusted."""
    if isinstance(error, _Unanswered):
        return str(error)
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (httpx.TimeoutException, TimeoutError)):
            return f"no answer within {DEADLINE:g} s"
        if isinstance(cause, OSError):
            return f"cannot be reached ({cause.strerror or type(cause).__name__})"
        cause = cause.__cause__ or cause.__context__  # the library hides some causes
    return "what it answers, or its URL, is no HTTP"
