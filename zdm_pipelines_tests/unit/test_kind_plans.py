"""Plans as text: what each kind would run over a table described by hand, without a database.

A plan that is meant to read otherwise from now on: write what is printed into its file, and read the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zdm_pipelines.changes import Change
from zdm_pipelines.model.capabilities import ALL, Pick, RowWork
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.values import Catalog, Column, Key
from zdm_pipelines_tests import walking

_GOLDEN = Path(__file__).parent / "golden"


def column(number: int, name: str, kind: str, **more: Any) -> Column:
    given: dict[str, Any] = {"not_null": False, "default": None, "generated": False, "identity": False} | more
    return Column(name=name, type=kind, number=number, **given)


COLUMNS = (
    column(1, "id", "bigint", not_null=True),
    column(2, "customer", "integer"),
    column(3, "created", "timestamp with time zone"),
    column(4, "total", "numeric", generated=True),
)
ORDERS = TableName(schema="public", name="orders")
CATALOG = Catalog(table=ORDERS, oid=4711, rows=1000, bytes=8192, columns=COLUMNS, key=COLUMNS[:1])
ORDERS_AS_FACT = {"schema": "public", "name": "orders"}


def index_fact(name: str, definition: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "table": ORDERS_AS_FACT, "table_oid": 4711, "unique": False, "definition": definition} | more


NEW = {"index": index_fact("orders_new", "btree (customer)"), "elements": ["customer"]}
UNIQUE = {
    "index": index_fact("orders_new", "btree (lower(code)) WHERE (total > 1)", unique=True, where=" WHERE (total > 1)"),
    "elements": ["lower(code)"],
}
OLD = {
    "index": index_fact("orders_old", "btree (total) WHERE (total > 1)", where=" WHERE (total > 1)", tablespace="fast"),
    "oid": 4712,
    "belongings": ["COMMENT ON INDEX public.orders_old IS 'why'"],
}
TREE = {
    "index": index_fact("x", "btree (id)"),
    "elements": ["id"],
    "partitioned": True,
    "partitions": [
        {"table": {"schema": "public", "name": "orders_eu"}, "oid": 11, "parent": 4711, "leaf": True},
        {"table": {"schema": "public", "name": "orders_us"}, "oid": 12, "parent": 4711, "leaf": False},
        {"table": {"schema": "other", "name": "orders_us_1"}, "oid": 13, "parent": 12, "leaf": True},
    ],
}
ADD = {"kind": "add_index", "name": "orders_new", "columns": ["customer"]}
PURGE = {"kind": "purge_rows", "where": "created < cutoff", "once": {"cutoff": "now()"}}
PURGED = {"where": "(created < cutoff)", "once": {"cutoff": "'2025-01-01 00:00:00+00'::timestamp with time zone"}}


def child(number: int, name: str, fate: str, *, parent: int = 0, of: str = "order_id") -> dict[str, Any]:
    return {
        "number": number, "parent": parent, "table": {"schema": "public", "name": name}, "oid": 20 + number,
        "constraint": f"{name}_fkey", "columns": [[of, "id"]], "fate": fate, "all_columns": ["id", of, "twice"],
        "generated": ["twice"], "key": ["id"],
    }  # fmt: skip


PLANS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "add_index": (ADD, {"new": NEW}),
    "add_index_unique": (ADD | {"unique": True}, {"new": UNIQUE}),
    "add_index_partitioned": (ADD | {"name": "x"}, {"new": TREE}),
    "drop_index": ({"kind": "drop_index", "name": "orders_old"}, {"old": OLD}),
    "replace_index": (
        {"kind": "replace_index", "old": "orders_old", "new": {"name": "orders_new", "columns": ["customer"]}},
        {"old": OLD, "new": NEW},
    ),
    "purge_rows": (PURGE, PURGED | {"children": [child(1, "lines", "refuses"), child(2, "looks", "cleared")]}),
    "purge_rows_archive": (
        PURGE | {"children": "delete", "archive": {"table": "archive.gone"}},
        PURGED
        | {
            "children": [child(1, "lines", "deleted"), child(2, "parts", "deleted", parent=1, of="line_id")],
            "owner": "shop", "readers": ["PUBLIC"],
        },
    ),
}  # fmt: skip


def told(change: Change) -> Iterator[str]:
    """Every part of a change that would run, in the order of the phases."""
    for name, steps in (("expand", change.expand), ("enforce", change.enforce)):
        if steps:
            yield f"== {name}\n{walking.printed(steps)}"
    if change.rows is not None:
        yield from worked("rows", change.rows, ("1",), ("9",), ("5",))
        if (back := change.rows.back()) is not None:
            yield from worked("back", back, ("1", "0"), ("9", "0"), ("5", "77"))
    for check in change.checks:
        yield f"== check {check.check}: {check.failed}\n{check.count}\n{check.keys}\n"
    if change.retire is not None:
        for name, steps in (("drop", change.retire.drop()), ("restore", change.retire.restore())):
            if steps:
                yield f"== {name}\n{walking.printed(steps)}"


def worked(name: str, rows: RowWork, lower: Key, upper: Key, key: Key) -> Iterator[str]:
    """The statements of row work: of a batch, of one row, and those that count and name what waits."""
    for what, statements in (
        ("batch", rows.batch(lower, upper, pick=ALL)),
        ("batch with a limit", [s for s in rows.batch(None, None, pick=Pick(limit=3)) if "LIMIT 3" in s.sql]),
        ("one", [s for s in rows.one(key) if s.values]),
        ("waiting", [rows.waiting(lower, upper), rows.waiting_keys(lower, None, limit=2)]),
    ):
        printed = [f"{statement.sql}\n-- {list(statement.values)}\n" for statement in statements]
        yield f"== {name}: {what}\n{''.join(printed)}"


@pytest.mark.parametrize("name", PLANS)
def test_plan_reads_as_it_is_written_down(name: str) -> None:
    declared, facts = PLANS[name]
    change = walking.planned(walking.migration("public.orders", declared), CATALOG, facts)
    assert "\n".join(told(change)) == (_GOLDEN / f"{name}.txt").read_text(encoding="utf-8")
