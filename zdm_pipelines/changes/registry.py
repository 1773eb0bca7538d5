"""Registry: the kinds of change, found as the packages beside this module; a declaration is the union of theirs."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from zdm_pipelines.changes.protocol import Kind
from zdm_pipelines.model.migration import Migration, set_kinds

_HERE = Path(__file__).parent


def _found() -> dict[str, Kind]:
    """Every kind by its name: the packages of this folder."""
    names = sorted(module.name for module in pkgutil.iter_modules([str(_HERE)]) if module.ispkg)
    return {name: importlib.import_module(f"{__package__}.{name}").KIND for name in names}


KINDS = _found()


def register(kind: Kind) -> None:
    """Make a kind known, and rebuild what a declaration may say."""
    KINDS[kind.name] = kind
    set_kinds([known.spec for known in KINDS.values()])


def forget(name: str) -> None:
    """Forget a kind that was made known."""
    del KINDS[name]
    set_kinds([known.spec for known in KINDS.values()])


set_kinds([known.spec for known in KINDS.values()])


def kind_of(migration: Migration) -> Kind:
    """The kind of a migration's change."""
    return KINDS[migration.change.kind]
