"""Flags: which share of keys the application reads from the new shape."""

from __future__ import annotations

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.values import Flag


def flag(conn: Session, migration_id: int) -> Flag | None:
    """The flag of a migration."""
    rows = conn.named("ledger.flag", migration_id)
    return Flag(name=rows[0][0], percent=rows[0][1], retired=rows[0][2], full_since=rows[0][3]) if rows else None


def keep_flag(conn: Session, migration_id: int) -> int | None:
    """Let nobody else move a flag until the transaction ends; its percentage, None without a flag."""
    rows = conn.named("ledger.keep_flag", migration_id)
    return int(rows[0][0]) if rows else None


def all_reads_are_new(conn: Session, migration_id: int) -> bool:
    """Whether the application reads the new shape, and nothing else."""
    found = flag(conn, migration_id)
    return found is not None and found.percent == 100


def create_flag(conn: Session, migration_id: int, name: str) -> None:
    """A flag at 0 %.

    Raises:
        StateConflict: another migration uses that name.
    """
    if conn.value("ledger.create_flag", name, migration_id) is None:
        raise StateConflict(f"flag {name}", "belongs to another migration", "set reads.flag to another name")


def set_flag(conn: Session, migration_id: int, percent: int, *, retired: bool = False) -> None:
    """Move a flag to a percentage."""
    conn.named("ledger.set_flag", migration_id, percent, retired)


def flag_settles(conn: Session, migration_id: int, *, seconds: float) -> float:
    """Seconds until every client has had `seconds` to see the flag as it is; 0: they had."""
    return max(0.0, float(conn.value("ledger.flag_settles", migration_id, seconds) or 0))
