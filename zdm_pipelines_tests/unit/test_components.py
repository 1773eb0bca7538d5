"""Components: what a declaration becomes, and what is said of one that cannot be meant."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

import zdm_pipelines
from zdm_pipelines.components import Database, ZeroDowntimeMigration, metadata, rollback, scaffold
from zdm_pipelines.components.progress import Progress
from zdm_pipelines.components.resources import DatabaseResource
from zdm_pipelines.model.errors import SpecError, StateConflict
from zdm_pipelines.model.migration import Database as DeclaredDatabase
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase
from zdm_pipelines.model.values import Check, Step
from zdm_pipelines_tests.helpers import replaced
from zdm_pipelines_tests.integration.dagster_migration import (
    DECLARED,
    NAME,
    declare,
    document,
    key,
    load,
    write_project,
)


def test_type_names_are_short() -> None:
    assert zdm_pipelines.ZeroDowntimeMigration is ZeroDowntimeMigration
    assert zdm_pipelines.Database is Database
    assert {"Database", "ZeroDowntimeMigration"} < set(dir(zdm_pipelines))
    with pytest.raises(AttributeError):
        _ = zdm_pipelines.NoSuchThing


def test_the_schema_is_the_model() -> None:
    assert ZeroDowntimeMigration.get_model_cls() is Migration
    assert Database.get_model_cls() is DeclaredDatabase


def test_a_migration_is_a_chain_of_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZDM_APP_URL", raising=False)  # loading asks no database
    throttle = {**DECLARED["throttle"], "sql": [{"name": "x", "query": "SELECT 1", "pause_above": 2}]}
    defs = load(write_project(tmp_path, {**DECLARED, "throttle": throttle}), monkeypatch)
    dg.Definitions.validate_loadable(defs)
    graph = defs.resolve_asset_graph()
    chain = ["plan", *Phase]
    for before, after in itertools.pairwise(chain):
        assert graph.get(key(after)).parent_keys == {key(before)}
    for phase in chain:
        node = graph.get(key(phase))
        assert node.group_name == NAME
        assert node.kinds == {"postgres"}
        assert "old: full_name" in (node.description or "")
        assert node.is_partitioned == (phase == "backfill")
    assert graph.get(key("backfill")).backfill_policy == dg.BackfillPolicy.multi_run(100)
    assert {c.name for c in graph.asset_check_keys} == {"parity", "backfill_complete", "constraints_valid"}
    assert {job.name for job in defs.jobs or []} == {
        f"{verb}_{NAME}" for verb in ("rollback", "pause", "resume", "tune")
    }
    on = {sensor.name: sensor.default_status for sensor in defs.sensors or []}
    assert on == dict.fromkeys(("app_x", "lost_runs_app"), dg.DefaultSensorStatus.RUNNING)
    assert [(s.name, s.cron_schedule, s.default_status) for s in defs.schedules or []] == [  # type: ignore[union-attr]
        ("resume_app", "* * * * *", dg.DefaultScheduleStatus.RUNNING)
    ]
    assert graph.get(dg.AssetKey(["app", "x"])).group_name == "app_signals"


@pytest.mark.parametrize(
    ("path", "value", "line", "said"),
    [
        (["backfill", "batch_row"], 5, "batch_row:", "Extra inputs are not permitted"),
        (["backfill", "batch_rows"], "many", "batch_rows:", "valid integer"),
        (["backfill", "batch_target"], "250", "batch_target:", "is not a duration"),
        (["reads"], {"ramp": [1, 10]}, "ramp:", "must rise and end at 100"),
        (["table"], "a.b.c", "table:", "is not a table name"),
        (["change", "kind"], "rename", "change:", "does not match any of the expected tags"),
    ],
)
def test_a_mistake_is_told_with_its_line(
    path: list[str], value: Any, line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declared = yaml.safe_load(yaml.safe_dump(DECLARED))
    place = declared
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    text = document(declared)
    write_project(tmp_path, text)
    number = 1 + next(n for n, written in enumerate(text.splitlines()) if line in written)
    error = _refused(tmp_path, monkeypatch)
    assert f"{NAME}/defs.yaml:{number}" in error
    assert said in error


def test_an_undeclared_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = document({**DECLARED, "database": "ap"})
    write_project(tmp_path, text)
    number = 1 + next(n for n, written in enumerate(text.splitlines()) if "database:" in written)
    error = _refused(tmp_path, monkeypatch)
    assert f"{NAME}/defs.yaml:{number}: database ap is not declared (declared: app)" in error


@pytest.mark.parametrize("what", ["migration", "database"])
def test_a_name_twice(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_project(tmp_path)
    text = document(DECLARED) if what == "migration" else "type: zdm_pipelines.Database\nattributes: {name: app}\n"
    declare(tmp_path, "again", text)
    assert f"{what} {NAME if what == 'migration' else 'app'} is declared more than once" in _refused(
        tmp_path, monkeypatch
    )


def _refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The whole chain of errors, as `dg check defs` prints it."""
    with pytest.raises(Exception) as caught:
        load(folder, monkeypatch)
    parts: list[str] = []
    error: BaseException | None = caught.value
    while error is not None:
        parts.append(str(error))
        error = error.__cause__
    return "\n".join(parts)


@pytest.mark.parametrize(("folder", "name"), [("orders", "orders"), ("Orders Total-2", "orders_total_2"), ("7", "m_7")])
def test_what_is_scaffolded_can_be_read(folder: str, name: str, tmp_path: Path) -> None:
    for component, model in ((ZeroDowntimeMigration, Migration), (Database, DeclaredDatabase)):
        target = tmp_path / component.__name__ / folder
        scaffolder = scaffold.MigrationScaffolder() if model is Migration else scaffold.DatabaseScaffolder()
        request: Any = dg.ScaffoldRequest(
            type_name=f"zdm_pipelines.{component.__name__}",
            target_path=target,
            scaffold_format="yaml",
            project_root=None,
            params=None,
        )
        scaffolder.scaffold(request)
        text = (target / "defs.yaml").read_text()
        written = yaml.safe_load(text)
        assert written["type"] == f"zdm_pipelines.{component.__name__}"
        assert model.model_validate(written["attributes"]).name == name


def test_what_a_scaffold_shows_as_default_is_the_default(tmp_path: Path) -> None:
    request: Any = dg.ScaffoldRequest(
        type_name="zdm_pipelines.ZeroDowntimeMigration",
        target_path=tmp_path / "orders",
        scaffold_format="yaml",
        project_root=None,
        params=None,
    )
    scaffold.MigrationScaffolder().scaffold(request)
    text = (tmp_path / "orders/defs.yaml").read_text()
    shown = Migration.model_validate(yaml.safe_load(re.sub(r"(?m)^  # ", "  ", text))["attributes"])
    silent = Migration.model_validate(yaml.safe_load(text)["attributes"])
    assert shown.reads.flag == silent.flag
    assert shown.model_copy(update={"reads": silent.reads}) == silent


def test_rollback_offers_every_target() -> None:
    m = replaced()
    assert [rollback.target(m, str(to)) for to in m.lifecycle.targets] == list(m.lifecycle.targets)
    with pytest.raises(StateConflict, match="choose one of switched, validated, backfilled, expanded, rolled_back"):
        rollback.target(m, "contracted")


def test_a_database_reads_its_url_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = DatabaseResource(name="app", url_env="ZDM_TEST_URL")
    monkeypatch.delenv("ZDM_TEST_URL", raising=False)
    with pytest.raises(SpecError, match="ZDM_TEST_URL is not set"):
        resource.url()
    monkeypatch.setenv("ZDM_TEST_URL", "postgresql://host/db")
    assert resource.url() == "postgresql://host/db"


def test_a_plan_is_a_table() -> None:
    step = Step(name="add | column", sql="ALTER TABLE t\n  ADD COLUMN c text", reason="why", lock="none", undo="DROP")
    shown = metadata.plan({Phase.EXPAND: [step]}).value
    assert shown is not None
    assert shown.splitlines()[-1] == ("| expand | add \\| column | none | why | `ALTER TABLE t ADD COLUMN c text` |")
    assert "ALTER TABLE t\n  ADD COLUMN c text" in str(metadata.statements({Phase.EXPAND: [step]}).value)


def test_a_check_shows_counts_as_numbers_and_keys_as_lists() -> None:
    check = Check(name="parity", passed=False, summary="s", facts={"different": 2, "ranges": ["000001"], "none": []})
    shown = metadata.of_check(check)
    assert shown["different"] == 2
    assert shown["ranges"].value == "- 000001"
    assert "none" not in shown


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("zdm_pipelines.components.progress.time.monotonic", lambda: now)
    told: list[str] = []
    progress = Progress(told.append, lambda rows, seconds, detail: f"{rows} in {seconds:g} {detail}")
    for now in range(1, 3601):  # noqa: B007 - read by the clock
        progress.add(10, "x")
    assert told[0] == "20 in 2 x"
    assert 60 < len(told) < 160


def test_two_migrations_of_one_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = write_project(tmp_path)
    declare(project, "another", document({**DECLARED, "name": "another", "table": "public.others"}))
    defs = load(project, monkeypatch)
    dg.Definitions.validate_loadable(defs)
    jobs = {job.name for job in defs.get_repository_def().get_all_jobs()}
    assert {"pause_another", f"pause_{NAME}"} <= jobs
    assert [schedule.name for schedule in defs.schedules or []] == ["resume_app"]
