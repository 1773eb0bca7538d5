"""Budget: who may write a batch now: the workers of a run, the runs of a migration, the migrations of a database.

Four things are had one after the other, and the one that is scarcest last and shortest:

1. A **slot** of the migration, for the time of a range: `backfill.max_parallel` of them, over all runs and machines.
   Whoever waits for one holds nothing that others want, looks again five times a second, and is told so once.
2. A **share** of the run, for the time of a turn: as many as slots. Only a run that was tuned down while more workers
   than that have ranges waits here, with a slot in hand.
3. The **governor's** word (`throttle`): no hold, no bad signal, inside the hours. A worker waits with slot and share,
   and before a range without either, since a connection would only wait.
4. A **place** of the database, for the time of a turn: its declared `max_parallel`, over all migrations. Who waits is
   queued in the order of asking, so migrations take turns. After half a second in the queue, and again when the place
   was had, the governor is asked anew, because the queue may have been long.

A **turn** is a batch, and those that follow it at once within a tenth of a second: asking for a place costs as much as
a small batch's own journey to the server. The governor is asked before each batch; who must wait, or rest as `nice`
has it, gives place and share back first. So nobody who has a place waits for one of the others, and there is no circle.
What a batch itself waits for, a lock of the application's, has a time-out. Slots and places are locks of the worker's
session on names: whoever dies gives them back with it.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from zdm_pipelines.dialects import DatabaseError
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine import sessions
from zdm_pipelines.engine.throttle import Governor

_TIMEOUT_TARGETS = 20  # times its target that a batch may take: then its size is wrong, not the moment
_SHORTEST_TIMEOUT = 5.0  # seconds; a checkpoint or a cold cache makes one slow batch
_LOOK_UP = 0.5  # seconds: how long to queue for a place before looking whether work still goes on
_ASK = 0.2  # seconds between two looks for a slot or a share
_TURN = 0.1  # seconds after which a place is given back, though another batch follows


class Stopped(Exception):
    """The run was cancelled; the batch before it is committed."""


@dataclass(frozen=True)
class _Turn:
    """A share, and a place that was had since some moment."""

    place: str
    since: float

    @property
    def over(self) -> bool:
        return time.monotonic() - self.since > _TURN


class Budget:
    """What the workers of a run ask before each range and each batch.

    Args:
        places: of the database.
        stop: set when the run is cancelled.
    """

    def __init__(
        self,
        governor: Governor,
        *,
        migration_id: int,
        places: int,
        stop: threading.Event,
        tell: sessions.Tell = sessions.silent,
    ) -> None:
        self.governor = governor
        self.pace = governor.pace
        self._migration_id = migration_id
        self._places = places
        self._stop = stop
        self._tell = tell
        self._writing = 0
        self._turns: dict[
            Session, _Turn
        ] = {}  # between two batches; each session's own thread reads and writes its own
        self._shares = threading.Condition()

    @property
    def parallel(self) -> int:
        """Slots of the migration, and shares of this run."""
        return self.governor.settings.backfill.max_parallel

    @property
    def passes(self) -> int | None:
        """Passes of a window, as declared or tuned; None: by the table's statistics."""
        return self.governor.settings.backfill.passes

    def ready(self) -> None:
        """Wait until writing may go on.

        Raises:
            Stopped: it may not any more.
        """
        if self._stop.is_set():
            raise Stopped
        self.governor.wait(self._stop)
        if self._stop.is_set():
            raise Stopped

    @contextmanager
    def slot(self, conn: Session) -> Iterator[None]:
        """Wait for one of the migration's slots, and move a range inside."""
        told = False
        while (had := self._free_slot(conn)) is None:
            if not told:
                self._tell(f"waiting for one of {self.parallel} slots (backfill.max_parallel)")
                told = True
            if self._stop.wait(_ASK):
                raise Stopped
        try:
            yield
        finally:
            self.release(conn)
            give_back(conn, had)

    def _free_slot(self, conn: Session) -> str | None:
        names = (f"zdm:slot:{self._migration_id}:{n}" for n in range(self.parallel))
        return next((name for name in names if conn.locks.take(name)), None)

    @contextmanager
    def turn(self, conn: Session) -> Iterator[None]:
        """Wait until a batch may be written, and write it inside. The turn may go on with the next: see `release`."""
        turn = self._turns.pop(conn, None)
        if turn is not None and (turn.over or self._stop.is_set() or not self.governor.clear()):
            self._end(conn, turn)
            turn = None
        turn = turn or self._begin(conn)
        try:
            yield
        except BaseException:
            self._end(conn, turn)
            raise
        self._turns[conn] = turn

    def release(self, conn: Session) -> None:
        """End the turn that a session has: no batch follows at once."""
        if (turn := self._turns.pop(conn, None)) is not None:
            self._end(conn, turn)

    def _begin(self, conn: Session) -> _Turn:
        with self._shares:
            while self._writing >= self.parallel:
                if self._stop.is_set():
                    raise Stopped
                self._shares.wait(_ASK)
            self._writing += 1
        try:
            while True:
                self.ready()
                if (had := take_place(conn, self._places)) is None:
                    continue
                if self.governor.clear():
                    return _Turn(had, time.monotonic())
                give_back(conn, had)
        except BaseException:
            self._leave_share()
            raise

    def _end(self, conn: Session, turn: _Turn) -> None:
        try:
            give_back(conn, turn.place)
        finally:
            self._leave_share()

    def _leave_share(self) -> None:
        with self._shares:
            self._writing -= 1
            self._shares.notify()

    def rest(self, conn: Session, seconds: float) -> None:
        """Rest after a batch, as `nice` asks."""
        if self.governor.rests:
            self.release(conn)
            self.governor.rest(seconds, self._stop)

    def statement_timeout(self) -> float:
        """A batch that takes this many seconds is ended and split."""
        return max(_SHORTEST_TIMEOUT, _TIMEOUT_TARGETS * self.governor.settings.backfill.batch_target)


def place(number: int) -> str:
    """The lock of one of the database's places."""
    return f"zdm:batch:{number}"


def take_place(conn: Session, places: int) -> str | None:
    """Queue for one of the database's places, for a moment; None when none was had."""
    names = [place(number) for number in range(places)]
    random.shuffle(names)
    if (free := next((name for name in names if conn.locks.take(name)), None)) is not None:
        return free
    return names[0] if conn.locks.queue(names[0], wait=_LOOK_UP) else None


def give_back(conn: Session, name: str) -> None:
    """Leave a place or a slot."""
    # A session that is lost gave it back already, others do so a moment after they were closed.
    with contextlib.suppress(DatabaseError):
        conn.locks.leave(name)
