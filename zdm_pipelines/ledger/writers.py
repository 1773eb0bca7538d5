"""Writers: who writes which shape, and which keys were written while contract proved parity; noted by the sync."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.ledger.ranges import has_proofs

NOTED_SECONDS = 60.0  # a writer is noted once in this time
_WRITERS = 1_000  # of a kind; who would be left out stands behind a thousand later ones


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
    return [_who(*row[:4]) for row in conn.named(shape, migration_id, within)]


def _who(name: str, login: str, _: datetime, ago: timedelta) -> str:
    return f"{name or 'unnamed application'} (role {login}), {ago.total_seconds():.0f} s ago"


def late_writers(conn: Session, migration_id: int, *, window: float) -> list[str]:
    """Who may have written the old shape within a window, latest first, each with how; without a window, nobody.

    Who is noted may go on for a while before they are noted again, so that a line speaks of that time, too.
    """
    if not window:
        return []
    rows = conn.named(OLD_SHAPE, migration_id, window + NOTED_SECONDS)
    return [
        f"{_who(*row[:4])} " + ("wrote the old shape" if row[4] else "named the old shape, changing nothing of it")
        for row in rows
    ]


def tidy_writes(conn: Session, migration_id: int) -> None:
    """Delete lines of writers that decide nothing any more; the application inserts lines, and never deletes any."""
    conn.named("ledger.tidy_writers", migration_id, _WRITERS)


def failures(conn: Session, migration_id: int) -> list[Failure]:
    """The latest failures of the sync, one for each kind and application."""
    return [Failure(*row) for row in conn.named("ledger.failing_writers", migration_id)]


def forget_writes(conn: Session, migration_id: int) -> None:
    """Forget who wrote and which keys, when a migration starts anew or ends."""
    conn.named("ledger.forget_writers", migration_id)
    if conn.value("ledger.has_home"):
        conn.named("ledger.forget_statements", migration_id)
    forget_touched(conn, migration_id)
    if has_proofs(conn):
        conn.named("ledger.forget_written", migration_id)


def forget_touched(conn: Session, migration_id: int) -> None:
    """Forget the keys that were written while contract proved parity."""
    conn.named("ledger.forget_touched", migration_id)


def are_touched(conn: Session, migration_id: int) -> bool:
    """Whether keys are recorded that were written while contract proved parity."""
    return bool(conn.value("ledger.are_touched", migration_id))


def vacuum_touched(conn: Session) -> None:
    """Clean up behind many keys that were taken; only outside a transaction."""
    conn.named("ledger.vacuum_touched")
