"""Turns: when a worker may write its next batch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.engine import budget
from zdm_pipelines.engine.throttle import Governor

_TIMEOUT_TARGETS = 20  # times its target that a batch may take: then its size is wrong, not the moment
_SHORTEST_TIMEOUT = 5.0  # seconds; a checkpoint or a cold cache makes one slow batch


class Stopped(Exception):
    """The run was cancelled; the batch before it is committed."""


class Turns:
    """What workers ask before each batch: the governor's word, the run's share, a place in the database."""

    def __init__(self, governor: Governor, *, places: int, stop: threading.Event) -> None:
        self.governor = governor
        self.pace = governor.pace
        self._places = places
        self._stop = stop
        self._writing = 0
        self._turns = threading.Condition()

    @property
    def parallel(self) -> int:
        """Workers that may write at once."""
        return self.governor.settings.backfill.max_parallel

    @property
    def passes(self) -> int | None:
        """Passes of a window, as declared or tuned; None: by the table's statistics."""
        return self.governor.settings.backfill.passes

    def ready(self) -> None:
        """Wait until writing may go on."""
        if self._stop.is_set():
            raise Stopped
        self.governor.wait(self._stop)
        if self._stop.is_set():
            raise Stopped

    @contextmanager
    def turn(self, conn: Connection) -> Iterator[None]:
        """Wait until a batch may be written, and write it inside."""
        with self._share():
            while True:
                self.ready()
                with budget.turn(conn, self._places) as had:
                    # The queue for a place may have been long.
                    if had and self.governor.clear():
                        yield
                        return

    @contextmanager
    def _share(self) -> Iterator[None]:
        """Fewer than the workers there are, when it was tuned down while they work."""
        with self._turns:
            while self._writing >= self.parallel:
                if self._stop.is_set():
                    raise Stopped
                self._turns.wait(0.2)
            self._writing += 1
        try:
            yield
        finally:
            with self._turns:
                self._writing -= 1
                self._turns.notify()

    def rest(self, seconds: float) -> None:
        """Rest after a batch, as `nice` asks."""
        self.governor.rest(seconds, self._stop)

    def statement_timeout(self) -> float:
        """A batch that takes this many seconds is ended and split."""
        return max(_SHORTEST_TIMEOUT, _TIMEOUT_TARGETS * self.governor.settings.backfill.batch_target)
