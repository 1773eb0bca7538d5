"""Readers: workers that read ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from zdm_pipelines.dialects import mapping
from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.engine.workers import Workers
from zdm_pipelines.model.values import KeyRange

Found = TypeVar("Found")


def readers(
    server: Server,
    name: str,
    ranges: Sequence[KeyRange],
    read: Callable[[Session, int, KeyRange], Found],
    *,
    sessions: int,
    prepare: Callable[[Session], object] = lambda _: None,
) -> Workers[Session, tuple[int, KeyRange], Found]:
    """Workers for ranges, whose items are each range with its place among them.

    Args:
        name: what errors and sessions call the reading.
        read: what is read of a range.
        sessions: how many at most.
        prepare: called for each connection.
    """

    @contextmanager
    def desk() -> Iterator[Session]:
        with server.connect(purpose=f"{name} compare") as conn:
            prepare(conn)
            yield conn

    def work(conn: Session, item: tuple[int, KeyRange]) -> Found:
        place, which = item
        with mapping(f"{name} range {which.partition}"):
            return read(conn, place, which)

    return Workers(
        list(enumerate(ranges)),
        name="zdm compare",
        desk=desk,
        work=work,
        parallel=lambda: min(sessions, len(ranges)),
        interrupt=lambda conn, cut: conn.interrupt(cut=cut),
    )
