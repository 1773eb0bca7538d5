"""Values beyond `down`: what new code writes and the old column cannot hold is never replaced by what the latter holds."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from zdm_pipelines.model.errors import MappingFailed, ParityMismatch
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Check
from zdm_pipelines.phases import validate
from zdm_pipelines.verbs import plan
from zdm_pipelines_tests.helpers import (
    backfilled,
    contracted,
    one,
    replaced,
    sql,
    state,
    validated,
    walk,
    work,
)


def table(url: str, old: str, rows: str) -> None:
    sql(url, f"CREATE TABLE t (id integer PRIMARY KEY, old {old})")
    sql(url, f"INSERT INTO t SELECT n, {rows} FROM generate_series(1, 20) n")


def widened(to: str, *, nullable: bool = True, up: str = "old", down: str = "wide") -> Migration:
    new = {"name": "wide", "type": to, "nullable": nullable}
    return replaced(name="m", table="public.t", old="old", new=new, up=up, down=down)


def row(url: str, key: int) -> tuple[Any, ...]:
    return sql(url, "SELECT old, wide FROM t WHERE id = %s", key)[0]


def parity(m: Migration, url: str) -> Check:
    (found, *_) = validate.run(work(m, url)).checks
    return found


# -- text that is too long: cut off -----------------------------------------------------------------------


@pytest.mark.parametrize("old", ["varchar(8) NOT NULL", "character(8)"])
def test_longer_text_is_written_long_before_contract(database: str, old: str) -> None:
    table(database, old, "'c' || n")
    m = widened("text", up="old::text", nullable="NOT" not in old)
    walk(m, database, State.SWITCHED)
    sql(database, "UPDATE t SET wide = 'longer than eight' WHERE id = 3")
    sql(database, "INSERT INTO t (id, wide) VALUES (50, 'also longer than eight')")
    assert (row(database, 3), row(database, 50)) == (
        ("longer t", "longer than eight"),
        ("also lon", "also longer than eight"),
    )
    sql(database, "UPDATE t SET old = 'short' WHERE id = 50")  # whoever writes last
    assert row(database, 50) == ("short" if "var" in old else "short   ", "short")
    assert "1" in str(parity(m, database).facts["agree_through_down_only"])
    walk(m, database, State.CONTRACTED)
    assert one(database, "SELECT wide FROM t WHERE id = 3") == "longer than eight"


# -- numbers that are too large: the old column keeps what it holds -----------------------------------------------


@pytest.mark.parametrize("down", ["wide", "wide::integer"])
def test_a_number_that_is_too_large(database: str, down: str) -> None:
    table(database, "integer NOT NULL", "n")
    m = widened("bigint", nullable=False, down=down)
    walk(m, database, State.BACKFILLED)
    sql(database, "UPDATE t SET wide = 5000000000 WHERE id IN (3, 4)")
    sql(
        database,
        "SET session_replication_role = 'origin'; SET zdm.backfill = 'on'; UPDATE t SET wide = 99 WHERE id = 9",
    )
    with pytest.raises(psycopg.errors.NumericValueOutOfRange):
        sql(database, "INSERT INTO t (id, wide) VALUES (50, 5000000000)")
    assert row(database, 3) == (3, 5_000_000_000)
    assert sql(database, "SELECT wrote, failed FROM zdm.writer") == [("new", "22003")]
    with pytest.raises(ParityMismatch) as caught:
        validated(m, database)
    assert "1 different (first keys: 9)" in caught.value.fact
    assert "2 whose new value `down` cannot give back (first keys: 3, 4)" in caught.value.fact
    assert "write rows whose new value `down` cannot give back anew" in caught.value.way_out
    # The repair knows which side is newer.
    partitions = [p for (p,) in sql(database, "SELECT partition FROM zdm.range")]
    assert sum(moved.rows for moved in backfilled(m, database, partitions=partitions, repair=True)) == 1
    assert (row(database, 3), row(database, 9)) == ((3, 5_000_000_000), (9, 9))
    # The way out.
    sql(database, "UPDATE t SET wide = 2000000000 WHERE id = 3")
    sql(database, "UPDATE t SET old = 7 WHERE id = 4")
    validated(m, database)
    assert (row(database, 3), row(database, 4)) == ((2_000_000_000, 2_000_000_000), (7, 7))


def test_once_all_reads_are_on_the_new_shape_it_is_right(database: str) -> None:
    table(database, "integer", "n")
    m = widened("bigint")
    walk(m, database, State.SWITCHED)
    sql(database, "UPDATE t SET wide = 5000000000 WHERE id = 3")
    sql(database, "INSERT INTO t (id, wide) VALUES (50, 6000000000)")
    assert (row(database, 3), row(database, 50)) == ((3, 5_000_000_000), (None, 6_000_000_000))
    found = parity(m, database)
    assert found.passed
    assert "2 whose new value `down` cannot give back (first keys: 3, 50)" in found.summary
    contracted(m, database)
    assert state(m, database) == State.TOMBSTONED
    sql(database, "UPDATE t SET wide = 7000000000 WHERE id = 4")  # behind the tombstone, too
    contracted(m, database)
    assert sql(database, "SELECT id, wide FROM t WHERE id IN (3, 4, 50) ORDER BY id") == [
        (3, 5_000_000_000),
        (4, 7_000_000_000),
        (50, 6_000_000_000),
    ]


def test_it_is_judged_anew_when_reads_come_back(database: str) -> None:
    """What was right while all read the new shape is proven to nobody who reads the old one."""
    table(database, "integer", "n")
    m = widened("bigint")
    walk(m, database, State.SWITCHED)
    sql(database, "UPDATE t SET wide = 5000000000 WHERE id = 3")
    assert parity(m, database).passed
    sql(database, "UPDATE zdm.flag SET percent = 0")
    assert not parity(m, database).passed
    sql(database, "UPDATE zdm.flag SET percent = 50")
    assert not parity(m, database).passed


# -- expressions that fail ----------------------------------------------------------------------------------------


def test_a_failing_down_is_told_with_its_rows(database: str) -> None:
    sql(database, "CREATE TYPE pay AS ENUM ('CARD', 'CHEQUE')")
    table(database, "pay NOT NULL", "(ARRAY['CARD', 'CHEQUE']::pay[])[1 + n %% 2]".replace("%%", "%"))
    m = widened("varchar(255)", nullable=False, up="old::text", down="wide::pay")
    walk(m, database, State.VALIDATED)
    sql(database, "ALTER TYPE pay RENAME VALUE 'CHEQUE' TO 'CHECK'")
    found = validate.run(work(m, database), full=True).checks[0]
    assert found.summary.startswith("10 whose new value `down` cannot give back (first keys: 1, 3, 5, 7, 9)")
    sql(database, "UPDATE t SET wide = old::text WHERE old = 'CHECK'")
    validated(m, database)


def test_a_failing_up_is_told_with_its_row(database: str) -> None:
    table(database, "text", "n::text")
    m = widened("integer", up="old::integer", down="wide::text")
    walk(m, database, State.BACKFILLED)
    sql(database, "UPDATE t SET old = 'many' WHERE id = 7")
    with pytest.raises(MappingFailed, match=r"^m range .*: up fails for the row with key 7: Invalid"):
        validate.run(work(m, database))
    sql(database, "UPDATE t SET old = '7' WHERE id = 7")
    validated(m, database)


# -- known before expand ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "down", "warned"),
    [
        ("varchar(8)", "text", "wide", "only the beginning"),
        ("varchar(8)", "varchar(9)", "wide", "only the beginning"),
        ("character(3)", "varchar(8)", "wide", "only the beginning"),
        ("bit varying(3)", "bit varying", "wide", "only the beginning"),
        ("varchar(8)", "varchar(8)", "wide", ""),
        ("varchar(8)", "varchar(4)", "wide", ""),
        ("text", "varchar(8)", "wide", ""),
        ("varchar", "text", "wide", ""),
        ("smallint", "integer", "wide", "too large"),
        ("integer", "bigint", "wide", "too large"),
        ("bigint", "numeric", "wide", "too large"),
        ("real", "double precision", "wide", "too large"),
        ("numeric(6,2)", "numeric(12,2)", "wide", "too large"),
        ("numeric(6,2)", "numeric", "wide", "too large"),
        ("numeric(6,2)", "integer", "wide", "too large"),
        ("numeric(12,2)", "numeric(12,4)", "wide", ""),
        ("bigint", "integer", "wide", ""),
        ("numeric", "bigint", "wide", ""),
        ("double precision", "real", "wide", ""),
    ],
)  # fmt: skip
def test_the_plan_names_what_new_code_must_not_write(narrow: str, old: str, new: str, down: str, warned: str) -> None:
    sql(narrow, f"DROP TABLE IF EXISTS t; CREATE TABLE t (id integer PRIMARY KEY, old {old})")
    up = f"old::{new}"
    warnings = [w for w in plan.read(work(widened(new, up=up, down=down), narrow)).catalog.warnings if "down" in w]
    assert [warned in w and "until contract" in w for w in warnings] == ([True] if warned else [])


@pytest.fixture(scope="module")
def narrow(cluster: Any) -> Any:
    url = cluster.primary.create_database("values_narrow")
    yield url
    cluster.primary.drop_database("values_narrow")
