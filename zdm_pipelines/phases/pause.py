"""Pause: stop a backfill at its next batch, let it go on from there, and tune it while it runs."""

from __future__ import annotations

from typing import Any

from zdm_pipelines.dialects.postgres.connection import Connection, connected
from zdm_pipelines.engine import holds, ledger, tuning
from zdm_pipelines.engine.throttle import LEDGER, WINDOW
from zdm_pipelines.model.errors import SpecError, StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Hold

_PATIENCE = 10.0  # seconds a statement may take: somebody waits for it, perhaps in an incident


def pause(
    migration: Migration, url: str, *, reason: str, owner: str = holds.OPERATOR, every: bool = False
) -> list[Hold]:
    """Place a hold; a backfill under way stops at its next batch. Gives all holds that stand then.

    Args:
        owner: who may lift it: any name but a signal's.
        every: hold every migration of the database.

    Raises:
        StateConflict: the database has no ledger yet, so nothing runs that could be held.
        SpecError: the owner is a signal.
    """
    _own(owner)
    with connected(url, purpose=f"{migration.name} pause", deadline=_PATIENCE) as conn:
        _require_ledger(conn, migration)
        ledger.ensure(url)
        if holds.place(conn, _whom(migration, every=every), owner, reason):
            _event(conn, migration, f"paused by {owner}: {reason}")
        return holds.standing(conn, migration.name)


def resume(migration: Migration, url: str, *, owner: str = holds.OPERATOR, every: bool = False) -> bool:
    """Lift a hold and no other; true when it stood. What still stands, `watch.against` says.

    Raises:
        SpecError: the owner is a signal, which lifts its hold itself.
    """
    _own(owner)
    with connected(url, purpose=f"{migration.name} resume", deadline=_PATIENCE) as conn:
        if not holds.exist(conn):
            return False
        stood = holds.lift(conn, _whom(migration, every=every), owner)
        if stood:
            _event(conn, migration, f"resumed by {owner}")
        return stood


def tune(migration: Migration, url: str, changes: tuning.Changes) -> tuning.Settings:
    """Change values of a running backfill, on top of what is declared; gives what holds then.

    Args:
        changes: sections as in YAML: backfill, throttle, allowed.

    Raises:
        StateConflict: the database has no ledger yet.
        SpecError: a value cannot be meant; nothing is changed.
    """
    with connected(url, purpose=f"{migration.name} tune", deadline=_PATIENCE) as conn:
        _require_ledger(conn, migration)
        ledger.ensure(url)
        settings = tuning.tune(conn, migration, changes)
        _event(conn, migration, f"tuned: {_shown(changes)}")
        return settings


def reset(migration: Migration, url: str) -> tuning.Settings:
    """Go back to what is declared."""
    with connected(url, purpose=f"{migration.name} tune", deadline=_PATIENCE) as conn:
        if not holds.exist(conn):
            return tuning.declared(migration)
        if tuning.tuned(conn, migration.name):
            tuning.reset(conn, migration.name)
            _event(conn, migration, "tuning reset")
        return tuning.effective(conn, migration)


def settings(migration: Migration, url: str) -> tuple[tuning.Settings, dict[str, Any]]:
    """What holds now, and what of it was tuned."""
    with connected(url, purpose=f"{migration.name} tune", deadline=_PATIENCE) as conn:
        if not holds.exist(conn):
            return tuning.declared(migration), {}
        return tuning.effective(conn, migration), tuning.tuned(conn, migration.name)


def _whom(migration: Migration, *, every: bool) -> str:
    return holds.EVERY if every else migration.name


def _own(owner: str) -> None:
    if not owner.strip():
        raise SpecError("hold", "has no owner", "name yourself, or leave the owner out")
    if holds.is_signal(owner) or owner in (WINDOW, LEDGER, holds.EVERY):
        raise SpecError(f"hold of {owner}", "is placed and lifted by what it speaks of", "name yourself")


def _require_ledger(conn: Connection, migration: Migration) -> None:
    if not ledger.exists(conn):
        raise StateConflict(
            migration.name, "this database has no ledger yet: nothing runs that could be held", "run expand first"
        )


def _event(conn: Connection, migration: Migration, what: str) -> None:
    entry = ledger.find(conn, migration.name)
    if entry is not None:
        ledger.append(conn, entry.id, what)


def _shown(changes: tuning.Changes, prefix: str = "") -> str:
    parts = [
        _shown(value, f"{prefix}{key}.") if isinstance(value, dict) else f"{prefix}{key} {value}"
        for key, value in changes.items()
    ]
    return ", ".join(parts)
