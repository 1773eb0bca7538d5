"""Options: what several verbs take, and how they find what it names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zdm_pipelines import project
from zdm_pipelines.cli import terminal
from zdm_pipelines.model.errors import DatabaseUnreachable, SpecError
from zdm_pipelines.model.migration import Database
from zdm_pipelines.project import Project
from zdm_pipelines.verbs import Context, status

Defs = Annotated[
    Path | None,
    typer.Option(
        "--defs",
        help="Folder with your defs.yaml files; default: ZDM_DEFS, else the project around the working directory.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, for scripts.")]
Name = Annotated[str, typer.Argument(help="Name of a declared migration.", show_default=False)]
MaybeName = Annotated[
    str | None, typer.Argument(help="Name of a declared migration; default: all.", show_default=False)
]
Owner = Annotated[str, typer.Option("--owner", help="Whose hold: work goes on when nobody's stands.")]
Every = Annotated[bool, typer.Option("--database", help="Every migration of this migration's database.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def read(defs: Path | None) -> Project:
    """The project that is meant."""
    return project.read(project.find(defs))


def one(defs: Path | None, name: str) -> Context:
    """A migration in its database; what is wrong with other declarations is only remarked."""
    return _declared(read(defs), name)


def braking(defs: Path | None, name: str) -> Context:
    """A migration to be looked at, stopped or taken back, which needs no declaration once it has begun.

    Raises:
        SpecError: the declaration is wrong or gone, and not exactly one declared database knows the migration.
    """
    found = read(defs)
    try:
        return _declared(found, name)
    except SpecError as error:
        knowing = [context for database in found.databases.values() if (context := _of_ledger(database, name))]
        if len(knowing) != 1:
            raise
        terminal.note(f"{error.thing} {error.fact}: taken as it was begun in database {knowing[0].database.name}")
        return knowing[0]


def _of_ledger(database: Database, name: str) -> Context | None:
    """A database that cannot be asked is passed over: the migration may be in another one."""
    try:
        return status.of_ledger(database, name)
    except (SpecError, DatabaseUnreachable):
        return None


def _declared(found: Project, name: str) -> Context:
    migration = found.migration(name)
    if found.problems:
        terminal.note(f"{len(found.problems)} other declarations are wrong: zdm list says what")
    return found.context(migration)
