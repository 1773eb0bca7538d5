"""Revisit: come back for the rows that a pass found locked, until the range is done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine.rows.patience import Patience
from zdm_pipelines.engine.rows.window import Bounds
from zdm_pipelines.model.capabilities import RowWork, Until
from zdm_pipelines.model.errors import LockNotAcquired
from zdm_pipelines.model.values import Key

_FIRST_PAUSE = 0.2  # seconds before rows that the application held are tried again
_LONGEST_PAUSE = 5.0
_FEW = 50  # rows that are worth queueing for one by one
_EVERY_KEY = 2**31 - 1


class _Left(Protocol):
    """What a pass has left of a range."""

    def walk(self) -> Sequence[Key] | None:
        """The rows that are walked over in batches before others are queued for; None: the whole range."""
        ...

    def count(self) -> int:
        """How many rows are left."""
        ...

    def queued(self) -> Sequence[Key]:
        """Rows to queue for, one by one."""
        ...

    def visited(self, key: Key) -> None:
        """The row at a key was free, and what waits in it is done."""
        ...


class _Waiting:
    """Every row that waits: the range is done when none does."""

    def __init__(self, conn: Session, work: RowWork, bounds: Bounds, *, repair: bool) -> None:
        self._conn = conn
        self._work = work
        self._bounds = bounds
        self._repair = repair

    def walk(self) -> None:
        """The whole range."""

    def count(self) -> int:
        statement = self._work.waiting(self._bounds.lower, self._bounds.end(), repair=self._repair)
        return int(self._conn.run(statement)[0][0])

    def queued(self) -> Sequence[Key]:
        # Of many, one tells whether they are held, or whether a trigger of the application's keeps them as they are.
        keys = self.keys(_FEW + 1)
        return keys if len(keys) <= _FEW else (random.choice(keys),)

    def keys(self, limit: int) -> list[Key]:
        """The first keys of rows that wait."""
        lower, end = self._bounds.lower, self._bounds.end()
        found = self._conn.run(self._work.waiting_keys(lower, end, limit=limit, repair=self._repair))
        return [tuple(key) for (key,) in found]

    def visited(self, key: Key) -> None:
        pass  # whether the row waits is asked anew


class _Unseen:
    """The rows that waited when the pass had ended: each is visited once, and who comes to wait later is not asked for.

    Rows that the pass found locked are among them. No other pass over the range is made: another pass would also meet
    rows that come to wait in front of it, as fast as it goes. The keys of all are kept. Where they are many, the
    application makes rows wait as fast as it writes: they are walked over in batches, once, and only what is left
    then is visited one by one.
    """

    def __init__(self, waiting: _Waiting) -> None:
        self._waiting = waiting
        self._keys: dict[Key, None] | None = None  # in order
        self._walked = False

    def walk(self) -> Sequence[Key]:
        if self._walked or self._keys is None or len(self._keys) <= _FEW:
            return ()
        self._walked = True
        return tuple(self._keys)

    def count(self) -> int:
        now = self._waiting.keys(_EVERY_KEY)
        if self._keys is None:
            self._keys = dict.fromkeys(now)
        else:
            waits = set(now)
            self._keys = dict.fromkeys(key for key in self._keys if key in waits)
        return len(self._keys)

    def queued(self) -> Sequence[Key]:
        return tuple(self._keys or ())

    def visited(self, key: Key) -> None:
        assert self._keys is not None  # counted first
        del self._keys[key]


class Revisit:
    """Comes back for what a pass has left.

    Args:
        seeking: around statements over the whole range, to find the row that makes one raise.
        again: take another pass over the range, or over the rows of these keys; gives the rows that were moved.
        visit: queue for the row at a key; gives the rows that were moved, None when its lock was not had.
        held: what else is known of locks that were not had, for people; empty: nothing.
    """

    def __init__(
        self,
        *,
        conn: Session,
        work: RowWork,
        bounds: Bounds,
        repair: bool,
        thing: str,
        patience: Patience,
        seeking: Callable[[], AbstractContextManager[None]],
        again: Callable[[Sequence[Key] | None], int],
        visit: Callable[[Key], int | None],
        held: Callable[[], str],
    ) -> None:
        waiting = _Waiting(conn, work, bounds, repair=repair)
        self._left: _Left = waiting if work.until is Until.NONE_WAITS else _Unseen(waiting)
        self._thing = thing
        self._patience = patience
        self._seeking = seeking
        self._again = again
        self._visit = visit
        self._held = held
        self.pauses = 0

    def run(self, *, tried: bool) -> None:
        """Until nothing is left.

        Args:
            tried: a pass was made already, so that what is left now was locked a moment ago.

        Raises:
            LockNotAcquired: for `patience` no row more could be moved.
        """
        pause, begun, moved = _FIRST_PAUSE, self._patience.now(), 0
        least: int | None = None
        while left := self._count():
            if least is None or left < least:
                least, begun, moved = left, self._patience.now(), 0
            elif self._patience.over(begun):
                raise self._gave_up(left, moved=moved > 0)
            if tried:
                self.pauses += 1
                time.sleep(pause)
                pause = min(_LONGEST_PAUSE, pause * 2)
            tried = True
            walk = self._left.walk()
            if walk is None or walk:
                moved += self._again(walk)
            if not walk:
                moved += self._queue()

    def _count(self) -> int:
        with self._seeking():
            return self._left.count()

    def _queued(self) -> Sequence[Key]:
        with self._seeking():
            return self._left.queued()

    def _queue(self) -> int:
        """Queue for rows that are never free when we look, one by one: holding no other lock, we cannot deadlock."""
        moved = refused = 0
        for key in self._queued():
            rows = self._visit(key)
            if rows is not None:
                self._left.visited(key)
                moved += rows
                continue
            refused += 1
            if refused == _FEW:
                break  # each was waited for: time to look what is left
        return moved

    def _gave_up(self, left: int, *, moved: bool) -> LockNotAcquired:
        if moved:
            return LockNotAcquired(
                self._thing,
                f"{left} rows wait anew after they were moved: something alters them as they are written",
                "look at the table's triggers, and materialize the range again",
            )
        return LockNotAcquired(
            self._thing,
            f"{left} rows are held by the application for {self._patience.seconds:g} s{self._held()}",
            "end those transactions and materialize the range again; all other rows are done",
        )
