"""Locks: on tables, with time-outs that let nobody wait for long, and on names of ours (advisory locks)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import psycopg
from psycopg import errors

from zdm_pipelines.dialects.postgres.timeouts import milliseconds
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.values import Statement

if TYPE_CHECKING:
    from zdm_pipelines.dialects.postgres.connection import Connection


class PostgresLocks:
    """See `Locks` for what each member is."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def limit(self, *, lock: float, statement: float, idle: float) -> None:
        """Time-outs of the present transaction."""
        self._conn.named("locks.limit", *(milliseconds(seconds) for seconds in (lock, statement, idle)))

    def exclude(self, table: TableName) -> None:
        """Keep everybody else away from a table, reads too, until the present transaction ends."""
        self._conn.run(Statement(f"LOCK TABLE {table.sql} IN ACCESS EXCLUSIVE MODE"))

    def send_maintenance_away(self, table: TableName) -> None:
        """The server cancels an autovacuum that somebody waits for."""
        self._conn.run(Statement(f"LOCK TABLE {table.sql} IN SHARE UPDATE EXCLUSIVE MODE"))

    def run_queueing(self, statement: Statement, *, wait: float) -> None:
        """Run a statement outside of transactions."""
        self._conn.named("locks.wait_in_session", milliseconds(wait))
        try:
            self._conn.run(statement)
        finally:
            # A session that is lost needs no setting.
            with contextlib.suppress(psycopg.Error):
                self._conn.named("locks.wait_in_session", "0")

    def take(self, name: str, *, shared: bool = False) -> bool:
        """Take a name, if it is free."""
        return bool(self._conn.value("locks.take_shared" if shared else "locks.take", name))

    def queue(self, name: str, *, wait: float) -> bool:
        """Queue for a name; it is had by the session and outlives the transaction of the time-out."""
        try:
            with self._conn.transaction():
                self._conn.named("locks.wait", milliseconds(wait))
                self._conn.named("locks.queue", name)
        except errors.LockNotAvailable:
            return False
        return True

    def leave(self, name: str) -> None:
        """Give a name back."""
        self._conn.named("locks.leave", name)
