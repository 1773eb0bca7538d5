"""Backfill: move the old rows range by range, while the application reads and writes them."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import psycopg

from zdm_pipelines.changes import bind
from zdm_pipelines.dialects.postgres import strides
from zdm_pipelines.dialects.postgres.connection import Connection, connected
from zdm_pipelines.dialects.postgres.strides import Heap
from zdm_pipelines.engine import ledger, ranges, sessions, tuning
from zdm_pipelines.engine.batches import Moved, RangeWorker
from zdm_pipelines.engine.signals import Surroundings
from zdm_pipelines.engine.strides import Strides, choose
from zdm_pipelines.engine.throttle import Governor
from zdm_pipelines.engine.turns import Stopped, Turns
from zdm_pipelines.model.errors import MigrationBusy, RolledBack, SpecError, StateConflict
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Catalog, KeyRange, Step

ALLOWED = frozenset(
    {State.EXPANDED, State.BACKFILLING, State.BACKFILLED, State.VALIDATED, State.SWITCHING, State.SWITCHED}
)


def plan(migration: Migration, catalog: Catalog) -> list[Step]:
    """One batch, as it runs for each interval of keys."""
    declared = migration.backfill
    # Any interval does: the values are bound when it runs.
    sql, _ = bind(migration, catalog).move(("…",) * len(catalog.key), ("…",) * len(catalog.key))
    return [
        Step(
            name=f"move at most {declared.batch_rows:,} rows",
            sql=sql,
            reason=f"once a batch, ranges of about {declared.range_rows:,} rows, {declared.max_parallel} at a time; "
            "commits together with its checkpoint",
            lock="ROW EXCLUSIVE; row locks for one batch, rows locked by others are passed over",
        )
    ]


def run(
    migration: Migration,
    url: str,
    *,
    database: Database | None = None,
    partitions: Sequence[str] | None = None,
    repair: bool = False,
    run_id: str | None = None,
    attempt: int | None = None,
    tell: sessions.Tell = sessions.silent,
    batch: Callable[[Moved], None] = lambda _: None,
) -> Generator[Moved]:
    """Move ranges, giving one `Moved` as each is proven done. Closing the iterator stops at the next batch.

    Args:
        database: as it is declared: its replicas, and the budget that its migrations share; default: an undeclared one.
        partitions: which ranges; default: those not done.
        repair: rows that disagree are taken from the old shape.
        run_id: shown in the database as long as the run lives.
        attempt: as `attempt_of` gave it to the run that this one continues; default: the present one.
        batch: called from worker threads after each batch.

    Raises:
        StateConflict, MigrationBusy, LockNotAcquired, MappingFailed, Throttled, DatabaseUnreachable, OutcomeUnknown
    """
    entry, wanted, began, heap = sessions.resilient(
        lambda: _begin(migration, url, partitions, repair, attempt), thing=migration.name, tell=tell
    )
    declared = database or Database(name=migration.database)
    job = _Job(
        migration,
        url,
        entry,
        declared,
        began=began,
        heap=heap,
        run_id=run_id,
        repair=repair,
        tell=tell,
        batch=batch,
    )
    try:
        yield from job.work(wanted)
    finally:
        job.close()
    # The ranges reached it a moment ago: gone now, it is waited for.
    sessions.resilient(lambda: _finish(migration, url), thing=migration.name, tell=tell, reached=True)


def _begin(
    migration: Migration, url: str, partitions: Sequence[str] | None, repair: bool, attempt: int | None
) -> tuple[ledger.Entry, list[KeyRange], int, Heap]:
    with sessions.session(url, migration, purpose="backfill", shared=True) as conn:
        if attempt is not None and (before := ledger.find(conn, migration.name)) is not None:
            _same_attempt(conn, before, attempt)  # first: what was rolled back may be in any state
        entry = ledger.require(conn, migration, ALLOWED, to_do="be backfilled")
        ledger.ensure(url)  # it may have been made by an earlier version
        tuning.publish(conn, migration)
        began = _same_attempt(conn, entry, attempt)
        if repair:
            _refuse_repair(conn, entry)
        known = ranges.progress(conn, entry.id)
        if partitions is None:
            wanted = [r.range for r in known if repair or not r.done]
        else:
            by_key = {r.range.partition: r.range for r in known}
            if unknown := [p for p in partitions if p not in by_key]:
                raise SpecError(
                    f"{migration.name} range {unknown[0]}",
                    "is not in the ledger",
                    "materialize expand, which lists the ranges anew",
                )
            wanted = [by_key[p] for p in partitions]
        heap = strides.heap(conn, entry.catalog, bind(migration, entry.catalog).new_relation())
        return entry, wanted, began, heap


def attempt_of(migration: Migration, url: str) -> int:
    """Which attempt at the migration this is: a run that goes on later must find the same one.

    Raises:
        DatabaseUnreachable, StateConflict
    """
    with connected(url, purpose=f"{migration.name} backfill") as conn:
        return ledger.began(conn, ledger.require(conn, migration, ALLOWED, to_do="be backfilled").id)


def _same_attempt(conn: Connection, entry: ledger.Entry, attempt: int | None) -> int:
    began = ledger.began(conn, entry.id)
    if attempt is not None and attempt != began:
        raise RolledBack(
            entry.name,
            "was rolled back since this backfill was launched",
            "launch the backfill anew if it shall be moved again",
        )
    return began


def _refuse_repair(conn: Connection, entry: ledger.Entry) -> None:
    """The old shape is the truth only while nobody reads the new one."""
    flag = ledger.flag(conn, entry.id)
    if flag is not None and flag.percent > 0:
        raise StateConflict(
            entry.name,
            f"serves {flag.percent} % of reads from the new shape, which is the truth for them",
            "bring all reads back first: switch_reads with percent 0, or roll back to backfilled",
        )


def _finish(migration: Migration, url: str) -> State:
    """Move on to `backfilled` when every range is done."""
    with connected(url, purpose=f"{migration.name} backfill") as conn:
        entry = ledger.require(conn, migration, ALLOWED, to_do="be backfilled")
        if entry.state not in (State.EXPANDED, State.BACKFILLING):
            return entry.state
        if all(r.done for r in ranges.progress(conn, entry.id)):
            return _move(conn, entry, State.BACKFILLED, "every range is moved")
        return entry.state


def _move(conn: Connection, entry: ledger.Entry, to: State, what: str) -> State:
    """Move on; another worker that did the same a moment before is no conflict."""
    try:
        with ledger.transaction(conn):
            return ledger.move(conn, entry, to, what=what).state
    except StateConflict:
        now = ledger.state(conn, entry.name)
        if now != to:
            raise
        return now


class _Job:
    """The workers of one run."""

    def __init__(
        self,
        migration: Migration,
        url: str,
        entry: ledger.Entry,
        database: Database,
        *,
        began: int,
        heap: Heap,
        run_id: str | None,
        repair: bool,
        tell: sessions.Tell,
        batch: Callable[[Moved], None],
    ) -> None:
        self.migration = migration
        self.url = url
        self.entry = entry
        self.began = began
        self.repair = repair
        self.tell = tell
        self.batch = batch
        self.stop = threading.Event()
        self.change = bind(migration, entry.catalog, migration_id=entry.id)
        around = Surroundings(url=url, catalog=entry.catalog, replicas=database.replica_urls())
        self.control = Turns(
            Governor(migration, around, run=run_id, tell=tell), places=database.max_parallel, stop=self.stop
        )
        self.heap = heap
        self.strides = Strides(lambda: self.control.passes or choose(heap), tell=tell)
        self.workers: list[threading.Thread] = []

    def work(self, wanted: Sequence[KeyRange]) -> Iterator[Moved]:
        """Give ranges out to the workers and their outcomes to the caller, as they come."""
        todo: queue.SimpleQueue[KeyRange] = queue.SimpleQueue()
        outcomes: queue.SimpleQueue[Moved | BaseException] = queue.SimpleQueue()
        for which in wanted:
            todo.put(which)
        failure: BaseException | None = None
        missing = len(wanted)
        while missing:
            self._staff(todo, outcomes)
            try:
                # A short wait keeps the main thread open to interrupts, and to more workers.
                outcome = outcomes.get(timeout=0.5)
            except queue.Empty:
                continue
            missing -= 1
            if isinstance(outcome, Moved):
                yield outcome
            elif failure is None and not isinstance(outcome, Stopped):
                # The other ranges of the run are no worse for it: those under way end at their next batch.
                failure = outcome
                self.stop.set()
        if failure is not None:
            raise failure

    def _staff(self, todo: queue.SimpleQueue[KeyRange], outcomes: queue.SimpleQueue[Moved | BaseException]) -> None:
        """As many workers as may work now, and have something to do."""
        self.workers = [worker for worker in self.workers if worker.is_alive()]
        for _ in range(min(self.control.parallel - len(self.workers), todo.qsize())):
            worker = threading.Thread(target=self._worker, args=(todo, outcomes), name="zdm worker")
            worker.start()
            self.workers.append(worker)

    def _worker(self, todo: queue.SimpleQueue[KeyRange], outcomes: queue.SimpleQueue[Moved | BaseException]) -> None:
        while True:
            try:
                which = todo.get_nowait()
            except queue.Empty:
                return
            try:
                thing = f"{self.migration.name} range {which.partition}"
                outcomes.put(
                    sessions.resilient(lambda r=which: self._range(r), thing=thing, tell=self.tell, reached=True)  # type: ignore[misc]
                )
            except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, nothing is swallowed
                outcomes.put(error)
            if len([w for w in self.workers if w.is_alive()]) > self.control.parallel:
                return

    def close(self) -> None:
        """Stop at the next batch and wait for the workers."""
        self.stop.set()
        for worker in self.workers:
            worker.join()
        self.control.governor.close()

    def _range(self, wanted: KeyRange) -> Moved:
        self.control.ready()  # before a connection is made that would only wait
        name = self.migration.name
        with (
            sessions.session(self.url, self.migration, purpose=f"range {wanted.partition}", shared=True) as conn,
            self._slot(conn),
        ):
            if not sessions.take(conn, f"zdm:range:{self.entry.id}:{wanted.ordinal}"):
                raise MigrationBusy(
                    f"{name} range {wanted.partition}",
                    "is being moved by another run",
                    "wait for it, or cancel it",
                )
            entry = ledger.require(conn, self.migration, ALLOWED, to_do="be backfilled")
            _same_attempt(conn, entry, self.began)  # a run that waits keeps nobody from rolling back
            if self.repair:
                _refuse_repair(conn, entry)
            if entry.state == State.EXPANDED:
                entry_state = _move(conn, entry, State.BACKFILLING, "backfill began")
            else:
                entry_state = entry.state
            moved = RangeWorker(
                conn, migration_id=entry.id, name=name, catalog=entry.catalog, sql=self.change,
                control=self.control, strides=self.strides, patience=self.migration.locks.give_up_after,
                tell=self.batch, repair=self.repair, whole=self.heap.unique,
            ).run(wanted)  # fmt: skip
            if moved.rows and entry_state not in (State.BACKFILLING, State.EXPANDED):
                self._again(conn)
            return moved

    def _again(self, conn: Connection) -> None:
        """Rows were moved after they had been called complete: what was proven of them is void."""
        entry = ledger.require(conn, self.migration, ALLOWED, to_do="be backfilled")
        if entry.state != State.BACKFILLING:
            with ledger.transaction(conn):
                ledger.forget_checks(conn, entry.id)
            _move(conn, entry, State.BACKFILLING, "rows were moved again: validate anew")

    @contextmanager
    def _slot(self, conn: Connection) -> Iterator[None]:
        """One of `max_parallel` places of this migration, over all runs and machines."""
        told = False
        while (had := self._free_slot(conn)) is None:
            if not told:
                self.tell(f"waiting for one of {self.control.parallel} places (backfill.max_parallel)")
                told = True
            if self.stop.wait(0.2):
                raise Stopped
        try:
            yield
        finally:
            # The session gives it back too, but a moment after it was closed.
            with contextlib.suppress(psycopg.Error):
                sessions.leave(conn, had)

    def _free_slot(self, conn: Connection) -> str | None:
        names = (f"zdm:slot:{self.entry.id}:{n}" for n in range(self.control.parallel))
        return next((name for name in names if sessions.take(conn, name, wait=0)), None)


def undo(migration: Migration, url: str, *, tell: sessions.Tell = sessions.silent) -> None:
    """Forget the progress. The values stay in the new column, which both code versions keep in sync."""
    sessions.resilient(lambda: _undo(migration, url), thing=migration.name, tell=tell)


def _undo(migration: Migration, url: str) -> None:
    ledger.ensure(url)  # it may have been made by an earlier version
    with sessions.session(url, migration, purpose="rollback") as conn:
        entry = ledger.require(conn, migration, ALLOWED, to_do="undo backfill")
        if entry.state == State.EXPANDED:
            return
        with ledger.transaction(conn):
            ranges.reset(conn, entry.id)
            ledger.forget_checks(conn, entry.id)
            ledger.move(conn, entry, State.EXPANDED, what="backfill undone")
