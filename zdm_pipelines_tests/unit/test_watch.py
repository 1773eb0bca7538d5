"""Watch: what is said of a signal that answers late or never, and how long a look may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zdm_pipelines.engine import signals, watch
from zdm_pipelines.engine.signals import DEADLINE, Measured, Surroundings
from zdm_pipelines.engine.watch import Watch
from zdm_pipelines.model.throttle import Limit
from zdm_pipelines_tests.simulated import SimulatedClock


class Slow:
    """A signal that takes its time, and counts how often it was read."""

    every = 0.5
    samples = 3

    def __init__(self, clock: SimulatedClock) -> None:
        self.takes = 0.0
        self.value: Any = 0
        self.closed = False
        self._clock = clock

    def read(self) -> Measured:
        if self.takes:
            self._clock.sleep(self.takes)
        self.value += 1
        return Measured(value=self.value)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def signal(clock: SimulatedClock) -> Slow:
    return Slow(clock)


@pytest.fixture
def watched(clock: SimulatedClock, signal: Slow) -> Iterator[Callable[[], Watch]]:
    made: list[Watch] = []

    def a_watch() -> Watch:
        made.append(Watch("slow", signal, clock=clock))
        return made[-1]

    yield a_watch
    for each in made:
        each.stop()
        clock.advance(signal.takes)
        each.join(10)
        assert not each.is_alive()
    assert signal.closed


def test_it_is_read_again_and_again(clock: SimulatedClock, signal: Slow, watched: Callable[[], Watch]) -> None:
    slow = watched()
    clock.advance(0)
    assert [slow.reading().value for _ in range(2)] == [1, 1]
    clock.advance(0.5)
    assert slow.reading().value == 2
    clock.advance(4)
    assert slow.reading().value == 10


def test_the_first_reading_is_waited_for_until_the_deadline(
    clock: SimulatedClock, signal: Slow, watched: Callable[[], Watch]
) -> None:
    signal.takes = 2 * DEADLINE
    slow = watched()
    clock.advance(DEADLINE / 2)
    first = [slow.is_first]
    assert slow.reading().problem == "it is being read for the first time"
    clock.advance(DEADLINE / 2)
    first.append(slow.is_first)
    assert first == [True, False]
    assert slow.reading().problem == f"it has not answered for {DEADLINE:.0f} s"
    clock.advance(DEADLINE)
    assert slow.reading().value == 1


def test_a_signal_that_hangs_is_bad_after_the_deadline_and_good_when_it_answers(
    clock: SimulatedClock, signal: Slow, watched: Callable[[], Watch]
) -> None:
    slow = watched()
    clock.advance(0)
    signal.takes = 10
    clock.advance(0.5 + DEADLINE * 0.9)
    assert slow.reading().value == 1  # late, but in time
    clock.advance(DEADLINE * 0.1)
    assert slow.reading().problem == f"it has not answered for {DEADLINE:.0f} s"
    clock.advance(10 - DEADLINE)
    assert slow.reading().value == 2


def test_a_look_takes_the_samples_of_a_signal_and_waits_for_none_that_hangs(
    clock: SimulatedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"quick": Slow(clock), "hanging": Slow(clock)}
    made["hanging"].takes = 60
    monkeypatch.setattr(signals, "signal_named", lambda name, *_: made[name])
    around = Surroundings(url="", catalog=None, clock=clock)  # type: ignore[arg-type]
    begun = clock.monotonic()
    found = watch.once(dict.fromkeys(made, Limit(pause_above=1)), around)
    assert clock.monotonic() - begun == pytest.approx(2 * DEADLINE)
    assert found["quick"].value == 3
    assert made["quick"].closed
    assert found["hanging"].problem == f"it has not answered for {2 * DEADLINE:.0f} s"
    made["hanging"].samples = 1
    clock.advance(200)
    assert made["hanging"].closed
