"""Ranges: cut a table into primary-key intervals without reading it.

A block sample of the table (TABLESAMPLE SYSTEM) is sorted by key and its quantiles become the cuts. It serves every
key type and composite keys alike, needs no fresh statistics, and reads a bounded number of pages.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.connection import Connection, query, scalar
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.values import Catalog, Column, Key, KeyRange, RangeProgress

MAX_RANGES = 1_000  # Dagster's cost per partition is about 40 ms of event writes
_PAGES_PER_RANGE = 30  # sizes then vary by about a fifth; more evens them out little
_SEED = 1  # the same table gives the same cuts


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


def _pages(conn: Connection, oid: int) -> int:
    return int(scalar(conn, "SELECT pg_relation_size($1::oid) / current_setting('block_size')::bigint", [oid]))


def estimate_rows(conn: Connection, catalog: Catalog) -> int:
    """About how many rows a table has, from its present size; exact for small ones."""
    pages = _pages(conn, catalog.oid)
    planned = scalar(conn, "SELECT reltuples::float8 / nullif(relpages, 0) FROM pg_class WHERE oid = $1", [catalog.oid])
    if planned is not None and planned > 0:
        return round(float(planned) * pages)
    return _sampled(conn, catalog.table, pages)


def _sampled(conn: Connection, table: TableName, pages: int) -> int:
    percent = min(100.0, 100.0 * 100 / max(pages, 1))
    counted = scalar(conn, f"SELECT count(*) FROM {table.sql} TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({_SEED})")
    return round(int(counted) * 100.0 / percent)


def cut(conn: Connection, catalog: Catalog, *, range_rows: int, within: Stretch | None = None) -> list[Key]:
    """The keys at which ranges of about `range_rows` rows begin, after the first; fewer than MAX_RANGES.

    Args:
        within: cut only this interval; default: the whole table.
    """
    rows = estimate_rows(conn, catalog)
    wanted = min(MAX_RANGES, max(1, -(-rows // range_rows)))
    if wanted == 1:
        return []
    pages = _pages(conn, catalog.oid)
    percent = min(100.0, 100.0 * wanted * _PAGES_PER_RANGE / max(pages, 1))
    stretch = within or Stretch(lower=None, upper=None)  # within an interval the sample holds its share of rows
    predicate, params = keys.between(catalog.key, stretch.lower, stretch.upper)
    cuts = _quantiles(
        conn, catalog.table, catalog.key, predicate, params, percent=percent, rows=rows, range_rows=range_rows
    )
    return [c for c in cuts if c != stretch.lower]


def _quantiles(
    conn: Connection,
    table: TableName,
    key: Sequence[Column],
    predicate: str,
    params: list[list[str]],
    *,
    percent: float,
    rows: int,
    range_rows: int,
) -> list[Key]:
    """Every n-th key of the sample, where n rows of the sample stand for one range."""
    # Never more ranges than MAX_RANGES, whatever the sample holds.
    sql = f"""
WITH zdm_sample AS (
  SELECT {keys.as_text(key)} AS zdm_key, row_number() OVER (ORDER BY {keys.columns(key)}) - 1 AS zdm_at,
         count(*) OVER () AS zdm_count
  FROM ONLY {table.sql} TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({_SEED}) WHERE {predicate}
), zdm_stride AS (
  SELECT greatest(1, ceil(zdm_count / {MAX_RANGES}.0), round({range_rows} * {percent} / 100.0))::bigint AS zdm_rows
  FROM zdm_sample LIMIT 1
)
SELECT zdm_key FROM zdm_sample, zdm_stride
WHERE zdm_at > 0 AND zdm_at % zdm_rows = 0 AND (zdm_count - zdm_at) * 2 >= zdm_rows ORDER BY zdm_at"""
    return [tuple(found) for (found,) in query(conn, sql, params)]


def store(conn: Connection, migration_id: int, cuts: Sequence[Key], *, within: Stretch, first_ordinal: int) -> None:
    """Write the ranges that cuts make of an interval."""
    lowers: list[Key | None] = [within.lower, *cuts]
    uppers: list[Key | None] = [*cuts, within.upper]
    for number, (lower, upper) in enumerate(zip(lowers, uppers, strict=True), first_ordinal):
        query(
            conn,
            "INSERT INTO zdm.range (migration_id, ordinal, partition, lower, upper) VALUES ($1, $2, $3, $4, $5)",
            [migration_id, number, partition_key(number, lower), _array(lower), _array(upper)],
        )


def _array(key: Key | None) -> list[str] | None:
    return None if key is None else list(key)


def progress(conn: Connection, migration_id: int) -> list[RangeProgress]:
    """Every range in key order, with how far it got."""
    rows = query(
        conn,
        "SELECT ordinal, partition, lower, upper, checkpoint, done_at IS NOT NULL, rows, batches, retries, seconds, "
        # A ledger made by an earlier version may be looked at without being changed.
        "wal_bytes, coalesce((to_jsonb(r) ->> 'hot')::bigint, 0) FROM zdm.range AS r WHERE migration_id = $1",
        [migration_id],
    )
    found = [
        RangeProgress(
            range=KeyRange(ordinal=r[0], partition=r[1], lower=r[2] and tuple(r[2]), upper=r[3] and tuple(r[3])),
            checkpoint=r[4] and tuple(r[4]), done=r[5],
            rows=r[6], batches=r[7], retries=r[8], seconds=r[9], wal_bytes=r[10], hot=r[11],
        )
        for r in rows
    ]  # fmt: skip
    return in_key_order(found)


def in_key_order(ranges: Sequence[RangeProgress]) -> list[RangeProgress]:
    """Follow each range's upper bound to the next one's lower: order without comparing keys ourselves."""
    by_lower = {r.range.lower: r for r in ranges}
    ordered: list[RangeProgress] = []
    at: Key | None = None
    while by_lower and (found := by_lower.pop(at, None)) is not None:
        ordered.append(found)
        at = found.range.upper
        if at is None:
            break
    return ordered


def plan(conn: Connection, migration_id: int, catalog: Catalog, *, range_rows: int) -> list[RangeProgress]:
    """Cut the table; when `range_rows` was declared anew, cut again what no backfill has touched.

    Touched ranges keep their bounds, partition and checkpoint: progress is never lost. New ranges get ordinals
    never used before.
    """
    known = progress(conn, migration_id)
    before = scalar(conn, "SELECT range_rows FROM zdm.migration WHERE id = $1", [migration_id])
    if known and before == range_rows:
        return known
    query(conn, "UPDATE zdm.migration SET range_rows = $2 WHERE id = $1", [migration_id, range_rows])
    if not known:
        whole = Stretch(lower=None, upper=None)
        store(conn, migration_id, cut(conn, catalog, range_rows=range_rows), within=whole, first_ordinal=1)
        return progress(conn, migration_id)
    next_ordinal = max(r.range.ordinal for r in known) + 1
    untouched = _untouched(known)
    room = MAX_RANGES - (len(known) - sum(len(ordinals) for _, ordinals in untouched))
    for stretch, ordinals in untouched:
        cuts = cut(conn, catalog, range_rows=range_rows, within=stretch)
        if len(cuts) + 1 > room:
            room -= len(ordinals)
            continue
        query(
            conn,
            "DELETE FROM zdm.range WHERE migration_id = $1 AND ordinal = ANY ($2)",
            [migration_id, ordinals],
        )
        store(conn, migration_id, cuts, within=stretch, first_ordinal=next_ordinal)
        next_ordinal += len(cuts) + 1
        room -= len(cuts) + 1
    return progress(conn, migration_id)


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


def reset(conn: Connection, migration_id: int) -> None:
    """Forget the progress of every range; their bounds stay."""
    query(
        conn,
        "UPDATE zdm.range SET checkpoint = NULL, done_at = NULL, rows = 0, batches = 0, retries = 0, seconds = 0, "
        "wal_bytes = 0, hot = 0, proof = NULL WHERE migration_id = $1",
        [migration_id],
    )
