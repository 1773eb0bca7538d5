"""Pace: how many rows the next batch takes, learned from what the latest took."""

from __future__ import annotations

import threading
from collections import deque

from zdm_pipelines.engine.ramp import Ramp
from zdm_pipelines.model.migration import Backfill

SMALLEST = 10  # rows; below it the cost of a transaction is all there is
_REMEMBERED = 10  # batches
_ENOUGH = 3  # batches that were measured before the size grows
_GROWTH = 1.25  # at most, from one batch to the next
_ROOM = 0.9  # share of the target at which growing ends, so that the size does not swing
_SMALL = 100  # rows; less than full speed makes no smaller batch, or its transaction would be most of the cost


class Pace:
    """Batch size: starts at `batch_rows`, halves at once when a batch is slower than the target, and grows back by a
    quarter while the 90th percentile of the latest batches stays below it. Shared by the workers of a run.
    """

    def __init__(self, declared: Backfill) -> None:
        self._lock = threading.Lock()
        self._per_row: deque[float] = deque(maxlen=_REMEMBERED)
        self._most = self.rows = declared.batch_rows
        self._target = declared.batch_target
        self.ramp: Ramp | None = None  # none: full speed at once, as where no signal could say that it is too much

    @property
    def share(self) -> float:
        """The share of full speed that is tried now."""
        return self.ramp.share if self.ramp is not None else 1.0

    @property
    def next_rows(self) -> int:
        """Rows of the next batch."""
        return max(min(_SMALL, self.rows), int(self.rows * self.share))

    def retune(self, declared: Backfill) -> None:
        """Take other bounds; a batch that was never slower than its target is as large as it may be."""
        with self._lock:
            at_most = self.rows >= self._most
            self._most = declared.batch_rows
            self._target = declared.batch_target
            self.rows = self._most if at_most else min(self.rows, self._most)

    def took(self, seconds: float, rows: int) -> None:
        """Learn from a batch.

        Args:
            rows: the size it was given, not what it found to move.
        """
        with self._lock:
            if seconds > self._target:
                self._per_row.clear()
                # Never more rows than before: a time-out may have taken the size below the smallest.
                self.rows = max(min(SMALLEST, self.rows), min(self.rows, rows // 2))
                return
            self._per_row.append(seconds / max(1, rows))
            p90 = sorted(self._per_row)[int(len(self._per_row) * 0.9)] * self.rows
            if len(self._per_row) >= _ENOUGH and p90 < self._target * _ROOM / _GROWTH:
                self.rows = min(self._most, max(self.rows + 1, int(self.rows * _GROWTH)))

    def too_long(self, rows: int) -> int:
        """A batch was ended by its time-out: the size to try instead."""
        with self._lock:
            self._per_row.clear()
            self.rows = max(1, min(self.rows, rows // 4))
            return self.rows
