"""Stored declarations: read with today's models, compared field by field, without quoting SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import pytest
from pydantic import Field

from zdm_pipelines.changes import KINDS
from zdm_pipelines.changes.replace_column.spec import NewColumn, ReplaceColumn
from zdm_pipelines.ledger import declarations
from zdm_pipelines.model import migration as model
from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.states import State
from zdm_pipelines_tests.helpers import replaced

M = replaced()
STORED = declarations.to_store(M)
TEXT = {"name": "display_name", "type": "text"}


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (replaced(), []),
        (replaced(table="people"), []),  # the same table, written in another way
        (replaced(table="staff.people"), ["table (people, now staff.people)"]),
        (replaced(up="'m:' || full_name"), ["up"]),
        (replaced(new={**TEXT, "type": "varchar(80)"}), ["new.type (text, now varchar(80))"]),
        (replaced(new={**TEXT, "nullable": False}), ["new.nullable (true, now false)"]),
        (replaced(new={**TEXT, "default": "'secret'"}), ["new.default"]),
        (
            replaced(old="note", new={**TEXT, "name": "remark"}, down="remark"),
            ["old (full_name, now note)", "new.name (display_name, now remark)", "down"],
        ),
    ],
)
def test_what_differs_is_named(now: model.Migration, said: list[str]) -> None:
    assert declarations.differences(STORED, now) == [s.replace("(people,", "(public.people,") for s in said]


class _WiderColumn(NewColumn):
    collation: str | None = None


class _Wider(ReplaceColumn):
    """replace_column as a later version may have it: with keys that have a default."""

    kind: Literal["replace_column"]
    new: _WiderColumn
    touch: tuple[str, ...] = ()


def _later(migration: model.Migration, **keys: Any) -> model.Migration:
    change = _Wider.model_validate({**migration.change.model_dump(mode="json"), **keys})
    return migration.model_copy(update={"change": change})


@contextmanager
def _knowing(*specs: type[ChangeSpec]) -> Iterator[None]:
    """A version of this software whose only kinds these are."""
    model.set_kinds(specs)
    try:
        yield
    finally:
        model.set_kinds([kind.spec for kind in KINDS.values()])


def test_a_key_that_was_added_since() -> None:
    """It has its default in what an earlier version stored; given another value, it is another declaration."""
    with _knowing(_Wider):
        assert declarations.differences(STORED, _later(M)) == []
        assert declarations.differences(STORED, _later(M, touch=["updated_at"])) == ["touch ((), now ('updated_at',))"]
        collated = _later(M, new={**TEXT, "collation": "C"})
        assert declarations.differences(STORED, collated) == ["new.collation (nothing, now C)"]


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({**STORED, "kind": "merge_tables"}, "kind is not understood here"),
        ({**STORED, "touch": []}, "touch is not understood here"),
        ({**STORED, "new": {**STORED["new"], "collation": None}}, "new.collation is not understood here"),
        ({"table": "people", "kind": "merge_tables", "into": "x"}, "is not understood here"),
    ],
)
def test_a_declaration_of_a_newer_version(stored: Mapping[str, Any], said: str) -> None:
    assert not declarations.understood("m", stored)
    with pytest.raises(StateConflict, match=said):
        declarations.differences(stored, M)
    with pytest.raises(StateConflict, match="upgrade zdm_pipelines here"):
        declarations.read_change("m", stored)


@pytest.mark.parametrize("state", list(State))
def test_every_state_has_a_way_on_or_back(state: State) -> None:
    """Also of a kind that is not known here: a brake must find the lifecycle of any state."""
    life = declarations.lifecycle_of("m", {"table": "people", "kind": "merge_tables"}, state)
    assert state in (State.PLANNED, State.ROLLED_BACK, *life.states)
    if life.active(state):
        assert life.transitions(state)


def test_the_lifecycle_is_that_of_the_stored_change() -> None:
    class Indexed(ChangeSpec):
        kind: Literal["index"]
        columns: tuple[str, ...] = Field(default=())

        @property
        def needs(self) -> frozenset[Need]:
            return frozenset({Need.ENFORCE})

    assert declarations.lifecycle_of("m", STORED, State.BACKFILLED) == M.lifecycle
    with _knowing(Indexed):
        stored = {"table": "people", "kind": "index", "columns": ["a"]}
        assert declarations.lifecycle_of("m", stored, State.BUILDING).states == (State.BUILDING, State.VALIDATED)
        # Its needs were others when the state was stored.
        assert State.BACKFILLED in declarations.lifecycle_of("m", stored, State.BACKFILLED).states


def test_a_copy_with_another_change_has_its_lifecycle() -> None:
    """As when an edited file's migration is taken with the change that was stored."""
    index = KINDS["add_index"].spec.model_validate({"kind": "add_index", "name": "i", "columns": ["note"]})
    edited = M.model_copy(update={"change": index})
    assert edited.lifecycle.states == (State.BUILDING, State.VALIDATED)
    assert edited.model_copy(update={"change": M.change}).lifecycle == M.lifecycle
