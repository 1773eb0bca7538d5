"""Parity: compare old and new under the declared mapping, inside the database, several ranges at a time.

Each range has a snapshot of its own, on one of a few connections. Counts and a few keys are all that is kept, put
together in the ranges' order whichever was compared first.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import psycopg

from zdm_pipelines.dialects.postgres.connection import Connection, connected, mapping, query
from zdm_pipelines.model.errors import DatabaseUnreachable
from zdm_pipelines.model.values import Key, KeyRange, Parity

CATEGORIES = ("missing", "extra", "different")
MOST = 4  # ranges at once: each is a scan that keeps a processor of the server busy
_FIRST_KEYS = 5  # of each category, enough to look at
_LOOK = 0.5  # seconds between two looks whether somebody interrupted us
_CANCEL = 0.2  # seconds between two requests to cancel: one that comes between two statements ends neither
_CANCELS = 10  # so many, then the connection is cut


class ParitySql(Protocol):
    """The statements of one kind of change."""

    def compare(self, lower: Key | None, upper: Key | None) -> tuple[str, list[list[str]]]:
        """Parity counts of an interval."""
        ...

    def mismatched_keys(
        self, category: str, lower: Key | None, upper: Key | None, *, limit: int
    ) -> tuple[str, list[list[str]]]:
        """First keys of a category."""
        ...


@dataclass(frozen=True)
class Counts:
    """What comparing a range came to; in the order of the statement's columns."""

    rows: int
    missing: int
    extra: int
    different: int
    through_down: int
    unmoved: int

    @property
    def disagree(self) -> bool:
        """Whether some row is of one of the categories."""
        return any(getattr(self, category) for category in CATEGORIES)


def compare(
    url: str,
    name: str,
    sql: ParitySql,
    ranges: Sequence[KeyRange],
    *,
    parallel: int,
    tell: Callable[[int], None] = lambda _: None,
    each: Callable[[KeyRange, Counts], None] = lambda _, __: None,
) -> Parity:
    """Compare ranges, each in a snapshot of its own, so that no snapshot stays open for long.

    Args:
        parallel: how many ranges at once; never more than four.
        tell: called in this thread with the number of rows after each range.
        each: called in this thread after each range, in no certain order.

    Raises:
        MappingFailed: `up` or `down` raises for some row.
    """
    begun = time.monotonic()
    found: dict[int, Counts] = {}
    with _Comparing(url, name, sql, ranges, parallel=min(parallel, MOST)) as comparing:
        for which, counts in comparing.outcomes():
            found[which.ordinal] = counts
            each(which, counts)
            tell(counts.rows)
        keys = comparing.first_keys()
    total = {field.name: sum(getattr(c, field.name) for c in found.values()) for field in fields(Counts)}
    return Parity(
        keys=keys,
        partitions=tuple(r.partition for r in ranges if found[r.ordinal].disagree),
        seconds=time.monotonic() - begun,
        **total,
    )


class _NoConnection(Exception):
    """A thread found no connection; the others may do its work."""

    def __init__(self, error: DatabaseUnreachable) -> None:
        super().__init__(str(error))
        self.error = error


class _Comparing:
    """Threads that compare ranges, each on a connection of its own; left, it leaves none of them behind."""

    def __init__(self, url: str, name: str, sql: ParitySql, ranges: Sequence[KeyRange], *, parallel: int) -> None:
        self.url = url
        self.name = name
        self.sql = sql
        self.stop = threading.Event()
        self.todo: queue.SimpleQueue[tuple[int, KeyRange]] = queue.SimpleQueue()
        for place in enumerate(ranges):
            self.todo.put(place)
        self.keys: dict[str, dict[int, list[Key]]] = {category: {} for category in CATEGORIES}  # by place
        self.missing = len(ranges)
        self.came: queue.SimpleQueue[tuple[KeyRange, Counts] | BaseException] = queue.SimpleQueue()
        self.open: dict[threading.Thread, Connection] = {}
        self.threads = [
            # A daemon: should the server not even notice that it is cut off, our process can end all the same.
            threading.Thread(target=self._work, name="zdm compare", daemon=True)
            for _ in range(min(parallel, len(ranges)))
        ]

    def __enter__(self) -> _Comparing:
        try:
            for thread in self.threads:
                thread.start()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def outcomes(self) -> Iterator[tuple[KeyRange, Counts]]:
        """Each range's counts as they come; raises what a thread raised."""
        without = 0
        while self.missing:
            try:
                # A short wait keeps the main thread open to interrupts.
                outcome = self.came.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if isinstance(outcome, _NoConnection):
                without += 1
                if without == len(self.threads):
                    raise outcome.error
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                self.missing -= 1
                yield outcome

    def _work(self) -> None:
        try:
            with connected(self.url, purpose=f"{self.name} compare") as conn:
                conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                self.open[threading.current_thread()] = conn
                try:
                    self._ranges(conn)
                finally:
                    del self.open[threading.current_thread()]
        except DatabaseUnreachable as error:
            self.came.put(_NoConnection(error))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, nothing is swallowed
            self.came.put(error)

    def _ranges(self, conn: Connection) -> None:
        while not self.stop.is_set():
            try:
                place, which = self.todo.get_nowait()
            except queue.Empty:
                return
            statement, params = self.sql.compare(which.lower, which.upper)
            # In one snapshot, so that the keys are those of the rows that were counted.
            with conn.transaction(), mapping(f"{self.name} range {which.partition}"):
                counts = Counts(*query(conn, statement, params)[0])
                for category in CATEGORIES:
                    if getattr(counts, category) and self._wanted(category, place):
                        statement, params = self.sql.mismatched_keys(
                            category, which.lower, which.upper, limit=_FIRST_KEYS
                        )
                        self.keys[category][place] = [tuple(key) for (key,) in query(conn, statement, params)]
            self.came.put((which, counts))

    def _wanted(self, category: str, place: int) -> bool:
        """Whether the ranges before a place have not given enough keys so far."""
        found = self.keys[category].copy()
        return sum(len(keys) for before, keys in found.items() if before < place) < _FIRST_KEYS

    def first_keys(self) -> dict[str, tuple[Key, ...]]:
        """The first keys of each category, in the order of the ranges."""
        ordered = {c: [key for place in sorted(found) for key in found[place]] for c, found in self.keys.items()}
        return {category: tuple(keys[:_FIRST_KEYS]) for category, keys in ordered.items() if keys}

    def _end(self) -> None:
        """End what is under way; a statement whose result nobody wants is not waited for."""
        self.stop.set()
        asked = 0
        for thread in self.threads:
            while thread.ident is not None and thread.is_alive():
                if self.missing:
                    for conn in list(self.open.values()):
                        _interrupt(conn, cut=asked >= _CANCELS)
                    asked += 1
                thread.join(_CANCEL)


def _interrupt(conn: Connection, *, cut: bool) -> None:
    """Let another thread's statement end: cancelled by the server, or else with its connection."""
    try:
        if not cut:
            conn.cancel_safe(timeout=2.0)
            return
    except psycopg.Error:
        pass  # a server that takes no request to cancel is cut off
    with contextlib.suppress(OSError, psycopg.Error):  # closed meanwhile
        ours = socket.socket(fileno=os.dup(conn.fileno()))
        try:
            ours.shutdown(socket.SHUT_RDWR)
        finally:
            ours.close()
