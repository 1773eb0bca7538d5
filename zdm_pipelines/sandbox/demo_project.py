"""Demo project: the Dagster project that the demo's users would have, written into a folder.

Any project that has this package installed looks like this one: three files and a folder of YAML.
"""

from __future__ import annotations

from pathlib import Path

NAME = "users_display_name"

_FILES = {
    "pyproject.toml": """\
[project]
name = "shop"
version = "0.1.0"
requires-python = ">=3.11"

[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "shop"
""",
    "workspace.yaml": """\
load_from:
  - python_module:
      module_name: shop.definitions
      working_directory: .
      location_name: shop
""",
    "shop/__init__.py": '"""The demo\'s shop."""\n',
    "shop/definitions.py": """\
\"\"\"Dagster's entry: loads defs/.\"\"\"

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    declared = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    return dg.Definitions.merge(declared, dg.Definitions(executor=dg.in_process_executor))
""",
    "shop/defs/databases/defs.yaml": """\
type: zdm_pipelines.Database
attributes:
  name: app
""",
    f"shop/defs/{NAME}/defs.yaml": f"""\
type: zdm_pipelines.ZeroDowntimeMigration
attributes:
  name: {NAME}
  database: app
  table: public.users
  change:
    kind: replace_column
    old: full_name
    new: {{name: display_name, type: text, nullable: false}}
    up: full_name
    down: display_name
  backfill: {{range_rows: RANGE_ROWS, batch_rows: 1000, batch_target: 250ms, max_parallel: 2}}
  throttle:
    replication_lag: {{pause_above: 5s, resume_below: 1s}}
    latency_p95: {{pause_above: 250ms, resume_below: 100ms}}
  reads: {{flag: read_{NAME}, ramp: [1, 10, 50, 100]}}
  contract:            # seconds, to be watched; days in earnest
    confidence_window: 5s
    tombstone_window: 5s
    straggler_window: 8s
""",
}


def write(folder: Path, *, rows: int, instance: Path) -> Path:
    """Write the files of the project.

    Args:
        rows: of the table that it migrates, for the size of a range.
        instance: the `dagster.yaml` to use.

    Returns:
        Its `workspace.yaml`.
    """
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # About twenty ranges, so that there is something to see, but none so small that it is over at once.
        path.write_text(text.replace("RANGE_ROWS", str(max(2_000, rows // 20))), encoding="utf-8")
    (folder / "dagster.yaml").write_text(instance.read_text(encoding="utf-8"), encoding="utf-8")
    return folder / "workspace.yaml"
