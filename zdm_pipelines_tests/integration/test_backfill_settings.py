"""Backfill settings: each does what its description says."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from zdm_pipelines.dialects.postgres.signals.latency import Latency
from zdm_pipelines.engine.pace import SMALLEST, Pace
from zdm_pipelines.engine.signals import Measured
from zdm_pipelines.engine.watch import judge
from zdm_pipelines.model.errors import Throttled
from zdm_pipelines.model.migration import Backfill, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.throttle import DurationLimit
from zdm_pipelines.model.values import Reading
from zdm_pipelines.phases import backfill, switch_reads
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines_tests.helpers import (
    Background,
    backfilled,
    eventually,
    expanded,
    one,
    people,
    ranges,
    replaced,
    sql,
    state,
    walk,
    work,
)


def batches(m: Migration, url: str) -> list[int]:
    """Rows of each batch."""
    found: list[int] = []
    backfilled(m, url, batch=lambda moved: found.append(moved.rows))
    return found


@pytest.mark.parametrize("batch_rows", [1, 7, 100, 5_000])
def test_batch_rows(database: str, batch_rows: int) -> None:
    people(database, 300)
    m = replaced(backfill={"batch_rows": batch_rows, "batch_target": "60s"})
    expanded(m, database)
    rows = batches(m, database)
    assert max(rows) == min(batch_rows, 300)
    assert sum(rows) == 300
    assert len(rows) == -(-300 // batch_rows)


def test_range_rows(database: str) -> None:
    people(database, 3_000)
    expanded(replaced(backfill={"range_rows": 1_000}), database)
    assert len(ranges(replaced(), database)) == 3


def test_batches_shrink_when_they_are_slow(database: str) -> None:
    people(database, 400)
    m = replaced(backfill={"batch_rows": 200, "batch_target": "100ms"})
    expanded(m, database)
    sql(
        database,
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.004); RETURN NEW; END $$; "
        "CREATE TRIGGER slow BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    # A batch with triggers of the application ends before the server looks for deadlocks.
    sql(database, f"ALTER DATABASE {database.rpartition('/')[2]} SET deadlock_timeout = '20s'")
    rows = batches(m, database)
    assert rows[0] == 200
    assert rows[1] == 100
    assert min(rows[:-1]) <= 50
    assert sum(rows) == 400


def test_pace() -> None:
    pace = Pace(Backfill(batch_rows=1_000, batch_target="100ms"))  # type: ignore[arg-type]
    for _ in range(20):
        pace.took(1.0, pace.rows)
    assert pace.rows == SMALLEST
    for _ in range(5):
        pace.took(0.09, pace.rows)  # neither slow nor quick
    assert pace.rows == SMALLEST
    for _ in range(50):
        pace.took(pace.rows / 100_000, pace.rows)
    assert pace.rows == 1_000
    tiny = Pace(Backfill(batch_rows=3))
    tiny.took(1.0, 3)
    assert tiny.rows == 3


def test_pace_grows_by_a_quarter_at_most_and_halves_at_once() -> None:
    pace = Pace(Backfill(batch_rows=1_000, batch_target="100ms"))  # type: ignore[arg-type]
    pace.took(0.2, 1_000)
    sizes = [pace.rows]
    for _ in range(20):
        pace.took(0.001, pace.rows)
        sizes.append(pace.rows)
    assert sizes[0] == 500
    assert all(b <= a * 1.25 for a, b in itertools.pairwise(sizes))
    assert sizes[-1] == 1_000
    assert pace.too_long(1_000) == 250


def test_pace_goes_by_the_90th_percentile() -> None:
    """One quick batch among slow ones is no reason to grow."""
    pace = Pace(Backfill(batch_rows=1_000, batch_target="100ms"))  # type: ignore[arg-type]
    pace.took(0.2, 1_000)
    for took in (0.095, 0.001, 0.095, 0.001, 0.095, 0.001):
        pace.took(took, pace.rows)
        assert pace.rows == 500


@pytest.mark.parametrize("signal", ["replication_lag", "latency_p95"])
def test_a_signal_flaps_not(signal: str) -> None:
    paused, seen = False, []
    for value in (0.1, 3.0, 6.0, 3.0, 1.5, 0.9, 3.0, 5.1):
        paused = judge(LIMIT, Reading(signal=signal, value=value), paused=paused).bad
        seen.append(paused)
    assert seen == [False, False, True, True, True, False, False, True]


@pytest.fixture(params=["walreceiver", "startup"])
def frozen_replica(cluster: Cluster, request: pytest.FixtureRequest) -> Any:
    """One of the replica's processes is stopped until the function is called that this gives."""
    process = cluster.replica.process(request.param)
    process.suspend()
    try:
        yield process.resume
    finally:
        process.resume()
    cluster.wait_caught_up()


@pytest.fixture
def stuck_replica(cluster: Cluster) -> Any:
    """The replica replays nothing until the function is called that this gives."""
    with psycopg.connect(cluster.replica.url(), autocommit=True) as c:
        c.execute("SELECT pg_wal_replay_pause()")
        yield lambda: c.execute("SELECT pg_wal_replay_resume()")
        c.execute("SELECT pg_wal_replay_resume()")
    cluster.wait_caught_up()


LIMIT = DurationLimit.model_validate({"pause_above": "5s", "resume_below": "1s"})
LAG = {"replication_lag": {"pause_above": "1s", "resume_below": "500ms"}}


def test_backfill_waits_for_a_replica(database: str, stuck_replica: Callable[[], Any]) -> None:
    waits_until(database, stuck_replica)


def test_backfill_waits_for_a_replica_that_hangs(database: str, frozen_replica: Callable[[], Any]) -> None:
    """The primary's view keeps its last lag then."""
    waits_until(database, frozen_replica)


def waits_until(database: str, going_on: Callable[[], Any]) -> None:
    people(database, 1_000)
    m = replaced(backfill={"range_rows": 5_000, "batch_rows": 5}, throttle=LAG)
    expanded(m, database)
    told: list[str] = []
    moved: list[int] = []

    def slowly(batch: Any) -> None:
        moved.append(batch.rows)
        time.sleep(0.01)

    job = Background(lambda: backfilled(m, database, tell=told.append, batch=slowly))
    eventually(lambda: any("replication_lag is" in t for t in told))
    before = sum(moved)
    time.sleep(1.5)
    assert sum(moved) <= before + 5  # the batch under way
    assert before < 1_000
    assert job.is_alive()
    going_on()
    job.result()
    assert any("going on" in t for t in told)
    assert one(database, "SELECT count(display_name) FROM people") == 1_000


def test_max_wait(database: str, stuck_replica: Callable[[], Any]) -> None:
    people(database, 2_000)
    m = replaced(backfill={"range_rows": 5_000, "batch_rows": 2}, throttle=LAG | {"max_wait": "500ms"})
    expanded(m, database)
    with pytest.raises(Throttled, match="replication_lag is"):
        backfilled(m, database, batch=lambda _: time.sleep(0.01))
    assert 0 < one(database, "SELECT count(display_name) FROM people") < 2_000
    assert state(m, database) == State.BACKFILLING
    stuck_replica()
    backfilled(replaced(), database)
    assert one(database, "SELECT sum(rows) FROM zdm.range") == 2_000


def test_a_slow_table_pauses_the_backfill(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    people(database, 200)
    m = replaced(
        backfill={"batch_rows": 10},
        throttle={"latency_p95": {"pause_above": "200ms", "resume_below": "100ms"}, "max_wait": "300ms"},
    )
    expanded(m, database)
    monkeypatch.setattr(Latency, "read", lambda _: Measured(value=0.3))
    with pytest.raises(Throttled, match=r"latency_p95 is 0\.300 s"):
        backfilled(m, database)
    monkeypatch.undo()
    backfilled(m, database)
    assert state(m, database) == State.BACKFILLED


def test_closing_the_run_stops_at_the_next_batch(database: str) -> None:
    people(database, 1_000)
    m = replaced(backfill={"range_rows": 100, "batch_rows": 10, "max_parallel": 1})
    expanded(m, database)
    seen = threading.Event()
    run = backfill.run(work(m, database), batch=lambda _: seen.set())
    next(run)
    assert seen.is_set()
    run.close()
    done = one(database, "SELECT sum(rows) FROM zdm.range")
    assert 100 <= done < 1_000
    assert one(database, "SELECT count(display_name) FROM people") == done
    backfilled(m, database)
    assert one(database, "SELECT sum(rows) FROM zdm.range") == 1_000


def test_the_ramp(database: str) -> None:
    people(database, 10)
    m = replaced(reads={"ramp": [1, 25, 100], "flag": "my flag's name"})
    walk(m, database, State.VALIDATED)
    seen = []
    for _ in range(4):
        switch_reads.run(work(m, database))
        seen.append(sql(database, "SELECT name, percent FROM zdm.flag")[0])
    assert seen == [("my flag's name", p) for p in (1, 25, 100, 100)]
    assert state(m, database) == State.SWITCHED
