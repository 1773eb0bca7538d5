"""Pools: how many runs of a migration Dagster starts; none while a hold stands, then one more at each look."""

from __future__ import annotations

import dagster as dg

from zdm_pipelines.components import dagster_internals, keys
from zdm_pipelines.model.migration import Migration


def limit(instance: dg.DagsterInstance, migration: Migration) -> int | None:
    """The pool's present limit, None when nobody has set one (or this storage knows no pools)."""
    return dagster_internals.pool_limit(instance, keys.pool(migration))


def set_limit(instance: dg.DagsterInstance, migration: Migration, runs: int) -> None:
    """Let so many runs of a migration run at once."""
    dagster_internals.set_pool_limit(instance, keys.pool(migration), runs)


def begin(instance: dg.DagsterInstance, migration: Migration) -> None:
    """Let as many runs through as are declared, unless it is shut.

    The default limit of dagster.yaml does not hold in the queue's first pass over a pool it never saw.
    """
    if limit(instance, migration) not in (0, migration.backfill.max_runs):
        set_limit(instance, migration, migration.backfill.max_runs)


def shut(instance: dg.DagsterInstance, migration: Migration) -> None:
    """Let no run through. What runs already waits by itself."""
    if limit(instance, migration) != 0:
        set_limit(instance, migration, 0)


def widen(instance: dg.DagsterInstance, migration: Migration) -> bool:
    """Let one more run through, up to what is declared; true when that is news."""
    now = limit(instance, migration)
    if now == migration.backfill.max_runs:
        return False
    set_limit(instance, migration, min(migration.backfill.max_runs, (now or 0) + 1))
    return True
