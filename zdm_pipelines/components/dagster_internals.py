"""Dagster internals: every use of what Dagster does not promise to keep, behind functions named for what they are for.

A new minor release of Dagster may change any of these; `unit/test_dagster_internals.py` says which one. Everything else
in `components/` keeps to what Dagster documents as public.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar, cast

import dagster as dg
from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetGraph
from dagster._core.errors import DagsterRunAlreadyExists
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord
from dagster.components.core.decl import YamlBackedComponentDecl

C = TypeVar("C", bound=dg.Component)

AssetGraph = BaseAssetGraph[Any]  # `repository_def.asset_graph`, which a run is created with

# -- declarations -----------------------------------------------------------------------------------------------------


def components_of(context: dg.ComponentLoadContext, kind: type[C]) -> list[C]:
    """Every component of that class, subclasses included, in the project."""
    return context.component_tree.get_all_components(of_type=kind)


def place_of(context: dg.ComponentLoadContext, attribute: str) -> str:
    """File and line of an attribute of the component that is being loaded, for messages."""
    decl = context.component_decl
    if isinstance(decl, YamlBackedComponentDecl) and decl.source_tree is not None:
        document = decl.source_tree.source_position_tree
        attributes = document.children.get("attributes", document)
        position = attributes.children.get(attribute, attributes).position
        return f"{position.filename}:{position.start.line}"
    return str(context.component_loc)


# -- runs -------------------------------------------------------------------------------------------------------------


def find_runs(
    instance: dg.DagsterInstance,
    tags: Mapping[str, str],
    *,
    statuses: Sequence[dg.DagsterRunStatus] = (),
    limit: int | None = None,
) -> Sequence[dg.DagsterRun]:
    """Runs that carry all these tags, the newest first; no statuses: whatever their status."""
    return instance.get_runs(filters=dg.RunsFilter(tags=tags, statuses=statuses), limit=limit)


def tag_run(instance: dg.DagsterInstance, run: dg.DagsterRun, tags: Mapping[str, str]) -> None:
    """Add tags to a run, or change those that it has."""
    instance.add_run_tags(run.run_id, tags)


def fail_run(instance: dg.DagsterInstance, run: dg.DagsterRun, message: str) -> None:
    """Show a run as failed whose own process cannot say so any more."""
    instance.report_run_failed(run, message)


def log_in_run(instance: dg.DagsterInstance, run: dg.DagsterRun, message: str) -> None:
    """Add a line to a run's log from outside its process."""
    instance.report_engine_event(message, run)


def will_be_retried(run: dg.DagsterRun) -> bool:
    """Whether Dagster starts a failed run again, or has done so."""
    return "dagster/auto_retry_run_id" in run.tags or run.is_complete_and_waiting_to_retry


def partitions_materialized_by(instance: dg.DagsterInstance, run: dg.DagsterRun) -> set[str]:
    """The partitions that a run has materialized, of whatever asset."""
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records
    found = (record.event_log_entry.asset_materialization for record in records)
    return {event.partition for event in found if event is not None and event.partition is not None}


# -- the queue --------------------------------------------------------------------------------------------------------


def has_queue(instance: dg.DagsterInstance) -> bool:
    """Whether runs wait in a queue that pools can shut, rather than start at once."""
    return isinstance(instance.run_coordinator, QueuedRunCoordinator)


def copy_run(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    *,
    run_id: str,
    tags: Mapping[str, str],
    asset_graph: AssetGraph,
) -> dg.DagsterRun:
    """Create a run of the same job, assets and configuration, not submitted yet; if there is one of that id, give that.

    Args:
        tags: all tags of the copy; none is taken over.
        asset_graph: of the repository that the run belongs to.
    """
    try:
        return instance.create_run(
            job_name=run.job_name,
            run_id=run_id,
            run_config=run.run_config,
            status=dg.DagsterRunStatus.NOT_STARTED,
            tags=tags,
            root_run_id=None,
            parent_run_id=None,
            step_keys_to_execute=run.step_keys_to_execute,
            execution_plan_snapshot=instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
            if run.execution_plan_snapshot_id
            else None,
            job_snapshot=instance.get_job_snapshot(run.job_snapshot_id) if run.job_snapshot_id else None,
            parent_job_snapshot=None,
            asset_selection=run.asset_selection,
            asset_check_selection=run.asset_check_selection,
            resolved_op_selection=run.resolved_op_selection,
            op_selection=run.op_selection,
            remote_job_origin=run.remote_job_origin,
            job_code_origin=run.job_code_origin,
            asset_graph=asset_graph,
        )
    except DagsterRunAlreadyExists:
        found = instance.get_run_by_id(run_id)
        assert found is not None  # somebody was faster by a moment
        return found


def submit_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Put a created run into the queue. Only for an instance that has a queue: see `has_queue`."""
    # The queue asks for no workspace: only launching needs a workspace, and the daemon launches.
    instance.submit_run(run_id, cast(Any, None))


def cancel_queued_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Take a run out of the queue."""
    instance.run_coordinator.cancel_run(run_id)


# -- pools ------------------------------------------------------------------------------------------------------------


def pool_limit(instance: dg.DagsterInstance, pool: str) -> int | None:
    """The limit that was set for a pool, None when nobody has set one or the storage knows no pools."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return None
    return next((p.limit for p in storage.get_pool_limits() if p.name == pool and not p.from_default), None)


def set_pool_limit(instance: dg.DagsterInstance, pool: str, runs: int) -> None:
    """Let at most so many runs of a pool start; 0: none. Does nothing where the storage knows no pools."""
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.set_concurrency_slots(pool, runs)


# -- backfills --------------------------------------------------------------------------------------------------------


def cancel_backfills(instance: dg.DagsterInstance, asset: dg.AssetKey) -> list[str]:
    """End the backfills under way of one asset and no other; gives their ids."""
    cancelled = []
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])):
        if list(backfill.asset_selection or []) == [asset]:
            ended = backfill.with_status(BulkActionStatus.CANCELED)  # type: ignore[no-untyped-call]
            instance.update_backfill(ended.with_end_timestamp(time.time()))
            cancelled.append(backfill.backfill_id)
    return cancelled


def is_backfill_cancelled(instance: dg.DagsterInstance, backfill_id: str) -> bool:
    """Whether somebody has cancelled a backfill."""
    backfill = instance.get_backfill(backfill_id)
    return backfill is not None and backfill.status in (BulkActionStatus.CANCELED, BulkActionStatus.CANCELING)


# -- records of assets ------------------------------------------------------------------------------------------------


def materialized_partitions(instance: dg.DagsterInstance, asset: dg.AssetKey) -> Collection[str]:
    """The partitions of an asset that Dagster shows as materialized."""
    return instance.get_materialized_partitions(asset)


def latest_check(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> AssetCheckExecutionRecord | None:
    """The latest time that a check was planned or run; its `evaluation` is None while there is no verdict."""
    return instance.get_latest_asset_check_evaluation_record(check)
