"""Flags: which shape of the data the application reads, per key, from a percentage the migration raises."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import errors
from psycopg.rows import tuple_row

_READ = "SELECT name, percent FROM zdm.flag"

_READ_TIMEOUT = "1s"  # a flag is one tiny table; what takes longer is in trouble, and the last known value serves
MAX_TTL = 2.0  # seconds: before a shape of the data goes, clients are given this and some more to see the flag fall


class Flags:
    """The read flags of an application, cached, from the table `zdm.flag` in its own database.

    A read that fails changes nothing: the last known values stay until a later read succeeds. So does a flag
    that was once seen and is gone. Flags have their own connection: their failure cannot abort the caller's
    transaction. Safe to share between threads; make one per process, after any fork.

    Args:
        connect: opens a connection to the application's database; called again after the connection is lost.
        ttl: seconds for which a value is used before it is read again; at most MAX_TTL, whatever is given.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]], ttl: float = 1.0) -> None:
        self._connect = connect
        self._ttl = min(ttl, MAX_TTL)
        self._connection: psycopg.Connection[Any] | None = None
        self._percents: dict[str, int] = {}
        self._read_at: float | None = None
        self._reading = threading.Lock()

    def percent(self, flag: str) -> int | None:
        """Of a hundred keys, how many have it on; none: there is no such flag, or no migration yet."""
        self._refresh()
        return self._percents.get(flag)

    def is_on(self, flag: str, key: object, *, default: bool = False) -> bool:
        """Whether the flag is on for this key; a key that is on stays on while the percentage rises.

        Args:
            flag: the flag's name.
            key: what the answer depends on, such as a user's id; its `str` counts.
            default: the answer while there is no such flag.
        """
        percent = self.percent(flag)
        return default if percent is None else bucket(flag, key) < percent

    def close(self) -> None:
        """Close the flags' own connection; the next use opens another."""
        with self._reading:
            self._drop_connection()

    def _refresh(self) -> None:
        if self._read_at is not None and time.monotonic() - self._read_at < self._ttl:
            return
        # Only the very first read makes everybody wait; later ones make one thread wait, the others use what
        # is known.
        if self._reading.acquire(blocking=self._read_at is None):
            try:
                asked = time.monotonic()
                if self._read_at is None or asked - self._read_at >= self._ttl:
                    self._percents = self._percents | self._read()
                    self._read_at = asked  # not when the answer came: it was on its way while the flag may have moved
            finally:
                self._reading.release()

    def _read(self) -> dict[str, int]:
        try:
            if self._connection is None:
                self._connection = self._connect()
                self._connection.autocommit = True
            # In a transaction, so that the timeout cannot leak to another user of a pooled server connection.
            with self._connection.transaction(), self._connection.cursor(row_factory=tuple_row) as cursor:
                cursor.execute("SELECT set_config('statement_timeout', %s, true)", [_READ_TIMEOUT])
                return dict(cursor.execute(_READ).fetchall())
        except (
            errors.UndefinedTable,
            errors.InvalidSchemaName,
        ):  # no migration has come yet: an answer, no failure
            return {}
        except (psycopg.Error, OSError):
            self._drop_connection()
            return {}

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def bucket(flag: str, key: object) -> int:
    """Place a key in 0 to 99 for a flag: the flag is on for it when its percentage is higher."""
    return zlib.crc32(f"{flag}:{key}".encode()) % 100
