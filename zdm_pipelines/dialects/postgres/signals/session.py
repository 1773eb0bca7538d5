"""Session: the connection of a signal that asks the server, and what most such signals are."""

from __future__ import annotations

from contextlib import suppress
from itertools import islice
from typing import Any

import psycopg
from psycopg import errors
from psycopg.rows import TupleRow

from zdm_pipelines.dialects.postgres.connection import Connection, connect, query
from zdm_pipelines.dialects.postgres.timeouts import milliseconds
from zdm_pipelines.model.signals import DEADLINE, Surroundings

# How the server's statistics of statements know ours. At the end: some versions cut what stands before a statement.
_MARK = "\n/* zdm_signal */"

# SQL over pg_stat_activity: sessions that are not ours. The name is shown to every role.
NOT_OURS = "(pid <> pg_backend_pid() AND coalesce(application_name, '') NOT LIKE 'zdm %')"
# SQL: the oid of the database we are in.
THIS_DATABASE = "(SELECT oid FROM pg_database WHERE datname = current_database())"


def hidden(what: str) -> errors.InsufficientPrivilege:
    """The error that a role which may not look raises: what it does not see must not count as nothing."""
    return errors.InsufficientPrivilege(f"{what} hidden from the role: GRANT pg_monitor to it")


class Session:
    """A connection made when it is first needed, and anew after it was lost."""

    def __init__(self, url: str, *, purpose: str, read_only: bool = False) -> None:
        self._url = url
        self._purpose = purpose
        self._read_only = read_only
        self._conn: Connection | None = None

    def query(self, sql: str, params: Any = None) -> list[TupleRow]:
        """Run one statement, which the server ends after DEADLINE seconds.

        Raises:
            psycopg.Error, DatabaseUnreachable
        """
        return query(self._opened(), sql + _MARK, params)

    def first(self, sql: str, rows: int) -> list[TupleRow]:
        """Run one statement of the user's, which cannot write, and return its first rows; the others are never fetched.

        Raises:
            psycopg.Error, DatabaseUnreachable
        """
        conn = self._opened()
        # A setting could be taken back by the statement itself; what a transaction that has read anything may do, not.
        query(conn, "BEGIN READ ONLY")
        try:
            query(conn, "SELECT 1")
            # Streamed, which also keeps a second statement after a semicolon out.
            with conn.cursor() as cursor:
                return list(islice(cursor.stream((sql + _MARK).encode()), rows))
        finally:
            with suppress(psycopg.Error):  # what went wrong before is what is to be told
                query(conn, "ROLLBACK")

    def _opened(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = connect(self._url, purpose=self._purpose)
            query(
                self._conn,
                "SELECT set_config('statement_timeout', $1, false), set_config('default_transaction_read_only', $2, "
                "false)",
                [milliseconds(DEADLINE), "on" if self._read_only else "off"],
            )
        return self._conn

    def close(self) -> None:
        """Close the connection; the next query opens another."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None


class OnPrimary:
    """What most signals are: a statement on the primary."""

    every = 0.5
    samples = 1

    def __init__(self, around: Surroundings) -> None:
        self.catalog = around.catalog
        self.clock = around.clock
        self.session = Session(around.url, purpose="throttle")

    def close(self) -> None:
        """Close the connection."""
        self.session.close()
