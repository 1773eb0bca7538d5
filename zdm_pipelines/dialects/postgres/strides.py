"""Strides: the facts of a table that say how its rows may move in place, and the predicates of a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.connection import Connection, query, scalar
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Catalog, Column, Key

_INTEGERS = ("bigint", "integer", "smallint")
_DENSE = 2  # numbers for each row, up to which the index is asked for the numbers of a pass
_LARGEST = 2**62  # beyond it, adding to a number might be too much for its type

Among = Callable[[str], str]  # from a predicate over a row to the same over the rows of a pass

# 24 bytes of a page are its header; a row costs 4 bytes of line pointer, 24 of header and up to 7 of alignment.
_HEAP = """
SELECT CASE WHEN c.relpages > 0 THEN c.relpages  -- the size is told only when nobody has the table to himself
    ELSE pg_relation_size(c.oid) / current_setting('block_size')::bigint END, c.reltuples / nullif(c.relpages, 0),
  current_setting('block_size')::float8 - 24,
  (SELECT sum(s.avg_width * (1 - s.null_frac)) + 32 FROM pg_stats s
   WHERE s.schemaname = n.nspname AND s.tablename = c.relname AND NOT s.inherited),
  (SELECT abs(s.correlation) FROM pg_stats s WHERE s.schemaname = n.nspname AND s.tablename = c.relname
   AND NOT s.inherited AND s.attname = $2),
  EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = $3 AND NOT a.attisdropped
    WHERE i.indrelid = $1 AND (a.attnum = ANY (i.indkey::int2[]) OR EXISTS (
      SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.refobjsubid = a.attnum))),
  EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = $3 AND NOT a.attisdropped
    WHERE i.indrelid = $1 AND i.indisunique AND a.attnum = ANY (i.indkey::int2[]))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1"""

# Whatever keeps dead rows from being removed: a snapshot, a prepared transaction, a replica's or a slot's feedback.
_PINNED = """
SELECT who FROM (
  SELECT backend_xmin AS xmin, format('the transaction of %s (pid %s), open for %s',
    coalesce(nullif(application_name, ''), usename::text, 'a session'), pid,
    date_trunc('second', clock_timestamp() - xact_start)) AS who
  FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
  UNION ALL SELECT backend_xmin, 'feedback of replica ' || application_name FROM pg_stat_replication
  UNION ALL SELECT transaction, 'prepared transaction ' || gid FROM pg_prepared_xacts
    WHERE database = current_database()
  UNION ALL SELECT xmin, 'replication slot ' || slot_name FROM pg_replication_slots
) AS pins WHERE xmin IS NOT NULL ORDER BY age(xmin) DESC LIMIT 1"""


@dataclass(frozen=True, kw_only=True)
class Pick:
    """Which of an interval's waiting rows a batch takes, and how it locks them."""

    among: Among | None = None  # default: all
    limit: int | None = None  # at most so many; default: all
    whole: bool = False  # the column is in a unique index, so that rows change for foreign keys, too


ALL = Pick()


@dataclass(frozen=True, kw_only=True)
class Heap:
    """A table's pages; what the planner's statistics say is None where it was never analyzed."""

    pages: int
    rows_per_page: float | None
    free: float | None  # share of a page that no row uses
    correlation: float | None  # of the key's first column with the order of the heap, 0 to 1
    indexed: bool  # an index reads the column that is written: its rows never move in place
    unique: bool  # a unique index does, which foreign keys may refer to: a row is locked whole when it is written


def heap(conn: Connection, catalog: Catalog, column: str) -> Heap:
    """How the rows of a table lie.

    Args:
        column: the one that is written.
    """
    found = query(conn, _HEAP, [catalog.oid, catalog.key[0].name, column])
    pages, per_page, page, width, correlation, indexed, unique = found[0]
    known = per_page is not None and per_page > 0 and width is not None
    return Heap(
        pages=pages,
        rows_per_page=per_page if known else None,
        free=max(0.0, 1 - per_page * width / page) if known else None,
        correlation=correlation,
        indexed=indexed,
        unique=unique,
    )


def pinned(conn: Connection) -> str:
    """What keeps dead rows from being removed, as far as our role may see it; empty: nothing is known."""
    found = query(conn, _PINNED)
    return str(found[0][0]) if found else ""


def counted(conn: Connection) -> bool:
    """Whether the server counts the rows that move in place."""
    return bool(scalar(conn, "SELECT current_setting('track_counts')::boolean"))


def among(key: Sequence[Column], passes: int, number: int, lower: Key | None, upper: Key | None, *, rows: int) -> Among:
    """The rows of a pass, spread evenly over the pages.

    Args:
        passes: a power of two.
        lower, upper: the window, whose bounds are the statement's first parameters; see `keys.between`.
        rows: that it spans.
    """
    if len(key) == 1 and key[0].type in _INTEGERS and lower is not None and upper is not None:
        first, last = int(lower[0]), int(upper[0])
        if last - first <= rows * _DENSE and abs(last) < _LARGEST:
            # Numbers with few gaps: the index gives those of the pass, and no other row is read.
            start = f"{keys.bound(key, 1)} + ({number} - {keys.bound(key, 1)} & {passes - 1})"
            series = f"generate_series({start}::bigint, {keys.bound(key, 2)}::bigint - 1, {passes})"
            picked = f"{quote(key[0].name)} = ANY (ARRAY(SELECT zdm_n::{key[0].type} FROM {series} AS zdm_n))"
            return lambda wanted: f"{picked} AND {wanted}"
    # Hashed, since numbers may all be multiples of something. Without one, the row's place decides: of a page, a pass
    # then takes about its share.
    name = next((column.name for column in reversed(key) if column.type in _INTEGERS), None)
    spread = f"pg_catalog.hashint8({quote(name)})" if name is not None else "pg_catalog.hashtid(ctid)"
    # In this order: it costs less than the mapping, which is then evaluated once for each row.
    return lambda wanted: f"CASE WHEN ({spread} & {passes - 1}) = {number} THEN {wanted} END"
