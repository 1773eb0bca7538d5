"""Parity: compare old and new under the declared mapping, inside the database, range by range."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from zdm_pipelines.dialects.postgres.connection import Connection, mapping, query
from zdm_pipelines.model.values import Key, KeyRange, Parity

CATEGORIES = ("missing", "extra", "different")
_FIRST_KEYS = 5  # of each category, enough to look at


class ParitySql(Protocol):
    """The statements of one kind of change."""

    def compare(self, lower: Key | None, upper: Key | None) -> tuple[str, list[list[str]]]: ...
    def mismatched_keys(
        self, category: str, lower: Key | None, upper: Key | None, *, limit: int
    ) -> tuple[str, list[list[str]]]: ...


def compare(
    conn: Connection,
    name: str,
    sql: ParitySql,
    ranges: Sequence[KeyRange],
    *,
    tell: Callable[[int], None] = lambda _: None,
) -> Parity:
    """Compare ranges, each in a snapshot of its own, so that no snapshot stays open for long.

    Args:
        tell: called with the number of rows after each range.

    Raises:
        MappingFailed: `up` or `down` raises for some row.
    """
    begun = time.monotonic()
    totals = dict.fromkeys(("rows", *CATEGORIES, "through_down"), 0)
    found: dict[str, list[Key]] = {c: [] for c in CATEGORIES}
    bad: list[str] = []
    for one in ranges:
        statement, params = sql.compare(one.lower, one.upper)
        with mapping(f"{name} range {one.partition}"):
            counts = dict(zip(totals, query(conn, statement, params)[0], strict=True))
        for what, count in counts.items():
            totals[what] += count
        if any(counts[c] for c in CATEGORIES):
            bad.append(one.partition)
            for category in CATEGORIES:
                if counts[category] and len(found[category]) < _FIRST_KEYS:
                    statement, params = sql.mismatched_keys(category, one.lower, one.upper, limit=_FIRST_KEYS)
                    with mapping(f"{name} range {one.partition}"):
                        found[category] += [tuple(k) for (k,) in query(conn, statement, params)]
        tell(counts["rows"])
    return Parity(
        seconds=time.monotonic() - begun,
        keys={c: tuple(k[:_FIRST_KEYS]) for c, k in found.items() if k},
        partitions=tuple(bad),
        **totals,
    )
