"""Budget: how many batches may run at once in a database, over all migrations, runs and machines.

Places are advisory locks, which the server hands on in the order of asking: migrations take turns batch by batch,
and a worker that died gives its place back with its session.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import errors

from zdm_pipelines.dialects.postgres.connection import Connection, query
from zdm_pipelines.engine import sessions

_LOOK_UP = "500ms"  # how long to queue before looking whether work still goes on


def place(number: int) -> str:
    """The lock of a place."""
    return f"zdm:batch:{number}"


@contextmanager
def turn(conn: Connection, places: int) -> Iterator[bool]:
    """Queue for one of the places, for a moment; false when none was had."""
    numbers = list(range(places))
    random.shuffle(numbers)
    had = next((n for n in numbers if sessions.take(conn, place(n), wait=0)), None)
    if had is None and _queue(conn, place(numbers[0])):
        had = numbers[0]
    try:
        yield had is not None
    finally:
        if had is not None:
            # A session that is lost gave it back already.
            with contextlib.suppress(psycopg.Error):
                sessions.leave(conn, place(had))


def _queue(conn: Connection, name: str) -> bool:
    try:
        with conn.transaction():
            query(conn, "SELECT set_config('lock_timeout', $1, true)", [_LOOK_UP])
            # Of the session: it outlives this transaction.
            query(conn, "SELECT pg_advisory_lock(hashtextextended($1, 0))", [name])
    except errors.LockNotAvailable:
        return False
    return True
