"""Governor: what holds a running backfill, what lets it go on, and what it leaves behind; in real time."""

from __future__ import annotations

import ctypes
import itertools
import threading
import time
from typing import Any

import pytest

from zdm_pipelines.engine import budget
from zdm_pipelines.model.errors import StateConflict, Throttled
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Moved
from zdm_pipelines.phases import backfill
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import pause, rollback
from zdm_pipelines_tests.gauged import STEADY, gauge, gauged, leaves_nothing, limit, plain
from zdm_pipelines_tests.helpers import (
    Background,
    backfilled,
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

APP = Database(name="app", max_parallel=32)


@pytest.fixture
def url(database: str) -> str:
    """A database with people, a gauge that shows 0, and a trigger that makes each row as slow as a table says."""
    people(database, 3_000)
    sql(
        database,
        "CREATE TABLE delay (seconds float8); INSERT INTO delay VALUES (0); "
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep((SELECT seconds FROM public.delay)); RETURN NEW; END $$; "
        "CREATE TRIGGER slow BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    gauge(database, "0::float8")
    return database


def delay(url: str, seconds: float) -> None:
    """How long each row takes."""
    sql(url, "UPDATE delay SET seconds = %s", seconds)


class Run:
    """A backfill in the background that takes its time between batches until it may hurry."""

    def __init__(self, m: Migration, url: str, **options: Any) -> None:
        self.told: list[str] = []
        self.batches: list[Moved] = []
        self._m, self._url = m, url
        self._hurry = threading.Event()
        self.job = Background(
            lambda: backfilled(m, url, database=APP, tell=self.told.append, batch=self._batch, **options)
        )

    def _batch(self, moved: Moved) -> None:
        self.batches.append(moved)
        self._hurry.wait(0.02)

    def told_of(self, *words: str) -> bool:
        """Whether one message holds all these words."""
        return any(all(word in told for word in words) for told in list(self.told))

    def works(self) -> None:
        """Wait until it has written again."""
        before = len(self.batches)
        eventually(lambda: len(self.batches) > before + 1 or not self.job.is_alive())
        assert self.job.is_alive() or self.job.error is None, repr(self.job.error)
        assert len(self.batches) > before

    def stands(self, seconds: float = 0.6) -> None:
        """It writes nothing for a while, after the batch under way."""
        assert self.job.is_alive()
        time.sleep(0.2)
        before = len(self.batches)
        time.sleep(seconds)
        assert len(self.batches) == before
        assert self.job.is_alive()

    def ends(self) -> Any:
        """Let it run to its end, in a few large batches."""
        self._hurry.set()
        pause.tune(work(self._m, self._url), {"backfill": {"batch_rows": 1_000}})
        return self.job.result()


def moved_once(url: str, rows: int = 3_000) -> None:
    """Every row is moved, and was counted once."""
    assert one(url, "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM 'n:' || full_name") == 0
    assert one(url, "SELECT sum(rows) FROM zdm.range") == rows


# -- what ends a run --------------------------------------------------------------------------------------


def test_a_critical_signal_ends_a_run_that_works_and_its_checkpoint_stays(url: str) -> None:
    m = gauged(throttle={"sql": [limit(critical_above=20)]})
    expanded(m, url)
    run = Run(m, url)
    run.works()
    gauge(url, 21)
    with pytest.raises(Throttled, match="a signal is critical: gauge is 21, above 10; goes on at 5") as error:
        run.job.result(30)  # max_wait is ten minutes
    assert error.value.reasons == ("gauge is 21, above 10; goes on at 5",)
    assert not run.told_of("waiting")
    (progress,) = ranges(m, url)
    assert progress.checkpoint is not None
    assert 0 < progress.rows < 3_000
    assert not progress.done
    assert one(url, "SELECT count(display_name) FROM people") == progress.rows
    leaves_nothing(url)
    gauge(url, 0)
    backfilled(m, url)
    moved_once(url)


def test_a_database_that_is_away_for_longer_than_a_run_may_wait(own_server: Server) -> None:
    app = own_server.create_database("app")
    people(app, 2_000)
    m = replaced(
        backfill={"range_rows": 200, "batch_rows": 5, "max_parallel": 3},
        throttle={"max_wait": "2s", "latency_p95": {"pause_above": "10s"}},
    )
    expanded(m, app)
    run = Run(m, app)
    eventually(lambda: len(run.batches) > 100)
    own_server.kill()
    with pytest.raises(Throttled) as error:
        run.job.result(60)
    assert error.value.reasons
    eventually(lambda: not [t.name for t in threading.enumerate() if t.name.startswith("zdm ")])
    own_server.start()
    moved = one(app, "SELECT sum(rows) FROM zdm.range")  # the crash took the last ones, with their checkpoints
    assert one(app, "SELECT count(display_name) FROM people") == moved < 2_000
    backfilled(m, app)
    moved_once(app, 2_000)
    assert state(m, app) == State.BACKFILLED
    leaves_nothing(app)


def interrupted(job: Background) -> None:
    """As the interrupt that ends a run in Dagster, or Ctrl-C."""
    assert job.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(job.ident), ctypes.py_object(KeyboardInterrupt))


def test_an_interrupt_ends_a_run_that_waits(url: str) -> None:
    m = gauged()
    expanded(m, url)
    pause.pause(work(m, url), reason="lunch")
    run = Run(m, url)
    eventually(lambda: run.told_of("waiting: lunch"))
    begun = time.monotonic()
    interrupted(run.job)
    with pytest.raises(KeyboardInterrupt):
        run.job.result(30)
    assert time.monotonic() - begun < 10
    assert not run.batches
    assert not run.told_of("going on")
    leaves_nothing(url)


def test_closing_a_run_that_waits(url: str) -> None:
    m = replaced(backfill={"range_rows": 500, "batch_rows": 5, "max_parallel": 1}, throttle={"sql": [limit()]})
    expanded(m, url)
    told: list[str] = []
    run = backfill.run(work(m, url, tell=told.append), batch=lambda _: time.sleep(0.02))
    first = next(run)
    gauge(url, 11)
    eventually(lambda: any("gauge is 11" in t for t in told))
    begun = time.monotonic()
    run.close()
    assert time.monotonic() - begun < 10
    assert first.rows <= one(url, "SELECT sum(rows) FROM zdm.range") < 3_000
    leaves_nothing(url)


def test_a_run_leaves_nothing_behind(url: str) -> None:
    m = gauged(
        backfill={"range_rows": 300, "batch_rows": 100, "max_parallel": 4},
        throttle={"latency_p95": {"pause_above": "60s"}},
    )
    expanded(m, url)
    backfilled(m, url, run_id="a-run")
    leaves_nothing(url)
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    assert one(url, locks) == 0
    assert sql(url, "SELECT owner FROM zdm.hold") == []


# -- what holds it ----------------------------------------------------------------------------------------


def test_two_runs_stop_for_one_hold(url: str) -> None:
    m = replaced(backfill={"range_rows": 300, "batch_rows": 5, "max_parallel": 4})
    expanded(m, url)
    keys = [r.range.partition for r in ranges(m, url)]
    runs = [Run(m, url, partitions=keys[::2]), Run(m, url, partitions=keys[1::2])]
    for run in runs:
        run.works()
    pause.pause(work(m, url), reason="lunch")
    for run in runs:
        eventually(lambda run=run: run.told_of("waiting: lunch (hold of operator)"))  # type: ignore[misc]
    for run in runs:
        run.stands()
    pause.resume(work(m, url))
    for run in runs:
        run.ends()
    moved_once(url)
    assert state(m, url) == State.BACKFILLED


def test_what_is_under_way_when_a_hold_is_placed_is_all_that_is_still_written(url: str) -> None:
    m = replaced(backfill={"range_rows": 300, "batch_rows": 5, "batch_target": "60s", "max_parallel": 2})
    expanded(m, url)
    delay(url, 0.2)  # a second for each batch; holds are seen after half of one
    run = Run(m, url)
    eventually(lambda: writing(url) == 2)
    pause.pause(work(m, url), reason="lunch")
    before = one(url, "SELECT sum(batches) FROM zdm.range")
    eventually(lambda: run.told_of("waiting: lunch"))
    eventually(lambda: writing(url) == 0)
    time.sleep(1)
    assert writing(url) == 0
    assert one(url, "SELECT sum(batches) FROM zdm.range") <= before + 4
    delay(url, 0)
    pause.resume(work(m, url))
    run.ends()
    moved_once(url)


# -- what is changed while it runs ------------------------------------------------------------------------


def writing(url: str) -> int:
    """Batches under way."""
    return int(
        one(
            url,
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'WITH zdm_moved%%' "
            "AND datname = current_database() AND pid <> pg_backend_pid()",
        )
    )


def most_writing(url: str, seconds: float) -> int:
    """Most batches at once, over a while."""
    deadline = time.monotonic() + seconds
    return max(writing(url) for _ in itertools.takewhile(lambda _: time.monotonic() < deadline, itertools.count()))


def test_max_parallel_is_tuned_up_and_down(url: str) -> None:
    m = replaced(backfill={"range_rows": 700, "batch_rows": 5, "batch_target": "60s", "max_parallel": 1})
    expanded(m, url)
    assert len(ranges(m, url)) >= 4
    delay(url, 0.02)
    run = Run(m, url)
    run.works()
    assert most_writing(url, 0.5) == 1
    for parallel in (4, 2, 3, 1):
        pause.tune(work(m, url), {"backfill": {"max_parallel": parallel}})
        eventually(lambda parallel=parallel: most_writing(url, 0.5) == parallel)  # type: ignore[misc]
        assert most_writing(url, 0.5) <= parallel
        run.works()
    assert not any(r.done for r in ranges(m, url))  # those that rest have work to do
    delay(url, 0)
    pause.tune(work(m, url), {"backfill": {"max_parallel": 4, "batch_rows": 100}})
    run.ends()
    moved_once(url)
    leaves_nothing(url)


def test_a_run_that_waited_through_a_rollback_moves_nothing(url: str) -> None:
    m = plain()
    expanded(m, url)
    pause.pause(work(m, url), reason="lunch")
    run = Run(m, url)
    eventually(lambda: run.told_of("waiting: lunch"))
    rollback.run(work(m, url), to=State.ROLLED_BACK)
    expanded(m, url)
    pause.resume(work(m, url))
    with pytest.raises(StateConflict, match="was rolled back since"):
        run.job.result()
    assert one(url, "SELECT sum(rows) FROM zdm.range") == 0


def test_ranges_that_were_cut_anew_under_a_waiting_run(url: str) -> None:
    m = plain()
    expanded(m, url)
    pause.pause(work(m, url), reason="lunch")
    run = Run(m, url)
    eventually(lambda: run.told_of("waiting: lunch"))
    expanded(plain(backfill=STEADY | {"range_rows": 77}), url)
    pause.resume(work(m, url))
    with pytest.raises(StateConflict, match="cut anew"):
        run.job.result()


# -- the size of batches ----------------------------------------------------------------------------------


def test_a_batch_that_runs_into_its_timeout_is_split(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_SHORTEST_TIMEOUT", 0.4)
    sql(
        url,
        "DELETE FROM people WHERE id > 200; CREATE TABLE written (id bigint); "
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO public.written VALUES (NEW.id); RETURN NULL; END $$; "
        "CREATE TRIGGER note AFTER UPDATE ON people FOR EACH ROW EXECUTE FUNCTION note()",
    )
    delay(url, 0.01)  # two seconds for all of them
    m = replaced(backfill={"batch_rows": 200, "batch_target": "20ms", "max_parallel": 1})
    expanded(m, url)
    sizes: list[int] = []
    (range_,) = backfilled(m, url, batch=lambda moved: sizes.append(moved.rows))
    assert range_.retries >= 1
    assert range_.rows == 200
    assert 0 < max(sizes) <= 50
    assert sql(url, "SELECT count(*), count(DISTINCT id) FROM written") == [(200, 200)]
    moved_once(url, 200)
    assert ranges(m, url)[0].done


def test_rows_so_slow_that_few_fit_a_batch_are_not_tried_in_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_SHORTEST_TIMEOUT", 0.4)
    sql(url, "DELETE FROM people WHERE id > 20")
    delay(url, 0.15)
    m = replaced(backfill={"batch_rows": 20, "batch_target": "20ms", "max_parallel": 1})
    expanded(m, url)
    (range_,) = backfilled(m, url)
    assert range_.retries == 2  # 20, 5, then 1 row at a time
    moved_once(url, 20)


def test_time_under_a_hold_is_no_time_that_the_application_held_a_row(url: str) -> None:
    """Patience is for trying: nobody tries while somebody holds the run."""
    sql(url, "DELETE FROM people WHERE id > 100")
    m = replaced(locks={"give_up_after": "3s"})
    expanded(m, url)
    with holding(url, "SELECT FROM people WHERE id = 7 FOR UPDATE"):
        run = Run(m, url)
        eventually(lambda: one(url, "SELECT sum(rows) FROM zdm.range") == 99)
        pause.pause(work(m, url), reason="lunch")
        eventually(lambda: run.told_of("waiting: lunch"))
        time.sleep(3.5)
        pause.resume(work(m, url))
        eventually(lambda: run.told_of("going on after") or not run.job.is_alive())
        time.sleep(1)  # it finds the row held again
    run.ends()
    moved_once(url, 100)
    assert run.told_of("going on after")
