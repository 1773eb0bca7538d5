"""Expand: add the new shape and keep both in sync, in one short transaction."""

from __future__ import annotations

import time
from collections.abc import Callable

from zdm_pipelines.changes import bind
from zdm_pipelines.dialects.postgres.connection import Connection, query
from zdm_pipelines.engine import ledger, locks, ranges, sessions
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import ACTIVE, Phase, State
from zdm_pipelines.model.values import Catalog, Report, Step

Look = Callable[[Connection, Migration], Catalog]


def plan(migration: Migration, catalog: Catalog) -> list[Step]:
    """The steps, without running them."""
    return bind(migration, catalog).expand()


def run(migration: Migration, url: str, *, look: Look, tell: sessions.Tell = sessions.silent) -> Report:
    """Expand, or find it done; then cut the ranges.

    Args:
        look: preflight; asked before anything is changed.

    Raises:
        PreflightError, LockNotAcquired, StateConflict, MigrationBusy, DatabaseUnreachable, OutcomeUnknown
    """
    return sessions.resilient(lambda: _run(migration, url, look, tell), thing=migration.name, tell=tell)


def _run(migration: Migration, url: str, look: Look, tell: sessions.Tell) -> Report:
    begun = time.monotonic()
    done: list[str] = []

    def note(text: str) -> None:
        tell(text)
        done.append(text)

    tries = 0
    with sessions.session(url, migration, purpose="expand") as conn:
        entry = ledger.find(conn, migration.name)
        begins = entry is None or entry.state in (State.PLANNED, State.ROLLED_BACK)
        catalog = look(conn, migration) if begins else None  # before the ledger is made: bad input changes nothing
        ledger.ensure(url)
        if catalog is not None:
            entry = ledger.register(conn, migration, catalog)
            tries = _expand(conn, migration, entry, note, tell)
        entry = ledger.require(conn, migration, ACTIVE - {State.TOMBSTONED}, to_do="be expanded again")
        with ledger.transaction(conn):
            cut = ranges.plan(conn, entry.id, entry.catalog, range_rows=migration.backfill.range_rows)
        rows = ranges.estimate_rows(conn, entry.catalog)
    return Report(
        migration=migration.name,
        phase=Phase.EXPAND,
        state=entry.state,
        summary=f"both shapes in sync; about {rows:,} rows in {len(cut)} ranges to move"
        if done
        else f"done before; {len(cut)} ranges",
        sql=tuple(done),
        seconds=time.monotonic() - begun,
        retries=tries,
        facts={
            "ranges": len(cut),
            "partitions": [r.range.partition for r in cut],
            "rows_estimated": rows,
            "warnings": list(entry.catalog.warnings),
        },
    )


def _expand(
    conn: Connection, migration: Migration, entry: ledger.Entry, note: sessions.Tell, tell: sessions.Tell
) -> int:
    steps = bind(migration, entry.catalog, migration_id=entry.id).expand()

    def apply() -> None:
        locks.run_steps(conn, steps)
        # What an earlier, rolled back attempt left.
        query(conn, "DELETE FROM zdm.range WHERE migration_id = $1", [entry.id])
        ledger.forget_checks(conn, entry.id)
        ledger.forget_writes(conn, entry.id)
        ledger.create_flag(conn, entry.id, migration.flag)
        ledger.move(conn, entry, State.EXPANDED, what="expanded")

    _, tries = locks.change_schema(
        conn,
        apply,
        thing=f"{migration.name} expand",
        table=entry.catalog.table,
        oid=entry.catalog.oid,
        locks=migration.locks,
        tell=tell,
    )
    for step in steps:
        note(step.sql)
    return tries


def undo(migration: Migration, url: str, *, force: bool = False, tell: sessions.Tell = sessions.silent) -> None:
    """Remove the new shape: the application's schema is as it was before.

    Args:
        force: remove it though new code wrote to it in the last two minutes.
    """
    sessions.resilient(lambda: _undo(migration, url, force, tell), thing=migration.name, tell=tell)


def _undo(migration: Migration, url: str, force: bool, tell: sessions.Tell) -> None:
    with sessions.session(url, migration, purpose="rollback") as conn:
        entry = ledger.find(conn, migration.name)
        if entry is None or entry.state in (State.PLANNED, State.ROLLED_BACK):
            return
        # A file edited since may name a column of the application's own as the new one.
        entry = ledger.require(conn, migration, ACTIVE - {State.TOMBSTONED}, to_do="be rolled back")
        if not force and (users := ledger.writers(conn, entry.id, ledger.NEW_SHAPE, within=_NEW_CODE_SECONDS)):
            raise StateConflict(
                migration.name,
                f"new code still writes column {migration.change.new.name}: {'; '.join(users)}",
                "deploy code that does not know it and wait two minutes, or force it, which breaks that code",
            )
        steps = bind(migration, entry.catalog, migration_id=entry.id).expand()

        # Applications keep a flag's last value: all must have read that it is 0 before the column goes.
        while not ledger.flag_settled(conn, entry.id, seconds=FLAG_SECONDS):
            time.sleep(0.1)

        def apply() -> None:
            for step in reversed(steps):
                if step.undo:
                    tell(step.undo)
                    conn.execute(step.undo.encode())
            ledger.drop_flag(conn, entry.id)
            ledger.forget_checks(conn, entry.id)
            query(conn, "DELETE FROM zdm.range WHERE migration_id = $1", [entry.id])
            ledger.move(conn, entry, State.ROLLED_BACK, what="rolled back")

        locks.change_schema(
            conn,
            apply,
            thing=f"{migration.name} rollback",
            table=entry.catalog.table,
            oid=entry.catalog.oid,
            locks=migration.locks,
            tell=tell,
        )
        ledger.forget_writes(conn, entry.id)  # not under the lock: it may be many rows


# The sync trigger notes each session once a minute: two minutes miss nobody who writes more often.
_NEW_CODE_SECONDS = 120.0
# Longer than clients keep a flag (one second) and take to read it (another) together.
FLAG_SECONDS = 4.0
