"""Locks: somebody else holds one for seconds; the application never waits longer than we may queue, and we finish."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from zdm_pipelines.engine.rows import worker
from zdm_pipelines.model.errors import LockNotAcquired
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import contract, validate
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import rollback
from zdm_pipelines_tests.helpers import (
    Background,
    Probe,
    at,
    backfilled,
    dump,
    eventually,
    expanded,
    holding,
    one,
    people,
    ranges,
    replaced,
    sql,
    state,
    work,
)

TIMEOUT = 0.2  # as helpers.replaced declares it
SLACK = 1.5  # for a busy machine

NOT_NULL = {"name": "display_name", "type": "text", "nullable": False}
READER = "SELECT count(*) FROM people"  # ACCESS SHARE, to the end of the transaction
WRITER = "UPDATE people SET note = 'mine' WHERE id = 1"  # ROW EXCLUSIVE
PROBES = ("SELECT note FROM people WHERE id = 10", "UPDATE people SET note = 'probe' WHERE id = 10")


def declared(**sections: Any) -> Migration:
    return replaced(new=NOT_NULL, up="'n:' || coalesce(full_name, '')", **sections)


@pytest.fixture
def url(database: str) -> str:
    people(database, 500)
    return database


def _expand(m: Migration, url: str) -> Any:
    return expanded(m, url)


def _validate(m: Migration, url: str) -> Any:
    return validate.run(work(m, url))


def _contract(m: Migration, url: str) -> Any:
    return contract.run(work(m, url))


def _roll_back(m: Migration, url: str) -> Any:
    return rollback.run(work(m, url), to=State.ROLLED_BACK, force=True)


Phase = Callable[[Migration, str], Any]

PHASES: list[tuple[Phase, State, State]] = [
    (_expand, State.PLANNED, State.EXPANDED),
    (_validate, State.BACKFILLED, State.VALIDATED),
    (_contract, State.SWITCHED, State.TOMBSTONED),
    (_contract, State.TOMBSTONED, State.CONTRACTED),
    (_roll_back, State.EXPANDED, State.ROLLED_BACK),
]
CASES = [(*phase, READER, 1.0) for phase in PHASES] + [
    (_expand, State.PLANNED, State.EXPANDED, WRITER, 1.0),
    (_contract, State.TOMBSTONED, State.CONTRACTED, WRITER, 1.0),
    pytest.param(_expand, State.PLANNED, State.EXPANDED, READER, 30.0, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("phase", "before", "after", "held", "seconds"), CASES)
def test_a_lock_is_held_for_a_while(
    url: str, phase: Phase, before: State, after: State, held: str, seconds: float
) -> None:
    m = declared()
    at(m, url, before)
    with Probe(url, PROBES) as probe:
        with holding(url, held):
            job = Background(lambda: phase(m, url))
            time.sleep(seconds)
            assert job.is_alive()
            assert state(m, url) == before
        report = job.result()
    assert state(m, url) == after
    assert probe.errors == []
    assert probe.count > 20
    assert probe.longest < TIMEOUT + SLACK
    if hasattr(report, "retries"):
        assert report.retries >= 1


@pytest.mark.parametrize(("phase", "before", "after"), PHASES)
def test_a_lock_is_never_given_back(server: Server, url: str, phase: Phase, before: State, after: State) -> None:
    m = declared(locks={"timeout": "50ms", "give_up_after": "500ms"})
    at(m, url, before)
    schema = dump(server, url)
    with Probe(url, PROBES) as probe, holding(url, READER, name="endless report"):
        with pytest.raises(LockNotAcquired) as caught:
            phase(m, url)
        assert "endless report" in str(caught.value)
        assert "role postgres" in str(caught.value)
    assert state(m, url) == before
    if phase is not _validate:  # which keeps the proof it already has
        assert dump(server, url) == schema
    assert probe.longest < 0.05 + SLACK
    phase(m, url)
    assert state(m, url) == after


@pytest.mark.slow
def test_indexes_wait_for_old_transactions_and_nobody_waits_for_them(url: str) -> None:
    sql(url, "CREATE INDEX people_full_name_idx ON people (full_name)")
    m = declared()
    at(m, url, State.BACKFILLED)
    with Probe(url, PROBES) as probe:
        with holding(url, WRITER):
            job = Background(lambda: validate.run(work(m, url)))
            eventually(lambda: sql(url, "SELECT 1 FROM pg_stat_progress_create_index"))
            time.sleep(1)
            assert job.is_alive()
        job.result()
    assert probe.errors == []
    assert probe.longest < TIMEOUT + SLACK
    assert one(url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'people_display_name_idx'::regclass")


def test_an_index_build_that_gave_up_is_built_again(url: str) -> None:
    sql(url, "CREATE INDEX people_full_name_idx ON people (full_name)")
    m = declared(locks={"timeout": "50ms", "give_up_after": "500ms"})
    at(m, url, State.BACKFILLED)
    with holding(url, WRITER), pytest.raises(LockNotAcquired):
        validate.run(work(m, url))
    assert one(url, "SELECT NOT indisvalid FROM pg_index WHERE indexrelid = 'people_display_name_idx'::regclass")
    validate.raise_if_failed(validate.run(work(m, url)))
    assert one(url, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'people_display_name_idx'::regclass")


def test_backfill_goes_round_a_locked_row(url: str) -> None:
    """The application's transaction never waits for us, other rows are moved meanwhile, the row afterwards."""
    m = declared(backfill={"range_rows": 500, "batch_rows": 100})
    expanded(m, url)
    with holding(url, "UPDATE people SET note = 'held' WHERE id = 77") as application:
        job = Background(lambda: backfilled(m, url))
        eventually(lambda: one(url, "SELECT count(*) FROM people WHERE display_name IS NULL") == 1)
        assert job.is_alive()
        begun = time.monotonic()
        application.execute("UPDATE people SET note = 'held too'")
        assert time.monotonic() - begun < SLACK
        assert state(m, url) == State.BACKFILLING
        application.commit()
    assert sum(r.rows for r in job.result()) == 500
    assert one(url, "SELECT display_name FROM people WHERE id = 77") == "n:v77"
    assert one(url, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


def test_backfill_names_what_it_could_not_have(url: str) -> None:
    m = declared(locks={"timeout": "50ms", "give_up_after": "500ms"}, backfill={"range_rows": 500, "batch_rows": 100})
    expanded(m, url)
    with (
        holding(url, "UPDATE people SET note = 'held' WHERE id IN (77, 78)"),
        pytest.raises(LockNotAcquired, match="2 rows are held"),
    ):
        backfilled(m, url)
    assert one(url, "SELECT count(*) FROM people WHERE display_name IS NULL") == 2
    assert not ranges(m, url)[0].done
    assert sum(r.rows for r in backfilled(m, url)) == 2


def test_backfill_gives_up_on_a_table_lock(url: str) -> None:
    m = declared(locks={"timeout": "50ms", "give_up_after": "100ms"})
    expanded(m, url)
    with (
        holding(url, "LOCK TABLE people IN SHARE MODE", name="old way"),
        pytest.raises(LockNotAcquired, match="old way"),
    ):
        backfilled(m, url)
    assert one(url, "SELECT count(display_name) FROM people") == 0
    assert sum(r.rows for r in backfilled(m, url)) == 500


@pytest.mark.parametrize("mode", ["SHARE", "ACCESS EXCLUSIVE"])
def test_backfill_outlasts_a_table_lock(url: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody builds an index the old way, or rewrites the table: the backfill goes on afterwards."""
    monkeypatch.setattr(worker, "_TRIES", 1)  # those are for batches that the server cancels
    m = declared(backfill={"range_rows": 100, "batch_rows": 50})
    expanded(m, url)
    with holding(url, f"LOCK TABLE people IN {mode} MODE"):
        job = Background(lambda: backfilled(m, url))
        time.sleep(3.5)
        assert job.is_alive()
    assert sum(r.rows for r in job.result()) == 500


def test_no_deadlock_with_an_application_that_locks_in_the_other_order(url: str) -> None:
    m = declared(backfill={"range_rows": 500, "batch_rows": 250})
    expanded(m, url)
    stop, errors = threading.Event(), []

    def backwards() -> None:
        with psycopg.connect(url) as c:
            while not stop.is_set():
                try:
                    for i in range(500, 0, -50):
                        c.execute("UPDATE people SET note = note || '.' WHERE id = %s", [i])
                    c.commit()
                except psycopg.Error as error:
                    errors.append(str(error))
                    c.rollback()

    threads = [Background(backwards) for _ in range(2)]
    eventually(lambda: one(url, "SELECT count(*) FROM people WHERE note LIKE '%.'") > 0)
    backfilled(m, url)
    stop.set()
    for thread in threads:
        thread.result()
    # The two may deadlock with each other in no way: they lock in the same order.
    assert errors == []
    assert one(url, "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM 'n:' || full_name") == 0
