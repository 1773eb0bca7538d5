"""Worker: moves one range in short transactions, each committed together with its checkpoint."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from zdm_pipelines.dialects import DatabaseError, fault, safe, words
from zdm_pipelines.dialects.server import Batch, Committed, Fault, Session
from zdm_pipelines.engine.rows.failing import FailingRows
from zdm_pipelines.engine.rows.patience import Control, Patience
from zdm_pipelines.engine.rows.revisit import Revisit
from zdm_pipelines.engine.rows.strides import Strides
from zdm_pipelines.engine.rows.window import LOCK_SECONDS, Bounds, Window
from zdm_pipelines.engine.schema.locks import holders
from zdm_pipelines.ledger import ranges
from zdm_pipelines.model.capabilities import Pick, RowWork, Until
from zdm_pipelines.model.errors import LockNotAcquired, MigrationBusy, StateConflict
from zdm_pipelines.model.values import Key, KeyRange, Moved, Statement

# Windows that are moved in turns, pass by pass: a statement of others that began before a pass was committed keeps its
# dead rows, and has mostly ended when the next pass comes.
_SIDE_BY_SIDE = 2
_QUEUE_SECONDS = 0.5  # how long for a single row; below deadlock_timeout, and others may have more luck
_TRIES = 5  # of one batch, when the server cancels it (deadlock, serialization, recovery conflict)
# The server's ways to end a batch that may well succeed when it is tried again.
_TRY_AGAIN = (Fault.CANCELLED, Fault.CONFLICT)

Tell = Callable[[Moved], None]


@dataclass(kw_only=True)
class _Tries:
    """What became of one batch so far."""

    size: int  # rows, smaller when it took too long
    cancelled: int = 0
    blocked_since: float | None = None


class RangeWorker:
    """Moves one range on one connection, which holds the range's lock.

    Args:
        name: of the migration, for errors.
        work: what is done to the rows.
        patience: seconds for which rows that the application holds are tried.
        tell: called after each batch.
        repair: rows that disagree are taken from the old shape.
        whole: rows are locked as for a change of their key.
    """

    def __init__(
        self,
        conn: Session,
        *,
        migration_id: int,
        name: str,
        work: RowWork,
        control: Control,
        strides: Strides,
        patience: float,
        tell: Tell,
        repair: bool = False,
        whole: bool = False,
    ) -> None:
        self.conn = conn
        self.migration_id = migration_id
        self.name = name
        self.work = work
        self.control = control
        self.strides = strides
        self.patience = Patience(control, patience)
        self.tell = tell
        self.repair = repair
        self.whole = whole
        self.failing = FailingRows(conn=conn, name=name, work=work, repair=repair)
        self.reach = 1  # of the next window
        self.rows = self.hot = self.batches = self.retries = 0
        self._busy: DatabaseError | None = None  # the latest time that a trigger of the application's waited for a row

    def run(self, wanted: KeyRange) -> Moved:
        """Move what is left of a range, from its checkpoint, and prove that nothing is left.

        Raises:
            LockNotAcquired: the application held rows longer than `patience` seconds.
            MappingFailed: `up` raises for a row; names its key.
        """
        begun, wal, dead = time.monotonic(), self.conn.rows.wal_bytes(), self._dead()
        found = ranges.begun(self.conn, self.migration_id, wanted.ordinal)
        if found is None:
            raise self._gone(wanted)
        checkpoint, done, already = found
        if not (done and self.work.until is Until.SEEN):
            bounds = Bounds(self.conn, self.work.over, wanted)
            if not done:
                self._pass(wanted, bounds, checkpoint or wanted.lower, first=True)
            self._revisit(wanted, bounds)
        moved = Moved(
            partition=wanted.partition, rows=self.rows, batches=self.batches, retries=self.retries,
            seconds=time.monotonic() - begun, wal_bytes=max(0, self.conn.rows.wal_bytes() - wal), done=True,
            batch_rows=self.control.pace.rows, already=already, hot=self.hot,
            dead=max(0, self._dead() - dead),
        )  # fmt: skip
        ranges.finish(
            self.conn, self.migration_id, wanted.ordinal,
            seconds=moved.seconds, wal_bytes=moved.wal_bytes, retries=moved.retries,
        )  # fmt: skip
        return moved

    def _dead(self) -> int:
        return int(self.conn.value("rows.dead_tuples", self.work.over.oid))

    def _pass(self, wanted: KeyRange, bounds: Bounds, start: Key | None, *, first: bool) -> None:
        """Move what waits, window by window, from a key to the range's end."""
        at = start
        while True:
            # What is left of an earlier pass, or lies between rows that need no move, is spread already.
            spread = first and self.work.written is not None and self.reach == 1
            passes = self.strides.passes(self.conn) if spread else 1
            windows: list[Window] = []
            while len(windows) < (_SIDE_BY_SIDE if passes > 1 else 1):
                window = Window(lower=at, passes=passes, reach=self.reach)
                windows.append(window)
                self._batches(wanted, bounds, window, 0, first=first)
                at = window.upper
                if window.last:
                    break
            for number in range(1, passes):
                for window in windows:
                    self._batches(wanted, bounds, window, number, first=first)
            self.reach = windows[-1].next_reach(self.control.pace.next_rows)
            if windows[-1].last:
                self.control.release(self.conn)
                return

    def _batches(self, wanted: KeyRange, bounds: Bounds, window: Window, number: int, *, first: bool) -> None:
        """A pass of a window: one transaction, and more where rows spread unevenly."""
        rows = 0
        # The pass ends, also where a trigger of the application's makes every row that is moved wait anew.
        while self._batch(wanted, bounds, window, number, first=first) and rows < window.span:
            rows += self.control.pace.next_rows

    def _batch(self, wanted: KeyRange, bounds: Bounds, window: Window, number: int, *, first: bool) -> bool:
        """One transaction of a window's pass; true when the pass may have more rows."""
        tries, done, begun = _Tries(size=self.control.pace.next_rows), Committed(rows=0, hot=0), time.monotonic()
        while True:
            try:
                with self.patience.turn(self.conn):
                    begun = time.monotonic()
                    if not window.fixed and (not window.span or window.passes == 1):
                        self._measure(window, bounds, tries.size)
                    done = self._commit(wanted, window, number, tries.size, first=first)
                break
            except DatabaseError as error:
                if fault(error) in (Fault.OF_DATA, Fault.TOO_LARGE):
                    upper = window.upper if window.upper is not None else wanted.upper
                    raise self.failing.failure(window.lower, upper, error) from None
                self._once_more(wanted, tries, error)
        took = time.monotonic() - begun
        self._count(wanted, done, took, tries.size)
        self.strides.moved(self.conn, number, done.rows, done.hot)
        self.control.rest(self.conn, took)
        window.moved += done.rows
        return window.limited and not window.fixed and done.rows == tries.size

    def _measure(self, window: Window, bounds: Bounds, size: int) -> None:
        """Find out where a window ends."""
        rows = window.rows(size)
        upper = bounds.key_after(window.lower, rows, wait=LOCK_SECONDS)
        window.last = upper is None
        window.upper = upper if upper is not None else bounds.end(wait=LOCK_SECONDS)
        window.span = rows  # not before: the probes may be cancelled

    def _once_more(self, wanted: KeyRange, tries: _Tries, error: DatabaseError) -> None:
        """Wait before a batch is tried again, or make it smaller; raises what speaks against that."""
        kind, thing = fault(error), f"{self.name} range {wanted.partition}"
        if kind is Fault.LOCK_BUSY:
            # Whoever rewrites the table or builds an index on it is waited for, like whoever holds a row. What a
            # trigger waits for comes free the sooner, the fewer rows a batch holds that its holder may want.
            self.retries += 1
            tries.size = max(1, tries.size // 2)
            time.sleep(random.uniform(0.05, 0.2))
            tries.blocked_since = self.patience.now() if tries.blocked_since is None else tries.blocked_since
            if self.patience.over(tries.blocked_since):
                which = self._held(error) or f"the table is locked, by {holders(self.conn, self.work.over.oid)}"
                raise LockNotAcquired(
                    thing,
                    f"nothing could be written for {self.patience.seconds:g} s: {which}",
                    "end those transactions and materialize the range again; it goes on where it stopped",
                ) from None
            return
        if kind not in _TRY_AGAIN:
            raise error
        self.retries += 1
        if kind is Fault.CANCELLED and tries.size > 1:
            tries.size = self.control.pace.too_long(tries.size)
            return
        tries.cancelled += 1
        if tries.cancelled == _TRIES:
            fact = f"a batch was cancelled {_TRIES} times ({safe(error)})"
            raise MigrationBusy(thing, fact, "run it again") from None
        time.sleep(random.uniform(0.05, 0.2) * tries.cancelled)

    def _held(self, error: DatabaseError) -> str:
        """Which trigger of the application's waited for a lock, and who has it; empty: none did."""
        blamed = self.failing.blamed(error)
        if not blamed:
            return ""
        by = holders(self.conn, named=words(error))
        return f"{blamed[0].name} waits for what others have locked, by {by}"

    def _count(self, wanted: KeyRange, done: Committed, took: float, size: int) -> None:
        self.control.pace.took(took, size)
        self.rows += done.rows
        self.hot += done.hot
        self.batches += 1
        self.tell(
            Moved(
                partition=wanted.partition, rows=done.rows, batches=1, retries=0, seconds=took, wal_bytes=0, done=False,
                batch_rows=self.control.pace.rows, hot=done.hot,
            )
        )  # fmt: skip

    def _commit(self, wanted: KeyRange, window: Window, number: int, size: int, *, first: bool) -> Committed:
        """The rows of a window's pass, and its checkpoint."""
        pick = Pick(whole=self.whole)
        if window.passes > 1:
            among = self.conn.rows.among(
                self.work.over, window.passes, number, window.lower, window.upper, rows=window.span
            )
            pick = Pick(among=among, limit=size, whole=self.whole)
        elif window.limited:
            pick = Pick(limit=size, whole=self.whole)
        return self._transact(
            wanted,
            self.work.batch(window.lower, window.upper, repair=self.repair, pick=pick),
            checkpoint=window.upper if first and number == window.passes - 1 else None,
            unless=size if window.limited else None,
            lock_timeout=LOCK_SECONDS,
            # A batch of a single row cannot be split, so no time ends the batch.
            statement_timeout=None if size == 1 else self.control.statement_timeout(),
        )

    def _transact(
        self,
        wanted: KeyRange,
        statements: list[Statement],
        *,
        checkpoint: Key | None = None,
        unless: int | None = None,
        lock_timeout: float,
        statement_timeout: float | None = None,
    ) -> Committed:
        """See `Batch` for the arguments."""
        done = self.conn.rows.commit(
            Batch(
                statements=statements,
                table=self.work.over.oid,
                writes=tuple(self.work.writes),
                migration_id=self.migration_id,
                ordinal=wanted.ordinal,
                checkpoint=checkpoint,
                unless=unless,
                lock_timeout=lock_timeout,
                statement_timeout=statement_timeout,
            )
        )
        if done is None:
            raise self._gone(wanted)
        return done

    def _gone(self, wanted: KeyRange) -> StateConflict:
        return StateConflict(
            f"{self.name} range {wanted.partition}",
            "is not in the ledger any more: the ranges were cut anew meanwhile",
            "materialize the ranges that are missing now",
        )

    def _revisit(self, wanted: KeyRange, bounds: Bounds) -> None:
        """Come back for rows that the application held, until none is left."""

        def again(keys: Sequence[Key] | None) -> int:
            before = self.rows
            if keys is None:
                self._pass(wanted, bounds, wanted.lower, first=False)
            else:
                self._sweep(wanted, bounds, keys)
            return self.rows - before

        def seeking() -> AbstractContextManager[None]:
            return self.failing.sought(bounds, rows=self.control.pace.rows)

        def visit(key: Key) -> int | None:
            with seeking():
                moved = self._visit(wanted, key)
                self.control.release(self.conn)  # a pause may follow
                return moved

        revisit = Revisit(
            conn=self.conn,
            work=self.work,
            bounds=bounds,
            repair=self.repair,
            thing=f"{self.name} range {wanted.partition}",
            patience=self.patience,
            seeking=seeking,
            again=again,
            visit=visit,
            held=lambda: f", or {self._held(self._busy)}" if self._busy is not None else "",
        )
        revisit.run(tried=self.batches > 0)
        self.retries += revisit.pauses

    def _sweep(self, wanted: KeyRange, bounds: Bounds, keys: Sequence[Key]) -> None:
        """A batch for each so many of the keys, in order, whatever comes to wait between them meanwhile."""
        at = 0
        while at < len(keys):
            behind = at + self.control.pace.next_rows
            upper = keys[behind] if behind < len(keys) else bounds.end()
            self._batch(wanted, bounds, Window(lower=keys[at], passes=1, upper=upper, fixed=True), 0, first=False)
            at = behind
        self.control.release(self.conn)

    def _visit(self, wanted: KeyRange, key: Key) -> int | None:
        """Queue for the row at a key; None when its lock was not had, so that it has another turn later."""
        with self.patience.turn(self.conn):
            try:
                with self.conn.transaction():
                    done = self._transact(wanted, self.work.one(key, repair=self.repair), lock_timeout=_QUEUE_SECONDS)
                    self._look_again(key, done.rows)
            except DatabaseError as error:
                if fault(error) is Fault.LOCK_BUSY or fault(error) in _TRY_AGAIN:
                    self._busy = error if self.failing.blamed(error) else None
                    return None
                raise
        self.rows += done.rows
        return done.rows

    def _look_again(self, key: Key, rows: int) -> None:
        """Look at a row before anybody else may write it: what waits still, a trigger has kept or undone."""
        ((left,),) = self.conn.run(self.work.waiting(key, None, last=key, repair=self.repair))
        if left and (kept := self.failing.kept(key, written=rows > 0)):
            raise kept
