"""Tables: the database of a simulated application, created and filled."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from zdm_pipelines.sandbox.application.samples import USERS
from zdm_pipelines.sandbox.application.shapes import Application

Progress = Callable[[int, int], None]
"""Called with the rows that are there and the rows there will be."""

_CHUNK = 20_000  # rows per statement: a progress report about every 0.2 s


def load(url: str, rows: int = 200_000, *, application: Application = USERS, progress: Progress | None = None) -> None:
    """Create and fill the tables of an application.

    Args:
        url: the application's database, which has no such tables yet.
        rows: how many entities.
        application: whose tables; by default `public.users` with names.
        progress: called after every chunk.
    """
    tables = application.tables
    with psycopg.connect(url, autocommit=True) as connection:
        # A crash during the load only means to load again.
        connection.execute("SET synchronous_commit = off")
        connection.execute(tables.create.encode())
        for first in range(1, rows + 1, _CHUNK):
            last = min(first + _CHUNK - 1, rows)
            connection.execute(tables.fill.encode(), {"first": first, "last": last})
            if progress is not None:
                progress(last, rows)
        for statement in tables.finish:
            connection.execute(statement.encode())
