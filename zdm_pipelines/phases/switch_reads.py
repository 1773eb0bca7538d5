"""Switch reads: raise the share of keys that the application reads from the new shape."""

from __future__ import annotations

import time

from zdm_pipelines.changes import bind
from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.engine import gate, ledger, sessions
from zdm_pipelines.model.errors import SpecError, StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Catalog, Report, Step

ALLOWED = frozenset({State.VALIDATED, State.SWITCHING, State.SWITCHED})


def plan(migration: Migration, catalog: Catalog) -> list[Step]:
    """One step per stage of the ramp."""
    return [
        Step(
            name=f"read {percent} % from the new shape",
            sql=_sql(migration, percent),
            reason="the application asks this flag; lowering it brings reads back at once",
            lock="none",
            undo=_sql(migration, 0),
        )
        for percent in migration.reads.ramp
    ]


def _sql(migration: Migration, percent: int) -> str:
    return f"UPDATE zdm.flag SET percent = {percent} WHERE name = '{migration.flag.replace(chr(39), chr(39) * 2)}'"


def run(migration: Migration, url: str, *, percent: int | None = None, tell: sessions.Tell = sessions.silent) -> Report:
    """Move the flag.

    Args:
        percent: 0 to 100; default: the next stage of the declared ramp.

    Raises:
        StateConflict: the migration is not validated, or its sync is broken.
        SpecError: percent is out of bounds.
    """
    if percent is not None and not 0 <= percent <= 100:
        raise SpecError(f"{migration.name} switch_reads", f"percent is {percent}", "give 0 to 100")
    return sessions.resilient(lambda: _run(migration, url, percent, tell), thing=migration.name, tell=tell)


def _run(migration: Migration, url: str, percent: int | None, tell: sessions.Tell) -> Report:
    begun = time.monotonic()
    # Bringing all reads back waits for nobody: the compare-and-set stops a contract that races with it.
    back = percent == 0
    session = (
        connected(url, purpose=f"{migration.name} reads back")
        if back
        else sessions.session(url, migration, purpose="switch reads")
    )
    with session as conn:
        entry = ledger.require(conn, migration, ALLOWED, to_do="switch reads")
        flag = ledger.flag(conn, entry.id)
        if flag is None:
            raise StateConflict(f"flag {migration.flag}", "is gone from the ledger", "roll back and begin anew")
        before = flag.percent
        target = percent if percent is not None else next((p for p in migration.reads.ramp if p > before), 100)
        triggers = bind(migration, entry.catalog, migration_id=entry.id).sync_triggers()
        if target > before and (broken := gate.sync_reasons(conn, entry.catalog.oid, triggers)):
            raise StateConflict(migration.name, broken[0], "mend it, then run validate before reads are switched")
        state = State.SWITCHED if target == 100 else State.VALIDATED if target == 0 else State.SWITCHING
        with ledger.transaction(conn):
            ledger.set_flag(conn, entry.id, target)
            what, detail = f"reads at {target} %", {"from": before, "to": target}
            if state != entry.state:
                entry = ledger.move(conn, entry, state, what=what, detail=detail)
            else:
                ledger.append(conn, entry.id, what, detail=detail)
        tell(_sql(migration, target))
    following = next((p for p in migration.reads.ramp if p > target), None)
    return Report(
        migration=migration.name,
        phase=Phase.SWITCH_READS,
        state=entry.state,
        summary=f"{target} % of keys read the new shape (before: {before} %)"
        + (f"; the next run goes to {following} %" if following else ""),
        sql=(_sql(migration, target),),
        seconds=time.monotonic() - begun,
        facts={"flag": migration.flag, "percent": target, "percent_before": before},
    )


def undo(migration: Migration, url: str, *, tell: sessions.Tell = sessions.silent) -> None:
    """All reads back to the old shape."""
    run(migration, url, percent=0, tell=tell)
