"""Clock: what time it is, and waiting for it to pass; whoever waits takes one, so that tests need not wait."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the time and lets it pass."""

    def monotonic(self) -> float:
        """Seconds since some moment; never set back."""
        ...

    def now(self) -> datetime:
        """The moment, in UTC."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""
        ...

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Let so many seconds pass, or fewer when the event is set before; returns whether the event is set."""
        ...


class _System:
    """The clock of this machine."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return event.wait(seconds)


SYSTEM: Clock = _System()
