"""Rollback: undo phases in reverse order, back to an earlier state, up to the tombstone."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zdm_pipelines import ledger
from zdm_pipelines.changes import kind_of
from zdm_pipelines.engine.context import Context
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.lifecycle import Lifecycle
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.phases import backfill, contract, expand, switch_reads, validate
from zdm_pipelines.verbs import status


def run(context: Context, *, to: State, force: bool = False) -> State:
    """Undo phase by phase until the migration is in state `to`; run again, it goes on.

    Args:
        to: one of the lifecycle's targets; `rolled_back` removes everything from the application's schema.
        force: also when new code still writes the new shape.

    Raises:
        StateConflict: it is contracted, never began, or is not past `to`.
    """
    context = context.outlast(lambda: status.as_begun(context))
    lifecycle = context.lifecycle
    if to not in lifecycle.targets:
        raise StateConflict(
            context.name, f"cannot be rolled back to {to}", f"choose one of {', '.join(lifecycle.targets)}"
        )
    undos: Mapping[Phase, Callable[[], None]] = {
        Phase.CONTRACT: lambda: contract.undo(context),
        Phase.SWITCH_READS: lambda: switch_reads.undo(context),
        Phase.VALIDATE: lambda: validate.undo(context),
        Phase.BACKFILL: lambda: backfill.undo(context),
        Phase.EXPAND: lambda: expand.undo(context, force=force),
    }
    now = context.outlast(lambda: _state(context), reached=True)
    _require_way_back(context, now, to)
    if _reads_first(lifecycle, now, to):
        context.outlast(undos[Phase.SWITCH_READS], reached=True)
    for phase in reversed(lifecycle.phases):
        now = context.outlast(lambda: _state(context), reached=True)
        if phase in lifecycle.undo_path(now, to):
            context.outlast(undos[phase], reached=True)
    return context.outlast(lambda: _state(context), reached=True)


def _reads_first(lifecycle: Lifecycle, now: State, to: State) -> bool:
    """Whether reads go back before anything else: at once, whoever is at work and whatever the state says of them.

    Behind a tombstone they cannot: the old shape comes back first.
    """
    if not lifecycle.has(Phase.SWITCH_READS) or now in (State.ROLLED_BACK, State.TOMBSTONED, State.CONTRACTED):
        return False
    return to == State.ROLLED_BACK or lifecycle.is_past(lifecycle.undo_target(Phase.SWITCH_READS), to)


def _require_way_back(context: Context, now: State, to: State) -> None:
    lifecycle = context.lifecycle
    if now == State.PLANNED:
        raise StateConflict(context.name, "never began in this database", "there is nothing to roll back")
    if now == State.ROLLED_BACK and to == State.ROLLED_BACK:
        return
    if now != State.ROLLED_BACK and not lifecycle.can_go_back(now):
        old = kind_of(context.migration).words(context.migration).old
        raise StateConflict(context.name, f"is {now}: {old} is gone", "declare a migration the other way round")
    if not lifecycle.is_past(now, to):
        raise StateConflict(context.name, f"is {now}, before {to}", "roll back to an earlier state, or run its phases")


def undone(context: Context, now: State, to: State) -> list[str]:
    """What a rollback takes back, in order; empty when there is nothing, or it cannot be.

    Args:
        context: as the migration was begun, see `status.as_begun`.
    """
    if to not in context.lifecycle.targets:
        return []
    words = kind_of(context.migration).words(context.migration)
    general = {
        Phase.SWITCH_READS: f"all reads go back to the old shape (flag {context.migration.flag} to 0 %)",
        Phase.BACKFILL: "the progress of the backfill is forgotten",
    }
    path = context.lifecycle.undo_path(now, to)
    return [words.undone.get(phase, general.get(phase, f"{phase} is undone")) for phase in path]


def _state(context: Context) -> State:
    with context.looking("rollback") as session:
        return ledger.state(session, context.name)
