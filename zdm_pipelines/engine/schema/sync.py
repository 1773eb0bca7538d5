"""Sync: whether the triggers that mirror old and new shape stand, and whether everybody runs the present ones."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.capabilities import Sync
from zdm_pipelines.model.errors import LockNotAcquired


def sync_reasons(conn: Session, sync: Sync | None) -> list[str]:
    """What is wrong with the sync triggers: they must exist, be enabled for every session, and run last."""
    return [reason for oid, names in _triggers(sync) for reason in _table_reasons(conn, oid, names)]


def _triggers(sync: Sync | None) -> Iterable[tuple[int, tuple[str, ...]]]:
    return sync.triggers.items() if sync is not None else ()


def _table_reasons(conn: Session, oid: int, triggers: Sequence[str]) -> list[str]:
    found = {name: (fires, way_out) for name, fires, way_out in conn.named("sync.triggers", oid, list(triggers))}
    reasons = []
    for name in triggers:
        if name not in found:
            reasons.append(f"sync trigger {name} is missing: old and new drift apart; roll back and begin anew")
        elif found[name][0] != "A":
            reasons.append(
                f"sync trigger {name} is disabled: old and new drift apart; {found[name][1]}, then run validate"
            )
    return reasons + [
        f"trigger {name} runs behind the sync trigger, which does not see what it changes: rename it: {way_out}"
        for name, way_out in (conn.named("sync.behind", oid, min(triggers)) if triggers else ())
    ]


def sync_marks(conn: Session, sync: Sync) -> list[tuple[str, str]]:
    """What differs after a sync trigger was switched off, on or made anew, however briefly."""
    return [
        (name, mark)
        for oid, names in sync.triggers.items()
        for name, mark in conn.named("sync.marks", oid, list(names))
    ]


def wait_for_writers(conn: Session, tables: Sequence[int], *, patience: float, thing: str) -> None:
    """Wait for every transaction that wrote one of the tables before now; later ones see the new sync function.

    Raises:
        LockNotAcquired: one is still open after `patience` seconds.
    """
    older, deadline = _writers(conn, tables), time.monotonic() + patience
    while older:
        older &= _writers(conn, tables)
        if older and time.monotonic() > deadline:
            raise LockNotAcquired(
                thing,
                f"{len(older)} transactions that wrote the table are open for over {patience:g} s",
                "end them, then run contract again",
            )
        if older:
            time.sleep(0.05)


def _writers(conn: Session, tables: Sequence[int]) -> set[str]:
    return {writer for oid in tables for (writer,) in conn.named("sync.writers", oid)}
