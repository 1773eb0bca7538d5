"""Fixtures: a project that declares one migration, and the zdm command in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from zdm_pipelines.cli.app import app

DEFS = """\
type: zdm_pipelines.Database
attributes:
  name: app
---
type: zdm_pipelines.ZeroDowntimeMigration
attributes:
  name: users_display_name
  database: app
  table: public.users
  change:
    kind: replace_column
    old: full_name
    new: {name: display_name, type: text, nullable: false}
    up: full_name
    down: display_name
  backfill: {range_rows: 500, batch_rows: 100}
  throttle: {replication_lag: null, latency_p95: null}
  contract: {confidence_window: 0s, tombstone_window: 0s, straggler_window: 0s}
"""

Say = Callable[..., Any]


@pytest.fixture
def defs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that declares the migration; the working directory is its project."""
    file = tmp_path / "defs" / "users" / "defs.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(DEFS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZDM_DEFS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return file


@pytest.fixture
def zdm(defs: Path) -> Say:
    """Say something to zdm; the exit status is checked."""

    def say(*words: str, status: int = 0) -> Any:
        result = CliRunner().invoke(app, list(words))
        assert result.exit_code == status, result.output + repr(result.exception)
        assert "Traceback" not in result.output
        return result

    return say


@pytest.fixture
def database_of(app_database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The migration's database, named by its environment variable."""
    monkeypatch.setenv("ZDM_APP_URL", app_database)
    return app_database
