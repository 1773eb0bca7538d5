"""Options: what several verbs take, and how they find what it names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zdm_pipelines import project
from zdm_pipelines.cli import terminal
from zdm_pipelines.project import Project
from zdm_pipelines.verbs import Context

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
    found = read(defs)
    migration = found.migration(name)
    if found.problems:
        terminal.note(f"{len(found.problems)} other declarations are wrong: zdm list says what")
    return found.context(migration)
