"""Row work as data: several statements in one transaction, and ranges that end whatever comes to match meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from psycopg import errors

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres import catalog, keys
from zdm_pipelines.dialects.postgres.connection import connected, scalar
from zdm_pipelines.engine.pace import Pace
from zdm_pipelines.engine.rows import ranges
from zdm_pipelines.engine.rows.strides import Strides
from zdm_pipelines.engine.rows.worker import RangeWorker
from zdm_pipelines.ledger import ranges as stored
from zdm_pipelines.model.capabilities import Pick, Until
from zdm_pipelines.model.errors import LockNotAcquired, MappingFailed
from zdm_pipelines.model.migration import Backfill
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.values import Catalog, Key, Moved, Statement
from zdm_pipelines_tests.helpers import Background, eventually, holding, one, people, sql

ROWS = 300
EVENTS = f"""
CREATE TABLE events (id bigint PRIMARY KEY, old boolean NOT NULL, v text);
CREATE TABLE kept (id bigint PRIMARY KEY, v text CHECK (v <> 'refused'));
INSERT INTO events SELECT n * 1000, n % 3 > 0, 'v' || n FROM generate_series(1, {ROWS}) n;
ANALYZE events;
"""
OLD = ROWS * 2 // 3


class Unthrottled:
    """Nothing stands above this worker."""

    def __init__(self, batch_rows: int) -> None:
        self.pace = Pace(Backfill(batch_rows=batch_rows))

    def turn(self, conn: Any) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def release(self, conn: Any) -> None:
        pass

    def rest(self, conn: Any, seconds: float) -> None:
        pass

    def statement_timeout(self) -> float:
        return 60.0


@dataclass(frozen=True, kw_only=True)
class Purge:
    """Old rows go; what goes is kept in another table first."""

    over: Catalog
    destroys: bool = True
    until: Until = Until.SEEN
    written: str | None = None

    @property
    def writes(self) -> dict[str, str]:
        return {self.over.table.sql: "DELETE" if self.destroys else "UPDATE"}

    def batch(self, lower: Key | None, upper: Key | None, *, pick: Pick, repair: bool = False) -> list[Statement]:
        interval, values = keys.between(self.over.key, lower, upper)
        return [
            Statement(
                f"INSERT INTO kept SELECT id, v FROM events WHERE {interval} AND old FOR UPDATE SKIP LOCKED", values
            ),
            Statement(f"DELETE FROM events WHERE {interval} AND id IN (SELECT id FROM kept)", values),
        ]

    def one(self, key: Key, *, repair: bool = False) -> list[Statement]:
        at = f"{keys.row(self.over.key)} = {keys.bound(self.over.key, 1)}"
        return [
            Statement(f"INSERT INTO kept SELECT id, v FROM events WHERE {at} AND old FOR UPDATE", [list(key)]),
            Statement(f"DELETE FROM events WHERE {at} AND id IN (SELECT id FROM kept)", [list(key)]),
        ]

    def waiting(
        self, lower: Key | None, upper: Key | None, *, last: Key | None = None, repair: bool = False
    ) -> Statement:
        interval, values = keys.between(self.over.key, lower, upper, last=last)
        return Statement(f"SELECT count(*) FROM events WHERE {interval} AND old", values)

    def waiting_keys(self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False) -> Statement:
        interval, values = keys.between(self.over.key, lower, upper)
        return Statement(
            f"SELECT ARRAY[id::text] FROM events WHERE {interval} AND old ORDER BY id LIMIT {limit}", values
        )

    def back(self) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Renew(Purge):
    """Old rows are made new in place."""

    destroys: bool = False
    written: str | None = "old"

    def batch(self, lower: Key | None, upper: Key | None, *, pick: Pick, repair: bool = False) -> list[Statement]:
        interval, values = keys.between(self.over.key, lower, upper)
        rows = f"SELECT ctid FROM events WHERE {interval} AND old FOR UPDATE SKIP LOCKED"
        return [Statement(f"UPDATE events SET old = false WHERE ctid = ANY (ARRAY({rows}))", values)]

    def one(self, key: Key, *, repair: bool = False) -> list[Statement]:
        return [
            Statement(f"UPDATE events SET old = false WHERE id = {keys.bound(self.over.key, 1)} AND old", [list(key)])
        ]


class Job:
    """Row work over the ranges of a table, without a phase around it."""

    _numbers = count(1)

    def __init__(
        self, url: str, kind: type[Purge], *, range_rows: int = 1_000, batch_rows: int = 20, **given: Any
    ) -> None:
        self.url = url
        self.batch_rows = batch_rows
        ledger.ensure(server_at(url))
        with connected(url, purpose="test") as conn:
            over = catalog.read(conn, TableName.parse("events"))
            self.work = kind(over=over, **given)
            self.id = scalar(
                conn,
                "INSERT INTO zdm.migration (name, table_oid, table_name, change, catalog, state) "
                "VALUES ($1, $2, 'events', '{}', '{}', 'backfilling') RETURNING id",
                [f"job_{next(self._numbers)}", over.oid],
            )
            ranges.plan(conn, self.id, over, range_rows=range_rows)

    def run(self, *, tell: Callable[[Moved], None] = lambda _: None, patience: float = 30.0) -> list[Moved]:
        with connected(self.url, purpose="job") as conn:
            return [
                RangeWorker(
                    conn, migration_id=self.id, name="job", work=self.work, control=Unthrottled(self.batch_rows),
                    strides=Strides(lambda: 1), patience=patience, tell=tell,
                ).run(r.range)
                for r in stored.progress(conn, self.id)
            ]  # fmt: skip


@pytest.fixture
def url(database: str) -> str:
    sql(database, EVENTS)
    return database


def counts(url: str) -> tuple[int, int, int]:
    """Rows, old rows, kept rows."""
    return tuple(int(one(url, f"SELECT count(*) FROM {which}")) for which in ("events", "events WHERE old", "kept"))  # type: ignore[return-value]


# -- several statements -----------------------------------------------------------------------------------


def test_the_last_statement_counts(url: str) -> None:
    job = Job(url, Purge, range_rows=100)
    moved = job.run()
    assert len(moved) == 3
    assert sum(m.rows for m in moved) == OLD == one(url, "SELECT sum(rows) FROM zdm.range")
    assert counts(url) == (ROWS - OLD, 0, OLD)
    assert sum(m.hot for m in moved) == 0


def test_all_statements_of_a_batch_commit_together_with_the_checkpoint(url: str) -> None:
    """The second batch fails in its last statement: what its first one did is gone, as its checkpoint is."""
    sql(
        url,
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON events FOR EACH ROW WHEN (OLD.id = 26000) EXECUTE FUNCTION refuse()",
    )
    job = Job(url, Purge)
    with pytest.raises(MappingFailed, match="key 26000"):
        job.run()
    assert counts(url) == (ROWS - 14, OLD - 14, 14)
    assert one(url, "SELECT checkpoint[1] || '/' || rows || '/' || batches FROM zdm.range") == "21000/14/1"
    sql(url, "DROP TRIGGER refuse ON events")
    job.run()
    assert counts(url) == (ROWS - OLD, 0, OLD)


def test_an_earlier_statement_that_fails_is_told_with_its_row(url: str) -> None:
    sql(url, "UPDATE events SET v = 'refused' WHERE id = 44000")
    with pytest.raises(MappingFailed, match="key 44000"):
        Job(url, Purge).run()
    assert one(url, "SELECT count(*) FROM events WHERE id = 44000") == 1


# -- ranges that end --------------------------------------------------------------------------------------


class Flood:
    """After each batch, more rows that match: behind the pass, before it, or after the end of the table."""

    def __init__(self, url: str, first: int, step: int) -> None:
        self.url, self.at, self.step, self.batches = url, first, step, 0

    def __call__(self, _: Moved) -> None:
        self.batches += 1
        assert self.batches < 200, "the range does not end"
        sql(
            self.url,
            f"INSERT INTO events SELECT {self.at} + {self.step} * n, true, 'late' FROM generate_series(1, 25) n",
        )
        self.at += 25 * self.step


@pytest.mark.parametrize(
    ("first", "step"),
    [(0, -1), (-1_000_000, 1), (ROWS * 1000, 1)],
    ids=["behind the pass", "behind the pass, in order", "after the end"],
)
def test_a_range_that_is_seen_ends_though_rows_come_to_match_without_end(url: str, first: int, step: int) -> None:
    flood = Flood(url, first, step)
    (moved,) = Job(url, Purge).run(tell=flood)
    assert moved.done
    assert (
        one(url, f"SELECT count(*) FROM events WHERE old AND id % 1000 = 0 AND id BETWEEN 1000 AND {ROWS * 1000}") == 0
    )


BEGET = """
CREATE FUNCTION beget() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO events VALUES (OLD.id - 1, true, 'late');
  RETURN NULL;
END $$;
CREATE TRIGGER beget AFTER DELETE ON events FOR EACH ROW EXECUTE FUNCTION beget();
"""


def test_rows_that_come_to_match_behind_the_pass_are_seen_once(url: str) -> None:
    """Each row that goes leaves another: those behind the pass are visited, and those behind the visits are not."""
    sql(url, BEGET)
    (moved,) = Job(url, Purge).run()
    assert moved.rows == 2 * OLD
    assert counts(url) == (ROWS, OLD, 2 * OLD)


def test_an_open_range_ends_at_the_highest_key_that_stood_when_it_began(url: str) -> None:
    """Also where it ends when no row waits: the application inserts faster than we walk."""
    flood = Flood(url, ROWS * 1000, 1)
    (moved,) = Job(url, Renew, until=Until.NONE_WAITS).run(tell=flood)
    assert moved.done
    assert one(url, f"SELECT count(*) FROM events WHERE old AND id <= {ROWS * 1000}") == 0
    assert one(url, "SELECT count(*) FROM events WHERE old") > 0


def test_rows_of_the_open_range_that_go_while_it_is_walked(url: str) -> None:
    def remove_the_last(_: Moved) -> None:
        sql(url, "DELETE FROM events WHERE id = (SELECT max(id) FROM events)")

    (moved,) = Job(url, Renew, until=Until.NONE_WAITS).run(tell=remove_the_last)
    assert moved.done
    assert counts(url)[1] == 0


@pytest.mark.parametrize("until", list(Until))
def test_an_empty_table(url: str, until: Until) -> None:
    sql(url, "DELETE FROM events")
    (moved,) = Job(url, Renew, until=until).run()
    assert (moved.done, moved.rows) == (True, 0)


def test_a_row_that_was_locked_is_revisited(url: str) -> None:
    job = Job(url, Purge)
    with holding(url, "SELECT FROM events WHERE id IN (2000, 200000) FOR UPDATE"):
        running = Background(job.run)
        eventually(lambda: counts(url)[1] == 2)
    (moved,) = running.result(timeout=30)
    assert (moved.rows, counts(url)[1]) == (OLD, 0)
    assert moved.retries > 0


def test_rows_that_stay_locked_are_told(url: str) -> None:
    job = Job(url, Purge)
    with (
        holding(url, "SELECT FROM events WHERE id IN (2000, 200000) FOR UPDATE"),
        pytest.raises(LockNotAcquired, match="2 rows are held by the application"),
    ):
        job.run(patience=1.0)
    assert counts(url)[1] == 2
    (moved,) = job.run()
    assert (moved.rows, moved.already, counts(url)[1]) == (2, OLD - 2, 0)


def test_many_rows_that_were_locked_are_visited(url: str) -> None:
    job = Job(url, Purge)
    with holding(url, "SELECT FROM events WHERE id <= 200000 FOR UPDATE"):
        running = Background(job.run)
        eventually(lambda: one(url, "SELECT checkpoint IS NOT NULL FROM zdm.range") and counts(url)[1] <= 134)
    (moved,) = running.result(timeout=30)
    assert (moved.rows, counts(url)[1]) == (OLD, 0)


AGAIN = """
CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.old := OLD.old; RETURN NEW; END $$;
CREATE TRIGGER again BEFORE UPDATE ON events FOR EACH ROW EXECUTE FUNCTION again();
"""


@pytest.mark.parametrize("until", list(Until))
def test_rows_that_wait_anew_are_told(url: str, until: Until) -> None:
    sql(url, AGAIN)
    told = (
        "key 1000 waits again as soon as it is moved: trigger again of events" if until is Until.SEEN else "waits again"
    )
    with pytest.raises(MappingFailed, match=told):
        Job(url, Renew, until=until).run()


def test_rows_that_wait_anew_once_they_are_committed_are_told_where_none_may(url: str) -> None:
    """What a trigger does at the end of a transaction cannot be seen in it."""
    later = AGAIN.replace(
        "NEW.old := OLD.old; RETURN NEW;", "UPDATE events SET old = true WHERE id = NEW.id; RETURN NULL;"
    )
    sql(
        url,
        later.replace("CREATE TRIGGER again BEFORE UPDATE ON events", "CREATE CONSTRAINT TRIGGER again AFTER UPDATE ON events DEFERRABLE INITIALLY DEFERRED")
        .replace("FOR EACH ROW", "FOR EACH ROW WHEN (OLD.old AND NOT NEW.old)"),
    )  # fmt: skip
    with pytest.raises(LockNotAcquired, match="wait anew after they were moved"):
        Job(url, Renew, until=Until.NONE_WAITS).run(patience=1.0)


def test_a_range_that_was_seen_is_not_walked_again(url: str) -> None:
    job = Job(url, Purge)
    job.run()
    sql(url, "UPDATE events SET old = true")
    (moved,) = job.run()
    assert (moved.rows, moved.batches, counts(url)[1]) == (0, 0, ROWS - OLD)


def test_interrupted_it_visits_what_is_left(url: str) -> None:
    job = Job(url, Purge, batch_rows=10)
    batches = count(1)

    def interrupt(_: Moved) -> None:
        if next(batches) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), holding(url, "SELECT FROM events WHERE id = 2000 FOR UPDATE"):
        job.run(tell=interrupt)
    assert one(url, "SELECT done_at IS NULL AND batches = 7 FROM zdm.range")
    job.run()
    assert counts(url) == (ROWS - OLD, 0, OLD)  # also the row that the first run found locked


@pytest.mark.parametrize("last", [("2", "b"), ("2", "a"), ("1", "c"), ("3", "a")])
def test_the_key_after_within_an_interval_of_a_composite_key(database: str, last: Key) -> None:
    sql(database, "CREATE TABLE pairs (n integer, s text, PRIMARY KEY (n, s))")
    sql(database, "INSERT INTO pairs SELECT n, s FROM generate_series(1, 3) n, unnest('{a,b,c}'::text[]) s")
    every = [(str(n), s) for n in (1, 2, 3) for s in "abc"]
    with connected(database, purpose="test") as conn:
        table = catalog.read(conn, TableName.parse("pairs"))
        assert conn.rows.last_key(table, None, wait=1.0) == ("3", "c")
        for place, lower in enumerate(every):
            for rows in (1, 2, 5):
                wanted = [key for key in every[place:] if key <= last]
                expected = wanted[rows] if rows < len(wanted) else None
                assert conn.rows.key_after(table, lower, None, rows=rows, last=last, wait=1.0) == expected


def test_a_batch_that_may_hardly_wait_does_not_wait_for_ever(database: str) -> None:
    people(database, 5)
    write = Statement("UPDATE public.people SET note = '' WHERE id = 1")
    with (
        holding(database, "SELECT FROM people WHERE id = 1 FOR UPDATE"),
        connected(database, purpose="test") as conn,
        pytest.raises(errors.LockNotAvailable),
    ):
        conn.rows.write([write], wait=0.0001)
