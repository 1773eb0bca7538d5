"""Tuning: the ledger's rows of it: what the newest loaded code declares, and what an operator set on top."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from zdm_pipelines.dialects.server import Session


class Stored(NamedTuple):
    """The settings of one migration, as JSON."""

    declared: dict[str, Any]  # empty: no code has said yet
    tuned: dict[str, Any]


def publish(conn: Session, name: str, declared: Mapping[str, Any]) -> None:
    """Keep what the code declares."""
    conn.named("ledger.publish_settings", name, json.dumps(declared))


def find(conn: Session, name: str) -> Stored | None:
    """The settings of a migration, None when nobody published or tuned any."""
    rows = conn.named("ledger.settings", name)
    return Stored(*rows[0]) if rows else None


def lock(conn: Session, name: str) -> Stored:
    """The settings of a migration, which nobody else tunes until the transaction ends."""
    conn.named("ledger.settings_row", name)
    return Stored(*conn.named("ledger.settings_locked", name)[0])


def keep(conn: Session, name: str, tuned: Mapping[str, Any]) -> None:
    """Keep what an operator set."""
    conn.named("ledger.tune", name, json.dumps(tuned))
