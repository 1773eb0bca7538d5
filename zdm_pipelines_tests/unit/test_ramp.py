"""Ramp: slowly up, half down, and never nothing."""

from __future__ import annotations

import pytest

from zdm_pipelines.engine.pace import Pace
from zdm_pipelines.engine.ramp import Ramp
from zdm_pipelines.engine.throttle import _bounds
from zdm_pipelines.model.migration import Backfill
from zdm_pipelines.model.tuning import declared_settings
from zdm_pipelines_tests.helpers import replaced
from zdm_pipelines_tests.simulated import SimulatedClock


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def ramp(clock: SimulatedClock) -> Ramp:
    begun = Ramp(clock=clock)
    begun.goes_on()
    return begun


def test_a_run_begins_slowly_and_comes_to_full_speed(clock: SimulatedClock, ramp: Ramp) -> None:
    shares = []
    for _ in range(8):
        shares.append(ramp.share)
        clock.advance(1)
        ramp.goes_on()  # said at every batch
    assert shares[0] == pytest.approx(1 / 16)
    assert shares == sorted(shares)
    assert ramp.share == 1
    clock.advance(1e6)
    assert ramp.share == 1


def test_nothing_grows_before_work_begins(clock: SimulatedClock) -> None:
    waiting = Ramp(clock=clock)
    clock.advance(100)
    assert waiting.share == pytest.approx(1 / 16)
    waiting.stops(too_fast=True)  # the first readings are not there yet: no reason to be slower
    waiting.goes_on()
    assert waiting.share == pytest.approx(1 / 16)


def test_a_signal_halves_it_once(clock: SimulatedClock, ramp: Ramp) -> None:
    clock.advance(100)
    ramp.share  # noqa: B018
    for _ in range(5):
        ramp.stops(too_fast=True)
        clock.advance(10)
    assert ramp.share == 0.5
    ramp.goes_on()
    assert ramp.share == 0.5
    clock.advance(5)
    assert 0.5 < ramp.share < 1
    clock.advance(5)
    assert ramp.share == 1


def test_an_operator_does_not(clock: SimulatedClock, ramp: Ramp) -> None:
    clock.advance(3)
    before = ramp.share
    ramp.stops(too_fast=False)
    clock.advance(100)
    ramp.goes_on()
    assert ramp.share == pytest.approx(before)


def test_never_nothing(ramp: Ramp) -> None:
    for _ in range(20):
        ramp.stops(too_fast=True)
        ramp.goes_on()
    assert ramp.share == pytest.approx(1 / 64)


def test_batches_are_smaller_at_less_than_full_speed(clock: SimulatedClock, ramp: Ramp) -> None:
    for most, least in ((32_000, 2_000), (1_000, 100), (50, 50)):
        pace = Pace(Backfill(batch_rows=most))
        assert pace.next_rows == most  # without signals
        pace.ramp = Ramp(clock=clock)
        assert pace.next_rows == least
        assert pace.rows == most


def test_no_batch_holds_rows_longer_than_the_latency_that_is_too_much() -> None:
    for latency, target in (({"pause_above": "50ms"}, 0.05), ({"pause_above": "2s"}, 0.25), (None, 0.25)):
        m = replaced(throttle={"latency_p95": latency})
        assert _bounds(declared_settings(m)).batch_target == target
