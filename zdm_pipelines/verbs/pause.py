"""Pause: stop a backfill at its next batch, let it go on from there, and tune it while it runs."""

from __future__ import annotations

from typing import Any

from zdm_pipelines import ledger
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine import tuning
from zdm_pipelines.engine.context import Context
from zdm_pipelines.ledger import holds
from zdm_pipelines.model.errors import SpecError, StateConflict
from zdm_pipelines.model.holds import EVERY, LEDGER, OPERATOR, WINDOW, is_signal
from zdm_pipelines.model.states import State
from zdm_pipelines.model.tuning import Settings, declared_settings
from zdm_pipelines.model.values import Hold

_PATIENCE = 10.0  # seconds a statement may take: somebody waits for it, perhaps in an incident


def pause(context: Context, *, reason: str, owner: str = OPERATOR, every: bool = False) -> list[Hold]:
    """Place a hold; a backfill under way stops at its next batch. Gives all holds that stand then.

    Args:
        owner: who may lift it: any name but a signal's.
        every: hold every migration of the database.

    Raises:
        StateConflict: the database has no ledger yet, so nothing runs that could be held.
        SpecError: the owner is a signal.
    """
    _own(owner)
    with context.looking("pause", deadline=_PATIENCE) as session:
        _require_ledger(session, context)
        if not holds.exist(session):  # else the ledger need not be upgraded for this, which waits for the application
            ledger.ensure(context.server)
        if holds.place(session, _whom(context, every=every), owner, reason):
            ledger.note(session, context.name, f"paused by {owner}: {reason}")
        return holds.standing(session, context.name)


def resume(context: Context, *, owner: str = OPERATOR, every: bool = False) -> bool:
    """Lift a hold and no other; true when it stood. What still stands, `watch.against` says.

    Raises:
        SpecError: the owner is a signal, which lifts its hold itself.
    """
    _own(owner)
    with context.looking("resume", deadline=_PATIENCE) as session:
        if not holds.exist(session):
            return False
        stood = holds.lift(session, _whom(context, every=every), owner)
        if stood:
            ledger.note(session, context.name, f"resumed by {owner}")
        return stood


def tune(context: Context, changes: tuning.Changes) -> Settings:
    """Change values of a running backfill, on top of what is declared; gives what holds then.

    Args:
        changes: sections as in YAML: backfill, throttle, allowed.

    Raises:
        StateConflict: the database has no ledger yet.
        SpecError: a value cannot be meant; nothing is changed.
    """
    with context.looking("tune", deadline=_PATIENCE) as session:
        _require_ledger(session, context)
        if not holds.exist(session):
            ledger.ensure(context.server)
        settings = tuning.tune(session, context.migration, changes)
        ledger.note(session, context.name, f"tuned: {_shown(changes)}")
        return settings


def reset(context: Context) -> Settings:
    """Go back to what is declared."""
    with context.looking("tune", deadline=_PATIENCE) as session:
        if not holds.exist(session):
            return declared_settings(context.migration)
        if tuning.tuned(session, context.name):
            tuning.reset(session, context.name)
            ledger.note(session, context.name, "tuning reset")
        return tuning.effective(session, context.migration)


def settings(context: Context) -> tuple[Settings, dict[str, Any]]:
    """What holds now, and what of it was tuned."""
    with context.looking("tune", deadline=_PATIENCE) as session:
        if not holds.exist(session):
            return declared_settings(context.migration), {}
        return tuning.effective(session, context.migration), tuning.tuned(session, context.name)


def _whom(context: Context, *, every: bool) -> str:
    return EVERY if every else context.name


def _own(owner: str) -> None:
    if not owner.strip():
        raise SpecError("hold", "has no owner", "name yourself, or leave the owner out")
    if is_signal(owner) or owner in (WINDOW, LEDGER, EVERY):
        raise SpecError(f"hold of {owner}", "is placed and lifted by what it speaks of", "name yourself")


def _require_ledger(session: Session, context: Context) -> None:
    if not ledger.exists(session):
        raise StateConflict(
            context.name,
            "this database has no ledger yet: nothing runs that could be held",
            context.lifecycle.next_step(State.PLANNED).sentence,
        )


def _shown(changes: tuning.Changes, prefix: str = "") -> str:
    parts = [
        _shown(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key} {value}"
        for key, value in changes.items()
    ]
    return ", ".join(parts)
