"""Proofs: what validate proved of a range holds until somebody writes to it; then, and only then, it is read again.

Who writes leaves a line. Each validate begins a new *epoch*: a number that the sync function holds in its body. For
every row whose columns matter, the function finds the row's range (its *bucket*) and adds (epoch, bucket) to
zdm.written in the application's own transaction, unless that line is there. That it is, is kept in a setting of the
session. A transaction or savepoint that is rolled back takes line and setting back together; a session whose settings
are reset looks again. Only a prepared transaction parts them, so the setting names its transaction until that is known
to be committed.

Why no write is missed. Say a range agreed in a snapshot S, taken in epoch e after all transactions had ended that had
written to the table before the function of e was in place. Every later look reads zdm.written in a snapshot L.

1. A write that L sees and S does not was committed in between, so its transaction had not ended at S.
2. Then it is none of those that were waited for: it locked the table for its first write when the function of e was
   in place, and so ran that function or a later one, at whatever isolation level, since functions are looked up as
   they are now and not as the transaction's snapshot has them.
3. So there is a line (e or later, bucket), left by that transaction itself, or by one that was committed before it
   looked: L, which sees the write, sees the line.

Without such a line the range agrees at L as it did at S. That is also why the proof may then be renewed for the
present epoch, if the writers of the earlier one were waited for before L, and lines older than every proof may go.

What the trigger does not see voids proofs by other marks. Our own backfill counts its batches, with the rows. A
trigger that was switched off, on or made anew has another row version (`gate.sync_marks`). Whoever put another
function in place took the marking out of its body, which is looked at before the next one is put there. Other bounds,
another declaration, columns that changed their names, or any function of the application's made anew give another
fingerprint. The type of a column that matters cannot be changed while the trigger reads it. A row that is deleted, or
moved away by its key, cannot disagree where it was; where it arrives the trigger sees its new key. TRUNCATE leaves
nothing to disagree.

What stays unseen is what goes around the trigger and leaves no trace: a session that calls itself our backfill, or
somebody else's trigger that ran behind ours and is gone. Contract therefore never asks for proofs: it reads
everything, and if it finds a row that disagrees it voids them all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from zdm_pipelines.dialects.postgres import marking
from zdm_pipelines.dialects.postgres.connection import Connection, query, scalar
from zdm_pipelines.dialects.postgres.marking import Marking
from zdm_pipelines.engine import gate, ledger, sessions
from zdm_pipelines.engine.parity import Counts, ParitySql
from zdm_pipelines.model.errors import LockNotAcquired
from zdm_pipelines.model.values import KeyRange, RangeProgress, Step

# How long the writers from before are waited for. Without them all is compared as well, but not remembered.
PATIENCE = 10.0


class ProofSql(ParitySql, Protocol):
    """The statements of one kind of change."""

    def mark(self, marking: Marking) -> Step:
        """Make the sync note which ranges are written, from now on."""
        ...

    def sync_function(self) -> str:
        """The function that keeps both shapes in sync, quoted; empty: it cannot note which ranges are written."""
        ...

    def sync_triggers(self) -> tuple[str, ...]:
        """Names of the triggers that keep both shapes in sync."""
        ...


@dataclass(frozen=True, kw_only=True)
class Proven:
    """A range that was compared earlier, and not written since."""

    rows: int
    through_down: int


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """The ledger's and the catalog's marks in one snapshot."""

    ranges: dict[int, tuple[dict[str, Any] | None, int]]  # by ordinal: its proof, and its batches so far
    written: dict[int, int]  # by bucket: the latest epoch
    marks: list[list[str]]  # of the sync triggers
    trusted: bool


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What need not be read again, and how to remember what is read now."""

    proven: dict[int, Proven] = field(default_factory=dict)  # by ordinal
    remember: dict[int, dict[str, Any]] = field(default_factory=dict)  # by ordinal: the proof, without what was counted


def in_place(conn: Connection, entry: ledger.Entry, known: Sequence[RangeProgress], change: ProofSql) -> Marking | None:
    """What the sync function notes at present; None when it notes nothing, or not what proofs rely on."""
    if not ledger.has_proofs(conn) or not known or len(entry.catalog.key) != 1:
        return None
    epoch = scalar(conn, "SELECT epoch FROM zdm.migration WHERE id = $1", [entry.id])
    wanted = Marking(epoch=epoch, bounds=_bounds(known))
    source = marking.source(conn, change.sync_function())
    return wanted if source is not None and wanted.block(entry.id, entry.catalog.key[0]) in source else None


def begin(
    conn: Connection,
    entry: ledger.Entry,
    known: Sequence[RangeProgress],
    change: ProofSql,
    *,
    full: bool,
    patience: float,
    tell: sessions.Tell = sessions.silent,
) -> Standing:
    """Begin an epoch, and find the ranges that nobody wrote since they were proven.

    Args:
        known: every range, in key order.
        full: believe no earlier proof.
        patience: seconds for writers from before; at most ten.
    """
    if (
        not known
        or not entry.catalog.immutable
        or not marking.possible(conn, entry.catalog)
        or not change.sync_function()
        or marking.source(conn, change.sync_function()) is None
    ):
        forget(conn, entry.id)
        return Standing()
    epoch, fingerprint = _new_epoch(conn, entry, known, change, full=full)
    waited = _waited(conn, entry, patience=patience, tell=tell)
    seen = _look(conn, entry, known, change, fingerprint)
    proven = {
        r.range.ordinal: Proven(rows=proof["rows"], through_down=proof["through_down"])
        for bucket, r in enumerate(known)
        if (proof := _holding(seen, r.range.ordinal, bucket)) is not None
    }
    _tidy(conn, entry.id, list(proven), epoch=epoch, renew=waited)
    if not waited or not seen.trusted:
        return Standing(proven=proven)
    marks = {"epoch": epoch, "fingerprint": fingerprint, "marks": seen.marks}
    return Standing(proven=proven, remember={o: {**marks, "batches": n} for o, (_, n) in seen.ranges.items()})


def remember(conn: Connection, migration_id: int, standing: Standing, which: KeyRange, counts: Counts) -> None:
    """Keep what comparing a range proved, if it did."""
    marks = standing.remember.get(which.ordinal)
    if marks is None or counts.disagree or counts.unmoved:
        return
    proof = {**marks, "rows": counts.rows, "through_down": counts.through_down}
    query(
        conn,
        "UPDATE zdm.range SET proof = $3 WHERE migration_id = $1 AND ordinal = $2",
        [migration_id, which.ordinal, json.dumps(proof)],
    )


def forget(conn: Connection, migration_id: int) -> None:
    """Believe nothing that was proven so far."""
    if ledger.has_proofs(conn):
        query(conn, "UPDATE zdm.range SET proof = NULL WHERE migration_id = $1 AND proof IS NOT NULL", [migration_id])


def _bounds(known: Sequence[RangeProgress]) -> tuple[str, ...]:
    return tuple(r.range.lower[0] for r in known if r.range.lower is not None)


def _new_epoch(
    conn: Connection, entry: ledger.Entry, known: Sequence[RangeProgress], change: ProofSql, *, full: bool
) -> tuple[int, str]:
    """Put the function of a new epoch in place, in one transaction with voiding what it cannot vouch for."""
    with ledger.transaction(conn):
        fingerprint = _fingerprint(conn, entry, known, change)
        marked = in_place(conn, entry, known, change) is not None
        # A clock, so that no number comes twice, not even in a ledger made anew: sessions remember them.
        epoch = scalar(
            conn,
            "UPDATE zdm.migration SET epoch = greatest(epoch + 1, "
            "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint) WHERE id = $1 RETURNING epoch",
            [entry.id],
        )
        conn.execute(change.mark(Marking(epoch=epoch, bounds=_bounds(known))).sql.encode())
        query(
            conn,
            "UPDATE zdm.range SET proof = NULL WHERE migration_id = $1 AND proof IS NOT NULL "
            "AND ($2 OR proof ->> 'fingerprint' IS DISTINCT FROM $3)",
            [entry.id, full or not marked, fingerprint],
        )
    return epoch, fingerprint


def _fingerprint(conn: Connection, entry: ledger.Entry, known: Sequence[RangeProgress], change: ProofSql) -> str:
    told = [
        change.compare(None, None)[0],
        dict(entry.change),
        [r.range.ordinal for r in known],
        _bounds(known),
        marking.surroundings(conn, entry.catalog.oid),
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _waited(conn: Connection, entry: ledger.Entry, *, patience: float, tell: sessions.Tell) -> bool:
    try:
        gate.wait_for_writers(conn, entry.catalog.oid, patience=min(patience, PATIENCE), thing=f"{entry.name} validate")
    except LockNotAcquired as late:
        tell(f"{late.fact}: what is compared now will be compared again by the next validate")
        return False
    return True


def _look(
    conn: Connection, entry: ledger.Entry, known: Sequence[RangeProgress], change: ProofSql, fingerprint: str
) -> _Seen:
    with ledger.transaction(conn):
        query(conn, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        rows = query(conn, "SELECT ordinal, proof, batches FROM zdm.range WHERE migration_id = $1", [entry.id])
        # A write of ours may have caused others in any range, which the trigger took for ours.
        together = sum(batches for _, _, batches in rows) if marking.writes_on(conn, entry.catalog.oid) else None
        return _Seen(
            ranges={o: (proof, batches if together is None else together) for o, proof, batches in rows},
            written=marking.written(conn, entry.id),
            marks=[list(mark) for mark in gate.sync_marks(conn, entry.catalog.oid, change.sync_triggers())],
            # The fingerprint once more: a function may have been made anew while writers were waited for.
            trusted=not gate.sync_reasons(conn, entry.catalog.oid, change.sync_triggers())
            and _fingerprint(conn, entry, known, change) == fingerprint,
        )


def _holding(seen: _Seen, ordinal: int, bucket: int) -> dict[str, Any] | None:
    """A range's proof, if it still holds; its fingerprint was looked at as the epoch began."""
    proof, batches = seen.ranges.get(ordinal, (None, 0))
    if proof is None or not seen.trusted:
        return None
    unwritten = seen.written.get(bucket, -1) < proof["epoch"]
    return proof if unwritten and proof["batches"] == batches and proof["marks"] == seen.marks else None


def _tidy(conn: Connection, migration_id: int, proven: Sequence[int], *, epoch: int, renew: bool) -> None:
    """Void the other proofs, renew these, and delete the lines that none of them asks for."""
    with ledger.transaction(conn):
        query(
            conn,
            "UPDATE zdm.range SET proof = NULL "
            "WHERE migration_id = $1 AND proof IS NOT NULL AND NOT ordinal = ANY ($2)",
            [migration_id, list(proven)],
        )
        if renew:
            query(
                conn,
                "UPDATE zdm.range SET proof = jsonb_set(proof, '{epoch}', to_jsonb($2::bigint)) "
                "WHERE migration_id = $1 AND proof IS NOT NULL",
                [migration_id, epoch],
            )
        query(
            conn,
            "DELETE FROM zdm.written WHERE migration_id = $1 AND epoch < (SELECT coalesce("
            "min((proof ->> 'epoch')::bigint), $2) FROM zdm.range WHERE migration_id = $1)",
            [migration_id, epoch],
        )
