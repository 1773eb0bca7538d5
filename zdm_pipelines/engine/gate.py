"""Gate: every reason why contract may not touch anything, asked of the database."""

from __future__ import annotations

import time
from collections.abc import Sequence

from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres.connection import Connection, query, scalar
from zdm_pipelines.engine import ledger
from zdm_pipelines.engine.ranges import progress
from zdm_pipelines.model.errors import LockNotAcquired
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Step

CHECKS = ("parity", "backfill_complete", "constraints_valid")

# A prepared transaction holds its locks without a pid.
_WRITERS = """
SELECT DISTINCT l.virtualtransaction FROM pg_locks l
WHERE l.relation = $1 AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() AND l.locktype = 'relation'
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')"""


def _span(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _age(conn: Connection, since: object) -> float:
    return float(scalar(conn, "SELECT extract(epoch FROM clock_timestamp() - $1::timestamptz)", [since]))


def sync_reasons(conn: Connection, oid: int, triggers: Sequence[str]) -> list[str]:
    """What is wrong with the sync triggers: they must exist, be enabled for every session, and run last."""
    found: dict[str, str] = dict(
        query(
            conn,
            "SELECT tgname, tgenabled FROM pg_trigger WHERE tgrelid = $1 AND tgname = ANY ($2)",
            [oid, list(triggers)],
        )
    )
    reasons = []
    for name in triggers:
        if name not in found:
            reasons.append(f"sync trigger {name} is missing: old and new drift apart; roll back and begin anew")
        elif found[name] != "A":
            reasons.append(
                f"sync trigger {name} is disabled: old and new drift apart; ENABLE ALWAYS it, then run validate"
            )
    for name, before, _ in catalogs.row_triggers(conn, oid):
        if before and triggers and name > min(triggers):
            reasons.append(
                f"trigger {name} runs behind the sync trigger, which does not see what it changes: rename it"
            )
    return reasons


def sync_marks(conn: Connection, oid: int, triggers: Sequence[str]) -> list[tuple[str, str]]:
    """What differs after a sync trigger was switched off, on or made anew, however briefly."""
    return [
        (name, mark)
        for name, mark in query(
            conn,
            "SELECT tgname, oid || '/' || xmin::text FROM pg_trigger WHERE tgrelid = $1 AND tgname = ANY ($2) "
            "ORDER BY tgname",
            [oid, list(triggers)],
        )
    ]


def _progress_reasons(conn: Connection, entry: ledger.Entry) -> list[str]:
    known = progress(conn, entry.id)
    left = [r.range.partition for r in known if not r.done]
    reasons = []
    if not known:
        reasons.append("no range was ever planned: run expand and backfill")
    if left:
        named = ", ".join(left[:5]) + (", …" if len(left) > 5 else "")
        reasons.append(f"{len(left)} of {len(known)} ranges are not backfilled: {named}")
    verdicts = ledger.checks(conn, entry.id)
    for name in CHECKS:
        if name not in verdicts:
            reasons.append(f"check {name} never ran on this data: run validate")
        elif not verdicts[name][0]:
            reasons.append(f"check {name} failed: {verdicts[name][1]}")
    return reasons


def _window_reasons(conn: Connection, entry: ledger.Entry, migration: Migration) -> list[str]:
    declared = migration.contract
    flag = ledger.flag(conn, entry.id)
    reasons = []
    if flag is None or flag.percent < 100:
        reasons.append(f"reads are at {flag.percent if flag else 0} % of the new shape, not 100 %: run switch_reads")
    if entry.switched_at is None:
        reasons.append("reads were never fully switched")
    elif (left := declared.confidence_window - _age(conn, entry.switched_at)) > 0:
        reasons.append(
            f"reads are fully switched since {entry.switched_at:%Y-%m-%d %H:%M:%S %Z}; "
            f"the confidence window ends in {_span(left)}"
        )
    return reasons


def reasons(
    conn: Connection,
    entry: ledger.Entry | None,
    migration: Migration,
    *,
    old_column: str,
    triggers: Sequence[str],
    constraints: Sequence[Step],
) -> list[str]:
    """Everything that stands against contract but the data itself, which is compared under the lock.

    Args:
        old_column: its present name.
        constraints: steps of validate; each that tells when it is done must say so.
    """
    if entry is None:
        return [f"{migration.name} is planned: nothing was expanded yet; run expand first"]
    found = []
    if entry.state not in (State.SWITCHED, State.TOMBSTONED):
        found.append(f"{migration.name} is {entry.state}, contract begins from {State.SWITCHED}")
    if dict(entry.change) != ledger.declared(migration):
        found.append("it was expanded with another declaration: put defs.yaml back as it was, or roll back")
    if entry.state in (State.PLANNED, State.ROLLED_BACK, State.CONTRACTED):
        return found
    again = "; roll back to switched first" if entry.state == State.TOMBSTONED else ""
    found += [reason + again for reason in _progress_reasons(conn, entry)]
    found += _window_reasons(conn, entry, migration)
    if entry.state == State.TOMBSTONED:
        assert entry.tombstoned_at is not None  # entered together with the state
        if (left := migration.contract.tombstone_window - _age(conn, entry.tombstoned_at)) > 0:
            found.append(
                f"the old column is out of sight since {entry.tombstoned_at:%Y-%m-%d %H:%M:%S %Z}; "
                f"it is kept for {_span(left)} more"
            )
    else:
        late = ledger.writers(conn, entry.id, ledger.OLD_SHAPE, within=migration.contract.straggler_window)
        found += [f"straggler: {who} wrote the old shape; deploy new code there" for who in late]
    number = catalogs.column_number(conn, entry.catalog.oid, old_column)
    if number is None:
        found.append(f"column {old_column} is gone: somebody changed the table by hand")
    else:
        found += [f"{what} reads {old_column}" for what in catalogs.dependents(conn, entry.catalog.oid, number)]
    found += sync_reasons(conn, entry.catalog.oid, triggers)
    found += [
        f"not in place: {step.name}; run validate"
        for step in constraints
        if step.done_when and not scalar(conn, step.done_when)
    ]
    return found


def wait_for_writers(conn: Connection, oid: int, *, patience: float, thing: str) -> None:
    """Wait for every transaction that wrote the table before now; later ones see the new sync function.

    Raises:
        LockNotAcquired: one is still open after `patience` seconds.
    """
    older = {v for (v,) in query(conn, _WRITERS, [oid])}
    deadline = time.monotonic() + patience
    while older:
        older &= {v for (v,) in query(conn, _WRITERS, [oid])}
        if older and time.monotonic() > deadline:
            raise LockNotAcquired(
                thing,
                f"{len(older)} transactions that wrote the table are open for over {patience:g} s",
                "end them, then run contract again",
            )
        if older:
            time.sleep(0.05)
