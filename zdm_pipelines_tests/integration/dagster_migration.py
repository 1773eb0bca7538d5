"""A declared migration as Dagster code, for tests: folders as users have them, runs in this process."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest
import yaml
from dagster._core.execution.execute_in_process_result import ExecuteInProcessResult

NAME = "users_display_name"
RANGES = f"{NAME}_ranges"
PROJECT = {
    "pyproject.toml": '[tool.dg]\ndirectory_type = "project"\n\n[tool.dg.project]\nroot_module = "shop"\n',
    "shop/__init__.py": "",
    "shop/definitions.py": "from pathlib import Path\n\nimport dagster as dg\n\n\n@dg.definitions\ndef defs():\n"
    "    declared = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    "    return dg.Definitions.merge(declared, dg.Definitions(executor=dg.in_process_executor))\n",
    "shop/defs/__init__.py": "",
}
DECLARED: dict[str, Any] = {
    "name": NAME,
    "database": "app",
    "table": "public.users",
    "change": {
        "kind": "replace_column",
        "old": "full_name",
        "new": {"name": "display_name", "type": "text", "nullable": False},
        "up": "full_name",
        "down": "display_name",
    },
    "backfill": {"range_rows": 500, "batch_rows": 100},
    "throttle": {"replication_lag": None, "latency_p95": None},
    "contract": {"confidence_window": "0s", "tombstone_window": "0s", "straggler_window": "1ms"},
}


def write_project(folder: Path, migration: Mapping[str, Any] | str | None = None) -> Path:
    """A Dagster project of somebody who has this package installed.

    Args:
        migration: attributes, or the whole defs.yaml; default: DECLARED.
    """
    for name, text in PROJECT.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    declare(folder, "databases", "type: zdm_pipelines.Database\nattributes: {name: app}\n")
    declare(folder, NAME, migration if isinstance(migration, str) else document(migration or DECLARED))
    return folder


def document(attributes: Mapping[str, Any]) -> str:
    """A migration's defs.yaml."""
    return yaml.safe_dump({"type": "zdm_pipelines.ZeroDowntimeMigration", "attributes": dict(attributes)})


def declare(folder: Path, name: str, text: str) -> Path:
    """Write a defs.yaml."""
    path = folder / "shop/defs" / name / "defs.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


class InProcess:
    """Runs of one migration in this process, on an instance of its own."""

    def __init__(self, defs: dg.Definitions, url: str, instance: dg.DagsterInstance) -> None:
        self.defs = defs
        self.url = url
        self.instance = instance

    def materialize(
        self, phase: str, config: Mapping[str, Any] | None = None, partitions: Sequence[str] = ()
    ) -> ExecuteInProcessResult:
        """One run of one asset; `partitions` are the first and the last."""
        job = self.defs.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            asset_selection=[key(phase)],
            instance=self.instance,
            raise_on_error=False,
            run_config={"ops": {f"{NAME}__{phase}": {"config": dict(config)}}} if config else None,
            tags={
                "dagster/asset_partition_range_start": partitions[0],
                "dagster/asset_partition_range_end": partitions[-1],
            }
            if partitions
            else None,
        )

    def rollback(self, to: str) -> ExecuteInProcessResult:
        """One run of the rollback job."""
        return self.defs.resolve_job_def(f"rollback_{NAME}").execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            run_config={"ops": {f"{NAME}__rollback": {"config": {"to": to}}}},
        )

    def ranges(self) -> list[str]:
        """The partitions that Dagster lists."""
        return list(self.instance.get_dynamic_partitions(RANGES))

    def materialized(self) -> set[str]:
        """Phases that Dagster shows as materialized; of backfill, all ranges."""
        found = {p for p in ("plan", "expand", "validate", "switch_reads", "contract") if self.latest(p)}
        if self.ranges() and set(self.ranges()) == self.instance.get_materialized_partitions(key("backfill")):
            found.add("backfill")
        return found

    def latest(self, phase: str) -> dg.AssetMaterialization | None:
        """What an asset's page shows."""
        event = self.instance.get_latest_materialization_event(key(phase))
        return event.asset_materialization if event else None

    def walk(self, *phases: str) -> None:
        """Materialize phases, each to its end."""
        for phase in phases:
            partitions = self.ranges() if phase == "backfill" else ()
            result = self.materialize(phase, {"percent": 100} if phase == "switch_reads" else None, partitions)
            assert result.success, refusal(result)

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Ask or change the application's database."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def state(self) -> str:
        """What the ledger says."""
        return str(self.sql("SELECT state FROM zdm.migration")[0][0])


def key(phase: str) -> dg.AssetKey:
    """The asset of a phase."""
    return dg.AssetKey([NAME, phase])


def refusal(result: ExecuteInProcessResult) -> str:
    """What the failed step says in the UI."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            assert data.user_failure_data is not None, data.error_display_string
            return str(data.user_failure_data.description)
    raise AssertionError("no step failed")


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """The definitions of a project's folder."""
    monkeypatch.syspath_prepend(str(folder))
    for module in [m for m in sys.modules if m == "shop" or m.startswith("shop.")]:
        monkeypatch.delitem(sys.modules, module)
    return dg.load_from_defs_folder(path_within_project=folder)
