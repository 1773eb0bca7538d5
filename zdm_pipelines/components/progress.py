"""Progress: log now and then how far a long phase is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_OFTEN = 2.0  # seconds between two lines at first
_SELDOM = 60.0  # and at most, after half an hour: a line is an event in Dagster's database
_GROWTH = 30.0  # a thirtieth of the time that passed lies between two lines


class Progress:
    """Counts rows from any thread.

    Args:
        log: takes a line.
        line: makes it from the rows, the seconds and the latest detail.
    """

    def __init__(self, log: Callable[[str], None], line: Callable[[int, float, str], str]) -> None:
        self._log = log
        self._line = line
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._told = self._begun
        self._rows = 0

    def add(self, rows: int, detail: str = "") -> None:
        """Count rows, and log when it is time."""
        with self._lock:
            self._rows += rows
            now = time.monotonic()
            passed = now - self._begun
            if now - self._told < min(_SELDOM, max(_OFTEN, passed / _GROWTH)):
                return
            self._told = now
            text = self._line(self._rows, passed, detail)
        self._log(text)
