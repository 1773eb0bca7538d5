"""Workers: threads that work through a list, with one rule for interrupts and for connections that cannot be had.

- What comes of each item is given to the caller's thread. Twice a second that thread looks up, and so stays open to
  interrupts and to another number of workers.
- A failure is raised in the caller's thread, once no other worker is at work. What the others finished is given first.
- Who leaves early, by a failure, an interrupt or because nobody wants the rest, asks the workers to stop. Work that
  writes looks at `stop` between its transactions. Work that only reads is interrupted on its connection; a connection
  that does not answer is cut.
- A worker that finds no connection leaves its work to the others. The failure is raised when none of them finds one.
- A connection that is lost under an item is a failure of that item. Work that can be done again does so itself, see
  `sessions.resilient`.

concurrent.futures is not used: the threads of its executor are as many as at first, have no connection of their own
that ends with them, and are waited for when the process ends, though their server may never answer.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

from zdm_pipelines.model.errors import DatabaseUnreachable

_LOOK = 0.5  # seconds between two looks whether somebody interrupted us
_ASK = 0.2  # seconds between two requests to end: one that comes between two statements ends neither
_REQUESTS = 10  # so many, then the connection is cut

Desk = TypeVar("Desk")
Item = TypeVar("Item")
Found = TypeVar("Found")


class _NoDesk(Exception):
    """A worker found no connection; the others may do its work."""

    def __init__(self, error: DatabaseUnreachable) -> None:
        super().__init__(str(error))
        self.error = error


class Workers(Generic[Desk, Item, Found]):
    """Threads that work through items; once left, none of them remains.

    Args:
        name: of the threads.
        desk: what a thread has for itself as long as it works, such as a connection.
        work: what is done with an item, at a desk.
        parallel: how many may work at present.
        stop: set when workers shall stop.
        interrupt: lets the statement end that is under way at another thread's desk, or cuts its connection.
    """

    def __init__(
        self,
        items: Sequence[Item],
        *,
        name: str,
        desk: Callable[[], AbstractContextManager[Desk]],
        work: Callable[[Desk, Item], Found],
        parallel: Callable[[], int],
        stop: threading.Event | None = None,
        interrupt: Callable[[Desk, bool], None] | None = None,
    ) -> None:
        self.stop = stop or threading.Event()
        self._name = name
        self._desk = desk
        self._work = work
        self._parallel = parallel
        self._interrupt = interrupt
        self._todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
        for item in items:
            self._todo.put(item)
        self._missing = len(items)
        self._came: queue.SimpleQueue[tuple[Item, Found] | BaseException] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._desks: dict[threading.Thread, Desk] = {}
        self._without: list[DatabaseUnreachable] = []  # one for each worker that found no connection

    def __enter__(self) -> Workers[Desk, Item, Found]:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def outcomes(self) -> Iterator[tuple[Item, Found]]:
        """What came of each item, as it comes; raises what a worker raised first."""
        while self._missing:
            self._staff()
            try:
                outcome = self._came.get(timeout=_LOOK)
            except queue.Empty:
                continue
            if isinstance(outcome, _NoDesk):
                self._without.append(outcome.error)
            elif isinstance(outcome, BaseException):
                self._end()
                yield from self._finished()
                raise outcome
            else:
                self._missing -= 1
                yield outcome

    def _finished(self) -> Iterator[tuple[Item, Found]]:
        """What workers finished after the one that failed; how the others ended says nothing new."""
        while not self._came.empty():
            outcome = self._came.get()
            if not isinstance(outcome, BaseException):
                yield outcome

    def _staff(self) -> None:
        """As many workers as may work now, and have something to do."""
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        wanted = self._parallel() - len(self._without) - len(self._threads)
        for _ in range(min(wanted, self._todo.qsize())):
            # A daemon: should a server not even notice that it is cut off, our process can end all the same.
            thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            thread.start()
            self._threads.append(thread)
        if not self._threads and self._without and self._came.empty():
            raise self._without[0]

    def _run(self) -> None:
        try:
            with self._desk() as desk:
                self._desks[threading.current_thread()] = desk
                try:
                    self._items(desk)
                finally:
                    del self._desks[threading.current_thread()]
        except DatabaseUnreachable as error:
            self._came.put(_NoDesk(error))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, nothing is swallowed
            self._came.put(error)

    def _items(self, desk: Desk) -> None:
        while not self.stop.is_set():
            try:
                item = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                self._came.put((item, self._work(desk, item)))
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, nothing is swallowed
                self._came.put(error)
                return
            if sum(thread.is_alive() for thread in self._threads) > self._parallel():
                return

    def _end(self) -> None:
        """End what is under way; a statement whose result nobody wants is not waited for."""
        self.stop.set()
        asked = 0
        for thread in self._threads:
            while thread.is_alive():
                if self._missing and self._interrupt is not None:
                    for desk in list(self._desks.values()):
                        self._interrupt(desk, asked >= _REQUESTS)
                    asked += 1
                thread.join(_ASK)
