"""Holds: "do not write now", each with an owner and a reason. Work goes on when none stands.

Whoever places a hold lifts that hold and no other: a signal that recovers lifts the signal's hold, never an
operator's. Those of signals expire by themselves, so that a watcher that died holds nobody for ever.
"""

from __future__ import annotations

from zdm_pipelines.dialects.postgres.connection import Connection, query, scalar
from zdm_pipelines.model.values import Hold

EVERY = "*"  # in place of a migration's name: all of the database
OPERATOR = "operator"
_SIGNAL = "signal:"
# While a signal is bad its hold is renewed: every five seconds by runs, every ten by sensors.
SIGNAL_SECONDS = 45.0


def of_signal(name: str) -> str:
    """The owner of a signal's hold."""
    return _SIGNAL + name


def is_signal(owner: str) -> bool:
    """Whether a hold is a signal's."""
    return owner.startswith(_SIGNAL)


def exist(conn: Connection) -> bool:
    """Whether this ledger knows of holds; one made by an earlier version does not until it is upgraded."""
    return bool(scalar(conn, "SELECT to_regclass('zdm.hold') IS NOT NULL"))


def standing(conn: Connection, migration: str) -> list[Hold]:
    """The holds that stand against a migration, oldest first."""
    rows = query(
        conn,
        "SELECT migration, owner, reason, since FROM zdm.hold WHERE migration IN ($1, $2) "
        "AND (expires_at IS NULL OR expires_at > clock_timestamp()) ORDER BY since, owner",
        [migration, EVERY],
    )
    return [Hold(migration=r[0], owner=r[1], reason=r[2], since=r[3]) for r in rows]


def place(conn: Connection, migration: str, owner: str, reason: str, *, seconds: float | None = None) -> bool:
    """Place a hold or renew it; true when it did not stand before.

    Args:
        migration: its name, or EVERY.
        seconds: how long it stands unless renewed; default: until lifted.
    """
    # One that expired begins anew.
    return bool(
        scalar(
            conn,
            "WITH zdm_now AS MATERIALIZED (SELECT clock_timestamp() AS at) "
            "INSERT INTO zdm.hold AS h (migration, owner, reason, since, expires_at) "
            "SELECT $1, $2, $3, at, at + make_interval(secs => $4) FROM zdm_now "
            "ON CONFLICT (migration, owner) DO UPDATE SET reason = excluded.reason, expires_at = excluded.expires_at, "
            "since = CASE WHEN h.expires_at <= clock_timestamp() THEN excluded.since ELSE h.since END "
            "RETURNING h.since = (SELECT at FROM zdm_now)",  # else another's, who may have been quicker
            [migration, owner, reason, seconds],
        )
    )


def lift(conn: Connection, migration: str, owner: str) -> bool:
    """Lift a hold; true when it stood."""
    return bool(query(conn, "DELETE FROM zdm.hold WHERE migration = $1 AND owner = $2 RETURNING 1", [migration, owner]))
