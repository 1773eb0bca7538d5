"""A declaration that was edited, broken or deleted after its migration began: brakes work, phases say what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from zdm_pipelines.components.resources import DatabaseResource
from zdm_pipelines.components.rollback import of_migration
from zdm_pipelines.model.errors import GateRefused, StateConflict
from zdm_pipelines.model.migration import Migration, stored_change
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import contract, expand, switch_reads, validate
from zdm_pipelines.verbs import pause, plan, rollback, status, watch
from zdm_pipelines_tests.helpers import backfilled, expanded, one, people, replaced, sql, state, walk, work

NAME = "users_display_name"
M = replaced()
ADD = {"kind": "add_index", "name": "people_note", "columns": ["note"]}
DROP = {"kind": "drop_index", "name": "people_pkey"}
PURGE = {"kind": "purge_rows", "where": "id < 5"}
COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = 'people'::regclass AND attnum > 0 AND NOT attisdropped"

Say = Callable[..., Any]


def edited(change: dict[str, Any]) -> Migration:
    return M.model_copy(update={"change": stored_change(change)})


@pytest.fixture
def url(database: str) -> str:
    people(database, 20)
    return database


@pytest.mark.parametrize("change", [ADD, DROP, PURGE], ids=lambda change: change["kind"])
def test_brakes_take_back_what_was_begun(url: str, change: dict[str, Any]) -> None:
    before, other = sql(url, COLUMNS), work(edited(change), url)
    walk(M, url, State.SWITCHED)
    assert other.lifecycle.states != M.lifecycle.states
    assert [h.reason for h in pause.pause(other, reason="lunch")] == ["lunch"]
    assert switch_reads.run(other, percent=0).state == State.VALIDATED
    assert rollback.run(other, to=State.ROLLED_BACK, force=True) == State.ROLLED_BACK
    assert sql(url, COLUMNS) == before


@pytest.mark.parametrize("now", [State.BACKFILLED, State.SWITCHED, State.TOMBSTONED])
def test_brakes_find_a_table_that_was_renamed(url: str, now: State) -> None:
    """Also one that left its name to a view, as people do for code that still says the old name."""
    before, context = sql(url, COLUMNS), work(M, url)
    walk(M, url, now)
    sql(url, 'CREATE SCHEMA hr; ALTER TABLE people SET SCHEMA hr; ALTER TABLE hr.people RENAME TO "Persons"')
    if now == State.SWITCHED:
        sql(url, 'CREATE VIEW people AS SELECT id FROM hr."Persons"')
        assert switch_reads.run(context, percent=0).state == State.VALIDATED
    assert [h.reason for h in pause.pause(context, reason="lunch")] == ["lunch"]
    assert rollback.run(context, to=State.ROLLED_BACK, force=True) == State.ROLLED_BACK
    assert sql(url, COLUMNS.replace("people", 'hr."Persons"')) == before


def test_the_job_takes_back_what_was_begun(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dagster's job of the edited file, whose states and phases are others."""
    monkeypatch.setenv("ZDM_APP_URL", url)
    walk(M, url, State.SWITCHED)
    with dg.DagsterInstance.ephemeral() as instance:
        database = DatabaseResource(name="app", url_env="ZDM_APP_URL")
        for to in (State.BACKFILLED, State.ROLLED_BACK):
            done = of_migration(edited(ADD)).execute_in_process(
                instance=instance,
                resources={"database_app": database},
                run_config={"ops": {f"{M.name}__rollback": {"config": {"to": str(to), "force": True}}}},
            )
            assert done.success
            assert state(M, url) == to


def test_phases_say_what_differs(url: str) -> None:
    expanded(M, url)
    index, purge = work(edited(ADD), url), work(edited(PURGE), url)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("add_index", lambda: plan.read(index)),
        ("add_index", lambda: validate.run(index)),
        ("purge_rows", lambda: plan.read(purge)),
        ("purge_rows", lambda: expand.run(purge)),
        ("purge_rows", lambda: validate.run(purge)),
        ("purge_rows", lambda: list(contract.destroy(purge))),
    ]
    for kind, call in calls:
        said = rf"{M.name}: began with another declaration of kind \(replace_column, now {kind}\); put defs\.yaml"
        with pytest.raises(StateConflict, match=said):
            call()
    for change in (DROP, PURGE):
        with pytest.raises(GateRefused, match=r"another declaration of kind \(replace_column, now") as refused:
            contract.run(work(edited(change), url))
        assert list(refused.value.reasons) == contract.refusals(work(edited(change), url))
    assert watch.look(index).state == State.EXPANDED
    assert status.read(index).lifecycle == M.lifecycle
    assert state(M, url) == State.EXPANDED
    backfilled(M, url)


def test_rolled_back_it_may_be_another_kind(url: str) -> None:
    expanded(M, url)
    rollback.run(work(M, url), to=State.ROLLED_BACK)
    assert contract.refusals(work(edited(PURGE), url)) == [f"{M.name} is rolled_back, contract begins from validated"]
    assert status.read(work(edited(ADD), url)).conflict == ""
    assert validate.run(work(edited(ADD), url)).state == State.VALIDATED
    assert one(url, "SELECT count(*) FROM pg_indexes WHERE indexname = 'people_note'") == 1


REPLACED = "    kind: replace_column\n    old: full_name\n    new: {name: display_name, type: text, nullable: false}\n"
INDEXED = "    kind: add_index\n    name: users_by_name\n    columns: [full_name]\n"


def test_the_command_line_with_another_kind(zdm: Say, database_of: str, defs: Path) -> None:
    zdm("run", NAME, "--to", "backfill")
    declared = defs.read_text()
    defs.write_text(declared.replace(REPLACED, INDEXED).replace("    up: full_name\n    down: display_name\n", ""))
    told = zdm("status", NAME).stdout
    assert "began with another declaration of kind (replace_column, now add_index)" in told
    assert "zdm run users_display_name --phase validate" in told
    assert "--phase validate" in zdm("status").stdout
    assert json.loads(zdm("status", NAME, "--json").stdout)["conflict"].startswith(NAME)
    assert "another declaration of kind" in zdm("plan", NAME, status=1).stderr
    assert "another declaration of kind" in zdm("run", NAME, status=1).stderr
    assert "another declaration of kind" in zdm("doctor", NAME, status=1).stdout
    said = zdm("rollback", NAME, "--to", "switched", "--yes", status=1).stderr
    assert "is backfilled, before switched" in said
    assert "column display_name is dropped" in zdm("rollback", NAME, "--to", "rolled_back", "--yes").stderr
    assert one(database_of, "SELECT state FROM zdm.migration") == "rolled_back"


@pytest.mark.parametrize("broken", [True, False])
def test_brakes_without_a_declaration(zdm: Say, database_of: str, defs: Path, broken: bool) -> None:
    zdm("run", NAME)
    zdm("run", NAME, "--phase", "switch-reads", "--percent", "100")
    declared = defs.read_text()
    wrong = declared.replace("old: full_name", "odl: full_name")
    defs.write_text(wrong if broken else declared.partition("---")[0])
    assert "50 %" in zdm("flag", NAME, "50").stdout
    for verb in (("run", NAME), ("flag", NAME, "60")):
        assert NAME in zdm(*verb, status=2).stderr
    paused = zdm("pause", NAME)
    assert "paused by" in paused.stdout
    assert "taken as it was begun in database app" in paused.stderr
    assert "switching" in zdm("status", NAME).stdout
    assert "is validated" in zdm("flag", NAME, "0").stdout
    zdm("rollback", NAME, "--to", "rolled_back", "--yes")
    assert one(database_of, "SELECT state FROM zdm.migration") == "rolled_back"
    assert "nothing holds" in zdm("resume", NAME).stdout
    assert "is not declared" in zdm("status", "nobody", status=2).stderr or broken
