"""Writers: who writes which shape, and which keys were written while contract proved parity; noted by the sync."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.ledger.ranges import has_proofs


class Failure(NamedTuple):
    """Rows of a writer for which the sync could not compute the other shape."""

    code: str  # SQLSTATE
    application: str
    at: datetime  # when the latest such row was written


# By shape, the block that finds who named the shape in a write: alone or beside the other one, since such a write fails
# once the shape is gone. Each has an index of its own.
OLD_SHAPE = "ledger.old_writers"
NEW_SHAPE = "ledger.new_writers"


def recent_writers(conn: Session, migration_id: int, shape: str, *, within: float) -> list[str]:
    """Who wrote a shape (OLD_SHAPE or NEW_SHAPE) in the last `within` seconds, latest first."""
    return [
        f"{name or 'unnamed application'} (role {login}), {ago.total_seconds():.0f} s ago"
        for name, login, _, ago in conn.named(shape, migration_id, within)
    ]


def failures(conn: Session, migration_id: int) -> list[Failure]:
    """The latest failures of the sync, one for each kind and application."""
    return [Failure(*row) for row in conn.named("ledger.failing_writers", migration_id)]


def forget_writes(conn: Session, migration_id: int) -> None:
    """Forget who wrote and which keys, when a migration starts anew or ends."""
    conn.named("ledger.forget_writers", migration_id)
    forget_touched(conn, migration_id)
    if has_proofs(conn):
        conn.named("ledger.forget_written", migration_id)


def forget_touched(conn: Session, migration_id: int) -> None:
    """Forget the keys that were written while contract proved parity."""
    conn.named("ledger.forget_touched", migration_id)


def vacuum_touched(conn: Session) -> None:
    """Clean up behind many keys that were taken; only outside a transaction."""
    conn.named("ledger.vacuum_touched")
