"""Dagster internals: what Dagster does not promise still does what we use it for, and one module alone uses it.

After raising Dagster's version, a failure here names the function of `dagster_internals` that needs another way.
"""

from __future__ import annotations

import ast
import inspect
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import dagster as dg
import pytest
from dagster._annotations import is_public
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.test_utils import create_run_for_test, instance_for_test

import zdm_pipelines
from zdm_pipelines.components import dagster_internals as internals

PRODUCT = Path(zdm_pipelines.__file__).parent
HOME = PRODUCT / "components/dagster_internals.py"
OTHERS = sorted(path for path in PRODUCT.rglob("*.py") if path != HOME)


@dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b", "c"]))
def rows() -> None:
    """Three partitions."""


@dg.asset_check(asset=rows)
def agrees() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True)


DEFINITIONS = dg.Definitions(assets=[rows], asset_checks=[agrees], executor=dg.in_process_executor)
JOB = DEFINITIONS.resolve_implicit_global_asset_job_def()
GRAPH = DEFINITIONS.get_repository_def().asset_graph


@pytest.fixture(scope="module")
def instance() -> Iterator[dg.DagsterInstance]:
    with instance_for_test() as found:  # the queue and the storages of an installation, in a folder of its own
        yield found


@pytest.fixture(scope="module")
def run(instance: dg.DagsterInstance) -> dg.DagsterRun:
    """A run that has materialized partition b and judged the check."""
    assert internals.latest_check(instance, agrees.check_key) is None
    done = JOB.execute_in_process(instance=instance, asset_selection=[rows.key], partition_key="b")
    return loaded(instance, done.run_id)


@pytest.fixture
def launched(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun:
    """A run of the same work as the UI launches it: of a job in a code location."""
    location = RegisteredCodeLocationOrigin("shop")
    code = RepositoryPythonOrigin(sys.executable, ModuleCodePointer("shop.definitions", "defs"))
    return create_run_for_test(
        instance,
        job_name=run.job_name,
        tags={"owner": str(uuid4()), "zone": "x"},
        asset_selection=run.asset_selection,
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), run.job_name),
        job_code_origin=JobPythonOrigin(run.job_name, code),
    )


def loaded(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    found = instance.get_run_by_id(run_id)
    assert found is not None
    return found


# -- the border -------------------------------------------------------------------------------------------------------


def test_no_other_module_imports_what_dagster_keeps_private() -> None:
    found = []
    for path in OTHERS:
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            # What Dagster documents is importable from its packages' tops.
            found += [f"{path.name}: {name}" for name in names if name.startswith(("dagster.", "dagster_shared"))]
    assert not found


def test_no_other_module_calls_what_an_instance_does_not_document() -> None:
    found = set()
    for path in OTHERS:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            method = inspect.getattr_static(dg.DagsterInstance, node.attr, None) if name == "instance" else None
            if method is not None and not is_public(method):
                found.add(f"{path.name}: instance.{node.attr}")
    assert not found


# -- the contract -----------------------------------------------------------------------------------------------------


def test_creating_a_run_takes_the_arguments_that_are_given() -> None:
    given = {
        "job_name", "run_id", "run_config", "status", "tags", "root_run_id", "parent_run_id", "step_keys_to_execute",
        "execution_plan_snapshot", "job_snapshot", "parent_job_snapshot", "asset_selection", "asset_check_selection",
        "resolved_op_selection", "op_selection", "remote_job_origin", "job_code_origin", "asset_graph",
    }  # fmt: skip
    assert set(inspect.signature(dg.DagsterInstance.create_run).parameters) == given | {"self"}, (
        "Dagster creates runs from other arguments: see what dagster_internals.copy_run has to hand on"
    )


def test_a_copy_is_of_the_same_work_and_made_once(instance: dg.DagsterInstance, launched: dg.DagsterRun) -> None:
    tags = {"copy_of": launched.run_id}
    copy, again = (
        internals.copy_run(instance, launched, run_id=run_id, tags=tags, asset_graph=GRAPH)
        for run_id in [str(uuid4())] * 2
    )
    assert again.run_id == copy.run_id != launched.run_id
    assert [found.run_id for found in internals.find_runs(instance, tags)] == [copy.run_id]
    assert copy.status == dg.DagsterRunStatus.NOT_STARTED
    assert copy.tags["copy_of"] == launched.run_id
    assert "owner" not in copy.tags
    for part in ("job_name", "asset_selection", "run_config", "remote_job_origin", "job_code_origin"):
        assert getattr(copy, part) == getattr(launched, part), part


def test_a_submitted_run_waits_in_the_queue_until_it_is_cancelled(
    instance: dg.DagsterInstance, launched: dg.DagsterRun
) -> None:
    assert internals.has_queue(instance)
    with dg.DagsterInstance.ephemeral() as without:
        assert not internals.has_queue(without)
    internals.submit_run(instance, launched.run_id)
    assert loaded(instance, launched.run_id).status == dg.DagsterRunStatus.QUEUED
    internals.cancel_queued_run(instance, launched.run_id)
    assert loaded(instance, launched.run_id).status == dg.DagsterRunStatus.CANCELED


def test_runs_are_found_by_all_their_tags_and_their_status(
    instance: dg.DagsterInstance, launched: dg.DagsterRun
) -> None:
    owner = {"owner": launched.tags["owner"]}
    internals.tag_run(instance, launched, {"zone": "y"})
    assert [r.run_id for r in internals.find_runs(instance, {**owner, "zone": "y"}, limit=2)] == [launched.run_id]
    assert not internals.find_runs(instance, {**owner, "zone": "x"})
    statuses = [dg.DagsterRunStatus.NOT_STARTED]
    assert [r.run_id for r in internals.find_runs(instance, owner, statuses=statuses)] == [launched.run_id]
    assert not internals.find_runs(instance, owner, statuses=[dg.DagsterRunStatus.STARTED])


def test_what_was_materialized(instance: dg.DagsterInstance, run: dg.DagsterRun, launched: dg.DagsterRun) -> None:
    assert internals.partitions_materialized_by(instance, run) == {"b"}
    assert internals.partitions_materialized_by(instance, launched) == set()
    assert set(internals.materialized_partitions(instance, rows.key)) == {"b"}


def test_the_latest_verdict_of_a_check_and_what_it_speaks_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    record = internals.latest_check(instance, agrees.check_key)
    assert record is not None
    assert record.evaluation is not None
    assert record.evaluation.passed
    target = record.evaluation.target_materialization_data
    assert target is not None
    assert target.storage_id == instance.fetch_materializations(rows.key, limit=1).records[0].storage_id


def test_a_run_whose_process_is_gone_is_failed_from_outside(
    instance: dg.DagsterInstance, launched: dg.DagsterRun
) -> None:
    internals.log_in_run(instance, launched, "its machine is gone")
    internals.fail_run(instance, launched, "no session of the run")
    assert loaded(instance, launched.run_id).status == dg.DagsterRunStatus.FAILURE
    told = "\n".join(entry.get_dagster_event().message or "" for entry in instance.all_logs(launched.run_id))
    assert "its machine is gone" in told
    assert "no session of the run" in told


def test_a_failed_run_that_dagster_starts_again(instance: dg.DagsterInstance, launched: dg.DagsterRun) -> None:
    internals.fail_run(instance, launched, "lost")
    assert not internals.will_be_retried(loaded(instance, launched.run_id))
    internals.tag_run(instance, launched, {"dagster/will_retry": "true"})
    assert internals.will_be_retried(loaded(instance, launched.run_id))


def test_a_pool_has_the_limit_that_was_set(instance: dg.DagsterInstance) -> None:
    assert internals.pool_limit(instance, "p") is None
    for runs in (3, 0):
        internals.set_pool_limit(instance, "p", runs)
        assert internals.pool_limit(instance, "p") == runs
    assert internals.pool_limit(instance, "q") is None


def test_a_storage_without_pools_is_left_alone() -> None:
    with dg.DagsterInstance.ephemeral() as without:
        if without.event_log_storage.supports_global_concurrency_limits:
            pytest.fail("the ephemeral instance has pools now: find another storage without them for this test")
        internals.set_pool_limit(without, "p", 3)
        assert internals.pool_limit(without, "p") is None


def test_backfills_of_one_asset_are_cancelled_and_no_others(instance: dg.DagsterInstance) -> None:
    other = dg.AssetKey("other")
    for name, assets in {"mine": [rows.key], "ours": [rows.key, other], "theirs": [other]}.items():
        instance.add_backfill(
            PartitionBackfill(
                backfill_id=name,
                status=BulkActionStatus.REQUESTED,
                from_failure=False,
                tags={},
                backfill_timestamp=time.time(),
                asset_selection=assets,
            )
        )
    assert not internals.is_backfill_cancelled(instance, "mine")
    assert internals.cancel_backfills(instance, rows.key) == ["mine"]
    assert internals.is_backfill_cancelled(instance, "mine")
    assert not internals.is_backfill_cancelled(instance, "theirs")
    assert not internals.is_backfill_cancelled(instance, "unheard of")
    assert internals.cancel_backfills(instance, rows.key) == []
