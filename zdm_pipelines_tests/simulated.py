"""Simulated time: passes when the test's own thread waits, and only once all threads of the product wait too."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)

_GLANCE = 0.005  # real seconds between two looks at an event that a thread waits for: nobody tells when it is set
_PATIENCE = 60.0  # real seconds in which the product's threads must come to wait
_PRODUCT = "zdm "  # what the names of the product's threads begin with


class SimulatedClock:
    """A clock that the thread which made it drives: when that thread sleeps, waits or advances, time passes for all.

    Others that wait are woken in the order of their times, and each has done its work and waits again before time goes
    on. So work takes no time at all, and a test knows what every thread has seen.
    """

    def __init__(self, at: datetime = NOON) -> None:
        self._began = at
        self._passed = 0.0
        self._driver = threading.current_thread()
        self._changed = threading.Condition()
        self._waiting: dict[threading.Thread, tuple[float, threading.Event]] = {}  # until when, or which event

    def monotonic(self) -> float:
        """Seconds, of an arbitrary beginning."""
        return 1_000.0 + self._passed

    def now(self) -> datetime:
        """The simulated moment."""
        return self._began + timedelta(seconds=self._passed)

    def sleep(self, seconds: float) -> None:
        """Wait for time to pass; in the test's own thread: make it pass."""
        self.wait(threading.Event(), seconds)

    def advance(self, seconds: float) -> None:
        """Make time pass; afterwards every thread has done what was due, and waits."""
        assert threading.current_thread() is self._driver
        self.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for an event or for time to pass; in the test's own thread: make it pass."""
        me = threading.current_thread()
        with self._changed:
            until = self._passed + seconds
            if me is self._driver:
                self._drive(event, until)
                return event.is_set()
            self._waiting[me] = (until, event)
            self._changed.notify_all()
            try:
                while self._passed < until and not event.is_set():
                    self._changed.wait(_GLANCE)
            finally:
                del self._waiting[me]
        return event.is_set()

    def _drive(self, event: threading.Event, until: float) -> None:
        self._settle()
        while self._passed < until and not event.is_set():
            self._passed = min([until, *(wakes for wakes, _ in self._waiting.values())])
            self._changed.notify_all()
            self._settle()

    def _settle(self) -> None:
        """Wait until nobody who waits is due, and the product's threads all wait."""
        deadline = time.monotonic() + _PATIENCE
        while at_work := [thread.name for thread in threading.enumerate() if self._is_at_work(thread)]:
            if time.monotonic() > deadline:
                raise AssertionError(f"they do not come to wait: {', '.join(at_work)}")
            self._changed.wait(_GLANCE)

    def _is_at_work(self, thread: threading.Thread) -> bool:
        if thread in self._waiting:
            until, event = self._waiting[thread]
            return until <= self._passed or event.is_set()
        return thread.name.startswith(_PRODUCT)
