"""Status: where a migration stands, from the ledger alone."""

from __future__ import annotations

from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.engine import holds, ledger, ranges
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import RangeProgress, Status


def read(migration: Migration, url: str) -> Status:
    """One reading.

    Raises:
        DatabaseUnreachable: no connection could be had.
    """
    with connected(url, purpose=f"{migration.name} status") as conn:
        entry = ledger.find(conn, migration.name)
        if entry is None:
            return Status(
                migration=migration.name, state=State.PLANNED, ranges=0, ranges_done=0, rows_moved=0, flag=None,
                switched_at=None, tombstoned_at=None, stragglers=(), holds=(), events=(),
            )  # fmt: skip
        known = ranges.progress(conn, entry.id)
        return Status(
            migration=migration.name,
            state=entry.state,
            ranges=len(known),
            ranges_done=sum(r.done for r in known),
            rows_moved=sum(r.rows for r in known),
            flag=ledger.flag(conn, entry.id),
            switched_at=entry.switched_at,
            tombstoned_at=entry.tombstoned_at,
            stragglers=tuple(
                ledger.writers(conn, entry.id, ledger.OLD_SHAPE, within=migration.contract.straggler_window)
            ),
            holds=tuple(holds.standing(conn, migration.name)) if holds.exist(conn) else (),
            events=tuple(ledger.events(conn, entry.id)),
        )


def of_ranges(migration: Migration, url: str) -> list[RangeProgress]:
    """Every range in key order."""
    with connected(url, purpose=f"{migration.name} status") as conn:
        entry = ledger.find(conn, migration.name)
        return ranges.progress(conn, entry.id) if entry else []
