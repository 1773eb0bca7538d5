"""Strides: most rows move in place, none is passed over, and plain batches where that cannot be."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.engine.rows.strides import choose
from zdm_pipelines.model.errors import LockNotAcquired
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Moved
from zdm_pipelines_tests.helpers import (
    Background,
    backfilled,
    eventually,
    expanded,
    one,
    ranges,
    replaced,
    sql,
    state,
    surveyed,
    validated,
)

ROWS = 20_000
KEYS = {
    "bigint": ("id bigint PRIMARY KEY", "n"),
    "negative": ("id integer PRIMARY KEY", "n - 10000"),
    "multiples of eight": ("id bigint PRIMARY KEY", "n * 8"),
    "text": ("id text PRIMARY KEY", "lpad(n::text, 8, '0')"),
    "timestamp": ("id timestamptz PRIMARY KEY", "timestamptz '2026-01-01' + n * interval '1 second'"),
    "composite": ("tenant text, id integer, PRIMARY KEY (tenant, id)", "lpad((n / 5000)::text, 4, '0'), n"),
}


def table(url: str, key: str = "bigint", *, rows: int = ROWS, more: str = "") -> None:
    columns, values = KEYS[key]
    sql(
        url,
        f"CREATE TABLE people ({columns}, full_name text, note text) {more}; "
        f"INSERT INTO people SELECT {values}, 'v' || n, 'note ' || n FROM generate_series(1, {rows}) n; "
        "CREATE INDEX people_note ON people (note)",
    )
    sql(url, "VACUUM (ANALYZE) people")


def migration(**backfill: Any) -> Migration:
    return replaced(backfill={"batch_rows": 200, "range_rows": 10_000, "max_parallel": 1, **backfill})


def passes(url: str, m: Migration) -> int:
    with connected(url, purpose="test") as conn:
        return choose(conn.rows.heap(surveyed(m, url), "display_name"))


def hot_ratio(moved: list[Moved]) -> float:
    return sum(m.hot for m in moved) / sum(m.rows for m in moved)


@pytest.mark.parametrize("key", KEYS)
def test_most_rows_of_every_key_move_in_place(database: str, key: str) -> None:
    table(database, key)
    m = migration()
    batches: list[Moved] = []
    expanded(m, database)
    moved = backfilled(m, database, batch=batches.append)
    assert sum(each.rows for each in moved) == ROWS
    assert max(batch.rows for batch in batches) <= 200
    assert hot_ratio(moved) > 0.4
    assert one(database, "SELECT sum(hot) FROM zdm.range") == sum(each.hot for each in moved)
    assert state(m, database) == State.BACKFILLED
    validated(m, database)


def test_the_ratio_is_that_of_the_server(database: str) -> None:
    table(database)
    m = migration()
    expanded(m, database)
    before = one(database, "SELECT pg_stat_get_tuples_hot_updated('people'::regclass)")
    moved = backfilled(m, database)
    eventually(
        lambda: (
            one(database, "SELECT pg_stat_get_tuples_hot_updated('people'::regclass)") - before
            == sum(each.hot for each in moved)
        )
    )


def test_plain_batches_move_few_rows_in_place(database: str) -> None:
    table(database)
    m = migration(passes=1)
    expanded(m, database)
    assert hot_ratio(backfilled(m, database)) < 0.3


@pytest.mark.parametrize(
    ("given", "then", "expected"),
    [
        ({}, "", 8),
        ({"rows": 5_000}, "", 1),
        ({"more": "WITH (fillfactor = 50)"}, "", 2),
        ({}, "CREATE INDEX ON people (display_name)", 1),
        ({}, "CREATE INDEX ON people (upper(display_name))", 1),
        ({}, "CREATE INDEX ON people (id) WHERE display_name IS NULL", 1),
    ],
    ids=["usual", "small", "roomy", "indexed", "indexed expression", "partial index"],
)
def test_passes_of_real_tables(database: str, given: dict[str, Any], then: str, expected: int) -> None:
    table(database, **given)
    sql(database, f"ALTER TABLE people ADD display_name text; {then}")
    m = replaced(new={"name": "other", "type": "text"}, up="full_name", down="other")
    with connected(database, purpose="test") as conn:
        assert choose(conn.rows.heap(surveyed(m, database), "display_name")) == expected


def test_a_scattered_key_is_moved_in_plain_batches(database: str) -> None:
    sql(
        database,
        "CREATE TABLE people (id uuid DEFAULT gen_random_uuid() PRIMARY KEY, full_name text, note text); "
        f"INSERT INTO people (full_name) SELECT 'v' || n FROM generate_series(1, {ROWS}) n",
    )
    sql(database, "VACUUM (ANALYZE) people")
    m = migration()
    assert passes(database, m) == 1
    expanded(m, database)
    assert sum(each.rows for each in backfilled(m, database)) == ROWS


def test_a_table_without_statistics(database: str) -> None:
    sql(
        database,
        "CREATE TABLE people (id bigint PRIMARY KEY, full_name text, note text) WITH (autovacuum_enabled = off); "
        f"INSERT INTO people SELECT n, 'v' || n FROM generate_series(1, {ROWS}) n",
    )
    m = migration()
    assert passes(database, m) == 8
    expanded(m, database)
    assert hot_ratio(backfilled(m, database)) > 0.4


def test_an_old_transaction_is_named_and_plain_batches_go_on(database: str) -> None:
    table(database)
    m = migration()
    said: list[str] = []
    expanded(m, database)
    with psycopg.connect(database, application_name="yearly report") as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM people")
        moved = backfilled(m, database, tell=said.append)
    assert sum(each.rows for each in moved) == ROWS
    assert hot_ratio(moved) < 0.2
    told = [line for line in said if "plain batches" in line]
    assert len(told) == 1
    assert "yearly report" in told[0]
    validated(m, database)


def test_strides_come_back_when_the_old_transaction_has_ended(database: str) -> None:
    table(database)
    m = migration(range_rows=100_000)
    expanded(m, database)
    batches: list[Moved] = []
    with psycopg.connect(database) as old:
        old.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        old.execute("SELECT count(*) FROM people")

        def batch(moved: Moved) -> None:
            batches.append(moved)
            if sum(each.rows for each in batches) > 8_000 and not old.closed:
                old.close()
                time.sleep(0.3)  # longer than between two looks

        backfilled(m, database, batch=batch)
    early = [each for each in batches[:40] if each.rows]
    late = batches[-40:]
    assert hot_ratio(early) < 0.2
    assert hot_ratio(late) > 0.4
    validated(m, database)


def test_a_server_that_counts_nothing(database: str) -> None:
    name = one(database, "SELECT current_database()")
    table(database)
    m = migration()
    expanded(m, database)  # would be refused: a rehearsal counts what it does
    sql(database, f'ALTER DATABASE "{name}" SET track_counts = off')
    said: list[str] = []
    assert sum(each.rows for each in backfilled(m, database, tell=said.append)) == ROWS
    assert said == []
    validated(m, database)


def test_a_row_locked_for_long_stops_no_other(database: str) -> None:
    table(database)
    m = migration(max_parallel=2)
    expanded(m, database)
    rest = "SELECT count(*) FROM people WHERE display_name IS NULL"
    with psycopg.connect(database) as application:
        application.execute("SELECT 1 FROM people WHERE id IN (7, 5000, 15000) FOR UPDATE")
        job = Background(lambda: backfilled(m, database))
        eventually(lambda: one(database, rest) == 3)
        assert not any(r.done for r in ranges(m, database))
    job.result()
    assert one(database, rest) == 0
    validated(m, database)


def test_a_row_locked_for_longer_than_we_wait(database: str) -> None:
    table(database)
    m = replaced(backfill={"batch_rows": 200}, locks={"give_up_after": "2s"})
    expanded(m, database)
    with psycopg.connect(database) as application:
        application.execute("SELECT 1 FROM people WHERE id = 7 FOR UPDATE")
        with pytest.raises(LockNotAcquired, match="1 rows are held by the application"):
            backfilled(m, database)
    assert one(database, "SELECT array_agg(id) FROM people WHERE display_name IS NULL") == [7]
    backfilled(m, database)
    validated(m, database)


def test_rows_that_foreign_keys_hold_are_passed_over_where_they_change_for_them(database: str) -> None:
    """With a unique index on the new column a move conflicts with whoever refers to the row."""
    table(database)
    m = migration(range_rows=100_000)
    expanded(m, database)
    sql(database, "CREATE UNIQUE INDEX ON people (display_name)")
    rest = "SELECT count(*) FROM people WHERE display_name IS NULL"
    with psycopg.connect(database) as application:
        application.execute("SELECT 1 FROM people WHERE id = 7 FOR KEY SHARE")
        job = Background(lambda: backfilled(m, database))
        eventually(lambda: one(database, rest) == 1)
    job.result()
    assert one(database, rest) == 0


def test_a_table_that_is_rewritten_does_not_keep_a_place(database: str) -> None:
    table(database)
    m = replaced(backfill={"batch_rows": 200, "max_parallel": 1}, locks={"give_up_after": "3s"})
    expanded(m, database)
    with psycopg.connect(database) as vacuum:
        vacuum.execute("LOCK TABLE people")
        with pytest.raises(LockNotAcquired, match="nothing could be written for 3 s: the table is locked, by pid"):
            backfilled(m, database)
    backfilled(m, database)
    validated(m, database)


def test_a_trigger_that_alters_what_was_repaired(database: str) -> None:
    """It runs before the sync trigger, which moves the row as it is then."""
    table(database, rows=1_000)
    m = replaced(backfill={"batch_rows": 50, "passes": 8}, locks={"give_up_after": "1s"})
    expanded(m, database)
    backfilled(m, database)
    sql(
        database,
        "CREATE FUNCTION upper_it() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.display_name := upper(NEW.display_name); RETURN NEW; END'; "
        "CREATE TRIGGER upper_it BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION upper_it()",
    )
    sql(database, "SET zdm.backfill = 'on'; UPDATE people SET display_name = 'wrong'")
    backfilled(m, database, repair=True)
    assert one(database, "SELECT count(*) FROM people WHERE display_name = 'n:' || full_name") == 1_000


def test_the_application_writes_all_the_time(database: str) -> None:
    """Rows change their places between passes, and others come and go."""
    table(database)
    m = migration(max_parallel=2)
    expanded(m, database)
    begun = time.monotonic()

    def write(number: int) -> int:
        wrote = 0
        with psycopg.connect(database, autocommit=True) as conn:
            while time.monotonic() < begun + 4:
                at = (wrote * 7919 + number * 101) % ROWS + 1
                conn.execute("UPDATE people SET note = note || '.' WHERE id = %s", [at])
                conn.execute("UPDATE people SET full_name = 'w' || id WHERE id = %s", [at + 1])
                conn.execute("UPDATE people SET display_name = 'n:x' || id WHERE id = %s", [at + 2])
                conn.execute("DELETE FROM people WHERE id = %s", [(at * 3) % ROWS])
                conn.execute("INSERT INTO people VALUES (%s, 'i')", [ROWS + number * 1_000_000 + wrote])
                wrote += 1
        return wrote

    with ThreadPoolExecutor(2) as pool:
        writers = [pool.submit(write, number) for number in (1, 2)]
        backfilled(m, database)
        assert sum(writer.result() for writer in writers) > 50
    validated(m, database)
    assert one(database, "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM 'n:' || full_name") == 0
