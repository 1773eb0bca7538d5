"""Keys: what a migration's assets, partitions, checks and pool are called in Dagster."""

from __future__ import annotations

import dagster as dg

from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase

PLAN = "plan"


def asset_key(migration: Migration, phase: Phase | str) -> dg.AssetKey:
    """The asset of a phase."""
    return dg.AssetKey([migration.name, str(phase)])


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
