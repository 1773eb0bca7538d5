"""A backfill as the UI launches it, through the daemon's own iteration in this process.

Reaches into modules that Dagster keeps private: see CONTRIBUTING.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.test_utils import create_test_daemon_workspace_context, instance_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.backfill import execute_backfill_iteration

from zdm_pipelines_tests.integration.dagster_migration import NAME, InProcess, key, load, write_project


@pytest.fixture
def chain(tmp_path: Path, app_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    defs = load(write_project(tmp_path), monkeypatch)
    monkeypatch.setenv("ZDM_APP_URL", app_database)
    overrides = {
        "run_launcher": {
            "module": "dagster._core.launcher.sync_in_memory_run_launcher",
            "class": "SyncInMemoryRunLauncher",
        },
        "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"},
    }
    with instance_for_test(overrides=overrides) as instance:
        yield InProcess(defs, app_database, instance)


@pytest.fixture
def workspace(chain: InProcess, tmp_path: Path) -> Iterator[WorkspaceProcessContext]:
    target = ModuleTarget(
        module_name="shop.definitions",
        attribute=None,
        working_directory=str(tmp_path),
        location_name="shop",
    )
    with create_test_daemon_workspace_context(workspace_load_target=target, instance=chain.instance) as context:
        entry = context.create_request_context().get_location_entry("shop")
        assert entry is not None
        assert entry.load_error is None, entry.load_error
        yield context


@pytest.mark.slow
def test_all_ranges_in_one_backfill(chain: InProcess, workspace: WorkspaceProcessContext) -> None:
    chain.walk("expand")
    ranges = chain.ranges()
    # Two neighbours and one apart: Dagster makes a run of each stretch.
    assert _backfill(chain, workspace, [*ranges[:2], ranges[3]]) == BulkActionStatus.COMPLETED_SUCCESS
    assert chain.instance.get_materialized_partitions(key("backfill")) == {*ranges[:2], ranges[3]}
    assert len(chain.instance.get_runs(filters=dg.RunsFilter(tags={"dagster/backfill": "a1"}))) == 2
    assert _backfill(chain, workspace, ranges, name="a2") == BulkActionStatus.COMPLETED_SUCCESS
    assert len(chain.instance.get_runs(filters=dg.RunsFilter(tags={"dagster/backfill": "a2"}))) == 1
    assert chain.state() == "backfilled"
    assert chain.sql("SELECT sum(rows) FROM zdm.range") == [(2000,)]  # ranges that are done cost nothing again


def test_as_many_runs_of_a_migration_at_a_time_as_are_declared(chain: InProcess) -> None:
    storage = chain.instance.event_log_storage
    chain.walk("expand")
    assert {pool.name: pool.limit for pool in storage.get_pool_limits()} == {f"zdm_{NAME}": 1}
    storage.set_concurrency_slots(f"zdm_{NAME}", 3)
    chain.walk("expand")
    assert {pool.name: pool.limit for pool in storage.get_pool_limits()} == {f"zdm_{NAME}": 1}


def _backfill(
    chain: InProcess, workspace: WorkspaceProcessContext, partitions: list[str], name: str = "a1"
) -> BulkActionStatus:
    """Launch, and let the daemon tick until it has ended."""
    chain.instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            asset_graph=workspace.create_request_context().asset_graph,
            backfill_id=name,
            tags={},
            backfill_timestamp=time.time(),
            asset_selection=[key("backfill")],
            partition_names=partitions,
            dynamic_partitions_store=chain.instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config=None,
        )
    )
    found = None
    for _ in range(20):
        errors = [e for e in execute_backfill_iteration(workspace, logging.getLogger("daemon")) if e]
        assert not errors, errors
        found = chain.instance.get_backfill(name)
        assert found is not None
        if found.status != BulkActionStatus.REQUESTED:
            return found.status
    raise AssertionError(f"the backfill does not end: {found}")
