"""Rollback: undo phases in reverse order, back to an earlier state, up to the tombstone."""

from __future__ import annotations

from collections.abc import Callable

from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.engine import ledger, sessions
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import backfill, contract, expand, switch_reads, validate

# Where one may go back to, and what is undone on the way there from the end.
TARGETS = (State.SWITCHED, State.VALIDATED, State.BACKFILLED, State.EXPANDED, State.ROLLED_BACK)
_UNDONE_FROM = {
    State.SWITCHED: frozenset({State.TOMBSTONED}),
    State.VALIDATED: frozenset({State.SWITCHED, State.SWITCHING}),
    # Also from `backfilled` itself: a validate that was killed leaves indexes behind. And from `backfilling`: rows that
    # were moved again leave those of an earlier validate.
    State.BACKFILLED: frozenset({State.VALIDATED, State.BACKFILLED, State.BACKFILLING}),
    State.EXPANDED: frozenset({State.BACKFILLED, State.BACKFILLING}),
    State.ROLLED_BACK: frozenset({State.EXPANDED}),
}
_PAST_BACKFILLED = frozenset({State.TOMBSTONED, State.SWITCHED, State.SWITCHING, State.VALIDATED})
# From where a target lies behind.
_PAST = {
    State.SWITCHED: frozenset({State.TOMBSTONED}),
    State.VALIDATED: frozenset({State.TOMBSTONED, State.SWITCHED, State.SWITCHING}),
    State.BACKFILLED: _PAST_BACKFILLED,
    State.EXPANDED: _PAST_BACKFILLED | {State.BACKFILLED, State.BACKFILLING},
    State.ROLLED_BACK: _PAST_BACKFILLED | {State.BACKFILLED, State.BACKFILLING, State.EXPANDED},
}


def run(
    migration: Migration, url: str, *, to: State, force: bool = False, tell: sessions.Tell = sessions.silent
) -> State:
    """Undo phase by phase until the migration is in state `to`; run again, it goes on.

    Args:
        to: one of TARGETS; `rolled_back` removes everything from the application's schema.
        force: also when new code still writes the new shape.

    Raises:
        StateConflict: it is contracted, never began, or is not past `to`.
    """
    if to not in TARGETS:
        raise StateConflict(migration.name, f"cannot be rolled back to {to}", f"choose one of {', '.join(TARGETS)}")
    undos: dict[State, Callable[[], None]] = {
        State.SWITCHED: lambda: contract.undo(migration, url, tell=tell),
        State.VALIDATED: lambda: switch_reads.undo(migration, url, tell=tell),
        State.BACKFILLED: lambda: validate.undo(migration, url, tell=tell),
        State.EXPANDED: lambda: backfill.undo(migration, url, tell=tell),
        State.ROLLED_BACK: lambda: expand.undo(migration, url, force=force, tell=tell),
    }
    now = sessions.resilient(lambda: _state(migration, url), thing=migration.name, tell=tell)
    if now in (State.CONTRACTED, State.PLANNED):
        fact = "is contracted: the old column is gone" if now == State.CONTRACTED else "never began in this database"
        way = "declare a migration the other way round" if now == State.CONTRACTED else "there is nothing to roll back"
        raise StateConflict(migration.name, fact, way)
    if now != to and now not in _PAST[to]:
        raise StateConflict(
            migration.name, f"is {now}, before {to}", "roll back to an earlier state, or run its phases"
        )
    for target in TARGETS[: TARGETS.index(to) + 1]:
        now = sessions.resilient(lambda: _state(migration, url), thing=migration.name, tell=tell, reached=True)
        if now in _UNDONE_FROM[target]:
            sessions.resilient(undos[target], thing=migration.name, tell=tell, reached=True)
    return sessions.resilient(lambda: _state(migration, url), thing=migration.name, tell=tell, reached=True)


def _state(migration: Migration, url: str) -> State:
    with connected(url, purpose=f"{migration.name} rollback") as conn:
        return ledger.state(conn, migration.name)


__all__ = ["TARGETS", "run"]
