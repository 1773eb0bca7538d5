"""Holds: "do not write now", each with an owner and a reason. Work goes on when none stands.

Whoever places a hold lifts that hold and no other: a signal that recovers lifts the signal's hold, never an
operator's. Holds of signals expire by themselves, so that a watcher that died holds nobody for ever.
"""

from __future__ import annotations

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.ledger import schema
from zdm_pipelines.model.holds import EVERY
from zdm_pipelines.model.values import Hold

# While a signal is bad its hold is renewed: every five seconds by runs, every ten by sensors.
SIGNAL_SECONDS = 45.0


def exist(conn: Session) -> bool:
    """Whether there is a ledger that knows of holds; one made by an earlier version does not until it is upgraded.

    Raises:
        StateConflict: the ledger was made by a newer version of this software.
    """
    return schema.exists(conn) and bool(conn.value("ledger.has_holds"))


def standing(conn: Session, migration: str) -> list[Hold]:
    """The holds that stand against a migration, oldest first."""
    rows = conn.named("ledger.holds", migration, EVERY)
    return [Hold(migration=r[0], owner=r[1], reason=r[2], since=r[3]) for r in rows]


def place(conn: Session, migration: str, owner: str, reason: str, *, seconds: float | None = None) -> bool:
    """Place a hold or renew it; true when it did not stand before.

    Args:
        migration: its name, or EVERY.
        seconds: how long it stands unless renewed; default: until lifted.
    """
    return bool(conn.value("ledger.place_hold", migration, owner, reason, seconds))


def lift(conn: Session, migration: str, owner: str) -> bool:
    """Lift a hold; true when it stood."""
    return bool(conn.named("ledger.lift_hold", migration, owner))
