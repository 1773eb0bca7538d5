"""Connections: made one way, closed always, and their failures said in one sentence without the password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, cast

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow

from zdm_pipelines.model.errors import DatabaseUnreachable, MissingPrivilege, Problem

Connection = psycopg.Connection[TupleRow]

MINIMUM_VERSION = 140000
CONNECT_SECONDS = 10

# A server that lost us must notice: the first stops a statement whose client is gone, the second a
# transaction whose client froze between two statements while it holds locks.
_SETTINGS = (
    "-c client_connection_check_interval=1000 -c idle_in_transaction_session_timeout=15000 "
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 "
    "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=1"
)

# The connection is gone or the server is going down: what happened must be looked up, then tried again.
LOST = (psycopg.OperationalError, psycopg.InterfaceError)


def where(url: str) -> str:
    """host:port/database of a URL, for messages; never user or password."""
    try:
        parts = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return "an unreadable URL"
    return f"{parts.get('host', 'localhost')}:{parts.get('port', '5432')}/{parts.get('dbname', '')}"


def connect(url: str, *, purpose: str, autocommit: bool = True) -> Connection:
    """Open a connection named `zdm <purpose>`.

    Raises:
        DatabaseUnreachable: the server does not answer, refuses us, or is too old.
    """
    try:
        given = conninfo_to_dict(url)
        options = f"{given.get('options') or ''} {_SETTINGS}".strip()
        conn = psycopg.connect(
            url,
            autocommit=autocommit,
            cursor_factory=psycopg.RawCursor,  # $1, $2: a % in a name or in the user's SQL stays a %
            application_name=f"zdm {purpose}"[:63],
            options=options,
            connect_timeout=CONNECT_SECONDS,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
    except psycopg.Error as error:
        cause = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise DatabaseUnreachable(
            f"database {where(url)}", f"cannot connect: {cause}", "check the URL and that the server is up"
        ) from None
    if conn.info.server_version < MINIMUM_VERSION:
        version = conn.info.server_version
        conn.close()
        raise DatabaseUnreachable(
            f"database {where(url)}", f"runs Postgres {version // 10000}", "use Postgres 14 or later"
        )
    return conn


@contextmanager
def connected(url: str, *, purpose: str) -> Iterator[Connection]:
    """A connection for one block, in autocommit, always closed."""
    conn = connect(url, purpose=purpose)
    try:
        yield conn
    finally:
        conn.close()


def query(conn: Connection, sql: str, params: Any = None) -> list[TupleRow]:
    """Run one statement and return its rows (none where it gives none)."""
    cursor = conn.execute(cast(LiteralString, sql), params)
    return cursor.fetchall() if cursor.description else []


def scalar(conn: Connection, sql: str, params: Any = None) -> Any:
    """The first column of the first row, None without rows."""
    rows = query(conn, sql, params)
    return rows[0][0] if rows else None


def lost(error: Exception, conn: Connection) -> bool:
    """Whether the connection is gone, so that the outcome of what ran on it is unknown."""
    return isinstance(error, LOST) and (conn.closed or conn.broken or isinstance(error, errors.AdminShutdown))


def privilege_problem(error: psycopg.Error, thing: str) -> MissingPrivilege:
    """`permission denied` in our words."""
    return MissingPrivilege(
        thing,
        f"the role may not do this ({error.diag.message_primary or error})",
        "let the owner of the table run the migration, or grant what docs/production.md lists",
    )


def safe(error: psycopg.Error) -> str:
    """What went wrong, without the row's values that data errors (class 22, 23) quote in their message."""
    state = error.sqlstate or ""
    if state.startswith(("22", "23")):
        return f"{type(error).__name__} (SQLSTATE {state})"
    return (error.diag.message_primary or str(error)).strip()


def problem(error: psycopg.Error, thing: str, way_out: str) -> Problem:
    """A server error as a preflight finding."""
    return Problem(thing, safe(error), way_out)
