"""Tuning: what may be changed while a backfill runs, by new code or by an operator.

Whoever loads a declaration publishes it in the ledger; operators set values on top of it. Runs read both twice a
second, on whatever machine they are and whatever code they began with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from zdm_pipelines.dialects.postgres.connection import Connection, query
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.migration import Backfill, Migration
from zdm_pipelines.model.throttle import Throttle
from zdm_pipelines.model.units import Declared
from zdm_pipelines.model.windows import Windows

Changes = Mapping[str, Any]


class Settings(Declared):
    """The part of a declaration that may change while it runs."""

    backfill: Backfill
    throttle: Throttle
    allowed: Windows


def declared(migration: Migration) -> Settings:
    """As the code has it."""
    return Settings(backfill=migration.backfill, throttle=migration.throttle, allowed=migration.allowed)


def publish(conn: Connection, migration: Migration) -> None:
    """Tell running backfills what the code declares."""
    text = json.dumps(declared(migration).model_dump(mode="json"))
    query(
        conn,
        "INSERT INTO zdm.tuning AS t (migration, declared) VALUES ($1, $2::jsonb) ON CONFLICT (migration) "
        "DO UPDATE SET declared = excluded.declared, changed_at = clock_timestamp() "
        "WHERE t.declared <> excluded.declared",
        [migration.name, text],
    )


def effective(conn: Connection, migration: Migration) -> Settings:
    """What holds now: the newest declaration, and what was tuned on top of it.

    Raises:
        SpecError: the ledger says something that this software does not understand.
    """
    rows = query(conn, "SELECT declared, tuned FROM zdm.tuning WHERE migration = $1", [migration.name])
    if not rows:
        return declared(migration)
    base = rows[0][0] or declared(migration).model_dump(mode="json")
    return _settings(migration.name, _merged(base, rows[0][1]))


def tuned(conn: Connection, name: str) -> dict[str, Any]:
    """What an operator set."""
    rows = query(conn, "SELECT tuned FROM zdm.tuning WHERE migration = $1", [name])
    return dict(rows[0][0]) if rows else {}


def tune(conn: Connection, migration: Migration, changes: Changes) -> Settings:
    """Set values on top of the declaration, until `reset`; gives what holds then.

    Args:
        changes: as in YAML, such as {"backfill": {"batch_rows": 500}, "throttle": {"nice": 1}}.

    Raises:
        SpecError: a value cannot be meant; nothing is changed.
    """
    with conn.transaction():
        query(conn, "INSERT INTO zdm.tuning (migration) VALUES ($1) ON CONFLICT DO NOTHING", [migration.name])
        rows = query(conn, "SELECT declared, tuned FROM zdm.tuning WHERE migration = $1 FOR UPDATE", [migration.name])
        base = rows[0][0] or declared(migration).model_dump(mode="json")
        wanted = _merged(rows[0][1], changes)
        settings = _settings(migration.name, _merged(base, wanted))
        _require_declared(migration.name, _settings(migration.name, base), settings)
        query(
            conn,
            "UPDATE zdm.tuning SET tuned = $2::jsonb, changed_at = clock_timestamp() WHERE migration = $1",
            [migration.name, json.dumps(wanted)],
        )
    return settings


def _require_declared(name: str, base: Settings, wanted: Settings) -> None:
    """SQL runs as our role and HTTP sends a token: what is asked is for those who deploy code to say."""
    known = dict(base.throttle.limits())
    for limit in (*wanted.throttle.sql, *wanted.throttle.http):
        if limit.name not in known or not limit.same_signal(known[limit.name]):
            raise SpecError(
                f"{name} throttle signal {limit.name}",
                "asks something that is not declared",
                "declare it in defs.yaml; tuning moves its limits, or leaves it out",
            )


def reset(conn: Connection, name: str) -> None:
    """Go back to what is declared."""
    query(conn, "UPDATE zdm.tuning SET tuned = '{}', changed_at = clock_timestamp() WHERE migration = $1", [name])


def _merged(base: Changes, over: Changes) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(value, Mapping) and isinstance(below, Mapping) else value
    return merged


def _settings(name: str, values: Changes) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        message = str(first["msg"]).removeprefix("Value error, ")
        raise SpecError(f"{name} {key}".rstrip(), message, "tune it to a value that may be declared") from None
