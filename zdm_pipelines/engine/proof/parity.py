"""Parity: compare old and new under the declared mapping, inside the database, several ranges at a time.

Each range has a snapshot of its own, on one of a few connections. Counts and a few keys are all that is kept, put
together in the ranges' order whichever was compared first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from zdm_pipelines.dialects import DatabaseError, fault
from zdm_pipelines.dialects.server import Fault, Server, Session
from zdm_pipelines.engine.proof.failing import failure
from zdm_pipelines.engine.proof.readers import readers
from zdm_pipelines.model.capabilities import Comparison
from zdm_pipelines.model.values import Key, KeyRange, Parity

CATEGORIES = ("missing", "extra", "different", "beyond")
MOST = 4  # ranges at once: each is a scan that keeps a processor of the server busy


@dataclass(frozen=True)
class Counts:
    """What comparing a range came to; in the order of the statement's columns."""

    rows: int
    missing: int
    extra: int
    different: int
    through_down: int
    unmoved: int
    beyond: int = 0

    @property
    def disagree(self) -> bool:
        """Whether some row is of one of the categories."""
        return any(getattr(self, category) for category in CATEGORIES)


class FirstKeys:
    """The first keys of each category, in the order of the ranges, whichever was compared first.

    Args:
        most: of each category; five are enough to look at.
    """

    def __init__(self, most: int = 5) -> None:
        self.most = most
        self._keys: dict[str, dict[int, list[Key]]] = {category: {} for category in CATEGORIES}  # by place

    def wanted(self, category: str, place: int) -> bool:
        """Whether the ranges before a place have not given enough keys so far."""
        found = self._keys[category].copy()
        return sum(len(keys) for before, keys in found.items() if before < place) < self.most

    def put(self, category: str, place: int, rows: Sequence[tuple[Any, ...]]) -> None:
        """Keep the keys of a place, one of each row."""
        self._keys[category][place] = [tuple(key) for (key,) in rows]

    def ordered(self) -> dict[str, tuple[Key, ...]]:
        """By category, those that have any."""
        ordered = {c: [key for place in sorted(found) for key in found[place]] for c, found in self._keys.items()}
        return {category: tuple(keys[: self.most]) for category, keys in ordered.items() if keys}


def compare(
    server: Server,
    name: str,
    sql: Comparison,
    ranges: Sequence[KeyRange],
    *,
    parallel: int,
    new_is_read: bool = False,
    tell: Callable[[int], None] = lambda _: None,
    each: Callable[[KeyRange, Counts], None] = lambda _, __: None,
    prepare: Callable[[Session], object] = lambda _: None,
) -> Parity:
    """Compare ranges, each in a snapshot of its own, so that no snapshot stays open for long.

    Args:
        parallel: how many ranges at once; never more than four.
        new_is_read: all reads are on the new shape, so that what it holds is right where `down` cannot give it.
        tell: called in this thread with the number of rows after each range.
        each: called in this thread after each range, in no certain order.
        prepare: called for each connection.

    Raises:
        MappingFailed: `up` or `down` raises for some row.
    """
    begun = time.monotonic()
    found: dict[int, Counts] = {}
    keys = FirstKeys()

    def wrong(counts: Counts) -> bool:
        return (replace(counts, beyond=0) if new_is_read else counts).disagree

    def count(conn: Session, place: int, which: KeyRange, by: Comparison = sql) -> Counts:
        with conn.snapshot():
            counts = Counts(*conn.run(by.compare(which.lower, which.upper))[0])
            for category in CATEGORIES:
                if getattr(counts, category) and keys.wanted(category, place):
                    statement = by.mismatched_keys(category, which.lower, which.upper, limit=keys.most)
                    keys.put(category, place, conn.run(statement))
        return counts

    def read(conn: Session, place: int, which: KeyRange) -> Counts:
        try:
            return count(conn, place, which)
        except DatabaseError as error:
            if fault(error) is not Fault.OF_DATA:
                raise
            if sql.guard is None:
                raise failure(conn, name, sql, which, error) from None
        # An error ends the statement and says nothing of the other rows, so they are compared another way.
        conn.run(sql.guard)
        try:
            return count(conn, place, which, sql.guarded)
        except DatabaseError as error:
            if fault(error) is not Fault.OF_DATA:
                raise
            raise failure(conn, name, sql.guarded, which, error) from None

    with readers(server, name, ranges, read, sessions=min(parallel, MOST), prepare=prepare) as reading:
        for (_, which), counts in reading.outcomes():
            found[which.ordinal] = counts
            each(which, counts)
            tell(counts.rows)
    total = {field.name: sum(getattr(c, field.name) for c in found.values()) for field in fields(Counts)}
    return Parity(
        keys=keys.ordered(),
        new_is_read=new_is_read,
        partitions=tuple(r.partition for r in ranges if wrong(found[r.ordinal])),
        seconds=time.monotonic() - begun,
        **total,
    )
