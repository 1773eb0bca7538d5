"""Schema walk: every key that may be declared is read by something when a migration runs."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import zdm_pipelines
from zdm_pipelines.model.migration import Backfill, Database, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import preflight
from zdm_pipelines_tests.helpers import people, replaced, walk

PACKAGE = Path(zdm_pipelines.__file__).parent

# A full declaration: nothing is left out because its section is.
FULL: dict[str, Any] = {
    "new": {"name": "display_name", "type": "text", "nullable": True, "default": "'n:nobody'"},
    "backfill": {"range_rows": 50, "batch_rows": 20, "batch_target": "1s", "max_parallel": 1},
    "throttle": {
        "replication_lag": {"pause_above": "60s", "resume_below": "50s"},
        "latency_p95": {"pause_above": "60s", "resume_below": "50s"},
        "max_wait": "60s",
    },
    "reads": {"flag": "read_it", "ramp": [100]},
}


def models(root: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model and all that it holds."""
    yield root
    for info in root.model_fields.values():
        for kind in (*get_args(info.annotation), info.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from models(kind)


def fields(*roots: type[BaseModel]) -> set[str]:
    """Class.field of everything that may be declared."""
    return {f"{m.__name__}.{name}" for root in roots for m in models(root) for name in m.model_fields}


class Reads:
    """Notes which fields the package's own code reads; a validator of the model itself is no use of a field."""

    def __init__(self, patch: pytest.MonkeyPatch, *classes: type[BaseModel]) -> None:
        self.seen: set[str] = set()
        seen = self.seen
        for cls in classes:
            inherited = cls.__getattribute__

            def noting(instance: Any, name: str, inherited: Any = inherited) -> Any:
                owner = type(instance)
                if name in owner.model_fields:
                    frame = sys._getframe(1)
                    code = frame.f_code
                    if code.co_filename.startswith(str(PACKAGE)) and not (
                        "/model/" in code.co_filename and code.co_name.startswith("_")
                    ):
                        seen.add(f"{owner.__name__}.{name}")
                return inherited(instance, name)

            patch.setattr(cls, "__getattribute__", noting)


def attributes_read(folder: Path, owners: set[str]) -> set[str]:
    """Names of attributes that code under a folder reads of variables or attributes called as given."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                name = (
                    owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
                )
                if name in owners:
                    found.add(node.attr)
    return found


def test_every_key_is_read(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    people(database, 100)
    m = replaced(**FULL)
    reads = Reads(monkeypatch, *set(models(Migration)), Database)
    preflight.plan(m, preflight.catalog_of(database, m))
    walk(m, database, State.CONTRACTED)
    monkeypatch.setenv("OTHER", database)
    assert Database(name="app", url_env="OTHER").url() == database
    with pytest.raises(Exception, match="ZDM_APP_URL"):
        Database(name="app").url()
    # Which database a migration names is for the layer above the phases.
    if "database" in attributes_read(PACKAGE / "components", {"declared", "migration"}):
        reads.seen.add("Migration.database")
    assert fields(Migration, Database) - reads.seen == set()


def test_a_key_that_nothing_reads_is_found(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk above can fail: a planted key is reported."""

    class Planted(Backfill):
        unread: int = 1

    people(database, 10)
    m = replaced()
    m = m.model_copy(update={"backfill": Planted(**m.backfill.model_dump(mode="json"))})
    reads = Reads(monkeypatch, Planted)
    walk(m, database, State.CONTRACTED)
    assert fields(Planted) - reads.seen == {"Planted.unread"}


def test_every_key_is_described() -> None:
    """Those that are sections of their own are described by their class."""
    every: list[type[BaseModel]] = [*models(Migration), Database]
    for model in every:
        assert model.__doc__
        for name, info in model.model_fields.items():
            holds_model = any(
                isinstance(k, type) and issubclass(k, BaseModel) for k in (*get_args(info.annotation), info.annotation)
            )
            if model.__name__ == "Limit" or name == "kind" or (holds_model and not get_args(info.annotation)):
                continue
            assert info.description, f"{model.__name__}.{name}"


def test_only_four_keys_are_required() -> None:
    required = {name for name, info in Migration.model_fields.items() if info.is_required()}
    assert required == {"name", "database", "table", "change"}
    for model in models(Migration):
        if model.__name__ in ("Backfill", "Throttle", "Locks", "Reads", "Contract"):
            assert all(not info.is_required() for info in model.model_fields.values())
