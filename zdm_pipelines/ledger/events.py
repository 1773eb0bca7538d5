"""Events: one line for everything that happened to a migration; lines are only ever added."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.states import State


def append(
    conn: Session,
    migration_id: int,
    what: str,
    *,
    from_state: State | None = None,
    to_state: State | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append an event; events are never changed."""
    conn.named(
        "ledger.append_event",
        migration_id,
        what,
        from_state and str(from_state),
        to_state and str(to_state),
        json.dumps(detail or {}, default=str),
    )


def append_refusal(conn: Session, migration_id: int, what: str, reasons: Sequence[str]) -> None:
    """Append a refusal, unless it is the latest event already: who asks every minute leaves no endless list."""
    conn.named("ledger.append_refusal", migration_id, what, json.dumps({"reasons": list(reasons)}, default=str))


def note(conn: Session, name: str, what: str) -> None:
    """Append an event to a migration that is known by its name, whatever its row says; without a row, nothing."""
    if (migration_id := conn.value("ledger.id", name)) is not None:
        append(conn, int(migration_id), what)


def latest_events(conn: Session, migration_id: int, *, limit: int = 10) -> list[str]:
    """The latest events as lines, newest first."""
    return [
        f"{at:%Y-%m-%d %H:%M:%S} {what}" + (f" ({a} → {b})" if b else "") + f" by {actor}"
        for at, actor, what, a, b in conn.named("ledger.latest_events", migration_id, limit)
    ]


def began(conn: Session, migration_id: int) -> int:
    """With which event the present attempt began; a rollback of contract, or to expanded or further, begins another."""
    return int(conn.value("ledger.beginning", migration_id))
