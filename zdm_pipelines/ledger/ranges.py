"""Ranges: the ledger's rows of them: bounds, how far each got, and what was proven of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.values import Key, KeyRange, RangeProgress


def store(conn: Session, migration_id: int, ranges: Sequence[KeyRange]) -> None:
    """Write ranges that nobody has begun."""
    for one in ranges:
        conn.named("ledger.store_range", migration_id, one.ordinal, one.partition, _array(one.lower), _array(one.upper))


def _array(key: Key | None) -> list[str] | None:
    return None if key is None else list(key)


def progress(conn: Session, migration_id: int) -> list[RangeProgress]:
    """Every range in key order, with how far it got."""
    found = [
        RangeProgress(
            range=KeyRange(ordinal=r[0], partition=r[1], lower=r[2] and tuple(r[2]), upper=r[3] and tuple(r[3])),
            checkpoint=r[4] and tuple(r[4]), done=r[5],
            rows=r[6], batches=r[7], retries=r[8], seconds=r[9], wal_bytes=r[10], hot=r[11],
        )
        for r in conn.named("ledger.ranges", migration_id)
    ]  # fmt: skip
    return in_key_order(found)


def in_key_order(ranges: Sequence[RangeProgress]) -> list[RangeProgress]:
    """Follow each range's upper bound to the next one's lower: order without comparing keys ourselves."""
    by_lower = {r.range.lower: r for r in ranges}
    ordered: list[RangeProgress] = []
    at: Key | None = None
    while by_lower and (found := by_lower.pop(at, None)) is not None:
        ordered.append(found)
        at = found.range.upper
        if at is None:
            break
    return ordered


def reset(conn: Session, migration_id: int) -> None:
    """Forget the progress of every range; their bounds stay."""
    conn.named("ledger.reset_ranges", migration_id)


def remove(conn: Session, migration_id: int, ordinals: Sequence[int]) -> None:
    """Remove ranges that are cut anew."""
    conn.named("ledger.remove_ranges", migration_id, list(ordinals))


def forget_ranges(conn: Session, migration_id: int) -> None:
    """Remove every range, when a migration starts anew or is rolled back."""
    conn.named("ledger.remove_every_range", migration_id)


def rows_each(conn: Session, migration_id: int) -> int | None:
    """With how many rows each the ranges were cut last, None when they never were."""
    found = conn.value("ledger.range_rows", migration_id)
    return None if found is None else int(found)


def note_rows_each(conn: Session, migration_id: int, rows: int) -> None:
    """Note with how many rows each the ranges are cut."""
    conn.named("ledger.set_range_rows", migration_id, rows)


class Begun(NamedTuple):
    """How far one range got."""

    checkpoint: Key | None
    done: bool
    rows: int  # moved so far


def begun(conn: Session, migration_id: int, ordinal: int) -> Begun | None:
    """How far one range got, None when it is not in the ledger any more."""
    rows = conn.named("ledger.begun_range", migration_id, ordinal)
    return Begun(rows[0][0] and tuple(rows[0][0]), rows[0][1], rows[0][2]) if rows else None


def finish(conn: Session, migration_id: int, ordinal: int, *, seconds: float, wal_bytes: int, retries: int) -> None:
    """A range is done, or found done again, with what that took this run."""
    conn.named("ledger.finish_range", migration_id, ordinal, seconds, wal_bytes, retries)


# -- what was proven of ranges ------------------------------------------------------------------------------


class Proof(NamedTuple):
    """What validate proved of a range."""

    ordinal: int
    proof: dict[str, Any] | None  # None: nothing that may be believed
    batches: int  # how many batches moved rows of the range so far


def has_proofs(conn: Session) -> bool:
    """Whether this ledger knows proofs of ranges; one made by an earlier version does not."""
    return bool(conn.value("ledger.has_proofs"))


def epoch(conn: Session, migration_id: int) -> int:
    """The present epoch of a migration's proofs."""
    return int(conn.value("ledger.epoch", migration_id))


def begin_epoch(conn: Session, migration_id: int) -> int:
    """Begin another epoch, whose number never came before."""
    return int(conn.value("ledger.begin_epoch", migration_id))


def proofs(conn: Session, migration_id: int) -> list[Proof]:
    """The proof of each range."""
    return [Proof(*row) for row in conn.named("ledger.proofs", migration_id)]


def keep_proof(conn: Session, migration_id: int, ordinal: int, proof: Mapping[str, Any]) -> None:
    """Keep what comparing a range proved."""
    conn.named("ledger.keep_proof", migration_id, ordinal, json.dumps(proof))


def void_proofs(conn: Session, migration_id: int, *, unless_under: str | None = None) -> None:
    """Believe nothing that was proven so far.

    Args:
        unless_under: a fingerprint whose proofs are believed on.
    """
    if unless_under is None:
        conn.named("ledger.void_proofs", migration_id)
    else:
        conn.named("ledger.void_other_proofs", migration_id, unless_under)


def tidy_proofs(conn: Session, migration_id: int, holding: Sequence[int], *, epoch: int, renew: bool) -> None:
    """Void all proofs but those that hold, and delete the lines of writes that none of these asks for.

    Args:
        holding: ordinals of the ranges whose proofs hold.
        epoch: the present one.
        renew: let these proofs hold as of the present epoch.
    """
    with conn.transaction():
        conn.named("ledger.void_proofs_besides", migration_id, list(holding))
        if renew:
            conn.named("ledger.renew_proofs", migration_id, epoch)
        conn.named("ledger.tidy_written", migration_id, epoch)
