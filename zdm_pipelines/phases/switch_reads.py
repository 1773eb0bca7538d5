"""Switch reads: raise the share of keys that the application reads from the new shape."""

from __future__ import annotations

import time

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change
from zdm_pipelines.engine.context import Context, outlasting
from zdm_pipelines.engine.schema.sync import sync_reasons
from zdm_pipelines.model.errors import SpecError, StateConflict
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Report, Step
from zdm_pipelines.phases.beginning import as_begun, bound, unaltered


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
    """Move the flag to a percentage.

    Args:
        percent: 0 to 100; default: the next stage of the declared ramp.

    Raises:
        StateConflict: the migration is not validated, or its sync is broken.
        SpecError: percent is out of bounds.
    """
    if percent is not None and not 0 <= percent <= 100:
        raise SpecError(f"{context.name} switch_reads", f"percent is {percent}", "give 0 to 100")
    return _run(context, percent)


@outlasting
def _run(context: Context, percent: int | None) -> Report:
    begun, ramp = time.monotonic(), context.migration.reads.ramp
    # Bringing all reads back waits for nobody: the compare-and-set stops a contract that races with it.
    opened = context.looking("reads back") if percent == 0 else context.session("switch reads")
    with opened as session:
        if percent == 0:
            context = as_begun(context, session)
        allowed = context.lifecycle.allowed(Phase.SWITCH_READS)
        entry = ledger.require(session, context.migration, allowed, to_do="switch reads", as_declared=percent != 0)
        flag = ledger.flag(session, entry.id)
        if flag is None:
            raise StateConflict(f"flag {context.migration.flag}", "is gone from the ledger", "roll back and begin anew")
        before = flag.percent
        target = percent if percent is not None else next((p for p in ramp if p > before), 100)
        if target > before and (
            broken := sync_reasons(session, unaltered(session, context, bound(context, entry)).sync)
        ):
            raise StateConflict(context.name, broken[0], "mend it, then run validate before reads are switched")
        lowest = context.lifecycle.undo_target(Phase.SWITCH_READS)
        state = State.SWITCHED if target == 100 else lowest if target == 0 else State.SWITCHING
        with session.transaction():
            ledger.set_flag(session, entry.id, target)
            what, detail = f"reads at {target} %", {"from": before, "to": target}
            if state != entry.state:
                entry = ledger.move(session, entry, state, what=what, detail=detail)
            else:
                ledger.append(session, entry.id, what, detail=detail)
        context.tell(_shown(context, target))
    following = next((p for p in ramp if p > target), None)
    return Report(
        migration=context.name,
        phase=Phase.SWITCH_READS,
        state=entry.state,
        summary=f"{target} % of keys read the new shape (before: {before} %)"
        + (f"; the next run goes to {following} %" if following else ""),
        sql=(_shown(context, target),),
        seconds=time.monotonic() - begun,
        facts={"flag": context.migration.flag, "percent": target, "percent_before": before},
    )


def undo(context: Context) -> None:
    """All reads back to the old shape."""
    run(context, percent=0)
