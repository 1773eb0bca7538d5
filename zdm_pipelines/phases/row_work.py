"""Row work: work on rows range by range, while the application reads and writes them, for the phase that does so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, nullcontext

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change
from zdm_pipelines.dialects import DatabaseError, fault
from zdm_pipelines.dialects.server import Fault, Heap, Session
from zdm_pipelines.engine import sessions, tuning
from zdm_pipelines.engine.budget import Budget
from zdm_pipelines.engine.context import Context
from zdm_pipelines.engine.rows.strides import Strides, choose
from zdm_pipelines.engine.rows.worker import RangeWorker
from zdm_pipelines.engine.signals import Surroundings
from zdm_pipelines.engine.throttle import Governor
from zdm_pipelines.engine.workers import Workers
from zdm_pipelines.ledger import ranges as known_ranges
from zdm_pipelines.model.capabilities import ALL
from zdm_pipelines.model.errors import MigrationBusy, RolledBack, SpecError, StateConflict
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import KeyRange, Moved, Report, Step
from zdm_pipelines.phases.beginning import bound, same_name, unaltered

Gate = Callable[[Session, "ledger.Entry"], None]  # raises when something stands against the row work


def plan(context: Context, change: Change) -> list[Step]:
    """One batch, as it runs for each interval of keys."""
    declared, work = context.migration.backfill, change.rows
    assert work is not None  # the phase is there because of it
    # Any interval does: the values are bound when it runs.
    any_key = ("…",) * len(work.over.key)
    statements = work.batch(any_key, any_key, pick=ALL)
    verb, count = "remove" if work.destroys else "move", len(statements)
    return [
        Step(
            name=f"{verb} at most {declared.batch_rows:,} rows" + (f" ({n} of {count})" if count > 1 else ""),
            sql=statement.sql,
            reason=f"once a batch, ranges of about {declared.range_rows:,} rows, {declared.max_parallel} at a time; "
            "commits together with its checkpoint",
            lock="ROW EXCLUSIVE; row locks for one batch, rows locked by others are passed over",
        )
        for n, statement in enumerate(statements, 1)
    ]


def run(
    context: Context,
    *,
    partitions: Sequence[str] | None = None,
    repair: bool = False,
    run_id: str | None = None,
    attempt: int | None = None,
    batch: Callable[[Moved], None] = lambda _: None,
    gate: Gate = lambda _session, _entry: None,
) -> Generator[Moved]:
    """Work on ranges, giving one `Moved` as each is proven done. Closing the iterator stops at the next batch.

    Args:
        partitions: which ranges; default: those not done.
        repair: rows that disagree are taken from the old shape.
        run_id: shown in the database as long as the run lives.
        attempt: as `attempt_of` gave it to the run that this one continues; default: the present one.
        batch: called from worker threads after each batch.
        gate: what must be true before the first batch, and again before each range and where a batch fails.

    Raises:
        StateConflict, MigrationBusy, LockNotAcquired, MappingFailed, Throttled, DatabaseUnreachable, OutcomeUnknown
    """
    entry, wanted, began, heap = context.outlast(lambda: _begin(context, partitions, repair, attempt, gate))
    job = _Job(context, entry, began=began, heap=heap, run_id=run_id, repair=repair, batch=batch, gate=gate)
    with closing(job.moved(wanted)) as moving:
        yield from moving
    # The ranges reached it a moment ago: gone now, it is waited for.
    context.outlast(lambda: _finish(context), reached=True)


def reported(context: Context, moving: Iterable[Moved]) -> Report:
    """The report of row work, once it is done."""
    begun, phase = time.monotonic(), context.lifecycle.row_phase
    assert phase is not None  # there is row work
    outcomes = list(moving)
    with context.looking("report") as session:
        entry = ledger.find(session, context.name)
        known = known_ranges.progress(session, entry.id) if entry else []
        sql = [step.sql for step in plan(context, bound(context, entry))] if entry else []
    rows, done = sum(m.rows for m in outcomes), f"{sum(r.done for r in known)} of {len(known)}"
    verb = "removed" if phase is Phase.CONTRACT else "moved"
    return Report(
        migration=context.name,
        phase=phase,
        state=entry.state if entry else State.PLANNED,
        summary=f"{len(outcomes)} ranges {verb}; {done} are done"
        if outcomes
        else f"nothing to do: {done} ranges are done",
        sql=tuple(sql),
        rows=rows,
        seconds=time.monotonic() - begun,
        batches=sum(m.batches for m in outcomes),
        retries=sum(m.retries for m in outcomes),
        wal_bytes=sum(m.wal_bytes for m in outcomes),
        facts={
            "ranges": [m.partition for m in outcomes],
            "hot_ratio": round(sum(m.hot for m in outcomes) / max(1, rows), 3),
        },
    )


def _required(context: Context, session: Session) -> ledger.Entry:
    lifecycle = context.lifecycle
    if lifecycle.row_phase is Phase.BACKFILL:
        return ledger.require(session, context.migration, lifecycle.moving_allowed, to_do="be backfilled")
    # Another run may have ended the migration: then every range is done, and is found done.
    allowed = lifecycle.moving_allowed | {lifecycle.end}
    return ledger.require(session, context.migration, allowed, to_do="be contracted")


def _begin(
    context: Context, partitions: Sequence[str] | None, repair: bool, attempt: int | None, gate: Gate
) -> tuple[ledger.Entry, list[KeyRange], int, Heap | None]:
    with context.session(_purpose(context), shared=True) as session:
        if attempt is not None and (before := ledger.find(session, context.name)) is not None:
            _same_attempt(session, before, attempt)  # first: what was rolled back may be in any state
        entry = _required(context, session)
        ledger.ensure(context.server)  # it may have been made by an earlier version
        tuning.publish(session, context.migration)
        began = _same_attempt(session, entry, attempt)
        change = unaltered(session, context, bound(context, entry))
        assert change.rows is not None  # the phase is there because of it
        if repair:
            _refuse_repair(session, entry, destroys=change.rows.destroys)
        known = known_ranges.progress(session, entry.id)
        if partitions is None:
            wanted = [r for r in known if repair or not r.done]
        else:
            by_key = {r.range.partition: r for r in known}
            if unknown := [p for p in partitions if p not in by_key]:
                raise SpecError(
                    f"{context.name} range {unknown[0]}",
                    "is not in the ledger",
                    "materialize expand, which lists the ranges anew",
                )
            wanted = [by_key[p] for p in partitions]
        if entry.state in context.lifecycle.watched or not all(r.done for r in wanted):
            gate(session, entry)
        heap = session.rows.heap(change.rows.over, change.rows.written) if change.rows.written else None
        return entry, [r.range for r in wanted], began, heap


def _purpose(context: Context) -> str:
    return str(context.lifecycle.row_phase)


def attempt_of(context: Context) -> int:
    """Which attempt at the migration this is: a run that goes on later must find the same one.

    Raises:
        DatabaseUnreachable, StateConflict
    """
    with context.looking(_purpose(context)) as session:
        return ledger.began(session, _required(context, session).id)


def _same_attempt(session: Session, entry: ledger.Entry, attempt: int | None) -> int:
    began = ledger.began(session, entry.id)
    if attempt is not None and attempt != began:
        raise RolledBack(
            entry.name,
            f"was rolled back since this run of {entry.lifecycle.row_phase} was launched",
            f"launch {entry.lifecycle.row_phase} anew if that is still wanted",
        )
    return began


def _refuse_repair(session: Session, entry: ledger.Entry, *, destroys: bool) -> None:
    """The old shape is the truth only while nobody reads the new one."""
    if destroys:
        raise SpecError(f"{entry.name} repair", "takes rows from an old shape, and there is none", "leave repair out")
    flag = ledger.flag(session, entry.id)
    if flag is not None and flag.percent > 0:
        raise StateConflict(
            entry.name,
            f"serves {flag.percent} % of reads from the new shape, which is the truth for them",
            "bring all reads back first: switch_reads with percent 0, or roll back to backfilled",
        )


def _finish(context: Context) -> State:
    """Move on when every range is done."""
    lifecycle = context.lifecycle
    with context.looking(_purpose(context)) as session:
        entry = _required(context, session)
        if entry.state not in lifecycle.watched:
            return entry.state
        if all(r.done for r in known_ranges.progress(session, entry.id)):
            return _move(session, entry, lifecycle.rows_done, "every range is done")
        return entry.state


def _move(session: Session, entry: ledger.Entry, to: State, what: str) -> State:
    """Move on; another worker that did the same a moment before is no conflict."""
    try:
        with session.transaction():
            return ledger.move(session, entry, to, what=what).state
    except StateConflict:
        now = ledger.state(session, entry.name)
        if now != to:
            raise
        return now


class _Job:
    """The workers of one run."""

    def __init__(
        self,
        context: Context,
        entry: ledger.Entry,
        *,
        began: int,
        heap: Heap | None,
        run_id: str | None,
        repair: bool,
        batch: Callable[[Moved], None],
        gate: Gate,
    ) -> None:
        self.context = context
        self.entry = entry
        self.began = began
        self.repair = repair
        self.batch = batch
        self.gate = gate
        self.stop = threading.Event()
        change = bound(context, entry)
        assert change.rows is not None  # the phase is there because of it
        self.rows = change.rows
        self.guard = change.parity.guard if repair and change.parity is not None else None
        around = Surroundings(url=context.server.url, catalog=self.rows.over, replicas=context.database.replica_urls())
        self.budget = Budget(
            Governor(context.migration, around, run=run_id, tell=context.tell),
            migration_id=entry.id,
            places=context.database.max_parallel,
            stop=self.stop,
            tell=context.tell,
        )
        self.whole = heap is not None and heap.unique
        self.strides = Strides(lambda: self.budget.passes or choose(heap), tell=context.tell)

    def moved(self, wanted: Sequence[KeyRange]) -> Generator[Moved]:
        """Give ranges out to workers and their outcomes to the caller, as they come; left, none is at work."""
        workers = Workers(
            wanted,
            name="zdm worker",
            desk=nullcontext,  # each range has a connection of its own, which shows that it is being moved
            work=lambda _, which: self._resilient(which),
            parallel=lambda: self.budget.parallel,
            stop=self.stop,
        )
        try:
            with workers:
                for _, moved in workers.outcomes():
                    yield moved
        finally:
            self.budget.governor.close()

    def _resilient(self, which: KeyRange) -> Moved:
        thing = f"{self.context.name} range {which.partition}"
        return sessions.resilient(lambda: self._range(which), thing=thing, tell=self.context.tell, reached=True)

    def _range(self, wanted: KeyRange) -> Moved:
        self.budget.ready()  # before a connection is made that would only wait
        context, lifecycle = self.context, self.context.lifecycle
        with (
            context.session(f"range {wanted.partition}", shared=True) as session,
            self.budget.slot(session),
        ):
            if not sessions.take(session, f"zdm:range:{self.entry.id}:{wanted.ordinal}"):
                raise MigrationBusy(
                    f"{context.name} range {wanted.partition}",
                    "is being worked on by another run",
                    "wait for it, or cancel it",
                )
            entry = _required(context, session)
            _same_attempt(session, entry, self.began)  # a run that waits keeps nobody from rolling back
            if self.repair:
                _refuse_repair(session, entry, destroys=False)
            session.rows.prepare(self.rows.over)
            if self.guard is not None:
                session.run(self.guard)
            begun = known_ranges.begun(session, entry.id, wanted.ordinal)
            if begun is None or not begun.done:
                self.gate(session, entry)
            state = entry.state
            if state in lifecycle.watched and state != lifecycle.moving:
                assert lifecycle.moving is not None  # there is row work
                state = _move(session, entry, lifecycle.moving, f"{_purpose(context)} began")
            worker = RangeWorker(
                session, migration_id=entry.id, name=context.name, work=self.rows,
                control=self.budget, strides=self.strides, patience=context.migration.locks.give_up_after,
                tell=self.batch, repair=self.repair, whole=self.whole,
            )  # fmt: skip
            try:
                moved = worker.run(wanted)
            except DatabaseError as error:
                if fault(error) is Fault.OTHER:
                    self._altered(session)
                raise
            if moved.rows and state not in lifecycle.watched:
                self._again(session)
            return moved

    def _altered(self, session: Session) -> None:
        """Raise what others altered while rows were moved, if that is why a batch failed."""
        entry = _required(self.context, session)
        self.gate(session, entry)  # it knows more reasons, and gives them all
        unaltered(session, self.context, bound(self.context, entry))
        same_name(session, self.context, self.rows.over.table)

    def _again(self, session: Session) -> None:
        """Rows were moved after they had been called complete: what was proven of them is void."""
        entry, moving = _required(self.context, session), self.context.lifecycle.moving
        assert moving is not None  # there is row work
        if entry.state != moving:
            with session.transaction():
                ledger.forget_checks(session, entry.id)
            _move(session, entry, moving, "rows were moved again: validate anew")
