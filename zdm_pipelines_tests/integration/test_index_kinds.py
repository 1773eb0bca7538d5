"""Kinds of indexes as people use them: their assets through Dagster, and the zdm command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from zdm_pipelines_tests.helpers import one
from zdm_pipelines_tests.integration import dagster_migration
from zdm_pipelines_tests.integration.conftest import DEFS
from zdm_pipelines_tests.integration.dagster_migration import DECLARED, NAME, InProcess, key, refusal

Say = Callable[..., Any]
ADD = {"kind": "add_index", "name": "users_by_name", "columns": ["full_name"], "unique": True}
DROP = {"kind": "drop_index", "name": "users_by_name", "unused_for": None}
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass('users_by_name')"


def built(url: str) -> bool:
    """Whether the index stands."""
    return bool(one(url, f"SELECT coalesce(({VALID}), false)"))


def test_add_index_through_dagster(tmp_path: Path, app_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    defs = dagster_migration.load(dagster_migration.write_project(tmp_path, DECLARED | {"change": ADD}), monkeypatch)
    monkeypatch.setenv("ZDM_APP_URL", app_database)
    assert {k for k in defs.resolve_asset_graph().get_all_asset_keys() if k.path[0] == NAME} == {
        key("plan"), key("validate")
    }  # fmt: skip
    jobs = {job.name for job in defs.get_repository_def().get_all_jobs()}
    assert {name for name in jobs if name.endswith(NAME)} == {f"rollback_{NAME}"}
    with dg.DagsterInstance.ephemeral() as instance:
        chain = InProcess(defs, app_database, instance)
        chain.walk("plan")
        assert not built(app_database)
        chain.sql("UPDATE users SET full_name = 'same' WHERE id IN (7, 9)")
        said = refusal(chain.materialize("validate"))
        assert "check no_duplicates: 2 rows share with another row what is to be unique (first keys: 7, 9)" in said
        assert (chain.materialized(), chain.state()) == ({"plan"}, "building")
        chain.sql("UPDATE users SET full_name = 'other' WHERE id = 9")
        chain.walk("validate", "validate")
        assert built(app_database)
        shown = chain.latest("validate")
        assert shown is not None
        assert "no row stands against it" in str(shown.metadata["summary"].value)
        assert chain.rollback("rolled_back").success
        assert (built(app_database), chain.state()) == (False, "rolled_back")


@pytest.fixture
def declare(defs: Path) -> Callable[[dict[str, Any]], None]:
    """Write the migration's change."""

    def write(change: dict[str, Any]) -> None:
        database, migration = yaml.safe_load_all(DEFS)
        migration["attributes"] |= {"name": change["kind"], "change": change}
        defs.write_text(yaml.safe_dump_all([database, migration]))

    return write


def state(zdm: Say, name: str) -> str:
    return str(json.loads(zdm("status", name, "--json").stdout)["state"])


def test_indexes_through_the_command(zdm: Say, declare: Callable[[dict[str, Any]], None], database_of: str) -> None:
    declare(ADD | {"unique": False})
    assert 'CREATE INDEX CONCURRENTLY "users_by_name"' in zdm("plan", "add_index").stdout
    assert state(zdm, "add_index") == "planned"
    zdm("run", "add_index")
    assert (built(database_of), state(zdm, "add_index")) == (True, "validated")
    assert "index users_by_name is dropped" in zdm("rollback", "add_index", "--to", "rolled_back", "-y").output
    assert (built(database_of), state(zdm, "add_index")) == (False, "rolled_back")
    zdm("run", "add_index")

    declare(DROP)
    assert 'DROP INDEX CONCURRENTLY IF EXISTS "public"."users_by_name"' in zdm("plan", "drop_index").stdout
    assert built(database_of)
    zdm("run", "drop_index", "--phase", "contract", "-y")
    assert (built(database_of), state(zdm, "drop_index")) == (False, "contracted")
    assert "is gone" in zdm("rollback", "drop_index", "--to", "rolled_back", "-y", status=1).stderr
