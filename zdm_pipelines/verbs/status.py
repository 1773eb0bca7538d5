"""Status: where a migration stands, from the ledger alone."""

from __future__ import annotations

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.engine.context import Context
from zdm_pipelines.ledger import holds
from zdm_pipelines.ledger import ranges as known_ranges
from zdm_pipelines.model.migration import Database
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import RangeProgress, Status
from zdm_pipelines.phases import beginning


def read(context: Context) -> Status:
    """Read where a migration stands.

    Raises:
        DatabaseUnreachable: no connection could be had.
    """
    migration = context.migration
    with context.looking("status") as session:
        entry = ledger.find(session, migration.name)
        if entry is None:
            return Status(
                migration=migration.name, state=State.PLANNED, lifecycle=migration.lifecycle,
                ranges=0, ranges_done=0, rows_moved=0, flag=None,
                switched_at=None, tombstoned_at=None, stragglers=(), holds=(), events=(),
            )  # fmt: skip
        conflict = entry.conflict(migration)
        known, window = known_ranges.progress(session, entry.id), migration.contract.straggler_window
        return Status(
            migration=migration.name,
            state=entry.state,
            lifecycle=entry.lifecycle if entry.begun else migration.lifecycle,
            conflict="" if entry.finished or conflict is None else str(conflict),
            ranges=len(known),
            ranges_done=sum(r.done for r in known),
            rows_moved=sum(r.rows for r in known),
            flag=ledger.flag(session, entry.id) if entry.begun else None,
            switched_at=entry.switched_at,
            tombstoned_at=entry.tombstoned_at,
            called="" if entry.catalog.table == migration.table_name else str(entry.catalog.table),
            stragglers=tuple(ledger.late_writers(session, entry.id, window=window)),
            holds=tuple(holds.standing(session, migration.name)) if holds.exist(session) else (),
            events=tuple(ledger.latest_events(session, entry.id)),
        )


def as_begun(context: Context) -> Context:
    """The work with the declaration that was stored, if the migration began: what brakes ask, whatever a file says.

    Raises:
        DatabaseUnreachable: no connection could be had.
    """
    with context.looking("status") as session:
        return beginning.as_begun(context, session)


def of_ledger(database: Database, name: str) -> Context | None:
    """A migration that a database's ledger knows, without its declaration; None: the ledger does not know it.

    Raises:
        SpecError: the variable with the database's URL is not set.
        StateConflict: a newer version stored it.
        DatabaseUnreachable: no connection could be had.
    """
    server = server_at(database.url())
    with server.connect(purpose=f"{name} status") as session:
        entry = ledger.find(session, name)
    return Context(migration=entry.stored(database.name), server=server, database=database) if entry else None


def read_ranges(context: Context) -> list[RangeProgress]:
    """Every range in key order."""
    with context.looking("status") as session:
        entry = ledger.find(session, context.name)
        return known_ranges.progress(session, entry.id) if entry else []
