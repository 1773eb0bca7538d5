"""Pairs: compare two tables, exactly, at about the speed of reading them.

Two tables that lie in the order of their key are read along it and joined by merging: nothing is sorted or kept, and
to compare two values costs no more than to hash both. A table that lies in another order, such as one with a random
uuid as key, would be fetched a page for each row that way. Of such a pair, checksums say first which rows need the
join: they take rows in any order. Each range then reads most of the table's pages, so ranges are few and large, and the
server works in parallel on each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.engine.proof.parity import CATEGORIES, FirstKeys
from zdm_pipelines.engine.proof.readers import readers
from zdm_pipelines.engine.rows import ranges
from zdm_pipelines.model.values import Catalog, Key, KeyRange, Parity, Statement

_RANGE_ROWS = 100_000  # a twentieth of a second
_SCATTERED_ROWS = 8_000_000  # of a range that reads about the whole table: some seconds
_SCATTERED_RANGES = 8  # at most: so often is the table read
_WALK_ROWS = 400  # by which the order of a table is told
_WALKS = 5
_DETOUR = 4  # times the pages that the rows fill: more, and a walk by the key's index is a detour


class Side(Protocol):
    """One table of a pair."""

    @property
    def table(self) -> Catalog:
        """The table as the server described it."""
        ...

    def walk(self, start: Key | None, *, rows: int) -> Statement:
        """A walk along the key's index: how many rows it meets, at most so many, on how many pages, and of how many."""
        ...


class Pair(Protocol):
    """Two tables with the same key; each statement reads both, so that one snapshot sees both."""

    @property
    def sides(self) -> Sequence[Side]:
        """The old and the new table."""
        ...

    @property
    def buckets(self) -> int:
        """How many buckets checksums are taken of."""
        ...

    def compare(self, lower: Key | None, upper: Key | None, *, buckets: Sequence[int] | None = None) -> Statement:
        """Counts of an interval: rows, missing, extra, different; only of these buckets."""
        ...

    def mismatched_keys(
        self, category: str, lower: Key | None, upper: Key | None, *, limit: int, buckets: Sequence[int] | None = None
    ) -> Statement:
        """The first keys of one category in an interval."""
        ...

    def checksums(self, lower: Key | None, upper: Key | None, *, by_bucket: bool) -> Statement:
        """How many rows lie in buckets whose checksums are alike, and the buckets where they are not."""
        ...


def cut(conn: Session, pair: Pair, *, range_rows: int = _RANGE_ROWS) -> list[KeyRange]:
    """Ranges over the keys of both tables, cut from the larger one; few and large where a table is scattered."""
    rows, side = max(((ranges.estimate_rows(conn, s.table), s) for s in pair.sides), key=lambda found: found[0])
    lowers = ranges.cut(conn, side.table, range_rows=range_rows)
    if scattered(conn, pair, lowers):
        lowers = ranges.cut(conn, side.table, range_rows=max(_SCATTERED_ROWS, -(-rows // _SCATTERED_RANGES)))
    bounds = [None, *lowers, None]
    return [
        KeyRange(ordinal=n, partition=ranges.partition_key(n, bounds[n - 1]), lower=bounds[n - 1], upper=bounds[n])
        for n in range(1, len(bounds))
    ]


def scattered(conn: Session, pair: Pair, starts: Sequence[Key]) -> bool:
    """Whether one of the tables lies in another order than its key's: some walks from these keys tell."""
    spread = [None, *starts[:: max(1, len(starts) // _WALKS)]][:_WALKS]
    return any(_detours(conn, side, spread) for side in pair.sides)


def _detours(conn: Session, side: Side, starts: Sequence[Key | None]) -> bool:
    met = [conn.run(side.walk(start, rows=_WALK_ROWS))[0] for start in starts]
    rows, visited = sum(m[0] for m in met), sum(m[1] for m in met)
    filled = rows * met[0][2] / max(1, ranges.estimate_rows(conn, side.table))
    return bool(visited > _DETOUR * max(filled, len(starts)))


def compare(
    server: Server,
    name: str,
    pair: Pair,
    wanted: Sequence[KeyRange],
    *,
    processes: int = 2,
    first_keys: int = 5,
    tell: Callable[[int], None] = lambda _: None,
) -> Parity:
    """Compare ranges, each in a snapshot of its own, so that no snapshot stays open for long.

    Args:
        name: what errors and sessions call it.
        processes: how many of the server's work at once: on ranges of their own, or in parallel on a large one.
        first_keys: of each category, enough to look at.
        tell: called with the number of rows after each range.

    Raises:
        MappingFailed: an expression raises for some row.
        DatabaseUnreachable: a connection cannot be had.
    """
    begun = time.monotonic()
    with server.connect(purpose=f"{name} compare") as conn:
        along = not scattered(conn, pair, [r.lower for r in wanted if r.lower is not None])
    comparison = _Comparison(pair, along=along, processes=processes, keys=FirstKeys(first_keys))
    sessions = processes if along else 1
    seen: dict[int, _Seen] = {}
    with readers(server, name, wanted, comparison.read, sessions=sessions, prepare=comparison.prepare) as reading:
        for (_, which), found in reading.outcomes():
            seen[which.ordinal] = found
            tell(found.rows)
    return Parity(
        rows=sum(s.rows for s in seen.values()),
        seconds=time.monotonic() - begun,
        keys=comparison.keys.ordered(),
        partitions=tuple(r.partition for r in wanted if seen[r.ordinal].counts),
        **{c: sum(s.counts.get(c, 0) for s in seen.values()) for c in CATEGORIES},
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one range came to."""

    rows: int
    counts: Mapping[str, int] = field(default_factory=dict)  # by category, those with rows


class _Comparison:
    """How the ranges of a pair are compared; `along`: by the key's index on both sides, else by checksums first."""

    def __init__(self, pair: Pair, *, along: bool, processes: int, keys: FirstKeys) -> None:
        self.keys = keys
        self._pair = pair
        self._along = along
        self._processes = processes

    def prepare(self, conn: Session) -> None:
        """Settings of a session that compares."""
        conn.pairs.prepare(along=self._along, processes=self._processes)

    def read(self, conn: Session, place: int, one: KeyRange) -> _Seen:
        """One range, in one snapshot."""
        alike, buckets = 0, None
        if not self._along:
            alike, unlike = conn.run(self._pair.checksums(one.lower, one.upper, by_bucket=False))[0]
            if not unlike:
                return _Seen(rows=alike)
            alike, buckets = conn.run(self._pair.checksums(one.lower, one.upper, by_bucket=True))[0]
            if len(buckets) > self._pair.buckets // 2:
                alike, buckets = 0, None  # to pick rows by bucket would save little
        rows, *counts = conn.run(self._pair.compare(one.lower, one.upper, buckets=buckets))[0]
        bad = {c: n for c, n in zip(CATEGORIES, counts, strict=True) if n}
        for category in bad:
            if self.keys.wanted(category, place):
                statement = self._pair.mismatched_keys(
                    category, one.lower, one.upper, limit=self.keys.most, buckets=buckets
                )
                self.keys.put(category, place, conn.run(statement))
        return _Seen(rows=alike + rows, counts=bad)
