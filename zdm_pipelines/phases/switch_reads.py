"""Switch reads: raise the share of keys that the application reads from the new shape."""

from __future__ import annotations

import contextlib
import time

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change, kind_of
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine.context import Context
from zdm_pipelines.engine.schema.sync import sync_reasons
from zdm_pipelines.model.errors import SpecError, StateConflict
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Report, Step
from zdm_pipelines.phases import contract
from zdm_pipelines.phases.beginning import as_begun, bound, unaltered

_PATIENCE = 10.0  # seconds a statement of the brake may take: somebody waits for it, perhaps in an incident


def plan(context: Context, change: Change) -> list[Step]:
    """One step per stage of the ramp."""
    return [
        Step(
            name=f"read {percent} % from the new shape",
            sql=_shown(context, percent),
            reason="the application asks this flag; lowering it brings reads back at once",
            lock="none",
            undo=_shown(context, 0),
        )
        for percent in context.migration.reads.ramp
    ]


def _shown(context: Context, percent: int) -> str:
    """The statement that moves the flag, and the values that are bound."""
    flag = context.migration.flag.replace("\n", " ")
    sql = context.server.text("ledger.set_flag")
    return f"{sql}\n-- $1: the migration's id (flag {flag}), $2: {percent}, $3: false"


def run(context: Context, *, percent: int | None = None) -> Report:
    """Move the flag to a percentage. Only raising it asks for anything; bringing reads back is a brake.

    Args:
        percent: 0 to 100; default: the next stage of the declared ramp.

    Raises:
        StateConflict: reads are to be raised and the migration is not validated, or its sync is broken; or they are to
            be brought back and the old shape is gone.
        SpecError: percent is out of bounds.
    """
    if percent is not None and not 0 <= percent <= 100:
        raise SpecError(f"{context.name} switch_reads", f"percent is {percent}", "give 0 to 100")
    if percent is not None and context.outlast(lambda: _lowers(context, percent)):
        return context.outlast(lambda: _lower(context, percent))
    return context.outlast(lambda: _raise(context, percent))


def _raise(context: Context, percent: int | None) -> Report:
    begun, ramp = time.monotonic(), context.migration.reads.ramp
    if not context.lifecycle.has(Phase.SWITCH_READS):
        raise StateConflict(
            context.name,
            f"is a {context.migration.change.kind}, which has no reads to switch",
            "there is nothing to do",
        )
    with context.session("switch reads") as session:
        allowed = context.lifecycle.allowed(Phase.SWITCH_READS)
        entry = ledger.require(session, context.migration, allowed, to_do="switch reads")
        flag = ledger.flag(session, entry.id)
        if flag is None:
            raise StateConflict(f"flag {context.migration.flag}", "is gone from the ledger", "roll back and begin anew")
        before = flag.percent
        target = percent if percent is not None else next((p for p in ramp if p > before), 100)
        if target > before and (
            broken := sync_reasons(session, unaltered(session, context, bound(context, entry)).sync)
        ):
            raise StateConflict(context.name, broken[0], "mend it, then run validate before reads are switched")
        state = State.SWITCHED if target == 100 else State.SWITCHING
        what, detail = f"reads at {target} %", {"from": before, "to": target}
        if (remember := bound(context, entry).remember) is not None:
            remember(session)  # who goes on is known from here on
        with session.transaction():
            ledger.set_flag(session, entry.id, target)
            if state != entry.state:
                entry = ledger.move(session, entry, state, what=what, detail=detail)
            else:
                ledger.append(session, entry.id, what, detail=detail)
        context.tell(_shown(context, target))
    return _report(context, entry.state, before, target, begun)


def _report(context: Context, state: State, before: int, target: int, begun: float) -> Report:
    following = next((p for p in context.migration.reads.ramp if p > target), None)
    return Report(
        migration=context.name,
        phase=Phase.SWITCH_READS,
        state=state,
        summary=f"{target} % of keys read the new shape (before: {before} %)"
        + (f"; the next run goes to {following} %" if following else ""),
        sql=(_shown(context, target),),
        seconds=time.monotonic() - begun,
        facts={"flag": context.migration.flag, "percent": target, "percent_before": before},
    )


# -- the brake ------------------------------------------------------------------------------------------------


def _lowers(context: Context, percent: int) -> bool:
    """Whether reads are to be brought back."""
    if percent == 0:
        return True
    with context.looking("reads", deadline=_PATIENCE) as session:
        entry = ledger.find(session, context.name)
        flag = ledger.flag(session, entry.id) if entry is not None else None
        return flag is not None and percent < flag.percent


def _lower(context: Context, percent: int) -> Report:
    """Bring reads back: whatever a file declares by now, whoever is at work, and in every state."""
    begun = time.monotonic()
    with context.looking("reads back", deadline=_PATIENCE) as session:
        context = as_begun(context, session)
        entry, before = _lowered(context, session, percent)
        if entry is None or entry.state != State.TOMBSTONED:
            now = _followed(context, session, entry, before, percent) if entry is not None else State.PLANNED
            return _report(context, now, before, percent, begun)
    # Who reads the old shape would miss it now: it comes back first.
    contract.undo(context)
    return _lower(context, percent)


def _lowered(context: Context, session: Session, percent: int) -> tuple[ledger.Entry | None, int]:
    """Move the flag down, unless the old shape is out of sight; the migration, and where the flag stood.

    This waits for nobody but a contract that has the flag for the moment of its rename, and looks behind it.
    """
    with session.transaction():
        if (entry := ledger.find(session, context.name)) is None:
            return None, 0
        before = ledger.keep_flag(session, entry.id)
        entry = ledger.find(session, context.name)
        assert entry is not None  # found a moment ago; migrations are never deleted
        if entry.state == State.CONTRACTED and before:
            old = kind_of(context.migration).words(context.migration).old
            raise StateConflict(context.name, f"is {entry.state}: {old} is gone", "reads stay where they are")
        if before and entry.state != State.TOMBSTONED:
            ledger.set_flag(session, entry.id, percent)
            context.tell(_shown(context, percent))
        return entry, before or 0


def _followed(context: Context, session: Session, entry: ledger.Entry, before: int, percent: int) -> State:
    """Let the state say where reads are, where it speaks of reads; the state after that."""
    what = f"reads at {percent} %"
    to = entry.lifecycle.undo_target(Phase.SWITCH_READS) if percent == 0 else State.SWITCHING
    if entry.state in (State.SWITCHING, State.SWITCHED) and to != entry.state:
        with contextlib.suppress(StateConflict), session.transaction():  # who moved it meanwhile knows the flag
            return ledger.move(session, entry, to, what=what, detail={"from": before, "to": percent}).state
    if before != percent:
        ledger.append(session, entry.id, what, detail={"from": before, "to": percent})
    return ledger.state(session, context.name)


def undo(context: Context) -> None:
    """All reads back to the old shape."""
    run(context, percent=0)
