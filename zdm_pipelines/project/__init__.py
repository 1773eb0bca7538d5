"""Project: which migrations and databases a `defs` folder declares, read without Dagster.

Every mistake is told with its file and line, all of them at once; a mistake in one declaration does not hide the
others, so that a rollback stays possible while somebody else's file is broken.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.project.declarations import DefsFile, Place, keys
from zdm_pipelines.project.folder import FILE, VARIABLE, find, root_module, root_of, shown
from zdm_pipelines.verbs import Context

__all__ = ["FILE", "VARIABLE", "Place", "Project", "ProjectError", "find", "keys", "read", "root_module", "root_of"]


class ProjectError(SpecError):
    """Everything that is wrong in a `defs` folder; each finding is in `problems`."""

    def __init__(self, problems: Sequence[SpecError]) -> None:
        first = problems[0]
        super().__init__(first.thing, first.fact, "\n".join([first.way_out, *(f"also {p}" for p in problems[1:])]))
        self.problems = tuple(problems)


@dataclass(frozen=True, kw_only=True)
class Project:
    """What a `defs` folder declares."""

    folder: Path
    migrations: Mapping[str, Migration]
    databases: Mapping[str, Database]
    places: Mapping[str, Place]  # of migrations, by name
    problems: tuple[SpecError, ...]  # declarations that are left out, and why

    def migration(self, name: str) -> Migration:
        """The migration of that name.

        Raises:
            SpecError: there is none, or its declaration is wrong.
        """
        if (found := self.migrations.get(name)) is not None:
            return found
        mine = [p for p in self.problems if name in p.thing] or list(self.problems)
        if mine:
            raise ProjectError(mine)
        close = difflib.get_close_matches(name, self.migrations, n=3)
        known = f"did you mean {' or '.join(close)}?" if close else f"declared: {', '.join(self.migrations) or 'none'}"
        raise SpecError(f"migration {name}", f"is not declared below {shown(self.folder)}", known)

    def context(self, migration: Migration) -> Context:
        """A migration in its database, whose URL is read from the environment.

        Raises:
            SpecError: the variable is not set.
        """
        database = self.databases[migration.database]
        return Context.of(migration, database.url(), database=database)

    def require_sound(self) -> None:
        """Insist that every declaration can be meant.

        Raises:
            ProjectError: with everything that is wrong.
        """
        if self.problems:
            raise ProjectError(self.problems)


def read(folder: Path) -> Project:
    """Read every `defs.yaml` below a folder; what is wrong is in `problems`."""
    found: list[tuple[Place, Migration | Database]] = []
    problems: list[SpecError] = []
    broken: set[str] = set()  # databases whose declaration is wrong: migrations that name them are not to blame
    for file in sorted(folder.rglob(FILE)):
        for outcome in DefsFile(file).declarations():
            if isinstance(outcome, SpecError):
                problems.append(outcome)
            elif isinstance(outcome, str):
                broken.add(outcome)
            else:
                found.append(outcome)
    databases = _by_name([(p, d) for p, d in found if isinstance(d, Database)], "database", problems)
    migrations = _by_name([(p, m) for p, m in found if isinstance(m, Migration)], "migration", problems)
    for name, (place, migration) in list(migrations.items()):
        if migration.database not in databases:
            del migrations[name]
            if migration.database not in broken:
                problems.append(_undeclared(place, migration, list(databases)))
    return Project(
        folder=folder,
        migrations={name: migration for name, (_, migration) in sorted(migrations.items())},
        databases={name: database for name, (_, database) in sorted(databases.items())},
        places={name: place for name, (place, _) in migrations.items()},
        problems=tuple(problems),
    )


def _undeclared(place: Place, migration: Migration, databases: list[str]) -> SpecError:
    close = difflib.get_close_matches(migration.database, databases, n=1)
    hint = f"did you mean {close[0]}? " if close else f"declared: {', '.join(databases)}. " if databases else ""
    return SpecError(
        f"{place} migration {migration.name}",
        f"names database {migration.database}, which no {FILE} declares",
        f"{hint}Declare it with type zdm_pipelines.Database and attributes name: {migration.database}",
    )


_Model = typing.TypeVar("_Model", Migration, Database)


def _by_name(
    found: list[tuple[Place, _Model]], what: str, problems: list[SpecError]
) -> dict[str, tuple[Place, _Model]]:
    """The declarations by name; where two share a name, neither can be meant."""
    kept: dict[str, tuple[Place, _Model]] = {}
    twice: set[str] = set()
    for place, one in found:
        if one.name in kept:
            twice.add(one.name)
            problems.append(
                SpecError(
                    f"{place} {what} {one.name}",
                    f"is declared at {kept[one.name][0]} too",
                    "give each a name of its own",
                )
            )
        else:
            kept[one.name] = (place, one)
    return {name: one for name, one in kept.items() if name not in twice}
