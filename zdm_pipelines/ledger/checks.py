"""Checks: the latest verdicts of validate."""

from __future__ import annotations

from collections.abc import Sequence

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.values import Check


def record_checks(conn: Session, migration_id: int, checks: Sequence[Check]) -> None:
    """Keep the latest verdicts."""
    for check in checks:
        conn.named("ledger.record_check", migration_id, check.name, check.passed, check.summary)


def verdicts(conn: Session, migration_id: int) -> dict[str, tuple[bool, str]]:
    """The latest verdict of each check: passed, summary."""
    return {name: (passed, summary) for name, passed, summary in conn.named("ledger.checks", migration_id)}


def forget_checks(conn: Session, migration_id: int) -> None:
    """Drop verdicts that no longer speak of the data."""
    conn.named("ledger.forget_checks", migration_id)
