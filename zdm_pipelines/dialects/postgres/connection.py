"""Connections: made one way, closed always, and their failures said in one sentence without the password."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow

from zdm_pipelines.dialects.postgres.environment import FIXED
from zdm_pipelines.dialects.postgres.locks import PostgresLocks
from zdm_pipelines.dialects.postgres.rows import PostgresRows
from zdm_pipelines.dialects.postgres.statements import named_statements
from zdm_pipelines.dialects.postgres.sync import PostgresSyncNotes
from zdm_pipelines.dialects.postgres.timeouts import milliseconds
from zdm_pipelines.dialects.postgres.urls import cause, parsed, where
from zdm_pipelines.model.errors import DatabaseUnreachable
from zdm_pipelines.model.values import Statement


class Connection(psycopg.Connection[TupleRow]):
    """A driver's connection that is a `Session`, too."""

    def named(self, name: str, *values: Any) -> list[TupleRow]:
        """Run a named block of this folder's `.sql` files; gives its rows."""
        return query(self, named_statements()[name], values or None)

    def value(self, name: str, *values: Any) -> Any:
        """Run a named block; gives the first column of the first row, None without rows."""
        return scalar(self, named_statements()[name], values or None)

    def run(self, statement: Statement) -> list[TupleRow]:
        """Run one statement; gives its rows."""
        return query(self, statement.sql, statement.values or None)

    def send(self, name: str, *values: Any) -> None:
        """Run a named block whose rows nobody wants; in a pipeline nothing is waited for."""
        self.execute(named_statements()[name].encode(), values or None)

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """A transaction whose statements all see one snapshot."""
        self.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        try:
            with self.transaction():
                yield
        finally:
            # A connection that is lost begins no other transaction.
            if not self.closed:
                self.isolation_level = None

    def interrupt(self, *, cut: bool) -> None:
        """Let another thread's statement end: cancelled by the server, or else with its connection."""
        try:
            if not cut:
                self.cancel_safe(timeout=2.0)
                return
        except psycopg.Error:
            pass  # a server that takes no request to cancel is cut off
        with contextlib.suppress(OSError, psycopg.Error):  # closed meanwhile
            ours = socket.socket(fileno=os.dup(self.fileno()))
            try:
                ours.shutdown(socket.SHUT_RDWR)
            finally:
                ours.close()

    @property
    def rows(self) -> PostgresRows:
        """The statements of row work."""
        return PostgresRows(self)

    @property
    def locks(self) -> PostgresLocks:
        """Locks on tables and names."""
        return PostgresLocks(self)

    @property
    def sync(self) -> PostgresSyncNotes:
        """What the sync notes."""
        return PostgresSyncNotes(self)


MINIMUM_VERSION = 140000
CONNECT_SECONDS = 10

# What a server, a database or a role sets for everybody is not meant for us: it would end a comparison that takes long,
# or hide rows.
_SETTINGS = {
    # A server that lost us must notice: the first stops a statement whose client is gone, the second a transaction
    # whose client froze between two statements while it holds locks.
    "client_connection_check_interval": "1000",
    "idle_in_transaction_session_timeout": "15000",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "idle_session_timeout": "0",
    "statement_timeout": "0",
    "lock_timeout": "0",
    # Every statement sees what is there now: what was looked at before a lock is looked at again behind it.
    "default_transaction_isolation": "read\\ committed",
    "default_transaction_deferrable": "off",
    # Rows that a policy hides from us must be an error: they would be neither moved nor compared.
    "row_security": "off",
    # A function that does not even parse is found before it stands in the application's way.
    "check_function_bodies": "on",
    "client_min_messages": "warning",
    "exit_on_error": "off",  # what fails is tried again, or said
    "gin_fuzzy_search_limit": "0",  # an index gives all that it finds
    "default_table_access_method": "heap",  # the ledger's tables are updated, and rows are found by their place
    "plan_cache_mode": "auto",
    # A batch goes by an index, and writes rows by their place: without these it would read the table each time.
    **{
        f"enable_{way}": "on"
        for way in (
            "bitmapscan", "hashagg", "hashjoin", "indexonlyscan", "indexscan", "material", "mergejoin", "nestloop",
            "seqscan", "sort", "tidscan",
        )
    },
    "DateStyle": "ISO",  # keys are text; the order of day and month stays the database's
    **FIXED,
}  # fmt: skip
_OPTIONS = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
# The client library hands these on to the server, ahead of all that is said here: the machine that a worker runs on
# would say what `up` gives.
_OF_THE_MACHINE = ("PGTZ", "PGDATESTYLE")


_answered: dict[str, float] = {}  # what errors call the database, and when it took a connection last


def answered_since(thing: str, moment: float) -> bool:
    """Whether a database (`thing` of a DatabaseUnreachable) took a connection of ours after a monotonic time."""
    return _answered.get(thing, float("-inf")) >= moment


def parameters(url: str, *, purpose: str) -> dict[str, Any]:
    """What every connection of ours is made with, beside its URL.

    Raises:
        DatabaseUnreachable: the URL cannot be read.
    """
    given = parsed(url)
    for name in _OF_THE_MACHINE:
        os.environ.pop(name, None)
    return {
        "application_name": f"zdm {purpose}"[:63],
        "options": f"{given.get('options') or ''} {_OPTIONS}".strip(),
        "client_encoding": "utf8",  # as statements are sent
        "connect_timeout": CONNECT_SECONDS,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,  # keepalives ask nothing while something sent is unanswered
    }


def connect(url: str, *, purpose: str, autocommit: bool = True) -> Connection:
    """Open a connection named `zdm <purpose>`.

    Raises:
        DatabaseUnreachable: the server does not answer, refuses us, or is too old.
    """
    given = parameters(url, purpose=purpose)
    try:
        # RawCursor: $1, $2: a % in a name or in the user's SQL stays a %
        conn = Connection.connect(url, autocommit=autocommit, cursor_factory=psycopg.RawCursor, **given)
    except (psycopg.Error, UnicodeError) as error:  # the latter: a host that is no name
        fact, way_out = cause(error, url)
        raise DatabaseUnreachable(f"database {where(url)}", f"cannot connect: {fact}", way_out) from None
    if conn.info.server_version < MINIMUM_VERSION:
        version = conn.info.server_version
        conn.close()
        raise DatabaseUnreachable(
            f"database {where(url)}", f"runs Postgres {version // 10000}", "use Postgres 14 or later"
        )
    try:
        conn.named("environment.own")
        conn.commit()
    except errors.InsufficientPrivilege:
        conn.close()
        raise DatabaseUnreachable(
            f"database {where(url)}",
            "sets session_replication_role for our role, which may not set it back",
            "let an administrator RESET it for the role and the database",
        ) from None
    _answered[f"database {where(url)}"] = time.monotonic()
    return conn


@contextmanager
def connected(url: str, *, purpose: str, deadline: float | None = None) -> Iterator[Connection]:
    """A connection for one block, in autocommit, always closed.

    Args:
        deadline: seconds after which the server ends a statement of it; default: never.
    """
    conn = connect(url, purpose=purpose)
    try:
        if deadline is not None:
            set_deadline(conn, deadline)
        yield conn
    finally:
        conn.close()


def set_deadline(conn: Connection, deadline: float) -> None:
    """Let no statement of a connection take longer, whoever holds a row; nor wait for a synchronous replica."""
    query(
        conn,
        "SELECT set_config('statement_timeout', $1, false), set_config('synchronous_commit', 'local', false)",
        [milliseconds(deadline)],
    )


@contextmanager
def undone(conn: Connection) -> Iterator[None]:
    """A transaction that is always rolled back: try things out and change nothing."""
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.execute("ROLLBACK")


@contextmanager
def attempt(conn: Connection) -> Iterator[None]:
    """A savepoint that is always rolled back, so that a failing attempt leaves the transaction usable."""
    conn.execute("SAVEPOINT zdm_attempt")
    try:
        yield
    finally:
        conn.execute("ROLLBACK TO SAVEPOINT zdm_attempt")
        conn.execute("RELEASE SAVEPOINT zdm_attempt")  # else this savepoint hides an outer one of the same name


def query(conn: Connection, sql: str, params: Any = None) -> list[TupleRow]:
    """Run one statement and return its rows (none where it gives none)."""
    cursor = conn.execute(sql.encode(), params)
    return cursor.fetchall() if cursor.description else []


def scalar(conn: Connection, sql: str, params: Any = None) -> Any:
    """The first column of the first row, None without rows."""
    rows = query(conn, sql, params)
    return rows[0][0] if rows else None
