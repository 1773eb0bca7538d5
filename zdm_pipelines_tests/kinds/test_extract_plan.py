"""Plans of an extracted table, without a database: what is declared, the printed steps, and what the kind calls things."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from zdm_pipelines.changes import Change, bind, kind_of
from zdm_pipelines.dialects import server_at
from zdm_pipelines.model.capabilities import ALL
from zdm_pipelines.model.migration import Migration, stored_change
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.states import Phase
from zdm_pipelines.model.values import Catalog, Column, Statement, Step
from zdm_pipelines_tests.kinds.extraction import ADDRESSES, SETTINGS

GOLDEN = Path(__file__).parent / "golden"


def declared(change: dict[str, Any]) -> Migration:
    return Migration.model_validate({"name": "profiles", "database": "app", "table": "public.users", "change": change})


def bound(change: dict[str, Any], *, tombstoned: bool = False) -> Change:
    """The change over a table that nobody has looked at."""

    def column(number: int, name: str, type_name: str, default: str | None = None) -> Column:
        return Column(
            name=name,
            type=type_name,
            not_null=number == 1,
            default=default,
            generated=False,
            identity=False,
            number=number,
        )

    columns = (column(1, "id", "bigint"), column(2, "profile", "jsonb"), column(3, "addresses", "jsonb", "'[]'::jsonb"))
    catalog = Catalog(
        table=TableName(schema="public", name="users"),
        oid=4711,
        rows=100,
        bytes=8192,
        columns=columns,
        key=columns[:1],
        environment={"search_path": "public", "TimeZone": "UTC", "DateStyle": "ISO, MDY"},
    )
    facts = {"grants": ['GRANT SELECT ON "public"."user_settings" TO "Reader"']}
    return bind(
        declared(change),
        server_at("postgresql://nobody@nowhere/none"),
        catalog,
        facts,
        migration_id=7,
        tombstoned=tombstoned,
    )


def printed(change: dict[str, Any]) -> str:
    """Every statement of the migration, under headings."""
    it, behind = bound(change), bound(change, tombstoned=True)
    assert it.rows is not None
    assert it.parity is not None
    assert it.retire is not None
    assert behind.retire is not None
    parts: list[tuple[str, list[Step | Statement]]] = [
        ("expand", [*it.expand]),
        ("a batch", [*it.rows.batch(("1",), ("9",), pick=ALL)]),
        ("a batch that repairs", [*it.rows.batch(None, None, pick=ALL, repair=True)]),
        ("parity", [it.parity.compare(("1",), ("9",))]),
        ("enforce", [*it.enforce]),
        ("tombstone", [*it.retire.tombstone()]),
        ("drop", [*behind.retire.drop()]),
    ]
    lines = []
    for heading, statements in parts:
        lines.append(f"== {heading}")
        for one in statements:
            lines.append(f"-- {one.name} ({one.lock})" if isinstance(one, Step) else f"-- with {list(one.values)}")
            lines.append(f"{one.sql};")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("name", "change"),
    [("one", SETTINGS | {"grants": "copy"}), ("many", ADDRESSES)],
)
def test_the_printed_plan(name: str, change: dict[str, Any]) -> None:
    assert printed(change) == (GOLDEN / f"extract_{name}.sql").read_text(encoding="utf-8")


def test_every_step_of_expand_can_be_taken_back_or_goes_with_its_table() -> None:
    for step in bound(SETTINGS).expand:
        assert step.undo or step.sql.startswith(("REVOKE", "GRANT", "ALTER TABLE", "CREATE UNIQUE INDEX"))
        assert step.lock
        assert step.reason


def test_the_lifecycle() -> None:
    lifecycle = declared(SETTINGS).lifecycle
    assert lifecycle.phases == (Phase.EXPAND, Phase.BACKFILL, Phase.VALIDATE, Phase.SWITCH_READS, Phase.CONTRACT)
    assert [r.name.name for r in bound(SETTINGS).relations] == ["users", "user_settings"]


def test_a_stored_change_is_read_again() -> None:
    change = declared(ADDRESSES).change
    assert stored_change(change.model_dump(mode="json")) == change


@pytest.mark.parametrize(
    "change",
    [
        SETTINGS,
        ADDRESSES,
        {**SETTINGS, "old": ["profile", "addresses"], "down": {"profile": "NULL", "addresses": "NULL"}},
    ],
)
def test_the_words(change: dict[str, Any]) -> None:
    m = declared(change)
    words = kind_of(m).words(m)
    assert words.summary.endswith(
        ("profile → public.user_settings", "addresses → public.user_addresses", "addresses → public.user_settings")
    )
    assert set(words.phases) == set(words.undone) == set(m.lifecycle.phases) - {Phase.SWITCH_READS}
    assert words.last.endswith("for good")


NEW: dict[str, Any] = SETTINGS["new"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"old": ["profile", "addresses"]}, "down is one expression for several old columns"),
        ({"down": {"other": "theme"}}, "down gives other: give one expression for each of profile"),
        ({"each": "addresses"}, "elements must be told apart"),
        ({"new": NEW | {"position": "nr"}}, "elements must be told apart"),
        ({"each": "addresses", "new": NEW | {"position": "nr", "element_key": "theme"}}, "elements must be told apart"),
        ({"each": "addresses", "new": NEW | {"element_key": "label"}}, "'label' is none of new.columns"),
        ({"new": NEW | {"columns": NEW["columns"] | {"user_id": {"type": "int", "up": "1"}}}}, "user_id of the new table is declared twice"),
        ({"each": "x", "new": NEW | {"element_key": "a", "columns": {"a": {"type": "text", "up": "element"}}}}, "nothing would be moved"),
        ({"new": NEW | {"table": "a.b.c"}}, "is not a table name"),
        ({"new": NEW | {"columns": {}}}, "at least 1 item"),
        ({"new": NEW | {"table": "public." + "x" * 64}}, "new table 'xxx"),
        ({"old": []}, "at least 1 item"),
        ({"surplus": 1}, "surplus"),
    ],
)  # fmt: skip
def test_what_cannot_be_declared(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        declared(SETTINGS | changed)
