"""Governor: what it sees, what it makes others see, and when a worker may write; in simulated time, on a real ledger."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.dialects.postgres.signals import session as protocol
from zdm_pipelines.engine import tuning
from zdm_pipelines.engine.pace import Pace
from zdm_pipelines.engine.signals import Surroundings
from zdm_pipelines.engine.throttle import Governor
from zdm_pipelines.ledger import holds
from zdm_pipelines.model.errors import SpecError, Throttled
from zdm_pipelines.model.migration import Backfill, Migration
from zdm_pipelines.model.tuning import Settings, declared_settings
from zdm_pipelines.verbs import pause
from zdm_pipelines_tests.gauged import (
    STEADY,
    expires,
    gauge,
    gauged,
    leaves_nothing,
    limit,
    plain,
    reason,
)
from zdm_pipelines_tests.helpers import Background, expanded, holding, one, people, sql, surveyed, work
from zdm_pipelines_tests.simulated import SimulatedClock

Effective = Callable[..., Settings]


class Until(threading.Event):
    """Set when a moment has come, as the stop of a run that is cancelled then."""

    def __init__(self, clock: SimulatedClock, seconds: float) -> None:
        super().__init__()
        self._clock, self._at = clock, clock.monotonic() + seconds

    def is_set(self) -> bool:
        return self._clock.monotonic() >= self._at


class Governed:
    """A governor, and the worker that asks it before each batch."""

    def __init__(self, m: Migration, url: str, clock: SimulatedClock) -> None:
        self.told: list[str] = []
        self._clock = clock
        with connected(url, purpose="test") as conn:
            tuning.publish(conn, m)  # as a run does when it begins
        around = Surroundings(url=url, catalog=surveyed(m, url), clock=clock)
        self.governor = Governor(m, around, tell=self.told.append)
        clock.advance(1)  # the first readings are there, and what follows from them is in the ledger

    def works(self) -> None:
        """Nothing stands against the next batch."""
        assert self.governor.wait(Until(self._clock, 5)) == 0, self.told[-1]

    def waits(self, seconds: float = 1.0) -> str:
        """No batch is written in so many seconds; gives what was told last."""
        assert self.governor.wait(Until(self._clock, seconds)) >= seconds - 0.2
        return self.told[-1]

    def asks(self, seconds: float = 5.0) -> float:
        """Ask for a batch; gives how long that took."""
        begun = self._clock.monotonic()
        self.governor.wait(Until(self._clock, seconds))
        return self._clock.monotonic() - begun


Govern = Callable[[Migration], Governed]


@pytest.fixture
def url(database: str) -> str:
    """A database with people, and a gauge that shows 0."""
    people(database, 100)
    gauge(database, "0::float8")
    return database


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def govern(url: str, clock: SimulatedClock) -> Iterator[Govern]:
    """Governors of an expanded migration, which leave nothing behind."""
    made: list[Governed] = []

    def a_governor(m: Migration) -> Governed:
        expanded(m, url)
        made.append(Governed(m, url, clock))
        return made[-1]

    yield a_governor
    for each in made:
        each.governor.close()
    leaves_nothing(url)


# -- what holds it ----------------------------------------------------------------------------------------


def test_a_worker_waits_for_as_long_as_it_may(url: str, clock: SimulatedClock, govern: Govern) -> None:
    gauge(url, 11)
    run = govern(gauged(throttle={"max_wait": "20s"}))
    begun = clock.monotonic()
    with pytest.raises(Throttled, match=r"waited 20 s: gauge is 11, above 10; goes on at 5") as error:
        run.governor.wait(threading.Event())
    assert 20 < clock.monotonic() - begun < 21
    assert error.value.reasons == ("gauge is 11, above 10; goes on at 5",)
    assert run.told == ["waiting: gauge is 11, above 10; goes on at 5"]


def test_a_worker_goes_on_within_a_second_of_the_signal(url: str, clock: SimulatedClock, govern: Govern) -> None:
    gauge(url, 11)
    run = govern(gauged())
    run.waits(2)
    gauge(url, 5)
    assert run.asks() < 1
    assert run.told[-1].startswith("going on after ")


def test_a_critical_signal_that_was_tuned_away_ends_nothing(
    url: str, clock: SimulatedClock, govern: Govern, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the signal answers before the ledger does."""
    m = gauged(throttle={"sql": [limit(critical_above=20)]})
    expanded(m, url)
    gauge(url, 21)
    pause.tune(work(m, url), {"throttle": {"sql": []}})
    monkeypatch.setattr(tuning, "effective", _slow(tuning.effective, clock, 3))
    run = govern(m)
    assert "gauge is 21" in run.waits(1)
    assert run.asks() < 3
    run.works()


def _slow(effective: Effective, clock: SimulatedClock, seconds: float) -> Effective:
    def slowly(*args: Any) -> Settings:
        clock.sleep(seconds)
        return effective(*args)

    return slowly


def test_a_ledger_that_does_not_answer_holds_a_run(
    url: str, clock: SimulatedClock, govern: Govern, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = govern(plain())
    run.works()
    monkeypatch.setattr(tuning, "effective", _slow(tuning.effective, clock, 10))
    clock.advance(2)
    run.works()  # it is not late yet
    clock.advance(1.5)
    assert run.waits().startswith("waiting: the ledger has not answered for ")
    assert run.asks(15) < 8
    run.works()


def test_a_closed_window_holds_a_run_until_it_opens_or_is_tuned_open(
    url: str, clock: SimulatedClock, govern: Govern
) -> None:
    clock = SimulatedClock(at=datetime(2026, 1, 1, 13, 59, 50, tzinfo=UTC))
    m = Migration.model_validate(plain().model_dump(mode="json") | {"allowed": ["14:00-15:00 UTC"]})
    expanded(m, url)
    run = Governed(m, url, clock)
    try:
        assert run.waits() == "waiting: outside 14:00-15:00 UTC; opens at 2026-01-01 14:00 UTC"
        assert run.asks(60) == pytest.approx(8, abs=0.2)
        run.works()
        pause.tune(work(m, url), {"allowed": "16:00-17:00 UTC"})
        clock.advance(1)
        assert run.waits().startswith("waiting: outside 16:00-17:00 UTC")
        pause.tune(work(m, url), {"allowed": []})
        clock.advance(1)
        run.works()
    finally:
        run.governor.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server, whose time is real, ends what a signal asks after a moment."""
    monkeypatch.setattr(protocol, "DEADLINE", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("shown", "where", "expected"),
    [
        ("NULL::int", "", "it gave NULL that is no finite number"),
        ("'eleven'::text", "", "it gave a str that is no finite number"),
        ("1 / (SELECT 0)", "", "DivisionByZero"),
        ("1", "WHERE false", "the query gives no row"),
        ("n", "FROM generate_series(1, 2) n", "the query gives several rows"),
        ("1", "FROM pg_sleep(600)", "canceling statement due to statement timeout"),
        ("'Infinity'::float8", "", "that is no finite number"),
    ],
)
def test_a_signal_that_breaks_under_a_run_holds_it_until_it_is_mended(
    shown: str, where: str, expected: str, url: str, clock: SimulatedClock, govern: Govern
) -> None:
    run = govern(gauged())
    run.works()
    gauge(url, shown, where)
    clock.advance(1)
    assert reason(url).startswith("gauge cannot be read: ")
    assert expected in reason(url)
    told = run.waits()
    assert told.startswith("waiting: gauge cannot be read: ")
    assert expected in told
    gauge(url, 0)
    clock.advance(1)
    run.works()
    assert expires(url) is None


@pytest.mark.usefixtures("impatient")
def test_a_signal_whose_table_is_gone_or_locked_holds_a_run(url: str, clock: SimulatedClock, govern: Govern) -> None:
    run = govern(gauged())
    sql(url, "DROP VIEW gauge")
    clock.advance(1)
    assert 'relation "public.gauge" does not exist' in reason(url)
    gauge(url, 0)
    clock.advance(1)
    run.works()
    with holding(url, "LOCK TABLE gauge"):
        clock.advance(0.5)
        assert "timeout" in run.waits()
    clock.advance(1)
    run.works()


def test_the_hold_of_a_signal_is_renewed_outlives_the_run_and_is_lifted_by_the_next(
    url: str, clock: SimulatedClock, govern: Govern
) -> None:
    m = gauged()
    gauge(url, 11)
    run = govern(m)
    first, now = expires(url), one(url, "SELECT clock_timestamp()")
    assert first is not None
    assert now < first <= now + timedelta(seconds=holds.SIGNAL_SECONDS)
    clock.advance(holds.SIGNAL_SECONDS / 2)
    assert (expires(url) or now) > first
    run.governor.close()
    assert reason(url) == "gauge is 11, above 10; goes on at 5"
    gauge(url, 7)
    run = govern(m)
    assert run.waits() == "waiting: gauge is 7, above 10; goes on at 5"  # between its limits it is not good again
    gauge(url, 5)
    clock.advance(1)
    run.works()
    assert expires(url) is None


def test_a_signals_hold_that_was_lifted_stands_again_at_once_when_it_is_bad_again(
    url: str, clock: SimulatedClock, govern: Govern
) -> None:
    m = gauged()
    run = govern(m)
    gauge(url, 11)
    for _ in range(3):
        clock.advance(1)
        assert expires(url) is not None
        pause.tune(work(m, url), {"throttle": {"sql": []}})
        clock.advance(1)
        assert expires(url) is None
        run.works()
        pause.reset(work(m, url))
    clock.advance(1)
    assert expires(url) is not None


# -- what is changed while it runs ------------------------------------------------------------------------


def test_batch_rows_are_tuned_up_and_down_and_reset(url: str, clock: SimulatedClock, govern: Govern) -> None:
    m = plain()
    run = govern(m)
    assert run.governor.pace.next_rows == 5
    for rows in (20, 2, 40):
        pause.tune(work(m, url), {"backfill": {"batch_rows": rows}})
        clock.advance(0.5)
        assert run.governor.pace.next_rows == rows
    pause.reset(work(m, url))
    clock.advance(0.5)
    assert run.governor.pace.next_rows == 5
    assert run.told == ["settings were changed while running"] * 4


def test_nice_is_tuned_also_while_a_rest_is_under_way(url: str, clock: SimulatedClock, govern: Govern) -> None:
    m = plain()
    run = govern(m)
    begun = clock.monotonic()
    run.governor.rest(0.2, Until(clock, 60))
    assert clock.monotonic() == begun
    pause.tune(work(m, url), {"throttle": {"nice": 100}})
    clock.advance(0.5)
    begun = clock.monotonic()
    run.governor.rest(0.2, Until(clock, 60))
    assert clock.monotonic() - begun == pytest.approx(20)
    resting = Background(lambda: run.governor.rest(0.2, threading.Event()))
    clock.advance(5)
    assert resting.is_alive()
    pause.tune(work(m, url), {"throttle": {"nice": 0}})
    clock.advance(1)
    resting.result(30)


def test_limits_are_tuned(url: str, clock: SimulatedClock, govern: Govern) -> None:
    m = gauged()
    gauge(url, 7)
    run = govern(m)
    run.works()
    pause.tune(work(m, url), {"throttle": {"sql": [limit(pause_above=6)]}})
    clock.advance(1)
    assert run.waits() == "waiting: gauge is 7, above 6; goes on at 5"
    pause.tune(work(m, url), {"throttle": {"sql": [limit(pause_above=6, critical_above=6.5)], "max_wait": "5m"}})
    clock.advance(1)
    with pytest.raises(Throttled, match="a signal is critical"):
        run.asks()


def test_max_wait_is_tuned_while_a_run_waits(url: str, clock: SimulatedClock, govern: Govern) -> None:
    m = gauged()
    gauge(url, 11)
    run = govern(m)
    run.waits()
    pause.tune(work(m, url), {"throttle": {"max_wait": "100ms"}})
    with pytest.raises(Throttled, match="gauge is 11"):
        run.asks()


def test_a_signal_is_tuned_in_and_out(url: str, clock: SimulatedClock, govern: Govern) -> None:
    """A signal that holds the run is taken away, and the run goes on though the signal is as bad as before."""
    oldest = "signal:oldest_transaction"
    m = plain(throttle={"oldest_transaction": {"pause_above": "1ms"}})
    run = govern(m)
    run.works()
    with holding(url, "SELECT txid_current()", name="a report"):
        clock.advance(1)
        told = run.waits()
        assert told.startswith("waiting: oldest_transaction is ")
        assert "a report" in told
        assert reason(url, oldest)
        pause.tune(work(m, url), {"throttle": {"oldest_transaction": None}})
        clock.advance(1)
        run.works()
        assert not reason(url, oldest)
        pause.tune(work(m, url), {"throttle": {"oldest_transaction": {"pause_above": "2ms"}}})
        clock.advance(1)
        assert run.waits().startswith("waiting: oldest_transaction is ")


def test_a_signal_that_is_tuned_in_while_the_run_ends_is_not_left_behind(
    url: str, clock: SimulatedClock, govern: Govern, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = govern(plain())
    asked, closing = threading.Event(), threading.Event()
    more = declared_settings(gauged())

    def late(*_: Any) -> Settings:
        asked.set()
        closing.wait(30)
        clock.sleep(1)
        return more

    monkeypatch.setattr(tuning, "effective", late)

    def end() -> None:
        assert asked.wait(30)
        closing.set()
        run.governor.close()

    ending = Background(end)
    clock.advance(2)
    ending.result(30)
    leaves_nothing(url)


def test_what_newer_code_declares_reaches_a_run_of_older_code(url: str, clock: SimulatedClock, govern: Govern) -> None:
    m = plain()
    run = govern(m)
    pace = run.governor.pace

    def published(rows: int) -> None:
        with connected(url, purpose="test") as conn:
            tuning.publish(conn, plain(backfill=STEADY | {"batch_rows": rows}))
        clock.advance(0.5)

    published(30)
    assert pace.next_rows == 30
    pause.tune(work(m, url), {"backfill": {"batch_rows": 20}})  # on top of the newest
    clock.advance(0.5)
    assert pace.next_rows == 20
    published(40)
    assert pace.next_rows == 20
    pause.reset(work(m, url))
    clock.advance(0.5)
    assert pace.next_rows == 40


def test_settings_that_a_run_does_not_understand_hold_it(url: str, clock: SimulatedClock, govern: Govern) -> None:
    """They may be the limit that should have stopped it."""
    run = govern(plain())
    run.works()
    sql(url, "UPDATE zdm.tuning SET declared = jsonb_set(declared, '{backfill,of_the_future}', '1')")
    clock.advance(1)
    told = run.waits()
    assert told.startswith("waiting: the ledger cannot be followed")
    assert "of_the_future" in told
    sql(url, "UPDATE zdm.tuning SET declared = declared #- '{backfill,of_the_future}'")
    clock.advance(1)
    run.works()


def test_tuning_asks_nothing_that_is_not_declared(url: str) -> None:
    """SQL runs as our role, and HTTP sends a token."""
    m = plain(throttle={"sql": [{"name": "gauge", "query": "SELECT 1", "pause_above": 5}]})
    expanded(m, url)
    other = {"name": "gauge", "query": "SELECT 2", "pause_above": 5}
    web = {"name": "web", "url": "http://127.0.0.1:1/", "token_env": "HOME", "pause_above": 5}
    for signal in ({"sql": [other]}, {"http": [web]}):
        with pytest.raises(SpecError, match="is not declared"):
            pause.tune(work(m, url), {"throttle": signal})
    pause.tune(work(m, url), {"throttle": {"sql": [{"name": "gauge", "query": "SELECT 1", "pause_above": 7}]}})
    pause.tune(work(m, url), {"throttle": {"sql": []}})


def test_pace_that_is_below_the_smallest_batch_does_not_grow_by_being_slow() -> None:
    pace = Pace(Backfill(batch_rows=100, batch_target="100ms"))  # type: ignore[arg-type]
    for expected in (25, 6, 1):
        assert pace.too_long(pace.rows) == expected
    pace.took(0.2, 1)
    assert pace.rows == 1
    for _ in range(20):
        pace.took(0.001, pace.rows)
    assert pace.rows > 10
