"""Keys: ranges over any primary key hold every row exactly once, in order, open at both ends."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest

from zdm_pipelines import ledger
from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.connection import connected, query
from zdm_pipelines.engine.rows.ranges import MAX_RANGES
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Catalog
from zdm_pipelines.phases import backfill
from zdm_pipelines_tests.helpers import (
    backfilled,
    expanded,
    one,
    people,
    ranges,
    replaced,
    sql,
    state,
    validated,
    walk,
    work,
)

WEIRD = "(ARRAY['a', 'B', 'ä', 'Ž', '''', '\"', '%', '\\', ' ', '', '🙂', 'NULL', '{x,y}', E'tab\\t', E'line\\n'])[1 + n % 15] || n"

KINDS = {
    # columns of the key, and the key of row n
    "bigint": ("id bigint", "n * 1000003"),
    "int": ("id int", "n - 1000"),
    "smallint": ("id smallint", "n - 1000"),
    "uuid": ("id uuid", "md5(n::text)::uuid"),
    "text": ("id text", WEIRD),
    "text_c": ('id text COLLATE "C"', WEIRD),
    "text_other": ('id text COLLATE "pg_c_utf8"', WEIRD),
    "varchar": ("id varchar(40)", WEIRD),
    "char": ("id character(20)", "'c' || n"),
    "timestamptz": ("id timestamptz", "timestamptz '1890-01-01 00:00:00.000001+00' + n * interval '33 days 1 microsecond'"),
    "timestamp": ("id timestamp", "timestamp '2026-01-01' + n * interval '1 microsecond'"),
    "date": ("id date", "date '2020-01-01' + n"),
    "numeric": ("id numeric", "n / 7.0"),
    "double": ("id double precision", "sqrt(n)"),
    "bytea": ("id bytea", "decode(md5(n::text), 'hex')"),
    "boolean_and_int": ("flag boolean, id int", "n % 2 = 0, n"),
    "int_and_text": ("tenant int, id text", "n % 5, 'doc ' || n"),
    "uuid_and_timestamptz": ("device uuid, at timestamptz", "md5((n % 3)::text)::uuid, timestamptz '2026-01-01' + n * interval '1 second'"),
    "three": ("a int, b date, c text", "n % 3, date '2026-01-01' + n % 7, n::text"),
    "enum": ("id mood, n int", "(ARRAY['sad', 'ok', 'happy'])[1 + n % 3]::mood, n"),
}  # fmt: skip

DECLARED = replaced(backfill={"range_rows": 150, "batch_rows": 40})


def table(url: str, kind: str, rows: int = 1_000) -> None:
    columns, values = KINDS[kind]
    names = ", ".join(re.sub(r"^(\w+).*", r"\1", c.strip()) for c in columns.split(","))
    sql(url, "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy')")
    sql(url, f"CREATE TABLE people ({columns}, full_name text, PRIMARY KEY ({names}))")
    sql(url, f"INSERT INTO people SELECT {values}, 'v' || n FROM generate_series(1, {rows}) n")


def members(m: Migration, url: str) -> list[set[Any]]:
    """The rows of each range, in the ranges' order, read through the predicate that batches use."""
    with connected(url, purpose="test") as conn:
        entry = ledger.find(conn, m.name)
        assert entry is not None
        found = []
        for r in ranges(m, url):
            predicate, params = keys.between(entry.catalog.key, r.range.lower, r.range.upper)
            found.append(
                {
                    tuple(k)
                    for (k,) in query(conn, f"SELECT {_text(entry.catalog)} FROM people WHERE {predicate}", params)
                }
            )
        return found


def _text(catalog: Catalog) -> str:
    return keys.as_text(catalog.key)


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_in_one_range(database: str, kind: str) -> None:
    table(database, kind)
    expanded(DECLARED, database)
    known = ranges(DECLARED, database)
    assert 5 <= len(known) <= 9
    assert known[0].range.lower is None
    assert known[-1].range.upper is None
    assert all(a.range.upper == b.range.lower for a, b in pairwise(known))
    held = members(DECLARED, database)
    assert sum(len(h) for h in held) == len(set().union(*held)) == 1_000
    assert all(50 <= len(h) <= 300 for h in held)
    partitions = [r.range.partition for r in known]
    assert len(set(partitions)) == len(partitions)
    assert all(re.fullmatch(r"\d{6}-from-[A-Za-z0-9-]{1,40}", p) for p in partitions)

    sql(database, "ANALYZE people")
    assert sum(r.rows for r in backfilled(DECLARED, database)) == 1_000
    assert one(database, "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM 'n:' || full_name") == 0
    assert one(database, "SELECT sum(rows) FROM zdm.range") == 1_000
    walk(DECLARED, database, State.CONTRACTED)


@pytest.mark.parametrize("kind", ["bigint", "uuid", "text", "int_and_text"])
def test_a_range_run_in_two_halves_repeats_nothing(database: str, kind: str) -> None:
    table(database, kind)
    m = replaced(backfill={"range_rows": 150, "batch_rows": 40, "max_parallel": 1})
    expanded(m, database)
    moving = backfill.run(work(m, database))
    next(moving)
    moving.close()
    first = one(database, "SELECT sum(rows) FROM zdm.range")
    assert 0 < first < 1_000
    assert sum(r.rows for r in backfilled(m, database)) == 1_000 - first
    assert one(database, "SELECT sum(rows) FROM zdm.range") == 1_000


def test_open_ends(database: str) -> None:
    table(database, "int")
    expanded(DECLARED, database)
    before = members(DECLARED, database)
    sql(database, "INSERT INTO people VALUES (-2000000, 'first'), (2000000, 'last')")
    after = members(DECLARED, database)
    assert after[0] - before[0] == {("-2000000",)}
    assert after[-1] - before[-1] == {("2000000",)}
    assert after[1:-1] == before[1:-1]


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("kind", ["bigint", "uuid_and_timestamptz"])
def test_hardly_any_rows(database: str, kind: str, rows: int) -> None:
    table(database, kind, rows)
    expanded(DECLARED, database)
    assert [r.range.partition for r in ranges(DECLARED, database)] == ["000001-from-start"]
    assert sum(r.rows for r in backfilled(DECLARED, database)) == rows
    validated(DECLARED, database)
    walk(DECLARED, database, State.CONTRACTED)


@pytest.mark.parametrize("analyzed", [True, False])
def test_never_more_than_a_thousand_ranges(database: str, analyzed: bool) -> None:
    people(database, 30_000)
    if not analyzed:
        sql(database, "UPDATE pg_class SET reltuples = -1, relpages = 0 WHERE relname = 'people'")
    m = replaced(backfill={"range_rows": 1})
    expanded(m, database)
    held = members(m, database)
    assert 500 < len(held) <= MAX_RANGES == 1_000
    assert sum(len(h) for h in held) == 30_000


def test_statistics_that_are_wrong(database: str) -> None:
    """The planner believes in ten rows: the ranges still hold all, and not ten times more than asked for."""
    people(database, 20_000)
    sql(database, "UPDATE pg_class SET reltuples = 10 WHERE relname = 'people'")
    m = replaced(backfill={"range_rows": 1_000})
    expanded(m, database)
    assert sum(len(h) for h in members(m, database)) == 20_000
    assert sum(r.rows for r in backfilled(m, database)) == 20_000


def test_rows_deleted_after_the_cut(database: str) -> None:
    table(database, "int")
    expanded(DECLARED, database)
    sql(database, "DELETE FROM people WHERE id < 0")
    assert sum(r.rows for r in backfilled(DECLARED, database)) == one(database, "SELECT count(*) FROM people")


def test_cut_anew_keeps_progress(database: str) -> None:
    people(database, 3_000)
    m = replaced(backfill={"range_rows": 500, "batch_rows": 100, "max_parallel": 1})
    expanded(m, database)
    first, *rest = ranges(m, database)
    backfilled(m, database, partitions=[first.range.partition])
    finer = replaced(backfill={"range_rows": 100, "batch_rows": 50})
    expanded(finer, database)
    known = ranges(finer, database)
    assert known[0].range == first.range
    assert known[0].done
    assert 20 <= len(known) <= 30
    old = {r.range.ordinal for r in rest}
    assert not {r.range.ordinal for r in known[1:]} & old  # numbers are never used twice
    assert sum(len(h) for h in members(finer, database)) == 3_000
    coarser = replaced(backfill={"range_rows": 10_000})
    expanded(coarser, database)
    assert len(ranges(coarser, database)) == 2
    assert sum(r.rows for r in backfilled(coarser, database)) + first.rows == 3_000 - known[0].rows
    assert one(database, "SELECT sum(rows) FROM zdm.range") == 3_000
    assert state(coarser, database) == State.BACKFILLED


def test_expand_again_with_the_same_size_changes_no_range(database: str) -> None:
    people(database, 3_000)
    expanded(DECLARED, database)
    before = ranges(DECLARED, database)
    sql(database, "INSERT INTO people (full_name) SELECT 'x' FROM generate_series(1, 5000)")
    expanded(DECLARED, database)
    assert ranges(DECLARED, database) == before
