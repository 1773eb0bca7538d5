"""Tuning: what may be changed while a backfill runs, by new code or by an operator.

Whoever loads a declaration publishes it in the ledger; operators set values on top of it. Runs read both twice a
second, on whatever machine they are and whatever code they began with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.ledger import tuning as stored
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.tuning import Settings, declared_settings

Changes = Mapping[str, Any]


def publish(conn: Session, migration: Migration) -> None:
    """Tell running backfills what the code declares."""
    stored.publish(conn, migration.name, declared_settings(migration).model_dump(mode="json"))


def effective(conn: Session, migration: Migration) -> Settings:
    """What holds now: the newest declaration, and what was tuned on top of it.

    Raises:
        SpecError: the ledger says something that this software does not understand.
    """
    found = stored.find(conn, migration.name)
    if found is None:
        return declared_settings(migration)
    return _settings(migration.name, _merged(_base(found, migration), found.tuned))


def _base(found: stored.Stored, migration: Migration) -> Changes:
    return found.declared or declared_settings(migration).model_dump(mode="json")


def tuned(conn: Session, name: str) -> dict[str, Any]:
    """What an operator set."""
    found = stored.find(conn, name)
    return found.tuned if found else {}


def tune(conn: Session, migration: Migration, changes: Changes) -> Settings:
    """Set values on top of the declaration, until `reset`; gives what holds then.

    Args:
        changes: as in YAML, such as {"backfill": {"batch_rows": 500}, "throttle": {"nice": 1}}.

    Raises:
        SpecError: a value cannot be meant; nothing is changed.
    """
    with conn.transaction():
        found = stored.lock(conn, migration.name)
        base = _base(found, migration)
        wanted = _merged(found.tuned, changes)
        settings = _settings(migration.name, _merged(base, wanted))
        _require_declared(migration.name, _settings(migration.name, base), settings)
        stored.keep(conn, migration.name, wanted)
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


def reset(conn: Session, name: str) -> None:
    """Go back to what is declared."""
    stored.keep(conn, name, {})


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
