"""Values kept: no write through either shape is lost, whatever else a mapper writes back beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from zdm_pipelines.model.migration import Migration
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines_tests.helpers import expanded, replaced, sql

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Declared:
    """A table with one row that was moved (1), one that was not (2), and the migration that has begun on it."""

    table: str  # columns besides the key
    old: str
    new: dict[str, Any]
    up: str
    down: str
    rows: str = ""  # values of the rows 1 and 2, without their keys

    @property
    def migration(self) -> Migration:
        return replaced(name="m", table="public.t", old=self.old, new=self.new, up=self.up, down=self.down)


NEW = {"name": "display_name", "type": "text"}
PLAIN = Declared("full_name text, note text", "full_name", NEW, "'n:' || full_name", "substr(display_name, 3)", "'v'")
REQUIRED = Declared(
    "full_name text NOT NULL, note text", "full_name", {**NEW, "nullable": False}, "full_name", "display_name", "'v'"
)
DEFAULTED = Declared(
    "full_name text DEFAULT '', note text", "full_name", {**NEW, "nullable": False, "default": "''"},
    "coalesce(full_name, '')", "display_name", "'v'",
)  # fmt: skip
PRICE = {"name": "price", "type": "numeric(12,4)", "nullable": False}
MONEY = Declared(
    "price_cents integer NOT NULL, currency text NOT NULL", "price_cents", PRICE,
    "CASE WHEN currency = 'JPY' THEN price_cents ELSE price_cents / 100.0 END",
    "round(CASE WHEN currency = 'JPY' THEN price ELSE price * 100 END)::integer", "300, 'EUR'",
)  # fmt: skip
CARELESS = Declared(
    MONEY.table, "price_cents", PRICE, MONEY.up, "round(price * 100)::integer", MONEY.rows
)  # only up reads the currency
FIRST = Declared(
    "full_name text NOT NULL, last text NOT NULL", "full_name", {"name": "first", "type": "text", "nullable": False},
    "split_part(full_name, ' ', 1)", "first || ' ' || last", "'a b', 'b'",
)  # fmt: skip
BOTH_OWN = Declared(  # either expression reads a column that the other does not
    "full_name text NOT NULL, last text NOT NULL, title text NOT NULL", "full_name",
    {"name": "first", "type": "text", "nullable": False},
    "title || split_part(full_name, ' ', 1)", "ltrim(first, '#') || ' ' || last", "'a b', 'b', '#'",
)  # fmt: skip

Begun = Callable[[Declared], psycopg.Connection[Any]]


@pytest.fixture(scope="module")
def begun(cluster: Cluster) -> Iterator[Begun]:
    """A connection to the database of a declaration, which is made once."""
    made: dict[int, psycopg.Connection[Any]] = {}

    def of(declared: Declared) -> psycopg.Connection[Any]:
        if id(declared) not in made:
            url = cluster.primary.create_database(f"values_kept_{len(made)}")
            sql(url, f"CREATE TABLE t (id integer PRIMARY KEY, {declared.table})")
            sql(url, f"INSERT INTO t VALUES (1, {declared.rows}), (2, {declared.rows})")
            expanded(declared.migration, url)
            conn = made[id(declared)] = psycopg.connect(url)
            conn.execute("SET zdm.backfill = 'on'")  # the triggers see nothing
            conn.execute(f"UPDATE t SET {declared.new['name']} = {declared.up} WHERE id = 1")
            conn.execute("RESET zdm.backfill")
            conn.commit()
        return made[id(declared)]

    yield of
    for n, conn in enumerate(made.values()):
        conn.close()
        cluster.primary.drop_database(f"values_kept_{n}")


def held(conn: psycopg.Connection[Any], declared: Declared, percent: int, *statements: str) -> tuple[Row, set[str]]:
    """What row 1 (or the one that is written) holds after statements, and who is noted; all is taken back."""
    try:
        conn.execute("UPDATE zdm.flag SET percent = %s", (percent,))
        for statement in statements:
            conn.execute(statement.encode())
        key = 2 if "= 2" in statements[-1] else 1
        row = conn.execute(f"SELECT {declared.old}, {declared.new['name']} FROM t WHERE id = {key}").fetchone()
        assert row is not None
        return row, {wrote for (wrote,) in conn.execute("SELECT wrote FROM zdm.writer WHERE wrote <> 'names'")}
    finally:
        conn.rollback()


ALL = (0, 1, 50, 100)
SAVED = "UPDATE t SET full_name = {}, display_name = {}, note = 'edited' WHERE id = {}"


@pytest.mark.parametrize(
    ("declared", "percents", "statement", "row", "noted"),
    [
        # A mapper that loaded the row before it was moved saves all fields.
        (PLAIN, (0,), SAVED.format("'v'", "NULL", 1), ("v", "n:v"), set()),
        (PLAIN, (1, 50, 100), SAVED.format("'v'", "NULL", 1), (None, None), {"new"}),
        (PLAIN, ALL, SAVED.format("'w'", "NULL", 1), ("w", "n:w"), {"old"}),
        (PLAIN, ALL, SAVED.format("'w'", "'n:v'", 1), ("w", "n:w"), {"old"}),
        (PLAIN, ALL, SAVED.format("NULL", "NULL", 1), (None, None), {"old"}),
        (PLAIN, (0,), SAVED.format("'v'", "NULL", 2), ("v", None), set()),
        (PLAIN, ALL, SAVED.format("'w'", "NULL", 2), ("w", "n:w"), {"old"}),
        # ... or has all fields of a row that it made itself, which the sync filled since.
        (PLAIN, (0, 1, 50), SAVED.format("NULL", "'n:v'", 1), (None, None), {"old"}),
        (PLAIN, (100,), SAVED.format("NULL", "'n:v'", 1), ("v", "n:v"), {"old"}),
        (PLAIN, ALL, SAVED.format("NULL", "'n:w'", 1), ("w", "n:w"), {"both"}),
        (PLAIN, ALL, SAVED.format("'v'", "'n:w'", 1), ("w", "n:w"), {"new"}),
        (PLAIN, ALL, SAVED.format("'d'", "'n:e'", 1), ("d", "n:e"), {"both"}),
        # NULL in a column that may not be NULL was never meant.
        (REQUIRED, ALL, SAVED.format("'v'", "NULL", 1), ("v", "v"), set()),
        (REQUIRED, ALL, SAVED.format("'w'", "NULL", 1), ("w", "w"), {"old"}),
        (REQUIRED, (100,), SAVED.format("NULL", "'v'", 1), ("v", "v"), {"old"}),
        (REQUIRED, ALL, SAVED.format("NULL", "'w'", 1), ("w", "w"), {"both"}),
        # The default of the old column is what an insert left out.
        (DEFAULTED, (100,), SAVED.format("''", "'v'", 1), ("v", "v"), {"old"}),
        (DEFAULTED, (0, 50), SAVED.format("''", "'v'", 1), ("", ""), {"old"}),
        (DEFAULTED, ALL, SAVED.format("''", "'w'", 1), ("w", "w"), {"both"}),
        # Upserts and MERGE.
        (PLAIN, ALL, "INSERT INTO t (id, full_name, display_name) VALUES (1, 'w', NULL) ON CONFLICT (id) DO UPDATE SET "
         "full_name = EXCLUDED.full_name, display_name = EXCLUDED.display_name", ("w", "n:w"), {"old", "both"}),
        (PLAIN, ALL, "INSERT INTO t (id, full_name, display_name) VALUES (1, NULL, 'n:w') ON CONFLICT (id) DO UPDATE "
         "SET full_name = EXCLUDED.full_name, display_name = EXCLUDED.display_name", ("w", "n:w"), {"new", "both"}),
        (PLAIN, (0,), "MERGE INTO t USING (VALUES (1, 'v', NULL)) s (i, f, d) ON id = i WHEN MATCHED THEN UPDATE SET "
         "full_name = f, display_name = d", ("v", "n:v"), set()),
        (PLAIN, (100,), "MERGE INTO t USING (VALUES (1, NULL, 'n:v')) s (i, f, d) ON id = i WHEN MATCHED THEN UPDATE "
         "SET full_name = f, display_name = d", ("v", "n:v"), {"old"}),
    ],
)  # fmt: skip
def test_what_a_mapper_saves(
    begun: Begun, declared: Declared, percents: tuple[int, ...], statement: str, row: Row, noted: set[str]
) -> None:
    for percent in percents:
        assert held(begun(declared), declared, percent, statement) == (row, noted), percent


def test_without_a_flag_nobody_reads_the_new_shape(begun: Begun) -> None:
    gone = "DELETE FROM zdm.flag"
    assert held(begun(PLAIN), PLAIN, 100, gone, SAVED.format("'v'", "NULL", 1)) == (("v", "n:v"), set())


CURRENCY = "UPDATE t SET currency = '{}' WHERE id = {}"


@pytest.mark.parametrize(
    ("declared", "percents", "statements", "row", "noted"),
    [
        # Both expressions read the currency.
        (MONEY, (0,), [CURRENCY.format("JPY", 1)], (300, 300), set()),
        (MONEY, (50, 100), [CURRENCY.format("JPY", 1)], (3, 3), set()),
        (MONEY, ALL, ["UPDATE t SET price = 1.2345 WHERE id = 1", CURRENCY.format("USD", 1)], (123, Decimal("1.2345")), {"new"}),
        (MONEY, ALL, ["UPDATE t SET price = 1.2345 WHERE id = 1", CURRENCY.format("JPY", 1)], (1, Decimal("1.2345")), {"new"}),
        (MONEY, (0,), [CURRENCY.format("JPY", 2)], (300, 300), set()),
        (MONEY, (100,), [CURRENCY.format("JPY", 2)], (3, 3), set()),
        (MONEY, ALL, ["UPDATE t SET price_cents = 7, price = 9 WHERE id = 1", CURRENCY.format("JPY", 1)],
         (7, 9), {"both"}),
        (MONEY, ALL, ["UPDATE t SET price_cents = 500, currency = 'JPY' WHERE id = 1"], (500, 500), {"old"}),
        (MONEY, ALL, ["UPDATE t SET price = 5, currency = 'JPY' WHERE id = 1"], (5, 5), {"new"}),
        # Only up does.
        (CARELESS, ALL, [CURRENCY.format("JPY", 1)], (300, 300), {"old"}),
        (CARELESS, (1, 100), ["UPDATE t SET price = 1.2345 WHERE id = 1", CURRENCY.format("USD", 1)],
         (123, Decimal("1.2345")), {"new"}),
        (CARELESS, (0,), ["UPDATE t SET price = 1.2345 WHERE id = 1", CURRENCY.format("USD", 1)],
         (123, Decimal("1.23")), {"old", "new"}),
        # Only down reads the last name.
        (FIRST, ALL, ["UPDATE t SET last = 'c' WHERE id = 1"], ("a c", "a"), {"new"}),
        (FIRST, ALL, ["UPDATE t SET last = 'c' WHERE id = 2"], ("a c", "a"), {"new"}),
        (FIRST, (0,), ["UPDATE t SET full_name = 'a m b' WHERE id = 1", "UPDATE t SET last = 'c' WHERE id = 1"],
         ("a m b", "a"), {"old"}),
        (FIRST, (100,), ["UPDATE t SET full_name = 'a m b' WHERE id = 1", "UPDATE t SET last = 'c' WHERE id = 1"],
         ("a c", "a"), {"old", "new"}),
        (FIRST, ALL, ["UPDATE t SET full_name = 'x y', last = 'y' WHERE id = 1"], ("x y", "x"), {"old"}),
        (FIRST, ALL, ["UPDATE t SET first = 'x', last = 'y' WHERE id = 1"], ("x y", "x"), {"new"}),
        # Either reads one that the other does not.
        (BOTH_OWN, ALL, ["UPDATE t SET title = '##' WHERE id = 1"], ("a b", "##a"), {"old"}),
        (BOTH_OWN, ALL, ["UPDATE t SET last = 'c' WHERE id = 1"], ("a c", "#a"), {"new"}),
    ],
)  # fmt: skip
def test_what_a_kept_column_changes(
    begun: Begun, declared: Declared, percents: tuple[int, ...], statements: list[str], row: Row, noted: set[str]
) -> None:
    for percent in percents:
        assert held(begun(declared), declared, percent, *statements) == (row, noted), percent
