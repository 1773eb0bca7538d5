"""Expand: add the new shape and keep both in sync, in one short transaction; then cut the ranges."""

from __future__ import annotations

import time
from collections.abc import Sequence

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change, kind_of
from zdm_pipelines.dialects import DatabaseError, fault, safe
from zdm_pipelines.dialects.server import Fault, Session
from zdm_pipelines.engine.context import Context, outlasting
from zdm_pipelines.engine.rows import ranges
from zdm_pipelines.engine.schema import locks
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import RangeProgress, Report, Step
from zdm_pipelines.phases import reads
from zdm_pipelines.phases.beginning import begin, bound, claims, unaltered

# The sync trigger notes each session once a minute: two minutes miss nobody who writes more often.
_NEW_CODE_SECONDS = 120.0


def plan(context: Context, change: Change) -> list[Step]:
    """The steps, without running them."""
    return list(change.expand)


@outlasting
def run(context: Context) -> Report:
    """Expand, or find it done; then cut the ranges.

    Raises:
        PreflightError, LockNotAcquired, StateConflict, MigrationBusy, DatabaseUnreachable, OutcomeUnknown
    """
    begun, tries = time.monotonic(), 0
    done: Sequence[Step] = ()
    with context.session("expand") as session:
        entry, begins = begin(context, session, Phase.EXPAND)
        if begins:
            assert entry is not None  # registered a moment ago
            done = bound(context, entry).expand
            tries = _expand(context, session, entry, done)
        entry = ledger.require(
            session, context.migration, context.lifecycle.allowed(Phase.EXPAND), to_do="be expanded again"
        )
        cut, rows = _cut(context, session, entry, unaltered(session, context, bound(context, entry)))
    to_do = "look at" if Need.DESTROYS in context.lifecycle.needs else "move"
    counted = f"about {rows:,} rows in {len(cut)} ranges to {to_do}" if cut else f"there are no rows to {to_do}"
    return Report(
        migration=context.name,
        phase=Phase.EXPAND,
        state=entry.state,
        summary=(f"both shapes in sync; {counted}" if Need.SYNC in context.lifecycle.needs else counted)
        if begins
        else f"done before; {len(cut)} ranges",
        sql=tuple(step.sql for step in done),
        seconds=time.monotonic() - begun,
        retries=tries,
        facts={
            "ranges": len(cut),
            "partitions": [r.range.partition for r in cut],
            "rows_estimated": rows,
            "warnings": list(entry.catalog.warnings),
        },
    )


def _cut(
    context: Context, session: Session, entry: ledger.Entry, change: Change
) -> tuple[Sequence[RangeProgress], int]:
    """The ranges of the row work, and about how many rows lie in them."""
    if change.rows is None:
        return (), 0
    with session.transaction():
        cut = ranges.plan(session, entry.id, change.rows.over, range_rows=context.migration.backfill.range_rows)
    return cut, ranges.estimate_rows(session, change.rows.over)


def _expand(context: Context, session: Session, entry: ledger.Entry, steps: Sequence[Step]) -> int:
    """Run the steps and enter the state, in one transaction; how many tries failed."""
    change = bound(context, entry)

    def apply() -> None:
        locks.run_steps(session, steps)
        # What an earlier, rolled back attempt left.
        ledger.forget_ranges(session, entry.id)
        ledger.forget_checks(session, entry.id)
        ledger.forget_writes(session, entry.id)
        if Need.READS in context.lifecycle.needs:
            ledger.create_flag(session, entry.id, context.migration.flag)
        ledger.move(session, entry, State.EXPANDED, what="expanded", claims=claims(session, change))

    try:
        _, tries = locks.change_schema(session, apply, context=context, what="expand", relations=change.relations)
    except DatabaseError as error:
        if fault(error) not in (Fault.OF_DATA, Fault.TAKEN, Fault.TOO_LARGE, Fault.OTHER):
            raise
        raise StateConflict(
            context.name,
            f"the server refuses expand: {safe(error)}",
            "see what does so, such as a trigger on events, then run it again; nothing was changed",
        ) from None
    for step in steps:
        context.tell(step.sql)
    return tries


@outlasting
def undo(context: Context, *, force: bool = False) -> None:
    """Remove the new shape: the application's schema is as it was before.

    Args:
        force: remove it though new code wrote to it in the last two minutes.
    """
    with context.session("rollback", brake=True) as session:
        entry = ledger.find(session, context.name)
        if entry is None or entry.state in (State.PLANNED, State.ROLLED_BACK):
            return
        # A file edited since may name something of the application's own as the new shape.
        entry = ledger.require(
            session, context.migration, context.lifecycle.allowed(Phase.EXPAND), to_do="be rolled back"
        )
        if not force and (
            users := ledger.recent_writers(session, entry.id, ledger.NEW_SHAPE, within=_NEW_CODE_SECONDS)
        ):
            raise StateConflict(
                context.name,
                f"new code still writes {kind_of(context.migration).words(context.migration).new}: {'; '.join(users)}",
                "deploy code that does not know it and wait two minutes, or force it, which breaks that code",
            )
        change = unaltered(session, context, bound(context, entry), left_behind=True)
        settled = reads.settle(context, session, entry.id)  # the flag stays, at 0, for clients that ask late

        def apply() -> None:
            if settled and ledger.keep_flag(session, entry.id):
                raise StateConflict(
                    context.name, "had its flag raised meanwhile", "roll back again: reads go back first"
                )
            for step in reversed(change.expand):
                if step.undo:
                    context.tell(step.undo)
                    locks.run_steps(session, [step.undoing()])
            ledger.forget_checks(session, entry.id)
            ledger.forget_ranges(session, entry.id)
            ledger.move(session, entry, State.ROLLED_BACK, what="rolled back")

        try:
            locks.change_schema(session, apply, context=context, what="rollback", relations=change.relations)
        except DatabaseError as error:
            if fault(error) is not Fault.OTHER:
                raise
            raise StateConflict(
                context.name, f"expand cannot be undone: {safe(error)}", "then roll back again; nothing was changed"
            ) from None
        ledger.forget_writes(session, entry.id)  # not under the lock: there may be many rows to forget
