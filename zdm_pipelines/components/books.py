"""Books: Dagster's own records, brought in line with the ledger, which is the memory.

Dagster's open-source storages cannot forget single partitions of an asset: where some are no longer true, all are
forgotten and the true ones reported again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import dagster as dg

from zdm_pipelines.components import dagster_internals, keys
from zdm_pipelines.components.metadata import of_progress
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import RangeProgress


def correct(
    instance: dg.DagsterInstance, migration: Migration, state: State, ranges: Sequence[RangeProgress]
) -> list[str]:
    """Make Dagster say what the ledger says; what it did not know yet is left to be materialized.

    Returns:
        What was put right, as lines for the log.
    """
    told = []
    known = set(instance.get_asset_keys(prefix=[migration.name]))
    # The phase that works on rows is judged range by range.
    stand = migration.lifecycle.stands(state) | {migration.lifecycle.row_phase}
    undone = [
        key
        for phase in migration.lifecycle.phases
        if phase not in stand and (key := keys.asset_key(migration, phase)) in known
    ]
    if undone:
        instance.wipe_assets(undone)
        told.append("no longer materialized: " + ", ".join(key.path[-1] for key in undone))
    if migration.lifecycle.row_phase is None:
        return told
    told += _forget_ranges(instance, migration, ranges)
    told += list_ranges(instance, migration, [r.range.partition for r in ranges])
    return told


def _forget_ranges(instance: dg.DagsterInstance, migration: Migration, ranges: Sequence[RangeProgress]) -> list[str]:
    key = keys.row_key(migration)
    materialized = set(dagster_internals.materialized_partitions(instance, key))
    done = {r.range.partition: r for r in ranges if r.done}
    wrong = materialized - done.keys()
    if not wrong:
        return []
    instance.wipe_assets([key])
    for partition in sorted(materialized & done.keys()):
        instance.report_runless_asset_event(
            dg.AssetMaterialization(key, partition=partition, metadata=of_progress(done[partition]))
        )
    return [f"no longer materialized: {len(wrong)} ranges of {key.path[-1]}"]


def list_ranges(instance: dg.DagsterInstance, migration: Migration, wanted: Sequence[str]) -> list[str]:
    """Make the partitions these, in this order. Dagster keeps the order of insertion, so a new one in between moves
    all behind it; their materializations stay.
    """
    name = keys.partitions_name(migration)
    known = list(instance.get_dynamic_partitions(name))
    if known == list(wanted):
        return []
    same = next(
        (n for n, (a, b) in enumerate(zip(known, wanted, strict=False)) if a != b), min(len(known), len(wanted))
    )
    for partition in known[same:]:
        instance.delete_dynamic_partition(name, partition)
    if wanted[same:]:
        instance.add_dynamic_partitions(name, list(wanted[same:]))
    return [f"{len(wanted)} ranges listed"] if wanted else [f"{len(known)} ranges are no longer listed"]


def materialized(instance: dg.DagsterInstance, key: dg.AssetKey) -> int | None:
    """Storage id of an asset's latest materialization: a larger one is a later one."""
    found = instance.fetch_materializations(key, limit=1).records
    return found[0].storage_id if found else None


def missing_ranges(instance: dg.DagsterInstance, migration: Migration, ranges: Collection[RangeProgress]) -> list[str]:
    """Ranges that Dagster has no materialization of, in key order."""
    seen = dagster_internals.materialized_partitions(instance, keys.row_key(migration))
    return [r.range.partition for r in ranges if r.range.partition not in seen]
