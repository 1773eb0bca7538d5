"""Ramp: what share of full speed is tried, so that the load finds what the database bears.

Holds alone would make it swing between all and nothing.
"""

from __future__ import annotations

import math
import threading

from zdm_pipelines.model.clock import SYSTEM, Clock

_FIRST = 1 / 16  # share of full speed at which a run begins: eight workers at this speed are half a worker
_LEAST = 1 / 64
# Growth in a second, until the first hold: full speed in four seconds. A signal needs half a second to see too much.
_STARTING = 2.0
_REGAINING = 1.1  # growth in a second after a hold: the speed that the hold halved is back in seven seconds
_LONG = 100.0  # seconds in which any share grows to all


class Ramp:
    """A run begins slowly and grows until a signal holds it; then it goes on with half its speed and grows more slowly:
    as TCP looks for what a network bears (RFC 5681).
    """

    def __init__(self, *, clock: Clock = SYSTEM) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._share = _FIRST
        self._growth = _STARTING
        self._since: float | None = None  # when work went on; None: it is held

    @property
    def share(self) -> float:
        """Above 0, at most 1."""
        with self._lock:
            return self._now()

    def stops(self, *, too_fast: bool) -> None:
        """Work is held; told again while it is, it changes nothing.

        Args:
            too_fast: by a signal, so that it shall go on with half the speed.
        """
        with self._lock:
            if self._since is None:
                return
            self._share, self._since = self._now(), None
            if too_fast:
                self._share, self._growth = max(_LEAST, self._share / 2), _REGAINING

    def goes_on(self) -> None:
        """Nothing holds work; told again, it changes nothing."""
        with self._lock:
            if self._since is None:
                self._since = self._clock.monotonic()

    def _now(self) -> float:
        gone = 0.0 if self._since is None else min(_LONG, self._clock.monotonic() - self._since)
        return min(1.0, self._share * math.pow(self._growth, gone))
