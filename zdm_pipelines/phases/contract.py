"""Contract: rename the old shape out of sight, and drop it once nobody missed it; the gate decides both times."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import psycopg

from zdm_pipelines.changes import Change, bind
from zdm_pipelines.dialects.postgres.connection import Connection, connected, mapping, query, scalar
from zdm_pipelines.engine import gate, ledger, locks, parity, proofs, ranges, sessions
from zdm_pipelines.model.errors import GateRefused, MappingFailed
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Catalog, Report, Step

# The proof must end before tracking ends by itself.
_TRACK = timedelta(hours=24)
_FEW = 2_000  # recorded keys that are compared under the lock: some milliseconds
_DRAINS = 20


def plan(migration: Migration, catalog: Catalog) -> list[Step]:
    """Both stages; the gate stands before each."""
    change = bind(migration, catalog)
    return [change.track("…"), *change.tombstone(), *change.drop()]


def run(
    migration: Migration,
    url: str,
    *,
    more_reasons: Sequence[str] = (),
    tell: sessions.Tell = sessions.silent,
    compared: Callable[[int], None] = lambda _: None,
) -> Report:
    """From `switched` to `tombstoned`, from there to `contracted`; one stage a run.

    Args:
        more_reasons: what the caller knows against it, besides what the database says.

    Raises:
        GateRefused: with every reason; nothing was changed.
        LockNotAcquired, MigrationBusy, DatabaseUnreachable, OutcomeUnknown
    """
    job = _Run(migration, url, more_reasons, tell, compared)
    return sessions.resilient(job.run, thing=migration.name, tell=tell)


def _bound(conn: Connection, migration: Migration, entry: ledger.Entry, *, tombstoned: bool) -> Change:
    """The change; its sync functions note what the present one notes, so that validate's proofs keep their worth."""
    plain = bind(migration, entry.catalog, migration_id=entry.id, tombstoned=tombstoned)
    marking = proofs.in_place(conn, entry, ranges.progress(conn, entry.id), plain)
    return bind(migration, entry.catalog, migration_id=entry.id, tombstoned=tombstoned, marking=marking)


class _Run:
    def __init__(
        self,
        migration: Migration,
        url: str,
        more_reasons: Sequence[str],
        tell: sessions.Tell,
        compared: Callable[[int], None],
    ) -> None:
        self.migration = migration
        self.url = url
        self.more_reasons = more_reasons
        self.tell = tell
        self.compared = compared
        self.began_in: State | None = None  # kept when the database is lost and the run goes on
        self.done: list[str] = []
        self.retries = 0
        self.rows = 0

    def run(self) -> Report:
        begun = time.monotonic()
        with sessions.session(self.url, self.migration, purpose="contract") as conn:
            entry = ledger.find(conn, self.migration.name)
            if entry is not None and self.began_in is None:
                self.began_in = entry.state
            if entry is not None and entry.state == State.CONTRACTED:
                summary = "the old column is gone already"
            elif entry is not None and (self.began_in, entry.state) == (State.SWITCHED, State.TOMBSTONED):
                # The connection was lost as this run's rename was committed: one stage a run, and this was it.
                summary = self._tombstoned(entry)
            else:
                try:
                    entry, summary = self._stage(conn, entry)
                except GateRefused as refused:
                    if entry is not None:
                        ledger.append(conn, entry.id, "contract refused", detail={"reasons": refused.reasons})
                    raise
        return Report(
            migration=self.migration.name,
            phase=Phase.CONTRACT,
            state=entry.state,
            summary=summary,
            sql=tuple(self.done),
            rows=self.rows,
            seconds=time.monotonic() - begun,
            retries=self.retries,
        )

    def _change(self, conn: Connection, entry: ledger.Entry) -> Change:
        return _bound(conn, self.migration, entry, tombstoned=entry.state == State.TOMBSTONED)

    def _stage(self, conn: Connection, entry: ledger.Entry | None) -> tuple[ledger.Entry, str]:
        change = self._change(conn, entry) if entry else None
        reasons = self._reasons(conn, entry, change) + list(self.more_reasons)
        if reasons or entry is None or change is None:  # without an entry there is a reason
            raise GateRefused(self.migration.name, reasons)
        if entry.state == State.SWITCHED:
            return self._tombstone(conn, entry, change)
        return self._drop(conn, entry, change)

    def _reasons(self, conn: Connection, entry: ledger.Entry | None, change: Change | None) -> list[str]:
        return gate.reasons(
            conn,
            entry,
            self.migration,
            old_column=change.old_relation() if change else "",
            triggers=change.sync_triggers() if change else (),
            constraints=change.constrain() if change else (),
        )

    def _compare(self, conn: Connection, entry: ledger.Entry, change: Change) -> None:
        known = [r.range for r in ranges.progress(conn, entry.id)]
        try:
            verdict = parity.compare(
                self.url,
                self.migration.name,
                change,
                known,
                parallel=self.migration.backfill.max_parallel,
                tell=self.compared,
            )
        except MappingFailed:
            proofs.forget(conn, entry.id)
            raise
        self.rows = verdict.rows
        if not verdict.agrees:
            proofs.forget(conn, entry.id)  # somebody went around the trigger: validate is to find it, too
            where = ", ".join(verdict.partitions[:10])
            reason = f"old and new disagree: {verdict.describe()} in range {where}; run validate"
            raise GateRefused(self.migration.name, [reason])

    # -- first stage --------------------------------------------------------------------------------------

    def _tombstone(self, conn: Connection, entry: ledger.Entry, change: Change) -> tuple[ledger.Entry, str]:
        until: datetime = scalar(conn, "SELECT clock_timestamp() + $1", [_TRACK])
        track = change.track(until.isoformat())
        query(conn, "DELETE FROM zdm.touched WHERE migration_id = $1", [entry.id])
        self._step(conn, track.sql)
        marks = gate.sync_marks(conn, entry.catalog.oid, change.sync_triggers())
        try:
            gate.wait_for_writers(
                conn,
                entry.catalog.oid,
                patience=self.migration.locks.give_up_after,
                thing=f"{self.migration.name} contract",
            )
            self._compare(conn, entry, change)
            moved, tries = locks.change_schema(
                conn,
                lambda: self._rename(conn, entry, change, until, marks),
                thing=f"{self.migration.name} contract",
                table=entry.catalog.table,
                oid=entry.catalog.oid,
                locks=self.migration.locks,
                before=lambda: self._drain(conn, entry, change),
                tell=self.tell,
            )
        except BaseException:
            self._untrack(conn, entry, track)
            raise
        self.retries += tries
        self.done += [step.sql for step in change.tombstone()]
        return moved, self._tombstoned(moved)

    def _untrack(self, conn: Connection, entry: ledger.Entry, track: Step) -> None:
        """Stop recording, unless the rename was committed: then the function is the tombstone's already."""
        with contextlib.suppress(psycopg.Error), conn.transaction():
            same = "SELECT 1 FROM zdm.migration WHERE id = $1 AND version = $2 FOR UPDATE"
            if query(conn, same, [entry.id, entry.version]):
                conn.execute(track.undo.encode())
                query(conn, "DELETE FROM zdm.touched WHERE migration_id = $1", [entry.id])

    def _tombstoned(self, entry: ledger.Entry) -> str:
        kept = timedelta(seconds=self.migration.contract.tombstone_window)
        assert entry.tombstoned_at is not None  # entered together with the state
        return (
            f"parity proven over {self.rows:,} rows and again under the lock; the old column is out of sight and may "
            f"be dropped by another run after {entry.tombstoned_at + kept:%Y-%m-%d %H:%M:%S %Z}"
        )

    def _step(self, conn: Connection, sql: str) -> None:
        self.tell(sql)
        conn.execute(sql.encode())
        self.done.append(sql)

    def _drain(self, conn: Connection, entry: ledger.Entry, change: Change) -> None:
        """Compare what was written during the scan before the lock is asked for, until little is left."""
        for _ in range(_DRAINS):
            taken = self._touched(conn, entry, change)
            if taken > _FEW:
                query(conn, "VACUUM (TRUNCATE false) zdm.touched")  # else the next look reads the dead rows again
            else:
                return
        raise GateRefused(
            self.migration.name, ["the application writes faster than that can be compared: try when it is quieter"]
        )

    def _touched(self, conn: Connection, entry: ledger.Entry, change: Change) -> int:
        with mapping(f"{self.migration.name} contract"):
            taken, disagreeing = query(conn, change.touched_disagreeing(), [entry.id])[0]
        if disagreeing:
            raise GateRefused(
                self.migration.name,
                [f"{disagreeing} of {taken} rows written during the proof disagree; run validate"],
            )
        return int(taken)

    def _rename(
        self, conn: Connection, entry: ledger.Entry, change: Change, until: datetime, marks: list[tuple[str, str]]
    ) -> ledger.Entry:
        """Under the lock: nobody writes now, so what is proven stays true until the rename is committed."""
        query(conn, f"LOCK TABLE {entry.catalog.table.sql} IN ACCESS EXCLUSIVE MODE")
        if reasons := self._reasons(conn, entry, change):
            raise GateRefused(self.migration.name, reasons)
        if scalar(conn, "SELECT clock_timestamp() > $1", [until]):
            raise GateRefused(self.migration.name, [f"the proof took longer than {_TRACK}"])
        if gate.sync_marks(conn, entry.catalog.oid, change.sync_triggers()) != marks:
            # While it was off, rows were written that nobody recorded.
            raise GateRefused(
                self.migration.name, ["a sync trigger was changed during the proof; run validate, then contract again"]
            )
        self._touched(conn, entry, change)
        locks.run_steps(conn, change.tombstone())
        return ledger.move(conn, entry, State.TOMBSTONED, what="old column out of sight")

    # -- second stage -------------------------------------------------------------------------------------

    def _drop(self, conn: Connection, entry: ledger.Entry, change: Change) -> tuple[ledger.Entry, str]:
        self._compare(conn, entry, change)

        def apply() -> ledger.Entry:
            query(conn, f"LOCK TABLE {entry.catalog.table.sql} IN ACCESS EXCLUSIVE MODE")
            if reasons := self._reasons(conn, entry, change):
                raise GateRefused(self.migration.name, reasons)
            locks.run_steps(conn, change.drop())
            ledger.set_flag(conn, entry.id, 100, retired=True)
            return ledger.move(conn, entry, State.CONTRACTED, what="old column dropped")

        moved, tries = locks.change_schema(
            conn,
            apply,
            thing=f"{self.migration.name} contract",
            table=entry.catalog.table,
            oid=entry.catalog.oid,
            locks=self.migration.locks,
            tell=self.tell,
        )
        self.retries += tries
        ledger.forget_writes(conn, entry.id)  # not under the lock: it may be many rows
        self.done += [step.sql for step in change.drop()]
        return moved, f"the old column is dropped; {self.rows:,} rows agreed to the end"


def undo(migration: Migration, url: str, *, tell: sessions.Tell = sessions.silent) -> None:
    """Bring the old column back from its tombstone."""
    sessions.resilient(lambda: _undo(migration, url, tell), thing=migration.name, tell=tell)


def _undo(migration: Migration, url: str, tell: sessions.Tell) -> None:
    with sessions.session(url, migration, purpose="rollback") as conn:
        entry = ledger.require(conn, migration, (State.TOMBSTONED, State.SWITCHED), to_do="undo contract")
        if entry.state == State.SWITCHED:
            return
        # The steps are those that made the tombstone, taken back in reverse.
        steps = _bound(conn, migration, entry, tombstoned=False).tombstone()

        def apply() -> None:
            for step in reversed(steps):
                tell(step.undo)
                conn.execute(step.undo.encode())
            ledger.move(conn, entry, State.SWITCHED, what="old column back")

        locks.change_schema(
            conn,
            apply,
            thing=f"{migration.name} rollback",
            table=entry.catalog.table,
            oid=entry.catalog.oid,
            locks=migration.locks,
            tell=tell,
        )


def refusals(migration: Migration, url: str) -> list[str]:
    """What stands against contract now, without the comparison of rows; changes nothing."""
    with connected(url, purpose=f"{migration.name} status") as conn:
        entry = ledger.find(conn, migration.name)
        run_ = _Run(migration, url, (), sessions.silent, lambda _: None)
        return run_._reasons(conn, entry, run_._change(conn, entry) if entry else None)
