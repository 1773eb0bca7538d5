"""Keys: what a migration's assets, partitions, checks and pool are called in Dagster."""

from __future__ import annotations

import dagster as dg

from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase

PLAN = "plan"
DROP = "drop"  # the second stage of a contract whose first one works on rows


def chain(migration: Migration) -> tuple[Phase | str, ...]:
    """What has an asset, in order: the plan, the phases of the kind, and what is left to drop after them."""
    needs = migration.lifecycle.needs
    left = (DROP,) if {Need.DESTROYS, Need.TOMBSTONE} <= needs else ()
    return (PLAN, *migration.lifecycle.phases, *left)


def asset_key(migration: Migration, phase: Phase | str) -> dg.AssetKey:
    """The asset of a phase."""
    return dg.AssetKey([migration.name, str(phase)])


def row_key(migration: Migration) -> dg.AssetKey:
    """The asset whose partitions are the ranges.

    Raises:
        ValueError: the migration has no row work.
    """
    if migration.lifecycle.row_phase is None:
        raise ValueError(f"{migration.name} has no row work")
    return asset_key(migration, migration.lifecycle.row_phase)


def check_key(migration: Migration, check: str) -> dg.AssetCheckKey:
    """A check of validate."""
    return dg.AssetCheckKey(asset_key(migration, Phase.VALIDATE), check)


def op_name(migration: Migration, phase: Phase | str) -> str:
    """The op of a phase, which run configuration names."""
    return f"{migration.name}__{phase}"


def partitions_name(migration: Migration) -> str:
    """The dynamic partitions that are its ranges."""
    return f"{migration.name}_ranges"


def partitions(migration: Migration) -> dg.DynamicPartitionsDefinition:
    """One partition per range."""
    return dg.DynamicPartitionsDefinition(name=partitions_name(migration))


def pool(migration: Migration) -> str:
    """The pool that lets so many runs of a migration through as are declared."""
    return f"zdm_{migration.name}"
