"""Projects: this repository's own and somebody else's, through the commands that a developer types."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
_FIRST = REPOSITORY / "zdm_pipelines/defs/users_display_name/defs.yaml"


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for Python's path that makes this checkout an installed package, with the entry points it declares."""
    declared = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    info = tmp_path_factory.mktemp("site") / f"zdm_pipelines-{declared['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {declared['name']}\nVersion: {declared['version']}\n")
    lines = []
    for group, points in declared["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return info.parent


@pytest.fixture
def dg_command(installed: Path, tmp_path: Path):
    """Call `dg` in a folder; gives exit status and output."""
    home = tmp_path / "dagster_home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")

    def call(*arguments: str, cwd: Path) -> tuple[int, str]:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("dg")), *arguments],
            cwd=cwd,
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith(("ZDM_", "DAGSTER_"))},
                "DAGSTER_HOME": str(home),
                "VIRTUAL_ENV": str(Path(sys.executable).parents[1]),
                "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, installed, cwd))),
                "COLUMNS": "200",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout

    return call


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A project that has nothing of ours in it."""
    project = tmp_path / "elsewhere"
    (project / "shop/defs").mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        '[tool.dg]\ndirectory_type = "project"\n\n[tool.dg.project]\nroot_module = "shop"\n'
    )
    (project / "shop/__init__.py").touch()
    (project / "shop/defs/__init__.py").touch()
    (project / "shop/definitions.py").write_text(
        "from pathlib import Path\n\nimport dagster as dg\n\n\n@dg.definitions\ndef defs():\n"
        "    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    return project


def test_this_repository_needs_no_database_and_no_environment(dg_command) -> None:
    status, said = dg_command("check", "defs", cwd=REPOSITORY)
    assert status == 0, said
    status, said = dg_command("list", "defs", "--json", cwd=REPOSITORY)
    assert status == 0, said
    for phase in ("plan", "expand", "backfill", "validate", "switch_reads", "contract"):
        assert f"users_display_name/{phase}" in said
    assert "rollback_users_display_name" in said


@pytest.mark.slow
def test_another_project_finds_and_scaffolds_the_components(dg_command, elsewhere: Path) -> None:
    status, said = dg_command("list", "components", cwd=elsewhere)
    assert status == 0, said
    assert "zdm_pipelines.ZeroDowntimeMigration" in said
    assert "zdm_pipelines.Database" in said
    for kind, name in (("Database", "app"), ("ZeroDowntimeMigration", "orders-total")):
        status, said = dg_command("scaffold", "defs", f"zdm_pipelines.{kind}", name, cwd=elsewhere)
        assert status == 0, said
    written = (elsewhere / "shop/defs/orders-total/defs.yaml").read_text()
    assert "type: zdm_pipelines.ZeroDowntimeMigration" in written
    assert "name: orders_total" in written
    status, said = dg_command("check", "defs", cwd=elsewhere)
    assert status == 0, said


def test_a_wrong_key_is_shown_with_file_line_and_caret(dg_command, elsewhere: Path) -> None:
    target = elsewhere / "shop/defs/users_display_name/defs.yaml"
    target.parent.mkdir()
    target.write_text(_FIRST.read_text().replace("batch_rows:", "batch_row:"))
    status, said = dg_command("check", "yaml", cwd=elsewhere)
    assert status == 1
    line = 1 + next(n for n, text in enumerate(target.read_text().splitlines()) if "batch_row:" in text)
    assert f"{target}:{line}" in said
    assert "^ Additional properties are not allowed ('batch_row' was unexpected)" in said


def test_the_client_imports_no_dagster() -> None:
    code = "import sys, zdm_pipelines, zdm_pipelines.client; sys.exit('dagster' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
