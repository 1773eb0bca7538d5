"""Observer: look again and again while something runs, and keep the most that was seen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Observed:
    """What was seen so far."""

    def __init__(self) -> None:
        self.most = 0.0


@contextmanager
def observing(look: Callable[[], float], *, every: float) -> Iterator[Observed]:
    """Look every so many seconds, in a thread of its own."""
    observed, told = Observed(), threading.Event()

    def watch() -> None:
        while not told.wait(every):
            observed.most = max(observed.most, look())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield observed
    finally:
        told.set()
        thread.join()
