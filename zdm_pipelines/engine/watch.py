"""Watch: read signals, each in a thread of its own so that one that hangs delays no other, and judge what they say.

What cannot be read, or not in time, is bad. Between `resume_below` and `pause_above` the last verdict stays.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from contextlib import closing
from decimal import Decimal

from zdm_pipelines.dialects import DatabaseError, safe
from zdm_pipelines.engine import signals
from zdm_pipelines.engine.signals import DEADLINE, Signal, Surroundings
from zdm_pipelines.model.clock import SYSTEM, Clock
from zdm_pipelines.model.errors import ZdmError
from zdm_pipelines.model.throttle import Limit
from zdm_pipelines.model.values import Reading, Verdict

_PAUSE_BETWEEN_SAMPLES = 0.05  # seconds


def measure(name: str, signal: Signal) -> Reading:
    """Read a signal once; whatever goes wrong is what the reading says."""
    try:
        measured = signal.read()
    except DatabaseError as error:
        return Reading(signal=name, value=None, problem=safe(error))
    except ZdmError as error:
        return Reading(signal=name, value=None, problem=f"{error.thing}: {error.fact}")
    except (OSError, ValueError) as error:
        return Reading(signal=name, value=None, problem=str(error) or type(error).__name__)
    except Exception as error:  # noqa: BLE001 - a watcher must not end silently: what it cannot read is bad
        return Reading(signal=name, value=None, problem=f"{type(error).__name__}: {error}")
    value = measured.value
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)) or not math.isfinite(value):
        # The value is never shown: the query may find anything.
        said = "NULL" if value is None else f"a {type(value).__name__}"
        return Reading(signal=name, value=None, problem=f"it gave {said} that is no finite number")
    return Reading(signal=name, value=float(value), source=measured.source)


def judge(limit: Limit, reading: Reading, *, paused: bool) -> Verdict:
    """What a reading means.

    Args:
        paused: what the last verdict was.
    """
    if reading.value is None:
        reason = f"{reading.signal} cannot be read: {reading.problem}"
        return Verdict(reading=reading, bad=True, critical=False, reason=reason)
    if reading.value > limit.pause_above:
        bad = True
    elif reading.value <= limit.resume_at:
        bad = False
    else:
        bad = paused
    source = f" ({reading.source})" if reading.source else ""
    reason = f"{reading.signal} is {limit.show(reading.value)}{source}"
    if bad:
        reason += f", above {limit.show(limit.pause_above)}; goes on at {limit.show(limit.resume_at)}"
    critical = limit.critical_above is not None and reading.value > limit.critical_above
    return Verdict(reading=reading, bad=bad, critical=critical, reason=reason)


class Watch(threading.Thread):
    """Reads one signal again and again until told to stop."""

    def __init__(self, name: str, signal: Signal, *, clock: Clock = SYSTEM) -> None:
        # A daemon: a reader that hangs must not keep the process alive.
        super().__init__(name=f"zdm watch {name}", daemon=True)
        self.signal_name = name
        self._signal = signal
        self._clock = clock
        self._told = threading.Event()
        self._begun = self._clock.monotonic()  # of the reading under way
        self._latest: tuple[float, Reading] | None = None
        self.start()

    def run(self) -> None:
        """Read until told to stop."""
        while not self._told.is_set():
            self._begun = self._clock.monotonic()
            reading = measure(self.signal_name, self._signal)
            self._latest = (self._clock.monotonic(), reading)
            self._clock.wait(self._told, self._signal.every)
        self._signal.close()

    def reading(self) -> Reading:
        """The latest, or that there is none in time."""
        latest, now = self._latest, self._clock.monotonic()
        if latest is not None and (self._begun <= latest[0] or now - self._begun < DEADLINE):
            return latest[1]
        if self.is_first:
            return Reading(signal=self.signal_name, value=None, problem="it is being read for the first time")
        return Reading(
            signal=self.signal_name, value=None, problem=f"it has not answered for {now - self._begun:.0f} s"
        )

    @property
    def is_first(self) -> bool:
        """Whether the first reading is still under way, and in time."""
        return self._latest is None and self._clock.monotonic() - self._begun < DEADLINE

    def stop(self) -> None:
        """Stop after the reading under way; does not wait for it."""
        self._told.set()


def once(limits: Mapping[str, Limit], around: Surroundings) -> dict[str, Reading]:
    """Read signals now, side by side, each as often as it needs to say something; in a few seconds whatever hangs."""
    readings: dict[str, Reading] = {}
    done = {name: threading.Event() for name in limits}

    def read(name: str, limit: Limit) -> None:
        try:
            with closing(signals.signal_named(name, limit, around)) as signal:
                reading = measure(name, signal)
                for _ in range(signal.samples - 1):
                    around.clock.sleep(_PAUSE_BETWEEN_SAMPLES)
                    reading = measure(name, signal)
                readings[name] = reading
        finally:
            done[name].set()

    for name, limit in limits.items():
        threading.Thread(target=read, args=(name, limit), name=f"zdm look {name}", daemon=True).start()
    deadline = around.clock.monotonic() + 2 * DEADLINE
    for name in limits:
        around.clock.wait(done[name], max(0.0, deadline - around.clock.monotonic()))
    return {
        name: readings.get(name)
        or Reading(signal=name, value=None, problem=f"it has not answered for {2 * DEADLINE:.0f} s")
        for name in limits
    }
