"""Ranges: cut a table into primary-key intervals without reading it.

A block sample of the table (TABLESAMPLE SYSTEM) is sorted by key and its quantiles become the cuts. Such a sample
serves every key type and composite keys alike, needs no fresh statistics, and reads a bounded number of pages.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.ledger import ranges
from zdm_pipelines.model.values import Catalog, Key, KeyRange, RangeProgress

MAX_RANGES = 1_000  # Dagster's cost per partition is about 40 ms of event writes


def partition_key(ordinal: int, lower: Key | None) -> str:
    """What a person reads: the number and where it starts, as 000042-from-4200001.

    Only characters that Dagster's partition selectors take literally are kept; the ordinal makes it unique.
    """
    if lower is None:
        return f"{ordinal:06d}-from-start"
    readable = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(lower)).strip("-")
    if len(readable) > 40:
        readable = readable[:31] + "-" + hashlib.sha256("".join(lower).encode()).hexdigest()[:8]
    return f"{ordinal:06d}-from-{readable or 'blank'}"


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """An interval that no backfill has touched yet."""

    lower: Key | None
    upper: Key | None


def estimate_rows(conn: Session, catalog: Catalog) -> int:
    """About how many rows a table has, from its present size; exact for small ones."""
    return conn.rows.estimate(catalog)


def cut(conn: Session, catalog: Catalog, *, range_rows: int, within: Stretch | None = None) -> list[Key]:
    """The keys at which ranges of about `range_rows` rows begin, after the first; fewer than MAX_RANGES.

    Args:
        within: cut only this interval; default: the whole table.
    """
    stretch = within or Stretch(lower=None, upper=None)  # within an interval the sample holds its share of rows
    cuts = conn.rows.cuts(catalog, stretch.lower, stretch.upper, range_rows=range_rows, at_most=MAX_RANGES)
    return [c for c in cuts if c != stretch.lower]


def between(cuts: Sequence[Key], *, within: Stretch, first_ordinal: int) -> list[KeyRange]:
    """The ranges that cuts make of an interval."""
    lowers: list[Key | None] = [within.lower, *cuts]
    uppers: list[Key | None] = [*cuts, within.upper]
    return [
        KeyRange(ordinal=number, partition=partition_key(number, lower), lower=lower, upper=upper)
        for number, (lower, upper) in enumerate(zip(lowers, uppers, strict=True), first_ordinal)
    ]


def plan(conn: Session, migration_id: int, catalog: Catalog, *, range_rows: int) -> list[RangeProgress]:
    """Cut the table; when `range_rows` was declared anew, cut again what no backfill has touched.

    Touched ranges keep their bounds, partition and checkpoint: progress is never lost. New ranges get ordinals
    never used before.
    """
    known = ranges.progress(conn, migration_id)
    if known and ranges.rows_each(conn, migration_id) == range_rows:
        return known
    ranges.note_rows_each(conn, migration_id, range_rows)
    if not known:
        whole = Stretch(lower=None, upper=None)
        cuts = cut(conn, catalog, range_rows=range_rows)
        ranges.store(conn, migration_id, between(cuts, within=whole, first_ordinal=1))
        return ranges.progress(conn, migration_id)
    next_ordinal = max(r.range.ordinal for r in known) + 1
    untouched = _untouched(known)
    room = MAX_RANGES - (len(known) - sum(len(ordinals) for _, ordinals in untouched))
    for stretch, ordinals in untouched:
        cuts = cut(conn, catalog, range_rows=range_rows, within=stretch)
        if len(cuts) + 1 > room:
            room -= len(ordinals)
            continue
        ranges.remove(conn, migration_id, ordinals)
        ranges.store(conn, migration_id, between(cuts, within=stretch, first_ordinal=next_ordinal))
        next_ordinal += len(cuts) + 1
        room -= len(cuts) + 1
    return ranges.progress(conn, migration_id)


def _untouched(known: Sequence[RangeProgress]) -> list[tuple[Stretch, list[int]]]:
    """The stretches of neighbouring ranges that nobody has begun, with their ordinals."""
    stretches: list[tuple[Stretch, list[int]]] = []
    open_run: list[RangeProgress] = []
    for entry in [*known, None]:
        if entry is not None and not entry.done and entry.checkpoint is None and entry.batches == 0:
            open_run.append(entry)
            continue
        if open_run:
            bounds = Stretch(lower=open_run[0].range.lower, upper=open_run[-1].range.upper)
            stretches.append((bounds, [r.range.ordinal for r in open_run]))
            open_run = []
    return stretches
