"""Project: which migrations and databases a `defs` folder declares, read without Dagster.

Every mistake is told with its file and line, all of them at once; a mistake in one declaration does not hide the
others, so that a rollback stays possible while somebody else's file is broken.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.migration import Database, Migration

FILE = "defs.yaml"
VARIABLE = "ZDM_DEFS"

_TYPES: dict[str, type[Migration] | type[Database]] = {
    f"zdm_pipelines.{room}{name}": model
    for name, model in (("ZeroDowntimeMigration", Migration), ("Database", Database))
    for room in ("", "components.")
}
# Beside `attributes`, what Dagster itself allows in a document.
_DOCUMENT_KEYS = ("type", "attributes", "template_vars_module", "requirements", "post_processing")


class ProjectError(SpecError):
    """Everything that is wrong in a `defs` folder; each finding is in `problems`."""

    def __init__(self, problems: Sequence[SpecError]) -> None:
        first = problems[0]
        super().__init__(first.thing, first.fact, "\n".join([first.way_out, *(f"also {p}" for p in problems[1:])]))
        self.problems = tuple(problems)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something is declared."""

    file: Path
    line: int  # of the document's type

    def __str__(self) -> str:
        return f"{_shown(self.file)}:{self.line}"


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
        raise SpecError(f"migration {name}", f"is not declared below {_shown(self.folder)}", known)

    def url(self, migration: Migration) -> str:
        """The URL of a migration's database, from the environment.

        Raises:
            SpecError: the variable is not set.
        """
        return self.databases[migration.database].url()

    def require_sound(self) -> None:
        """Insist that every declaration can be meant.

        Raises:
            ProjectError: with everything that is wrong.
        """
        if self.problems:
            raise ProjectError(self.problems)


# -- finding the folder -----------------------------------------------------------------------------------------------


def find(given: Path | None = None, *, start: Path | None = None) -> Path:
    """The `defs` folder: as given, as ZDM_DEFS says, of the project around `start`, or ./defs.

    Args:
        given: the command line's word, if any.
        start: where to look from; default: the working directory.

    Raises:
        SpecError: there is none.
    """
    start = (start or Path.cwd()).absolute()
    for source, said in (("--defs", given), (VARIABLE, os.environ.get(VARIABLE))):
        if said:
            folder = start / said
            if not folder.is_dir():
                raise SpecError(f"{source} {said}", "is no folder", f"name the folder that holds your {FILE} files")
            return folder
    if (root := root_of(start)) is not None:
        return _defs_of(root)
    if (start / "defs").is_dir():
        return start / "defs"
    raise SpecError(
        str(start),
        "no pyproject.toml with [tool.dg.project] here or above, and no folder defs",
        f"run it inside the project, or name the folder with --defs or {VARIABLE}",
    )


def root_of(start: Path) -> Path | None:
    """The nearest folder, upwards, whose pyproject.toml is a Dagster project's."""
    return next((folder for folder in (start, *start.parents) if _dg_table(folder) is not None), None)


def root_module(root: Path) -> str | None:
    """The Python package of a Dagster project."""
    module = (_dg_table(root) or {}).get("root_module")
    return module if isinstance(module, str) else None


def _dg_table(folder: Path) -> dict[str, Any] | None:
    place = folder / "pyproject.toml"
    try:
        read = tomllib.loads(place.read_text(encoding="utf-8"))
    except OSError:
        return None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(_shown(place), f"is no TOML ({error})", "correct it, or use --defs") from None
    table = read.get("tool", {}).get("dg", {}).get("project")
    return table if isinstance(table, dict) else None


def _defs_of(root: Path) -> Path:
    table = _dg_table(root) or {}
    module = table.get("defs_module") or f"{table.get('root_module', '')}.defs"
    places = [base.joinpath(*str(module).split(".")) for base in (root, root / "src")]
    for place in places:
        if place.is_dir():
            return place
    raise SpecError(
        f"{_shown(root / 'pyproject.toml')} [tool.dg.project]",
        f"its definitions would be in {_shown(places[0])}, which is no folder",
        "create it, or correct root_module or defs_module",
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Project:
    """Read every `defs.yaml` below a folder; what is wrong is in `problems`."""
    found: list[tuple[Place, Migration | Database]] = []
    problems: list[SpecError] = []
    broken: set[str] = set()  # databases whose declaration is wrong: migrations that name them are not to blame
    for file in sorted(folder.rglob(FILE)):
        for outcome in _File(file).declarations():
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
    """Those with a name of their own; where two share one, none can be meant."""
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


class _File:
    """One `defs.yaml`, with the lines of everything in it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def declarations(self) -> Iterator[tuple[Place, Migration | Database] | SpecError | str]:
        """Each declaration, or what is wrong with it; then also the name of a database that is left out."""
        try:
            loader = yaml.SafeLoader(self.file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            yield SpecError(_shown(self.file), f"cannot be read ({error})", "write it as UTF-8 text")
            return
        while True:
            try:
                if not loader.check_node():
                    return
                node = loader.get_node()
            except yaml.MarkedYAMLError as error:
                yield self._syntax(error)
                return
            if node is not None:
                yield from self._document(loader, node)

    def _syntax(self, error: yaml.MarkedYAMLError) -> SpecError:
        mark = error.problem_mark or error.context_mark
        context = f"{error.context}, " if error.context else ""
        return SpecError(
            f"{_shown(self.file)}:{mark.line + 1 if mark else 1}",
            f"is no YAML: {context}{error.problem or 'unreadable'}",
            "look at the indentation, the colons and the quotes there; text that begins with a quote, { or * is quoted",
        )

    def _at(self, node: yaml.Node, thing: str) -> str:
        return f"{_shown(self.file)}:{node.start_mark.line + 1}{thing and f' {thing}'}"

    def _document(
        self, loader: yaml.SafeLoader, node: yaml.Node
    ) -> Iterator[tuple[Place, Migration | Database] | SpecError | str]:
        if not isinstance(node, yaml.MappingNode):
            yield SpecError(self._at(node, ""), "is no mapping", "begin with type: and attributes:")
            return
        entries = {key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)}
        if "type" not in entries:
            close = difflib.get_close_matches("type", entries, n=1)
            yield SpecError(
                self._at(node, ""), "has no type", f"did you mean type for {close[0]}?" if close else "add type:"
            )
            return
        kind = str(entries["type"][1].value)
        if kind not in _TYPES:
            # Other projects' components are none of our business, but a slip of the pen in ours is.
            close = difflib.get_close_matches(kind, _TYPES, n=1, cutoff=0.85)
            if close:
                yield SpecError(
                    self._at(entries["type"][0], f"type: {kind}"), "is unknown", f"did you mean {close[0]}?"
                )
            return
        unknown = [name for name in entries if name not in _DOCUMENT_KEYS]
        for name in unknown:
            yield SpecError(self._at(entries[name][0], name), "stands beside type", "indent it below attributes:")
        if not unknown:
            yield from self._declaration(loader, _TYPES[kind], entries)

    def _declaration(
        self,
        loader: yaml.SafeLoader,
        model: type[Migration] | type[Database],
        entries: Mapping[str, tuple[yaml.Node, yaml.Node]],
    ) -> Iterator[tuple[Place, Migration | Database] | SpecError | str]:
        _, at = entries["type"]
        if "attributes" not in entries or not isinstance(entries["attributes"][1], yaml.MappingNode):
            yield SpecError(self._at(at, ""), "has no attributes", "add attributes: with name and the rest below it")
            return
        attributes = entries["attributes"][1]
        name = _scalar(attributes, "name")
        problems = list(self._repeated(attributes))
        try:
            values = loader.construct_document(attributes)
            if not problems:
                yield Place(file=self.file, line=at.start_mark.line + 1), model.model_validate(values)
        except yaml.MarkedYAMLError as error:
            problems.append(self._syntax(error))
        except ValidationError as error:
            problems += [self._wrong(model, attributes, name, e) for e in error.errors(include_url=False)]
        yield from problems
        if problems and model is Database:
            yield name

    def _repeated(self, node: yaml.Node, path: str = "") -> Iterator[SpecError]:
        """Keys that stand twice: YAML would silently take the last."""
        if not isinstance(node, yaml.MappingNode):
            return
        seen: set[str] = set()
        for key, value in node.value:
            dotted = f"{path}{key.value}"
            if key.value in seen:
                yield SpecError(self._at(key, dotted), "stands here a second time", "keep one of them")
            seen.add(key.value)
            yield from self._repeated(value, f"{dotted}.")

    def _wrong(self, model: type[BaseModel], attributes: yaml.Node, name: str, error: Mapping[str, Any]) -> SpecError:
        """One finding of pydantic, at the line it speaks of."""
        loc, kind = [part for part in error["loc"] if part != "attributes"], error["type"]
        _, path = _walk(attributes, loc)
        place = _key_node(attributes, path) if path else attributes
        dotted = ".".join(str(p) for p in path)
        who = f"{name} " if name else ""
        if kind == "extra_forbidden":
            at = self._at(place, f"{who}{_pair(dotted, error['input'])}")
            return SpecError(at, "is no key here", _instead(model, path))
        if kind == "missing":
            dotted = ".".join(str(p) for p in (*path, *loc[len(path) :]))
            meaning = _meaning(model, loc) or dotted
            return SpecError(self._at(place, f"{who}{dotted}"), "is missing", f"add it: {meaning}")
        message = str(error["msg"]).removeprefix("Value error, ")
        shown = _pair(dotted, error["input"]) if dotted and not isinstance(error["input"], dict) else dotted
        meaning = _meaning(model, path) or "correct it"
        return SpecError(self._at(place, f"{who}{shown}".rstrip()), _lower(message), meaning)


def _scalar(node: yaml.Node, key: str) -> str:
    if isinstance(node, yaml.MappingNode):
        for k, v in node.value:
            if k.value == key and isinstance(v, yaml.ScalarNode):
                return str(v.value)
    return ""


def _walk(node: yaml.Node, loc: Sequence[object]) -> tuple[yaml.Node, list[object]]:
    """The deepest node along a pydantic location, and the part of it that the file has; tags of unions are no keys."""
    path: list[object] = []
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next((v for k, v in node.value if k.value == part), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
        else:
            found = None
        if found is not None:
            node, path = found, [*path, part]
    return node, path


def _key_node(node: yaml.Node, path: Sequence[object]) -> yaml.Node:
    parent, _ = _walk(node, path[:-1])
    if isinstance(parent, yaml.MappingNode):
        return next((k for k, _ in parent.value if k.value == path[-1]), parent)
    return parent


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, through unions and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from _models(inner)


def _model_at(model: type[BaseModel], path: Sequence[object]) -> type[BaseModel]:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            model = next(_models(field.annotation), model)
    return model


def _instead(model: type[BaseModel], path: Sequence[object]) -> str:
    """What was meant by an unknown key: a close one here, or the same one at another depth."""
    word, here = str(path[-1]), _model_at(model, path[:-1])
    if here is Database and re.search("url|dsn|password", word):
        return "a URL stays out of the file: url_env names the environment variable that holds it"
    if close := difflib.get_close_matches(word, here.model_fields, n=2):
        return f"did you mean {' or '.join(close)}?"
    if elsewhere := [p for p in keys(model) if p.split(".")[-1] == word]:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"keys here: {', '.join(here.model_fields)}"


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a declaration, dotted, in order."""
    for name, field in model.model_fields.items():
        inner = list(_models(field.annotation))
        if not inner:
            yield f"{prefix}{name}"
        for one in inner:
            yield from keys(one, f"{prefix}{name}.")


def _meaning(model: type[BaseModel], path: Sequence[object]) -> str:
    """What the model says of a key."""
    if not path:
        return ""
    fields = _model_at(model, path[:-1]).model_fields
    field = fields.get(str(path[-1]))
    return f"{path[-1]}: {field.description}" if field is not None and field.description else ""


def _pair(key: str, value: object) -> str:
    """Key and value for a message; nothing that looks like a secret."""
    if re.search("password|secret|token", key):
        return key
    text = re.sub(r"://[^@\s]*@", "://…@", str(value))
    return f"{key}: {text if len(text) <= 60 else text[:59] + '…'}"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]


def _shown(path: Path) -> str:
    """A path as short as it can be told."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
