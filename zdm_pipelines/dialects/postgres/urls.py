"""URLs: what may be told of one: never a user or a password, nor a part of either, however it was miswritten."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from zdm_pipelines.model.errors import DatabaseUnreachable

# user:password@host:port,host:port/dbname?options. libpq takes more: it reads a password with a / in it as a port and a
# name of a database.
_WELL_WRITTEN = re.compile(r"postgres(?:ql)?://(?P<user>[^@/]*@)?[^@/?]*(?:/[^@/?]*)?(?:\?.*)?", re.DOTALL)
_HOST = re.compile(r"[\w.:%-]*|/[^@:]*")  # names, addresses, and folders of sockets
_NAME = re.compile(r"[\w $.-]*")
_WAY_OUT = "write postgresql://user:password@host:5432/dbname; in a password, % is %25, @ is %40, / is %2F"
# Whoever complains puts what it was given between quotes, in whatever language.
_QUOTED = re.compile(r"""(?<!\w)'[^']*'|"[^"]*"|«[^»]*»|[„“][^“”]*[“”]|「[^」]*」""")
_ANY_QUOTE = re.compile(r"""['"«»„“”「」\n\r]""")
_WITHHELD = "why is not shown, as it may quote the URL: psql with the same URL tells"
_WAYS_OUT = (
    (r"startup parameter", "let it be no pooler, or one that hands session settings on: see docs/production.md"),
    (
        r"too many connections|too many clients|connection slots",
        "let fewer sessions be open, or raise the CONNECTION LIMIT of the role or the database",
    ),
)


def parsed(url: str) -> dict[str, Any]:
    """A URL's parts; the server library's own complaint would quote it, password included.

    Raises:
        DatabaseUnreachable: it cannot be read, or not be meant so.
    """
    try:
        url.encode()
        parts = conninfo_to_dict(url)
    except (psycopg.Error, UnicodeError):
        fact = "its URL names a SQLAlchemy driver" if url.startswith("postgresql+") else "its URL cannot be read"
        raise DatabaseUnreachable("database", fact, _WAY_OUT) from None
    meant = "://" not in url or _WELL_WRITTEN.fullmatch(url)
    hosts, ports = str(parts.get("host", "")).split(","), str(parts.get("port", ""))
    if not meant or not all(_HOST.fullmatch(host) for host in hosts) or not re.fullmatch(r"[0-9,]*", ports):
        raise DatabaseUnreachable("database", "its URL holds an @ or / that is not meant as one", _WAY_OUT)
    return parts


def where(url: str) -> str:
    """host:port/database of a URL, for messages; never user or password.

    Without a user, what stands for port and database may be a password whose host was forgotten.
    """
    try:
        parts = parsed(url)
    except DatabaseUnreachable:
        return "an unreadable URL"
    host = parts.get("host", "localhost")
    written = _WELL_WRITTEN.fullmatch(url)
    explicit = "user" in parts and "@" not in url
    if written and not written["user"] and not explicit and host and not host.startswith("/"):
        return str(host)
    name = parts.get("dbname", "")
    port = str(parts.get("port", "")).strip(",") or "5432"
    return f"{host}:{port}/{name if _NAME.fullmatch(name) else '…'}"


def unquoted(text: str) -> str:
    """What somebody says, without what it quotes."""
    return _QUOTED.sub("…", text)


def cause(error: Exception, url: str) -> tuple[str, str]:
    """Why no connection could be had, and what to do.

    The line that says why: the library adds a question and, for several addresses, a line each.
    """
    said = unquoted(str(error))
    lines = [line.strip() for line in said.splitlines() if not re.fullmatch(r"\s*|\s*(HINT|DETAIL):.*|.*\?\s*", line)]
    line = lines[-1].removeprefix("connection failed: ") if lines else type(error).__name__
    way_out = next((way for pattern, way in _WAYS_OUT if re.search(pattern, line)), "")
    fact = _WITHHELD if isinstance(error, UnicodeError) or _may_quote(line, parsed(url)) else line
    return fact, way_out or "check the URL and that the server is up"


def _may_quote(line: str, parts: Mapping[str, Any]) -> bool:
    """Whether a line may hold what was given for a part of the URL, although what is quoted was left out."""
    given = {name: str(value) for name, value in parts.items() if name != "password"}
    # Options are quoted without quotes.
    options = re.split(r"[\s=]+", given.get("options", ""))
    return any(_ANY_QUOTE.search(value) for value in given.values()) or any(o in line for o in options if len(o) > 2)
