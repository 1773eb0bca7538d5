"""Sensors, the resume schedule and lost runs: what Dagster does while nobody looks, one tick at a time."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.test_utils import create_test_daemon_workspace_context, instance_for_test
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.auto_run_reexecution.auto_run_reexecution import consume_new_runs_for_automatic_reexecution
from dagster._daemon.backfill import execute_backfill_iteration
from dagster._daemon.monitoring.run_monitoring import monitor_starting_run

from zdm_pipelines.components import continuation, lost_runs, pools
from zdm_pipelines.model.holds import OPERATOR
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.verbs import pause
from zdm_pipelines_tests.helpers import holding, work
from zdm_pipelines_tests.integration.dagster_migration import DECLARED, NAME, InProcess, key, load, write_project

WATCHED: dict[str, Any] = {
    **DECLARED,
    "backfill": {"range_rows": 500, "batch_rows": 100, "max_runs": 3},
    "throttle": {
        "replication_lag": None,
        "latency_p95": None,
        "sql": [{"name": "control", "query": "SELECT value FROM control", "pause_above": 5, "resume_below": 2}],
    },
}
MIGRATION = Migration.model_validate(WATCHED)


pytestmark = pytest.mark.filterwarnings("ignore:Starting in dagster 1.11")


@pytest.fixture
def chain(tmp_path: Path, app_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """Expanded, the first range moved."""
    defs = load(write_project(tmp_path, WATCHED), monkeypatch)
    monkeypatch.setenv("ZDM_APP_URL", app_database)
    with instance_for_test() as instance:
        found = InProcess(defs, app_database, instance)
        found.sql("CREATE TABLE control (value numeric); INSERT INTO control VALUES (1)")
        found.walk("expand")
        assert found.materialize("backfill", partitions=found.ranges()[:1]).success
        yield found


def tick(chain: InProcess, sensor: str = "app_control", cursor: str | None = None) -> dg.SensorResult:
    context = dg.build_sensor_context(
        instance=chain.instance, repository_def=chain.defs.get_repository_def(), cursor=cursor
    )
    result = chain.defs.get_sensor_def(sensor)(context)
    assert isinstance(result, dg.SensorResult)
    return result


def said(result: dg.SensorResult) -> str:
    assert result.skip_reason is not None
    return str(result.skip_reason.skip_message)


def resume(chain: InProcess) -> str:
    context = dg.build_schedule_context(instance=chain.instance, repository_def=chain.defs.get_repository_def())
    result = chain.defs.get_schedule_def("resume_app")(context)
    assert isinstance(result, dg.SkipReason)
    return str(result.skip_message)


def pool(chain: InProcess) -> int | None:
    return pools.limit(chain.instance, MIGRATION)


def owners(chain: InProcess) -> set[str]:
    return {owner for (owner,) in chain.sql("SELECT owner FROM zdm.hold")}


# -- sensors --------------------------------------------------------------------------------------------------


def test_a_bad_signal_holds_and_a_good_one_lets_runs_start_one_by_one(chain: InProcess) -> None:
    assert pool(chain) == 3
    good = tick(chain)
    assert said(good) == f"{NAME}: control is 1"
    chain.sql("UPDATE control SET value = 6")
    bad = tick(chain)
    assert "is held: control is 6, above 5; goes on at 2 (signal:control)" in said(bad)
    assert owners(chain) == {"signal:control"}
    assert pool(chain) == 0
    chain.sql("UPDATE control SET value = 3")  # between the limits: the last verdict stays
    assert "is held: control is 3" in said(tick(chain))
    chain.sql("UPDATE control SET value = 2")
    limits = []
    for _ in range(4):
        tick(chain)
        limits.append(pool(chain))
    assert limits == [1, 2, 3, 3]
    assert owners(chain) == set()
    chain.sql("UPDATE control SET value = 3")
    tick(chain)
    assert pool(chain) == 3


def test_readings_are_observations(chain: InProcess) -> None:
    chain.sql("UPDATE control SET value = 6.5")
    (event,) = tick(chain).asset_events
    assert isinstance(event, dg.AssetObservation)
    assert event.asset_key == dg.AssetKey(["app", "control"])
    assert event.metadata["value"] == dg.MetadataValue.float(6.5)
    assert event.metadata["held"] == dg.MetadataValue.text("yes")
    assert "above 5" in (event.description or "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE control SET value = NULL", "it gave NULL that is no finite number"),
        ("UPDATE control SET value = 'NaN'", "it gave a Decimal that is no finite number"),
        ("ALTER TABLE control ALTER value TYPE text USING 'soon'", "it gave a str that is no finite number"),
        ("DROP TABLE control", "does not exist"),
        ("DELETE FROM control", "cannot be read"),
        ("INSERT INTO control VALUES (2)", "cannot be read"),
        (
            "ALTER TABLE control RENAME TO c; CREATE VIEW control AS SELECT value FROM c, pg_sleep(60)",
            "cannot be read",
        ),
        (
            "ALTER TABLE control RENAME TO c; CREATE VIEW control AS SELECT 1 / (value - value) AS value FROM c",
            "DivisionByZero",
        ),
    ],
    ids=["null", "nan", "garbage", "missing", "no row", "two rows", "hangs", "error"],
)
def test_a_signal_that_cannot_be_read_holds_and_says_why(chain: InProcess, change: str, reason: str) -> None:
    chain.sql(change)
    result = tick(chain)
    assert "is held: control cannot be read" in said(result)
    assert reason in said(result)
    (event,) = result.asset_events
    assert "value" not in event.metadata
    assert pool(chain) == 0
    assert owners(chain) == {"signal:control"}


def test_a_reader_that_is_locked_out_holds(chain: InProcess) -> None:
    with holding(chain.url, "LOCK TABLE control"):
        assert "is held: control cannot be read" in said(tick(chain))
    assert "control is 1" in said(tick(chain))


def test_a_database_that_is_away_lets_no_run_start_until_it_is_back(
    chain: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZDM_APP_URL", "postgresql://nobody@127.0.0.1:1/none")
    assert "nothing is let through" in said(tick(chain))
    assert "cannot connect" in said(tick(chain))
    assert pool(chain) == 0
    assert "nothing is let through" in resume(chain)
    assert pool(chain) == 0
    monkeypatch.setenv("ZDM_APP_URL", chain.url)
    resume(chain)
    assert pool(chain) == 1


def test_a_recovered_signal_never_lifts_an_operators_pause(chain: InProcess) -> None:
    chain.sql("UPDATE control SET value = 6")
    tick(chain)
    pause.pause(work(MIGRATION, chain.url), reason="the big sale")
    chain.sql("UPDATE control SET value = 1")
    assert "is held: the big sale (operator)" in said(tick(chain))
    assert owners(chain) == {"operator"}
    assert "is held: the big sale" in resume(chain)
    assert pool(chain) == 0


def test_nobody_is_held_once_rows_are_moved(chain: InProcess) -> None:
    chain.walk("backfill")
    chain.sql("UPDATE control SET value = 6")
    assert said(tick(chain)) == "no backfill is under way"
    assert owners(chain) == set()
    pools.set_limit(chain.instance, MIGRATION, 0)  # left by a sensor that died
    for _ in range(3):
        resume(chain)
    assert pool(chain) == 3


def test_before_expand_no_database_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defs = load(write_project(tmp_path, WATCHED), monkeypatch)
    monkeypatch.delenv("ZDM_APP_URL", raising=False)
    with instance_for_test() as instance:
        chain = InProcess(defs, "", instance)
        assert said(tick(chain)) == "no backfill is under way"
        assert resume(chain) == "no backfill is under way"
        assert said(tick(chain, "lost_runs_app")) == "every run lives"


def test_new_code_is_published_to_running_backfills(chain: InProcess) -> None:
    chain.sql("UPDATE zdm.tuning SET declared = jsonb_set(declared, '{backfill,batch_rows}', '7')")
    tick(chain)
    assert chain.sql("SELECT declared #>> '{backfill,batch_rows}' FROM zdm.tuning") == [("100",)]


# -- jobs -----------------------------------------------------------------------------------------------------


def test_pause_resume_and_tune_with_one_click(chain: InProcess) -> None:
    def run(verb: str, **config: Any) -> Any:
        return chain.defs.resolve_job_def(f"{verb}_{NAME}").execute_in_process(
            instance=chain.instance,
            raise_on_error=False,
            run_config={"ops": {f"{NAME}__{verb}": {"config": config}}} if config else None,
        )

    assert run("pause").success
    assert owners(chain) == {OPERATOR}
    assert pool(chain) == 0
    assert run("pause", owner="deploy", reason="release 7").success
    assert run("resume").success
    assert owners(chain) == {"deploy"}
    assert pool(chain) == 0
    assert run("resume", owner="deploy").success
    assert owners(chain) == set()
    assert pool(chain) == 1
    assert run("tune", settings="backfill: {batch_rows: 7}").success
    assert pause.settings(work(MIGRATION, chain.url))[0].backfill.batch_rows == 7
    assert not run("tune", settings="backfill: {batch_rows: many}").success
    assert not run("tune", settings="7").success
    assert not run("pause", owner="signal:control").success
    assert run("tune", reset=True).success
    assert pause.settings(work(MIGRATION, chain.url))[0].backfill.batch_rows == 100


# -- lost runs ------------------------------------------------------------------------------------------------


def started(chain: InProcess) -> dg.DagsterRun:
    """A run that Dagster believes to be at work."""
    job = chain.defs.resolve_implicit_global_asset_job_def()
    run = chain.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED)
    continuation.mark(chain.instance, run, MIGRATION)
    return run


def status(chain: InProcess, run: dg.DagsterRun) -> dg.DagsterRunStatus:
    found = chain.instance.get_run_by_id(run.run_id)
    assert found is not None
    return found.status


def earlier(cursor: str | None, seconds: float) -> str:
    """The cursor as it would be, had everything begun earlier."""
    seen = json.loads(cursor or "{}")
    return json.dumps({kind: {name: at - seconds for name, at in since.items()} for kind, since in seen.items()})


def test_a_run_without_a_session_is_failed_after_a_while(chain: InProcess) -> None:
    run = started(chain)
    first = tick(chain, "lost_runs_app")
    assert "shows no session" in said(first)
    assert status(chain, run) == dg.DagsterRunStatus.STARTED
    second = tick(chain, "lost_runs_app", earlier(first.cursor, lost_runs._LOST_AFTER))
    assert f"run {run.run_id} is lost and was failed" in said(second)
    assert status(chain, run) == dg.DagsterRunStatus.FAILURE


def test_a_run_with_a_session_lives(chain: InProcess) -> None:
    run = started(chain)
    cursor = None
    with holding(chain.url, f"SELECT pg_advisory_lock_shared(hashtextextended('zdm:run:{run.run_id}', 0))"):
        for _ in range(2):
            result = tick(chain, "lost_runs_app", earlier(cursor, lost_runs._LOST_AFTER))
            cursor = result.cursor
            assert said(result) == "every run lives"
    assert status(chain, run) == dg.DagsterRunStatus.STARTED


def test_a_run_that_came_back_is_not_held_against(chain: InProcess) -> None:
    """A database that restarts takes every session with it for a moment."""
    run = started(chain)
    first = tick(chain, "lost_runs_app")
    with holding(chain.url, f"SELECT pg_advisory_lock_shared(hashtextextended('zdm:run:{run.run_id}', 0))"):
        second = tick(chain, "lost_runs_app", earlier(first.cursor, lost_runs._LOST_AFTER))
    third = tick(chain, "lost_runs_app", earlier(second.cursor, lost_runs._LOST_AFTER))
    assert "shows no session for 0 s" in said(third)
    assert status(chain, run) == dg.DagsterRunStatus.STARTED


def test_a_run_that_does_not_come_on_is_told_once(chain: InProcess) -> None:
    run = started(chain)
    with holding(chain.url, f"SELECT pg_advisory_lock_shared(hashtextextended('zdm:run:{run.run_id}', 0))"):
        cursor = tick(chain, "lost_runs_app").cursor
        for _ in range(3):
            result = tick(chain, "lost_runs_app", earlier(cursor, lost_runs._STUCK_AFTER))
            cursor = result.cursor
            assert "has written no batch for" in said(result)
        logged = [e for e in chain.instance.all_logs(run.run_id) if "has written no batch" in (e.message or "")]
        assert len(logged) == 1
        pause.pause(work(MIGRATION, chain.url), reason="wait")  # one that is held is not stuck
        assert said(tick(chain, "lost_runs_app", earlier(cursor, lost_runs._STUCK_AFTER))) == "every run lives"
    assert status(chain, run) == dg.DagsterRunStatus.STARTED


def test_a_backfill_that_was_rolled_back_ends_quietly(chain: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was launched before, and goes on now: by Dagster, after a kill, or out of the queue."""
    monkeypatch.setattr(continuation, "is_second_try", lambda _: True)
    monkeypatch.setattr(continuation, "attempt", lambda _: 0)
    result = chain.materialize("backfill", partitions=chain.ranges()[1:2])
    assert result.success
    assert chain.instance.get_materialized_partitions(key("backfill")) == set(chain.ranges()[:1])
    run = chain.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags["zdm/ended"] == "rolled back"


# -- continuations ----------------------------------------------------------------------------------------------


@pytest.fixture
def queued(tmp_path: Path, app_database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[InProcess]:
    """Expanded, on an instance with a queue that nobody empties."""
    defs = load(write_project(tmp_path, WATCHED), monkeypatch)
    monkeypatch.setenv("ZDM_APP_URL", app_database)
    coordinator = {"module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator"}
    with instance_for_test(overrides={"run_coordinator": coordinator}) as instance:
        found = InProcess(defs, app_database, instance)
        found.sql("CREATE TABLE control (value numeric); INSERT INTO control VALUES (1)")
        found.walk("expand")
        yield found


@pytest.fixture
def workspace(queued: InProcess, tmp_path: Path) -> Iterator[WorkspaceProcessContext]:
    target = ModuleTarget(
        module_name="shop.definitions", attribute=None, working_directory=str(tmp_path), location_name="shop"
    )
    with create_test_daemon_workspace_context(target, queued.instance) as found:
        yield found


def launched(queued: InProcess, workspace: WorkspaceProcessContext) -> dg.DagsterRun:
    """The one queued run of a backfill of every range."""
    backfill = PartitionBackfill.from_asset_partitions(
        asset_graph=workspace.create_request_context().asset_graph, backfill_id="a1", tags={},
        backfill_timestamp=time.time(), asset_selection=[key("backfill")], partition_names=queued.ranges(),
        dynamic_partitions_store=queued.instance, all_partitions=False, title=None, description=None, run_config=None,
    )  # fmt: skip
    queued.instance.add_backfill(backfill)
    list(execute_backfill_iteration(workspace, logging.getLogger("daemon")))
    (run,) = of_backfill(queued)
    return run


def of_backfill(queued: InProcess) -> list[dg.DagsterRun]:
    return list(queued.instance.get_runs(filters=dg.RunsFilter(tags={"dagster/backfill": "a1"})))


def died_while_handing_over(queued: InProcess, run: dg.DagsterRun) -> None:
    continuation.mark(queued.instance, run, MIGRATION)
    continuation.paused(queued.instance, run, "the replica is late")
    queued.instance.report_run_failed(run)


def bounds(run: dg.DagsterRun) -> tuple[str, str]:
    return run.tags["dagster/asset_partition_range_start"], run.tags["dagster/asset_partition_range_end"]


def test_the_schedule_continues_what_a_paused_run_left_once(
    queued: InProcess, workspace: WorkspaceProcessContext
) -> None:
    run, ranges = launched(queued, workspace), queued.ranges()
    died_while_handing_over(queued, run)
    # Two ranges were done, one of them in the middle.
    for partition in (ranges[0], ranges[2]):
        event = dg.AssetMaterialization(key("backfill"), partition=partition)
        queued.instance.report_dagster_event(_materialized(run, event), run.run_id)
    assert "goes on as run" in resume(queued)
    for _ in range(3):
        resume(queued)
    new = [r for r in of_backfill(queued) if r.run_id != run.run_id]
    assert sorted(bounds(r) for r in new) == [(ranges[1], ranges[1]), (ranges[3], ranges[3])]
    assert {r.status for r in new} == {dg.DagsterRunStatus.QUEUED}
    assert {r.tags["zdm/continues"] for r in new} == {run.run_id}
    assert all("zdm/ended" not in r.tags and r.tags["dagster/max_retries"] == "10" for r in new)


def _materialized(run: dg.DagsterRun, event: dg.AssetMaterialization) -> dg.DagsterEvent:
    from dagster._core.events import DagsterEventType, StepMaterializationData

    return dg.DagsterEvent(
        event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
        job_name=run.job_name,
        event_specific_data=StepMaterializationData(materialization=event, asset_lineage=[]),
    )


def test_a_continuation_that_was_made_and_not_queued_is_queued(
    queued: InProcess, workspace: WorkspaceProcessContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = launched(queued, workspace)
    died_while_handing_over(queued, run)

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(queued.instance), "submit_run", dies)
        with pytest.raises(KeyboardInterrupt):
            resume(queued)
    (made,) = [r for r in of_backfill(queued) if r.run_id != run.run_id]
    assert made.status == dg.DagsterRunStatus.NOT_STARTED
    resume(queued)
    (now,) = [r for r in of_backfill(queued) if r.run_id != run.run_id]
    assert (now.run_id, now.status) == (made.run_id, dg.DagsterRunStatus.QUEUED)


def test_nothing_is_continued_that_an_operator_holds(queued: InProcess, workspace: WorkspaceProcessContext) -> None:
    """It waits in the queue, which keeps the backfill open; the pool lets it not through."""
    died_while_handing_over(queued, launched(queued, workspace))
    pause.pause(work(MIGRATION, queued.url), reason="not now")
    assert "is held: not now" in resume(queued)
    assert Counter(run.status for run in of_backfill(queued)) == {
        dg.DagsterRunStatus.FAILURE: 1,
        dg.DagsterRunStatus.QUEUED: 1,
    }
    assert pool(queued) == 0


def test_what_somebody_cancelled_is_not_continued(queued: InProcess, workspace: WorkspaceProcessContext) -> None:
    run = launched(queued, workspace)
    continuation.mark(queued.instance, run, MIGRATION)
    continuation.paused(queued.instance, run, "the replica is late")
    queued.instance.report_run_canceled(run)
    resume(queued)
    assert [r.status for r in of_backfill(queued)] == [dg.DagsterRunStatus.CANCELED]


def test_a_paused_run_executed_again_is_not_paused(queued: InProcess, workspace: WorkspaceProcessContext) -> None:
    run = launched(queued, workspace)
    continuation.paused(queued.instance, run, "the replica is late")
    again = queued.instance.get_run_by_id(run.run_id)
    assert again is not None
    continuation.mark(queued.instance, again, MIGRATION)  # as a run does that begins with these tags
    queued.instance.report_run_failed(again)
    resume(queued)
    assert len(of_backfill(queued)) == 1


def test_what_dagster_starts_again_is_not_continued_too(queued: InProcess, workspace: WorkspaceProcessContext) -> None:
    run = launched(queued, workspace)
    died_while_handing_over(queued, run)
    queued.instance.add_run_tags(run.run_id, {"dagster/will_retry": "true"})
    resume(queued)
    assert len(of_backfill(queued)) == 1


def test_a_run_whose_daemon_died_while_it_launched_it_begins_anew(
    queued: InProcess, workspace: WorkspaceProcessContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken from the queue and never launched: Dagster's monitor fails it, and it is started again as a lost one is."""
    run = launched(queued, workspace)
    continuation.mark(queued.instance, run, MIGRATION)
    starting = dg.DagsterEvent(event_type_value="PIPELINE_STARTING", job_name=run.job_name)
    queued.instance.report_dagster_event(starting, run.run_id)
    monkeypatch.setattr(type(queued.instance), "run_retries_enabled", True)
    monkeypatch.setattr(type(queued.instance), "run_monitoring_start_timeout_seconds", 0)
    (record,) = queued.instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id]))
    monitor_starting_run(queued.instance, record, logging.getLogger("daemon"))
    records = queued.instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id]))
    list(consume_new_runs_for_automatic_reexecution(workspace, records, logging.getLogger("daemon")))
    again = {r.run_id: r for r in of_backfill(queued)}
    assert again.pop(run.run_id).status == dg.DagsterRunStatus.FAILURE
    (new,) = again.values()
    assert (new.status, bounds(new)) == (dg.DagsterRunStatus.QUEUED, bounds(run))


def test_rollback_takes_what_waits_out_of_the_queue(queued: InProcess, workspace: WorkspaceProcessContext) -> None:
    run = launched(queued, workspace)
    continuation.mark(queued.instance, run, MIGRATION)
    assert not queued.rollback("validated").success  # it is not there yet; the backfill goes on
    assert [r.status for r in of_backfill(queued)] == [dg.DagsterRunStatus.QUEUED]
    assert queued.rollback("rolled_back").success
    backfill = queued.instance.get_backfill("a1")
    assert backfill is not None
    assert backfill.status == BulkActionStatus.CANCELED
    assert [r.status for r in of_backfill(queued)] == [dg.DagsterRunStatus.CANCELED]
    pools.set_limit(queued.instance, MIGRATION, 0)
    for _ in range(3):
        resume(queued)
    assert pool(queued) == 3  # expand can run again


def test_ranges_that_were_cut_anew_are_not_continued(queued: InProcess, workspace: WorkspaceProcessContext) -> None:
    died_while_handing_over(queued, launched(queued, workspace))
    for partition in queued.ranges():
        queued.instance.delete_dynamic_partition(f"{NAME}_ranges", partition)
    resume(queued)
    assert len(of_backfill(queued)) == 1
