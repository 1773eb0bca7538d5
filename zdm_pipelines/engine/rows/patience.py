"""Patience: for how long a range is tried, without the time that it waits for its turn."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine.pace import Pace


class Control(Protocol):
    """What stands above the workers of a run: when, how much, and with what rest."""

    pace: Pace

    def turn(self, conn: Session) -> AbstractContextManager[object]:
        """Wait until a batch may be written; it is written inside. The turn goes on with the next, or is released."""
        ...

    def release(self, conn: Session) -> None:
        """No batch follows at once."""
        ...

    def rest(self, conn: Session, seconds: float) -> None:
        """Rest after a batch that took so long."""
        ...

    def statement_timeout(self) -> float:
        """Seconds after which a batch is split."""
        ...


class Patience:
    """A clock that stands still while a range waits for its turn: patience is for trying.

    Args:
        seconds: how long a range is tried without success.
    """

    def __init__(self, control: Control, seconds: float) -> None:
        self.seconds = seconds
        self._control = control
        self._waited = 0.0  # seconds for turns

    def now(self) -> float:
        """Seconds of trying, since some moment."""
        return time.monotonic() - self._waited

    def over(self, since: float) -> bool:
        """Whether it has lasted too long since a moment of `now`."""
        return self.now() - since > self.seconds

    @contextmanager
    def turn(self, conn: Session) -> Iterator[None]:
        """Wait for a turn, and write inside."""
        asked = time.monotonic()
        with self._control.turn(conn):
            self._waited += time.monotonic() - asked
            yield
