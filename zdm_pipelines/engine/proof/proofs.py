"""Proofs: what validate proved of a range holds until somebody writes to it; then, and only then, it is read again.

Who writes leaves a line. Each validate begins a new *epoch*: a number that the sync function holds in its body. For
every row whose columns matter, the function finds the row's range (its *bucket*) and adds (epoch, bucket) to
zdm.written in the application's own transaction, unless that line is there. A setting of the session remembers that the
line is there. A transaction or savepoint that is rolled back takes line and setting back together; a session whose
settings are reset looks again. Only a prepared transaction parts them, so the setting names its transaction until that
is known to be committed.

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
trigger that was switched off, on or made anew has another row version (`sync.sync_marks`). Whoever put another
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
from typing import Any

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine import sessions
from zdm_pipelines.engine.proof.parity import Counts
from zdm_pipelines.engine.schema.sync import sync_marks, sync_reasons, wait_for_writers
from zdm_pipelines.ledger import ranges
from zdm_pipelines.ledger.migrations import Entry
from zdm_pipelines.model.capabilities import Comparison, Marking, Notes, Sync
from zdm_pipelines.model.errors import LockNotAcquired
from zdm_pipelines.model.values import KeyRange, RangeProgress, Statement

# How long writers that began before are waited for. If they take longer, all rows are compared, and no proof is kept.
PATIENCE = 10.0


@dataclass(frozen=True, kw_only=True)
class Proving:
    """What proofs ask of a change."""

    sync: Sync
    parity: Comparison


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


def in_place(conn: Session, entry: Entry, known: Sequence[RangeProgress], sync: Sync) -> Marking | None:
    """What the sync function notes at present; None when it notes nothing, or not what proofs rely on."""
    if not ranges.has_proofs(conn) or not known or len(entry.catalog.key) != 1:
        return None
    wanted = Marking(epoch=ranges.epoch(conn, entry.id), bounds=_bounds(known))
    body = conn.sync.body(sync.function) if sync.function else None
    return wanted if body is not None and conn.sync.marks(body, wanted, entry.id, entry.catalog.key[0]) else None


def begin(
    conn: Session,
    entry: Entry,
    known: Sequence[RangeProgress],
    proving: Proving,
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
        or not conn.sync.can_mark(entry.catalog)
        or not proving.sync.function
        or conn.sync.body(proving.sync.function) is None
    ):
        forget(conn, entry.id)
        return Standing()
    epoch, fingerprint = _new_epoch(conn, entry, known, proving, full=full)
    waited = _waited(conn, entry, proving, patience=patience, tell=tell)
    seen = _look(conn, entry, known, proving, fingerprint)
    proven = {
        r.range.ordinal: Proven(rows=proof["rows"], through_down=proof["through_down"])
        for bucket, r in enumerate(known)
        if (proof := _holding(seen, r.range.ordinal, bucket)) is not None
    }
    ranges.tidy_proofs(conn, entry.id, list(proven), epoch=epoch, renew=waited)
    if not waited or not seen.trusted:
        return Standing(proven=proven)
    marks = {"epoch": epoch, "fingerprint": fingerprint, "marks": seen.marks}
    return Standing(proven=proven, remember={o: {**marks, "batches": n} for o, (_, n) in seen.ranges.items()})


def remember(conn: Session, migration_id: int, standing: Standing, which: KeyRange, counts: Counts) -> None:
    """Keep what comparing a range proved, if it did."""
    marks = standing.remember.get(which.ordinal)
    if marks is None or counts.disagree or counts.unmoved:
        return
    proof = {**marks, "rows": counts.rows, "through_down": counts.through_down}
    ranges.keep_proof(conn, migration_id, which.ordinal, proof)


def forget(conn: Session, migration_id: int) -> None:
    """Believe nothing that was proven so far."""
    if ranges.has_proofs(conn):
        ranges.void_proofs(conn, migration_id)


def _bounds(known: Sequence[RangeProgress]) -> tuple[str, ...]:
    return tuple(r.range.lower[0] for r in known if r.range.lower is not None)


def _new_epoch(
    conn: Session, entry: Entry, known: Sequence[RangeProgress], proving: Proving, *, full: bool
) -> tuple[int, str]:
    """Put the function of a new epoch in place, in one transaction with voiding what it cannot vouch for."""
    with conn.transaction():
        fingerprint = _fingerprint(conn, entry, known, proving)
        marked = in_place(conn, entry, known, proving.sync) is not None
        epoch = ranges.begin_epoch(conn, entry.id)
        marking = Marking(epoch=epoch, bounds=_bounds(known))
        conn.run(Statement(proving.sync.note(Notes(marking=marking)).sql))
        ranges.void_proofs(conn, entry.id, unless_under=fingerprint if marked and not full else None)
    return epoch, fingerprint


def _fingerprint(conn: Session, entry: Entry, known: Sequence[RangeProgress], proving: Proving) -> str:
    told = [
        proving.parity.compare(None, None).sql,
        dict(entry.change),
        dict(entry.catalog.environment),
        [r.range.ordinal for r in known],
        _bounds(known),
        conn.sync.surroundings(entry.catalog.oid),
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _waited(conn: Session, entry: Entry, proving: Proving, *, patience: float, tell: sessions.Tell) -> bool:
    try:
        wait_for_writers(
            conn, list(proving.sync.triggers), patience=min(patience, PATIENCE), thing=f"{entry.name} validate"
        )
    except LockNotAcquired as late:
        tell(f"{late.fact}: what is compared now will be compared again by the next validate")
        return False
    return True


def _look(conn: Session, entry: Entry, known: Sequence[RangeProgress], proving: Proving, fingerprint: str) -> _Seen:
    with conn.transaction():
        conn.named("ledger.one_snapshot")
        rows = ranges.proofs(conn, entry.id)
        # A write of ours may have caused others in any range, which the trigger took for ours.
        together = sum(batches for _, _, batches in rows) if conn.sync.cascades(entry.catalog.oid) else None
        return _Seen(
            ranges={o: (proof, batches if together is None else together) for o, proof, batches in rows},
            written=dict(conn.named("sync.written", entry.id)),
            marks=[list(mark) for mark in sync_marks(conn, proving.sync)],
            # The fingerprint once more: a function may have been made anew while writers were waited for.
            trusted=not sync_reasons(conn, proving.sync) and _fingerprint(conn, entry, known, proving) == fingerprint,
        )


def _holding(seen: _Seen, ordinal: int, bucket: int) -> dict[str, Any] | None:
    """A range's proof, if it still holds; its fingerprint was looked at as the epoch began."""
    proof, batches = seen.ranges.get(ordinal, (None, 0))
    if proof is None or not seen.trusted:
        return None
    unwritten = seen.written.get(bucket, -1) < proof["epoch"]
    return proof if unwritten and proof["batches"] == batches and proof["marks"] == seen.marks else None
