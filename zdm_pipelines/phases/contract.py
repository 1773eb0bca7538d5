"""Contract: put the old shape out of sight, and drop it once nobody missed it; the gate decides both times."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change, Retirement, Words, kind_of
from zdm_pipelines.dialects import DatabaseError, fault, mapping
from zdm_pipelines.dialects.server import Fault, Session
from zdm_pipelines.engine import gate
from zdm_pipelines.engine.context import Context, outlasting
from zdm_pipelines.engine.proof import parity, proofs
from zdm_pipelines.engine.schema import locks
from zdm_pipelines.engine.schema.sync import sync_marks, wait_for_writers
from zdm_pipelines.ledger import ranges as known_ranges
from zdm_pipelines.model.capabilities import Notes
from zdm_pipelines.model.errors import GateRefused, MappingFailed, Problem
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Moved, Relation, Report, Statement, Step
from zdm_pipelines.phases import reads, row_work
from zdm_pipelines.phases.beginning import altered, begin, bound, claims, same_name, taken, unaltered
from zdm_pipelines.phases.way_back import bring_back

# The proof must end before tracking ends by itself.
_TRACK = timedelta(hours=24)
_FEW = 2_000  # recorded keys that are compared under the lock: some milliseconds
_DRAINS = 20


def plan(context: Context, change: Change) -> list[Step]:
    """Both stages; the gate stands before each."""
    steps: list[Step] = []
    if change.rows is not None and change.rows.destroys:
        steps += row_work.plan(context, change)
    if change.sync is not None and change.parity is not None:
        steps.append(change.sync.note(Notes(track_until="…")))
    if change.retire is not None:
        steps += [*change.retire.tombstone(), *change.retire.drop()]
    return steps


def run(
    context: Context,
    *,
    more_reasons: Sequence[str] = (),
    compared: Callable[[int], None] = lambda _: None,
) -> Report:
    """From the last state before contract to `tombstoned`, from there to `contracted`; one stage a run.

    Args:
        more_reasons: what the caller knows against it, besides what the database says.
        compared: called with the number of rows compared after each range.

    Raises:
        GateRefused: with every reason; nothing was changed.
        LockNotAcquired, MigrationBusy, DatabaseUnreachable, OutcomeUnknown
    """
    job = _Contract(context, more_reasons=more_reasons, compared=compared)
    return context.outlast(job.run)


def destroy(context: Context, *, more_reasons: Sequence[str] = (), **options: Any) -> Generator[Moved]:
    """Take rows away range by range, behind the whole gate, giving one `Moved` as each range is done.

    Args:
        more_reasons: as for `run`.
        options: those of `row_work.run`.

    Raises:
        GateRefused: with every reason, before a range; besides what `row_work.run` raises.
    """

    def gate(session: Session, entry: ledger.Entry) -> None:
        if found := [*reasons(context, session, entry, present(context, session, entry)), *more_reasons]:
            raise GateRefused(context.name, found)

    try:
        yield from row_work.run(context, gate=gate, **options)
    except GateRefused as refused:
        with context.looking("contract") as session:  # here, for several workers may have been refused
            _note_refusal(session, ledger.find(session, context.name), refused)
        raise


def _note_refusal(session: Session, entry: ledger.Entry | None, refused: GateRefused) -> None:
    if entry is not None:
        ledger.append_refusal(session, entry.id, "contract refused", refused.reasons)


def _altered(change: Change) -> Sequence[Relation]:
    """The tables that steps of contract alter: none, where batches took the rows away."""
    return () if change.rows is not None and change.rows.destroys else change.relations


def present(context: Context, session: Session, entry: ledger.Entry) -> Change:
    """The change; its sync functions note what the present one notes, so that validate's proofs keep their worth."""
    plain = bound(context, entry)
    if plain.sync is None:
        return plain
    marking = proofs.in_place(session, entry, known_ranges.progress(session, entry.id), plain.sync)
    return bound(context, entry, notes=Notes(marking=marking))


def reasons(
    context: Context,
    session: Session,
    entry: ledger.Entry | None,
    change: Change | None,
    *,
    begins: bool = False,
    locked: bool = False,
) -> list[str]:
    """Everything that stands against contract but the data itself, asked of the database.

    Args:
        begins: the table was surveyed a moment ago, for contract begins the migration.
        locked: under the lock, where who uses what goes is asked again only if it does not come back.
    """
    active = entry is not None and context.lifecycle.active(entry.state)
    if change and active and (found := [*taken(session, context, change), *altered(session, change)]):
        return found  # what else is asked names the table and its columns
    try:
        return _asked(context, session, entry, change, surveyed=begins or active, locked=locked)
    except (Problem, DatabaseError) as error:
        if entry is not None and (isinstance(error, Problem) or fault(error) is Fault.OTHER):
            same_name(session, context, entry.catalog.table)
        raise


def _asked(
    context: Context,
    session: Session,
    entry: ledger.Entry | None,
    change: Change | None,
    *,
    surveyed: bool,
    locked: bool,
) -> list[str]:
    words = kind_of(context.migration).words(context.migration)
    retire = change.retire if change else None
    asks = not (locked and Need.TOMBSTONE in context.lifecycle.needs)
    return gate.reasons(
        session,
        entry,
        context.migration,
        checks=tuple(words.checks),
        old=words.old,
        dependents=[
            *(_standing(context, session, retire) if retire and surveyed else ()),
            *(gate.uses(session, context.database, change.in_use) if change and surveyed and asks else ()),
        ],
        sync=change.sync if change else None,
        constraints=[*change.enforce, *(change.today(session) if change.today and surveyed else ())] if change else (),
    )


def _standing(context: Context, session: Session, retire: Retirement) -> list[str]:
    """What still stands on what goes, and what names it unless the declaration says that it means something else."""
    said = context.migration.contract.unaffected
    way_out = "make it anew without the name, or, if it means something else, list it under contract.unaffected: "
    named = [f"{why}: {way_out}{name}" for name, why in retire.mentions(session).items() if name not in said]
    return [*retire.dependents(session), *named]


@dataclass
class _Contract:
    """One run of contract."""

    context: Context
    more_reasons: Sequence[str]
    compared: Callable[[int], None]
    began_in: State | None = None  # kept when the database is lost and the run goes on
    done: list[str] = field(default_factory=list)
    retries: int = 0
    rows: int = 0

    @property
    def words(self) -> Words:
        """What the kind calls things."""
        return kind_of(self.context.migration).words(self.context.migration)

    def run(self) -> Report:
        """One stage, or what an earlier try of this run had done when the connection was lost."""
        begun = time.monotonic()
        with self.context.session("contract") as session:
            entry, begins = begin(self.context, session, Phase.CONTRACT)
            if entry is not None and self.began_in is None:
                self.began_in = entry.state
            if entry is not None and entry.state == State.CONTRACTED:
                summary = f"{self.words.old} is gone already"
            elif (
                entry is not None
                and entry.state == State.TOMBSTONED
                and self.began_in == self.context.lifecycle.undo_target(Phase.CONTRACT)
            ):
                # The connection was lost as this run's rename was committed: one stage a run, and this was it.
                summary = self._tombstoned(entry)
            else:
                try:
                    entry, summary = self._stage(session, entry, begins=begins)
                except GateRefused as refused:
                    _note_refusal(session, entry, refused)
                    raise
        return Report(
            migration=self.context.name,
            phase=Phase.CONTRACT,
            state=entry.state,
            summary=summary,
            sql=tuple(self.done),
            rows=self.rows,
            seconds=time.monotonic() - begun,
            retries=self.retries,
        )

    def _stage(self, session: Session, entry: ledger.Entry | None, *, begins: bool) -> tuple[ledger.Entry, str]:
        if entry is not None and (found := gate.declaration_reasons(entry, self.context.migration)):
            raise GateRefused(self.context.name, found)
        change = present(self.context, session, entry) if entry else None
        found = reasons(self.context, session, entry, change, begins=begins) + list(self.more_reasons)
        if entry is not None and change is not None:
            ledger.tidy_writes(session, entry.id)
            if change.remember is not None:
                change.remember(session)
        if entry is not None and self.context.lifecycle.row_phase is Phase.CONTRACT:
            left = [r for r in known_ranges.progress(session, entry.id) if not r.done]
            found += [f"rows of {len(left)} ranges are not taken away yet"] if left else []
        if found or entry is None or change is None:  # without an entry there is a reason
            raise GateRefused(self.context.name, found)
        session.rows.prepare(entry.catalog)
        if Need.TOMBSTONE in self.context.lifecycle.needs and entry.state != State.TOMBSTONED:
            return self._tombstone(session, entry, change)
        onward = self.context.lifecycle.transitions(entry.state)
        if State.CONTRACTING in onward and entry.state != State.TOMBSTONED:
            # What goes without a tombstone may be gone from here on: the state says so before the first step.
            taken = claims(session, change) if begins else ()
            with session.transaction():
                entry = ledger.move(session, entry, State.CONTRACTING, what="contract began", claims=taken)
        return self._drop(session, entry, change)

    def _compare(self, session: Session, entry: ledger.Entry, change: Change) -> None:
        if change.parity is None:
            return
        known = [r.range for r in known_ranges.progress(session, entry.id)]
        try:
            verdict = parity.compare(
                self.context.server,
                self.context.name,
                change.parity,
                known,
                parallel=self.context.migration.backfill.max_parallel,
                new_is_read=ledger.all_reads_are_new(session, entry.id),
                tell=self.compared,
                prepare=lambda session: session.rows.prepare(entry.catalog),
            )
        except MappingFailed:
            proofs.forget(session, entry.id)
            raise
        self.rows = verdict.rows
        if not verdict.agrees:
            proofs.forget(session, entry.id)  # somebody went around the trigger: validate is to find it, too
            where = ", ".join(verdict.partitions[:10])
            reason = f"old and new disagree: {verdict.describe()} in range {where}; run validate"
            raise GateRefused(self.context.name, [reason])

    def _again(self, session: Session, entry: ledger.Entry, change: Change) -> None:
        """Under the lock the gate is examined once more.

        Raises:
            GateRefused: something stands against contract now.
        """
        for relation in _altered(change):
            locks.lock_exclusively(session, relation)
        ledger.keep_flag(session, entry.id)  # whoever brings reads back comes before or after, never in between
        if found := reasons(self.context, session, entry, change, locked=True):
            raise GateRefused(self.context.name, found)

    # -- first stage --------------------------------------------------------------------------------------

    def _tombstone(self, session: Session, entry: ledger.Entry, change: Change) -> tuple[ledger.Entry, str]:
        assert change.retire is not None
        reads.settle(context=self.context, session=session, migration_id=entry.id)
        steps = change.retire.tombstone()
        if change.sync is None or change.parity is None:
            moved = self._change_schema(
                session, change, lambda: self._put_aside(session, entry, change, steps), before=lambda: None
            )
        else:
            moved = self._proven(session, entry, change, steps)
        self.done += [step.sql for step in steps]
        return moved, self._tombstoned(moved)

    def _change_schema(
        self,
        session: Session,
        change: Change,
        work: Callable[[], ledger.Entry],
        *,
        before: Callable[[], object] = lambda: None,
    ) -> ledger.Entry:
        moved, tries = locks.change_schema(
            session, work, context=self.context, what="contract", relations=_altered(change), before=before
        )
        self.retries += tries
        return moved

    def _put_aside(self, session: Session, entry: ledger.Entry, change: Change, steps: Sequence[Step]) -> ledger.Entry:
        self._again(session, entry, change)
        locks.run_steps(session, steps)
        return ledger.move(session, entry, State.TOMBSTONED, what=f"{self.words.old} out of sight")

    def _proven(self, session: Session, entry: ledger.Entry, change: Change, steps: Sequence[Step]) -> ledger.Entry:
        """Put aside what is proven to agree: compared without a lock, then again, under it, what was written since."""
        assert change.sync is not None  # asked by the caller
        assert change.parity is not None
        if change.parity.guard is not None:
            session.run(change.parity.guard)
        marking = proofs.in_place(session, entry, known_ranges.progress(session, entry.id), change.sync)
        until: datetime = session.value("sync.end_of_tracking", _TRACK)
        track = change.sync.note(Notes(marking=marking, track_until=until.isoformat()))
        ledger.forget_touched(session, entry.id)
        self._step(session, track.sql)
        marks = sync_marks(session, change.sync)
        try:
            wait_for_writers(
                session,
                [relation.oid for relation in change.relations],
                patience=self.context.migration.locks.give_up_after,
                thing=f"{self.context.name} contract",
            )
            self._compare(session, entry, change)

            def rename() -> ledger.Entry:
                """Nobody writes now, so what is proven stays true until the rename is committed."""
                self._again(session, entry, change)
                if session.value("sync.is_past", until):
                    raise GateRefused(self.context.name, [f"the proof took longer than {_TRACK}"])
                assert change.sync is not None
                if sync_marks(session, change.sync) != marks:
                    # While it was off, rows were written that nobody recorded.
                    reason = "a sync trigger was changed during the proof; run validate, then contract again"
                    raise GateRefused(self.context.name, [reason])
                self._touched(session, entry, change)
                locks.run_steps(session, steps)
                return ledger.move(session, entry, State.TOMBSTONED, what=f"{self.words.old} out of sight")

            return self._change_schema(session, change, rename, before=lambda: self._drain(session, entry, change))
        except BaseException:
            self._untrack(session, entry, track)
            raise

    def _untrack(self, session: Session, entry: ledger.Entry, track: Step) -> None:
        """Stop recording, unless the rename was committed: then the function is the tombstone's already."""
        with contextlib.suppress(DatabaseError), session.transaction():
            if ledger.is_unmoved(session, entry):
                session.run(Statement(track.undo))
                ledger.forget_touched(session, entry.id)

    def _tombstoned(self, entry: ledger.Entry) -> str:
        kept = timedelta(seconds=self.context.migration.contract.tombstone_window)
        assert entry.tombstoned_at is not None  # entered together with the state
        proven = f"parity proven over {self.rows:,} rows and again under the lock; " if self.rows else ""
        return (
            f"{proven}{self.words.old} is out of sight and may "
            f"be dropped by another run after {entry.tombstoned_at + kept:%Y-%m-%d %H:%M:%S %Z}"
        )

    def _step(self, session: Session, sql: str) -> None:
        self.context.tell(sql)
        session.run(Statement(sql))
        self.done.append(sql)

    def _drain(self, session: Session, entry: ledger.Entry, change: Change) -> None:
        """Compare what was written during the scan before the lock is asked for, until little is left."""
        for _ in range(_DRAINS):
            taken = self._touched(session, entry, change)
            if taken > _FEW:
                ledger.vacuum_touched(session)  # else the next look reads the dead rows again
            else:
                return
        raise GateRefused(
            self.context.name, ["the application writes faster than that can be compared: try when it is quieter"]
        )

    def _touched(self, session: Session, entry: ledger.Entry, change: Change) -> int:
        assert change.parity is not None  # asked by `_tombstone`
        statement = Statement(change.parity.touched_disagreeing(), [entry.id])
        with mapping(f"{self.context.name} contract"):
            taken, disagreeing = session.run(statement)[0]
        if disagreeing:
            raise GateRefused(
                self.context.name,
                [f"{disagreeing} of {taken} rows written during the proof disagree; run validate"],
            )
        return int(taken)

    # -- second stage -------------------------------------------------------------------------------------

    def _drop(self, session: Session, entry: ledger.Entry, change: Change) -> tuple[ledger.Entry, str]:
        self._compare(session, entry, change)
        steps = change.retire.drop() if change.retire else []
        # Steps that stand alone go first: what is left is one short transaction, with the state.
        for step in steps:
            if not step.in_transaction:
                locks.run_alone(session, step, context=self.context, what="contract")
        together = [step for step in steps if step.in_transaction]

        def apply() -> ledger.Entry:
            if together:
                self._again(session, entry, change)
            locks.run_steps(session, together)
            ledger.set_flag(session, entry.id, 100, retired=True)
            return ledger.move(session, entry, State.CONTRACTED, what=f"{self.words.old} dropped")

        moved = self._change_schema(session, change, apply) if together else self._commit(session, apply)
        ledger.forget_writes(session, entry.id)  # not under the lock: it may be many rows
        self.done += [step.sql for step in steps]
        agreed = f"; {self.rows:,} rows agreed to the end" if change.parity is not None else ""
        return moved, f"{self.words.old} is dropped{agreed}"

    def _commit(self, session: Session, work: Callable[[], ledger.Entry]) -> ledger.Entry:
        with session.transaction():
            return work()


@outlasting
def undo(context: Context) -> None:
    """Bring the old shape back from its tombstone, or the rows that are kept; of rows that are not, take no more."""
    lifecycle = context.lifecycle
    with context.session("rollback", brake=True) as session:
        before = lifecycle.undo_target(Phase.CONTRACT)
        under_way = frozenset(s for s in lifecycle.states if lifecycle.undoes(Phase.CONTRACT, s))
        entry = ledger.require(session, context.migration, under_way | {before}, to_do="undo contract")
        if entry.state == before:
            return
        change = _untombstoned(context, session, entry)
        if entry.state == State.TOMBSTONED:
            unaltered(session, context, bound(context, entry), back=True)
        # The steps are those that made the tombstone, taken back in reverse.
        steps = change.retire.tombstone() if change.retire and entry.state == State.TOMBSTONED else []
        if change.rows is not None and change.rows.destroys:
            with session.transaction():
                ledger.forget_checks(session, entry.id)  # first: what waits must not go on, should this be killed
            bring_back(context, session, entry, change.rows)
        for step in change.retire.restore() if change.retire and entry.state == State.CONTRACTING else []:
            locks.run_step(session, step, context=context, what="rollback", relations=change.relations)

        def apply() -> None:
            for step in reversed(steps):
                context.tell(step.undo)
                session.run(Statement(step.undo))
            ledger.move(session, entry, before, what="contract undone")

        locks.change_schema(session, apply, context=context, what="rollback", relations=_altered(change))


def _untombstoned(context: Context, session: Session, entry: ledger.Entry) -> Change:
    """The change as it stood before the tombstone."""
    visible = replace(entry, state=context.lifecycle.undo_target(Phase.CONTRACT))
    plain = bound(context, entry)
    if plain.sync is None:
        return bound(context, visible)
    marking = proofs.in_place(session, entry, known_ranges.progress(session, entry.id), plain.sync)
    return bound(context, visible, notes=Notes(marking=marking))


def unseen(context: Context) -> list[str]:
    """What is not known of who uses what contract takes away; changes nothing."""
    with context.looking("status") as session:
        entry = ledger.find(session, context.name)
        if entry is None or not entry.begun or entry.conflict(context.migration) is not None:
            return []
        change = bound(context, entry)
        return change.unseen(session) if change.unseen is not None else []


def refusals(context: Context) -> list[str]:
    """What stands against contract now, without the comparison of rows; changes nothing."""
    with context.looking("status") as session:
        entry = ledger.find(session, context.name)
        if entry is None or not entry.begun:  # the facts of an attempt that was rolled back are not the file's
            return reasons(context, session, entry, None)
        if found := gate.declaration_reasons(entry, context.migration):
            return found
        return reasons(context, session, entry, present(context, session, entry))
