"""Strides: move the rows of a window in passes, each every n-th row, so that most of them move in place.

The first pass takes a share of each page's rows away and commits. Their space is then free for the later passes, whose
rows stay in their page as heap-only tuples: no index is touched, and the table grows by one pass instead of by all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from zdm_pipelines.dialects.server import Heap, Session
from zdm_pipelines.engine.sessions import Tell, silent

MOST_PASSES = 8  # more make the windows larger than they make the table smaller
_SMALL = 100  # pages of a table whose rows are moved before strides pay
_SCATTERED = 0.5  # correlation below which a batch takes few rows of each page anyway
_ENOUGH = 5_000  # rows of later passes that tell whether they move in place
_WORTH = 0.1  # share of these rows that must move in place for strides to go on
_LOOK = 0.25  # seconds between looks whether what kept dead rows has gone
_LONGEST_REST = 8.0  # seconds of plain batches, where something else keeps dead rows each time they are tried again


def choose(heap: Heap | None) -> int:
    """How many passes, a power of two; 1: plain batches, in the order of the key.

    Args:
        heap: None: no column of the table is written.
    """
    if heap is None or heap.pages < _SMALL or heap.indexed:
        return 1
    if heap.correlation is not None and heap.correlation < _SCATTERED:
        return 1
    passes = MOST_PASSES
    # What is free already need not be freed by a first pass.
    while passes > 1 and heap.free is not None and heap.free * passes >= 2:
        passes //= 2
    while passes > 1 and heap.rows_per_page is not None and heap.rows_per_page < passes:
        passes //= 2
    return passes


class Strides:
    """The passes of a run, shared by its workers. Plain while dead rows cannot be removed.

    Args:
        passes: of the next window, as declared or chosen.
    """

    def __init__(self, passes: Callable[[], int], *, tell: Tell = silent) -> None:
        self._passes = passes
        self._tell = tell
        self._lock = threading.Lock()
        self._rows = self._hot = 0
        self._kept_until: str | None = None  # the transaction that must be older than all that is kept; None: strides
        self._rest = _LOOK
        self._next_look = 0.0
        self._told = False

    def passes(self, conn: Session) -> int:
        """Of the next window; while batches are plain, looks now and then whether they need not be any more."""
        with self._lock:
            if self._kept_until is not None and time.monotonic() >= self._next_look:
                self._next_look = time.monotonic() + _LOOK
                if not conn.value("strides.kept", self._kept_until):
                    self._kept_until = None
            return self._passes() if self._kept_until is None else 1

    def moved(self, conn: Session, number: int, rows: int, hot: int) -> None:
        """Learn from a batch.

        Args:
            number: of its pass; the first makes the room, so it says nothing.
            hot: rows that moved in place.
        """
        if not number:
            return
        with self._lock:
            self._rows += rows
            self._hot += hot
            if self._rows < _ENOUGH:
                return
            share, self._rows, self._hot = self._hot / self._rows, 0, 0
            if share >= _WORTH:
                self._rest = _LOOK
                return
            if self._kept_until is not None or not conn.value("strides.counted"):
                return
            # Whatever began before this moment is waited for: an ANALYZE for a second, a report for an hour.
            self._kept_until = str(conn.value("strides.next_transaction"))
            self._next_look = time.monotonic() + self._rest
            self._rest = min(_LONGEST_REST, self._rest * 2)
            told, self._told = self._told, True
        if not told:
            why = conn.value("strides.pinned")
            self._tell(
                f"only {share:.0%} of the rows move in place, plain batches until dead rows can be removed"
                + (f", which are held by {why}" if why else "")
            )
