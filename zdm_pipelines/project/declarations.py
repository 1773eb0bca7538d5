"""Declarations: one `defs.yaml`, each mistake told with its line."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from zdm_pipelines.changes import KINDS
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.project.folder import shown

_TYPES: dict[str, type[Migration] | type[Database]] = {
    f"zdm_pipelines.{room}{name}": model
    for name, model in (("ZeroDowntimeMigration", Migration), ("Database", Database))
    for room in ("", "components.")
}
# Beside `attributes`, what Dagster itself allows in a document.
_DOCUMENT_KEYS = ("type", "attributes", "template_vars_module", "requirements", "post_processing")


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where something is declared."""

    file: Path
    line: int  # of the document's type

    def __str__(self) -> str:
        return f"{shown(self.file)}:{self.line}"


class DefsFile:
    """One `defs.yaml`, with the lines of everything in it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def declarations(self) -> Iterator[tuple[Place, Migration | Database] | SpecError | str]:
        """Each declaration, or what is wrong with it; then also the name of a database that is left out."""
        try:
            loader = yaml.SafeLoader(self.file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            yield SpecError(shown(self.file), f"cannot be read ({error})", "write it as UTF-8 text")
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
            f"{shown(self.file)}:{mark.line + 1 if mark else 1}",
            f"is no YAML: {context}{error.problem or 'unreadable'}",
            "look at the indentation, the colons and the quotes there; text that begins with a quote, { or * is quoted",
        )

    def _at(self, node: yaml.Node, thing: str) -> str:
        return f"{shown(self.file)}:{node.start_mark.line + 1}{thing and f' {thing}'}"

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
        declared, _ = _walk(attributes, ["change", "kind"])
        which = declared.value if isinstance(declared, yaml.ScalarNode) else ""
        if which and loc[:2] == ["change", which]:
            del loc[1]  # the tag of the union is no key
        _, path = _walk(attributes, loc)
        place = _key_node(attributes, path) if path else attributes
        dotted = ".".join(str(p) for p in path)
        who = f"{name} " if name else ""
        if kind in ("union_tag_invalid", "union_tag_not_found"):
            return self._no_kind(attributes, who, which)
        if kind == "extra_forbidden":
            at = self._at(place, f"{who}{_pair(dotted, error['input'])}")
            return SpecError(at, "is no key here", _instead(model, path, which))
        if kind == "missing":
            dotted = ".".join(str(p) for p in (*path, *loc[len(path) :]))
            meaning = _meaning(model, loc, which) or dotted
            return SpecError(self._at(place, f"{who}{dotted}"), "is missing", f"add it: {meaning}")
        message = str(error["msg"]).removeprefix("Value error, ")
        shown = _pair(dotted, error["input"]) if dotted and not isinstance(error["input"], dict) else dotted
        meaning = _meaning(model, path, which) or "correct it"
        return SpecError(self._at(place, f"{who}{shown}".rstrip()), _lower(message), meaning)

    def _no_kind(self, attributes: yaml.Node, who: str, which: str) -> SpecError:
        """A change whose kind is missing, or is none that is known."""
        _, path = _walk(attributes, ["change", "kind"])
        at = self._at(
            _key_node(attributes, path), f"{who}{_pair('.'.join(map(str, path)), which) if which else 'change.kind'}"
        )
        known = f"kinds: {', '.join(KINDS)}"
        if not which:
            return SpecError(at, "is missing", f"say what is changed; {known}")
        close = difflib.get_close_matches(which, KINDS, n=1)
        return SpecError(at, "is no kind of change", f"did you mean {close[0]}? {known}" if close else known)


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


def _model_at(model: type[BaseModel], path: Sequence[object], kind: str = "") -> type[BaseModel]:
    """The model that a path leads to.

    Args:
        kind: which model of a union is meant, by its `kind`; default: the first.
    """
    for part in path:
        field = model.model_fields.get(str(part))
        if field is not None:
            arms = list(_models(field.annotation))
            model = next((arm for arm in arms if kind and kind in _kinds(arm)), arms[0] if arms else model)
    return model


def _kinds(model: type[BaseModel]) -> tuple[object, ...]:
    """The values that tell a model of a union from the others."""
    field = model.model_fields.get("kind")
    return typing.get_args(field.annotation) if field is not None else ()


def _instead(model: type[BaseModel], path: Sequence[object], which: str) -> str:
    """What was meant by an unknown key: a close one here, or the same one at another depth."""
    word, here = str(path[-1]), _model_at(model, path[:-1], which)
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


def _meaning(model: type[BaseModel], path: Sequence[object], which: str) -> str:
    """What the model says of a key."""
    if not path:
        return ""
    fields = _model_at(model, path[:-1], which).model_fields
    field = fields.get(str(path[-1]))
    return f"{path[-1]}: {field.description}" if field is not None and field.description else ""


def _pair(key: str, value: object) -> str:
    """Key and value for a message; nothing that looks like a secret."""
    if re.search("password|secret|token|dsn|url_env|replicas", f"{key} {value}", re.IGNORECASE):
        return key
    text = re.sub(r"://[^@\s]*@", "://…@", str(value))
    return f"{key}: {text if len(text) <= 60 else text[:59] + '…'}"


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
