"""Scaffold: the commented defs.yaml that `dg scaffold defs` writes."""

from __future__ import annotations

import re
from textwrap import indent

import click
import dagster as dg
from pydantic import BaseModel

from zdm_pipelines.changes import KINDS

_MIGRATION = """\
# One change to one table. Required: name, database, table, change. Every other key shows its default.
type: {type}
attributes:
  name: {name}  # group of the assets, and name in the ledger: do not rename it once expand has run
  database: app  # a declared database: dg scaffold defs {database} app
  table: public.users  # schema.table; a part that holds a dot or quote in double quotes
  change:  # one of these kinds: {kinds}
    kind: {kind}
{example}

  # backfill:
  #   range_rows: 100000  # rows of a range, which is one partition
  #   batch_rows: 1000  # most rows of one transaction
  #   batch_target: 250ms  # batches shrink when they take longer
  #   max_parallel: 2  # ranges at once, over all runs
  # throttle:  # wait above one value, go on below the other; null: not watched; more signals: docs/configuration.md
  #   replication_lag: {{pause_above: 5s, resume_below: 1s}}
  #   latency_p95: {{pause_above: 250ms, resume_below: 100ms}}
  #   max_wait: 10m  # then the run ends as paused; a signal above its critical_above ends it at once
  #   nice: 0  # rest after each batch, in times of what it took; 1 halves load and speed
  # allowed: []  # when the backfill may write, as 22:00-06:00 Europe/Berlin; empty: always
  # locks:
  #   timeout: 500ms  # longest that the application may queue behind a statement of ours
  #   give_up_after: 10m
  # reads:
  #   flag: read_{name}  # what the application asks
  #   ramp: [1, 10, 50, 100]  # percent, one stage per materialization of switch_reads
  # contract:
  #   confidence_window: 7d  # all reads on the new shape, before the old shape is renamed away
  #   tombstone_window: 1d  # then kept this long before it is dropped
  #   straggler_window: 25h  # nobody wrote the old shape for this long
"""

_DATABASE = """\
# A database that migrations name. Its URL stays in the environment and is read by runs only.
type: {type}
attributes:
  name: {name}
  url_env: {variable}  # postgresql://user:password@host:5432/dbname
  # replicas: []  # variables with the URLs of replicas whose lag is watched
  # max_parallel: 2  # batches at once, over all its migrations
"""


def _name(request: dg.ScaffoldRequest[BaseModel]) -> str:
    """The folder's name, as a name that a declaration may have."""
    name = re.sub(r"[^a-z0-9]+", "_", request.target_path.name.lower()).strip("_")
    return name if name[:1].isalpha() else f"m_{name}".rstrip("_")


def _write(request: dg.ScaffoldRequest[BaseModel], text: str) -> None:
    if request.scaffold_format != "yaml":
        raise click.UsageError("migrations and databases are declared in YAML: leave --format away")
    if request.append:
        with request.target_path.open("a", encoding="utf-8") as file:
            file.write(f"---\n{text}")
    else:
        request.target_path.mkdir(parents=True, exist_ok=True)
        (request.target_path / "defs.yaml").write_text(text, encoding="utf-8")


class MigrationScaffolder(dg.Scaffolder[BaseModel]):
    """Writes a migration to fill in."""

    def scaffold(self, request: dg.ScaffoldRequest[BaseModel]) -> None:
        """Write the `defs.yaml` of a migration."""
        database = f"{request.type_name.rpartition('.')[0]}.Database"
        kind = KINDS["replace_column"]
        _write(
            request,
            _MIGRATION.format(
                type=request.type_name,
                name=_name(request),
                database=database,
                kind=kind.name,
                kinds=", ".join(KINDS),
                example=indent(kind.example, "    "),
            ),
        )


class DatabaseScaffolder(dg.Scaffolder[BaseModel]):
    """Writes a database to fill in."""

    def scaffold(self, request: dg.ScaffoldRequest[BaseModel]) -> None:
        """Write the `defs.yaml` of a database."""
        name = _name(request)
        _write(request, _DATABASE.format(type=request.type_name, name=name, variable=f"ZDM_{name.upper()}_URL"))
