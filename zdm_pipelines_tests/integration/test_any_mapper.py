"""Any mapper: saves of whole rows, kept columns that both expressions read, and triggers of the application.

Whoever loads a row before it is moved and saves every field afterwards writes NULL into the new column. Whoever changes
the currency alone writes neither price. A trigger that alters what `up` reads alters it for rows that a batch moves, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdm_pipelines.dialects.postgres.connection import Connection, connected
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines_tests import schedules
from zdm_pipelines_tests.helpers import expanded, replaced, sql
from zdm_pipelines_tests.schedules import Application, Backfilling, Transaction, backfillings, transactions

KEYS = st.integers(1, 16)
CENTS = st.integers(0, 400)
PRICES = st.sampled_from([Decimal("1.5"), Decimal("2.25"), Decimal("1.2345"), Decimal(3)])  # one is beyond down
CURRENCIES = st.sampled_from(["EUR", "JPY", "eur", "jpy"])

M: Migration = replaced(
    name="price",
    table="public.goods",
    old="cents",
    new={"name": "price", "type": "numeric", "nullable": False},
    up="CASE WHEN currency = 'JPY' THEN cents ELSE cents / 100.0 END",
    down="round(CASE WHEN currency = 'JPY' THEN price ELSE price * 100 END)::integer",
)
# One trigger alters what `up` reads, also of rows that batches move; the other writes another row.
TABLE = """
CREATE TABLE goods (id integer PRIMARY KEY, cents integer NOT NULL, currency text NOT NULL, note text);
CREATE FUNCTION normal() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN NEW.currency := upper(NEW.currency); RETURN NEW; END';
CREATE TRIGGER normal BEFORE INSERT OR UPDATE ON goods FOR EACH ROW EXECUTE FUNCTION normal();
CREATE FUNCTION raise_next() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN UPDATE goods SET cents = cents + 7 WHERE id = NEW.id + 1; RETURN NULL; END';
CREATE TRIGGER raise_next AFTER UPDATE ON goods FOR EACH ROW
  WHEN (NEW.note = 'raise' AND OLD.note IS DISTINCT FROM NEW.note) EXECUTE FUNCTION raise_next();
"""


def up(cents: int, currency: str) -> Decimal:
    return Decimal(cents) if currency == "JPY" else Decimal(cents) / 100


def down(price: Decimal, currency: str) -> int:
    exact = price if currency == "JPY" else price * 100
    return int(exact.quantize(Decimal(1), rounding="ROUND_HALF_UP"))


@dataclass(frozen=True)
class Good:
    """A row as it must be in the end, as if it had been moved from the beginning."""

    cents: int
    price: Decimal
    currency: str
    note: str | None

    @classmethod
    def of(cls, cents: int, currency: str) -> Good:
        currency = currency.upper()
        return cls(cents, up(cents, currency), currency, None)

    def written(self, **changes: Any) -> Good:
        """Whoever is changed is what the other side is computed from; a kept column is of neither side."""
        now = replace(self, **changes)
        now = replace(now, currency=now.currency.upper())
        old, new = now.cents != self.cents, now.price != self.price
        if old and not new:
            return replace(now, price=up(now.cents, now.currency))
        if new and not old:
            return replace(now, cents=down(now.price, now.currency))
        if not old and not new and now.currency != self.currency:
            if self.price == up(self.cents, self.currency):
                return replace(now, price=up(now.cents, now.currency))
            if self.cents == down(self.price, self.currency):
                return replace(now, cents=down(now.price, now.currency))
        return now


Rows = dict[int, Good]
COLUMNS = ("cents", "price", "currency", "note")


def save(rows: Rows, key: int, **changes: Any) -> None:
    """Write a row, and what the trigger writes beside it."""
    if key not in rows:
        return
    before, rows[key] = rows[key], rows[key].written(**changes)
    beside = rows.get(key + 1)
    if rows[key].note == "raise" and before.note != "raise" and beside is not None:
        rows[key + 1] = beside.written(cents=beside.cents + 7)


@dataclass(frozen=True)
class SaveAll:
    """A mapper loads a row, a batch may come, and every field is written back, one of them changed."""

    key: int
    field: str
    value: Any
    knows: tuple[str, ...]  # its fields: those of old code, or of new

    def run(self, conn: psycopg.Connection[Any]) -> Iterator[None]:
        loaded = conn.execute(
            f"SELECT {', '.join(self.knows)} FROM goods WHERE id = %s".encode(), (self.key,)
        ).fetchone()
        yield
        if loaded is not None:
            fields = dict(zip(self.knows, loaded, strict=True)) | {self.field: self.value}
            assigned = ", ".join(f"{column} = %({column})s" for column in fields)
            conn.execute(f"UPDATE goods SET {assigned} WHERE id = %(id)s".encode(), fields | {"id": self.key})

    def model(self, rows: Rows) -> None:
        save(rows, self.key, **{self.field: self.value})


@dataclass(frozen=True)
class Set:
    """A statement that names what it changes and nothing else."""

    key: int
    field: str
    value: Any

    def run(self, conn: psycopg.Connection[Any]) -> Iterator[None]:
        conn.execute(f"UPDATE goods SET {self.field} = %s WHERE id = %s".encode(), (self.value, self.key))
        yield from ()

    def model(self, rows: Rows) -> None:
        save(rows, self.key, **{self.field: self.value})


@dataclass(frozen=True)
class Insert:
    """A row that a mapper makes: what it does not know yet is NULL."""

    key: int
    cents: int
    currency: str

    def run(self, conn: psycopg.Connection[Any]) -> Iterator[None]:
        conn.execute(
            "INSERT INTO goods (id, cents, price, currency) VALUES (%s, %s, NULL, %s) ON CONFLICT (id) DO NOTHING",
            (self.key, self.cents, self.currency),
        )
        yield from ()

    def model(self, rows: Rows) -> None:
        rows.setdefault(self.key, Good(self.cents, up(self.cents, self.currency.upper()), self.currency.upper(), None))


@dataclass(frozen=True)
class Delete:
    key: int

    def run(self, conn: psycopg.Connection[Any]) -> Iterator[None]:
        conn.execute("DELETE FROM goods WHERE id = %s", (self.key,))
        yield from ()

    def model(self, rows: Rows) -> None:
        rows.pop(self.key, None)


# A new price that is empty says nothing while reads are on the old shape; a mapper writes it without meaning it.
OLD_FIELDS = [
    ("cents", CENTS),
    ("currency", CURRENCIES),
    ("note", st.sampled_from(["raise", "n"])),
]
NEW_FIELDS = [("price", PRICES), *OLD_FIELDS[1:]]


def changing(make: Any, fields: list[tuple[str, st.SearchStrategy[Any]]], **more: Any) -> st.SearchStrategy[Any]:
    return st.one_of([st.builds(make, KEYS, st.just(name), values, **more) for name, values in fields])


ACTS: st.SearchStrategy[Any] = st.one_of(
    changing(SaveAll, OLD_FIELDS, knows=st.just(("cents", "currency", "note"))),
    changing(SaveAll, OLD_FIELDS, knows=st.just(COLUMNS)),
    changing(SaveAll, NEW_FIELDS, knows=st.just(COLUMNS)),
    changing(SaveAll, NEW_FIELDS, knows=st.just(("price", "currency", "note"))),
    changing(Set, [*OLD_FIELDS, ("price", PRICES)]),
    st.builds(Insert, KEYS, CENTS, CURRENCIES),
    st.builds(Delete, KEYS),
)


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> Iterator[str]:
    """One database for all examples."""
    url = cluster.primary.create_database("any_mapper")
    sql(url, TABLE)
    expanded(M, url)
    yield url
    cluster.primary.drop_database("any_mapper")


@pytest.fixture(scope="module")
def ours(url: str) -> Iterator[Connection]:
    with connected(url, purpose="any mapper") as conn:
        yield conn


@pytest.fixture(scope="module")
def app(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url) as conn:
        yield conn


@pytest.fixture(autouse=True, scope="module")
def hurrying() -> Iterator[None]:
    with schedules.hurrying():
        yield


@given(
    before=st.dictionaries(KEYS, st.tuples(CENTS, CURRENCIES), min_size=6, max_size=14),
    schedule=st.lists(transactions(ACTS), max_size=8),
    backfilling=backfillings(KEYS),
)
def test_no_value_is_lost_and_none_replaced_by_an_older_one(
    ours: Connection,
    app: psycopg.Connection[Any],
    before: dict[int, tuple[int, str]],
    schedule: list[Transaction[Good]],
    backfilling: Backfilling,
) -> None:
    app.rollback()
    app.execute("TRUNCATE goods")
    app.execute("SET LOCAL session_replication_role = 'replica'; SET LOCAL zdm.backfill = 'on'")  # no trigger fires
    for key, (cents, currency) in before.items():
        app.execute("INSERT INTO goods (id, cents, currency) VALUES (%s, %s, %s)", (key, cents, currency))
    app.execute("DELETE FROM zdm.range")
    app.commit()
    application = Application(app, {key: Good.of(*row) for key, row in before.items()}, schedule)
    backfilling.run(ours, M, application)
    held = {
        key: Good(*row) for key, *row in app.execute("SELECT id, cents, price, currency, note FROM goods").fetchall()
    }
    app.rollback()
    assert held == application.rows
