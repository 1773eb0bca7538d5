"""Names, durations and states: the model's own rules."""

from __future__ import annotations

import pytest

from zdm_pipelines.model.lifecycle import Lifecycle, Need
from zdm_pipelines.model.names import NAME_BYTES, TableName, fitted, quote
from zdm_pipelines.model.states import State
from zdm_pipelines.model.units import seconds


@pytest.mark.parametrize(
    ("text", "schema", "name"),
    [
        ("people", "public", "people"),
        ("app.people", "app", "people"),
        (' "Order Items"."weird ""name""" ', "Order Items", 'weird "name"'),
        ('"a.b"."c.d"', "a.b", "c.d"),
        ("Order Items.x y", "Order Items", "x y"),
        ("tabelle_ü", "public", "tabelle_ü"),
    ],
)
def test_table_names(text: str, schema: str, name: str) -> None:
    parsed = TableName.parse(text)
    assert (parsed.schema, parsed.name) == (schema, name)
    assert parsed == TableName.parse(str(parsed)) == TableName.parse(parsed.sql)


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a.b.c", '"a', 'a"b', '""', "   "])
def test_no_table_names(text: str) -> None:
    with pytest.raises(ValueError, match="is not a table name"):
        TableName.parse(text)


def test_quote() -> None:
    assert quote('a"b') == '"a""b"'


@pytest.mark.parametrize("name", ["x" * 63, "x" * 64, "ü" * 32, "🙂" * 40])
def test_fitted(name: str) -> None:
    assert len(fitted(name).encode()) <= NAME_BYTES
    assert fitted(name) == fitted(name)
    assert (fitted(name) == name) == (len(name.encode()) <= NAME_BYTES)
    assert fitted(name + "a") != fitted(name + "b")


@pytest.mark.parametrize(
    ("text", "value"),
    [("250ms", 0.25), ("5s", 5), ("1.5m", 90), ("25h", 90_000), ("7d", 604_800), (" 1 s ", 1), ("0s", 0)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "5 weeks", "1s2", "1e3s", 5, None, True])
def test_no_durations(text: object) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        seconds(text)


def test_states_of_a_replaced_column() -> None:
    life = Lifecycle.of(set(Need) - {Need.DESTROYS, Need.CHECKS})
    assert set(State) - set(life.states) == {State.PLANNED, State.ROLLED_BACK, State.BUILDING, State.CONTRACTING}
    assert life.transitions(State.CONTRACTED) == frozenset()
    assert {s for s in life.states if State.CONTRACTED in life.transitions(s)} == {State.TOMBSTONED}
    assert {s for s in life.states if State.TOMBSTONED in life.transitions(s)} == {State.SWITCHED}
    assert State.TOMBSTONED not in {s for s in life.states if State.ROLLED_BACK in life.transitions(s)}
    assert {state for state in life.states if not life.active(state)} == {State.CONTRACTED}
