"""Tune: `KEY=VALUE` as it is typed, and what holds now beside what is declared."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zdm_pipelines import project
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.tuning import Settings, declared_settings

# Settings that a run reads, and that cannot change while the run lasts.
_FIXED = {
    "backfill.range_rows": ("expand cut the ranges with it", "change it in defs.yaml and run expand again"),
    "backfill.max_runs": ("it is the limit of Dagster's pool", "change it in defs.yaml"),
}
_LISTS = ("throttle.sql", "throttle.http")


def _tunable() -> list[str]:
    """Every key that may be tuned: values, and signals as a whole."""
    values = [key for key in project.keys(Settings) if not key.startswith(tuple(f"{name}." for name in _LISTS))]
    signals = {key.rpartition(".")[0]: None for key in values if key.count(".") == 2}
    return [key for key in (*values, *signals, *_LISTS) if key not in _FIXED]


def changes(typed: Sequence[str]) -> dict[str, Any]:
    """What was typed, as sections of a declaration.

    Raises:
        SpecError: it cannot be meant.
    """
    wanted: dict[str, Any] = {}
    given: list[str] = []
    for text in typed:
        key, equals, value = text.partition("=")
        key = key.strip()
        _check_key(key)
        if not equals or not value.strip():
            raise SpecError(f"tune {text}", "has no value", f"write {key}=VALUE; null stops watching a signal")
        if twice := [g for g in given if f"{g}.".startswith(f"{key}.") or f"{key}.".startswith(f"{g}.")]:
            raise SpecError(f"tune {key}", f"is given twice, with {twice[0]}", "keep one of them")
        given.append(key)
        *sections, last = key.split(".")
        at = wanted
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = _value(key, value)
    return wanted


def _check_key(key: str) -> None:
    thing, known = f"tune {key}", _tunable()
    if key in known:
        return
    if key in _FIXED:
        fact, way_out = _FIXED[key]
        raise SpecError(thing, f"cannot be changed while it runs: {fact}", way_out)
    if whole := next((name for name in _LISTS if key.startswith(f"{name}.")), None):
        raise SpecError(thing, "is inside a list", f"give the list as a whole: {whole}='[{{name: …}}]'")
    if key in project.keys(Migration):
        raise SpecError(thing, "is no setting of a running backfill", "change it in defs.yaml")
    # A key may be known by its last word alone.
    close = [k for k in known if k.endswith(f".{key}")] or difflib.get_close_matches(key, known, n=3)
    plain = ", ".join(k for k in known if k.count(".") < 2)
    raise SpecError(thing, "is no key here", f"did you mean {' or '.join(close)}?" if close else f"keys: {plain}")


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError(f"tune {key}", f"{text} is no YAML", "quote it as in defs.yaml") from None


# -- what holds now ---------------------------------------------------------------------------------------------------


def show(migration: Migration, now: Settings, tuned: Mapping[str, Any]) -> RenderableType:
    """Each setting with where it comes from; signals that are not watched share a line."""
    declared = dict(_rows(declared_settings(migration)))
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    unwatched: list[str] = []
    for key, value in _rows(now):
        remark = Text()
        if _is_tuned(key, tuned):
            remark = Text(f"tuned; declared: {declared[key]}", style="yellow")
        elif value != declared[key]:
            remark = Text(
                f"declared: {declared[key]}, which holds once Dagster has loaded it",
                style="yellow",
            )
        elif value in ("null", "[]"):
            unwatched.append(key.removeprefix("throttle."))
            continue
        table.add_row(key, Text(value), remark)
    return Group(table, Text(f"not set: {', '.join(unwatched)}", style="dim"))


def _rows(settings: Settings) -> Iterator[tuple[str, str]]:
    """Key and value as in YAML; a signal is one value."""
    for section, values in settings.model_dump(mode="json").items():
        if not isinstance(values, Mapping):
            yield section, _yaml(values)
            continue
        for name, value in values.items():
            if (key := f"{section}.{name}") not in _FIXED:
                yield key, _yaml(value)


def _yaml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {_yaml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(v) for v in value) + "]"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _is_tuned(key: str, tuned: Mapping[str, Any]) -> bool:
    at: Any = tuned
    for part in key.split("."):
        if not isinstance(at, Mapping) or part not in at:
            return False
        at = at[part]
    return True
