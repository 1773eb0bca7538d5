"""Any schedule: whatever the application does between two batches, in the end both shapes hold what was written last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdm_pipelines.dialects.postgres.connection import Connection, connected
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines_tests import schedules
from zdm_pipelines_tests.helpers import expanded, people, replaced
from zdm_pipelines_tests.schedules import Application, Backfilling, Transaction, backfillings, transactions

M = replaced()
KEYS = st.integers(1, 24)
VALUES = st.sampled_from(["", "a", "b", "n:", "ä"])
Pair = tuple[str | None, str | None]  # what a row shall hold in the end: old and new
Rows = dict[int, Pair]


def up(value: str | None) -> str | None:
    return None if value is None else f"n:{value}"


@dataclass(frozen=True)
class Shape:
    """What is written: through the old shape, the new one, or both, which need not agree."""

    columns: tuple[tuple[str, str | None], ...]

    def over(self, pair: Pair) -> Pair:
        """A row, and what becomes of it: the shape that was changed is the one that counts."""
        given = dict(self.columns)
        old, new = given.get("full_name", pair[0]), given.get("display_name", pair[1])
        if (old != pair[0]) == (new != pair[1]):
            return old, new
        return (old, up(old)) if old != pair[0] else (new and new.removeprefix("n:"), new)

    def alone(self) -> Pair:
        """A row that is inserted: what one shape leaves out comes from the other."""
        given = dict(self.columns)
        old, new = given.get("full_name"), given.get("display_name")
        return (old, up(old)) if new is None else (new.removeprefix("n:") if old is None else old, new)

    def literals(self) -> dict[str, str]:
        return {c: "NULL" if value is None else f"'{value}'" for c, value in self.columns}


# NULL through the new shape is what code that never saw the row moved writes back: it says nothing. Those that disagree
# have a new value that no row comes to hold by itself: whether the row was moved must make no difference.
SHAPES = st.one_of(
    st.one_of(st.none(), VALUES).map(lambda v: Shape((("full_name", v),))),
    VALUES.map(lambda v: Shape((("display_name", up(v)),))),
    st.one_of(st.none(), VALUES).map(lambda v: Shape((("full_name", v), ("display_name", up(v))))),
    st.builds(lambda v, w: Shape((("full_name", v), ("display_name", w))), VALUES, st.sampled_from(["n:p", "n:q"])),
)


class OneStatement:
    """An act of a single statement."""

    def sql(self) -> str:
        raise NotImplementedError

    def run(self, conn: psycopg.Connection[Any]) -> Iterator[None]:
        conn.execute(self.sql().encode())
        yield from ()


@dataclass(frozen=True)
class Put(OneStatement):
    """Insert a row, or write it where it stands."""

    key: int
    shape: Shape

    def sql(self) -> str:
        columns = self.shape.literals()
        changes = ", ".join(f"{c} = EXCLUDED.{c}" for c in columns)
        return (
            f"INSERT INTO people (id, {', '.join(columns)}) VALUES ({self.key}, {', '.join(columns.values())}) "
            f"ON CONFLICT (id) DO UPDATE SET {changes}"
        )

    def model(self, rows: Rows) -> None:
        rows[self.key] = self.shape.over(rows[self.key]) if self.key in rows else self.shape.alone()


@dataclass(frozen=True)
class Write(OneStatement):
    """Write all rows of an interval of keys."""

    key: int
    to: int
    shape: Shape

    def sql(self) -> str:
        changes = ", ".join(f"{c} = {value}" for c, value in self.shape.literals().items())
        return f"UPDATE people SET {changes} WHERE id BETWEEN {self.key} AND {self.to}"

    def model(self, rows: Rows) -> None:
        for key in rows:
            if self.key <= key <= self.to:
                rows[key] = self.shape.over(rows[key])


@dataclass(frozen=True)
class Note(OneStatement):
    """Write what is of no shape."""

    key: int

    def sql(self) -> str:
        return f"UPDATE people SET note = 'seen' WHERE id = {self.key}"

    def model(self, rows: Rows) -> None:
        pass


@dataclass(frozen=True)
class Delete(OneStatement):
    key: int

    def sql(self) -> str:
        return f"DELETE FROM people WHERE id = {self.key}"

    def model(self, rows: Rows) -> None:
        rows.pop(self.key, None)


@dataclass(frozen=True)
class Move(OneStatement):
    """Change a row's key to one that is free."""

    key: int
    to: int

    def sql(self) -> str:
        free = f"NOT EXISTS (SELECT FROM people WHERE id = {self.to})"
        return f"UPDATE people SET id = {self.to} WHERE id = {self.key} AND {free}"

    def model(self, rows: Rows) -> None:
        if self.key in rows and self.to not in rows:
            rows[self.to] = rows.pop(self.key)


ACTS: st.SearchStrategy[OneStatement] = st.one_of(
    st.builds(Put, KEYS, SHAPES),
    st.builds(Write, KEYS, KEYS, SHAPES),
    st.builds(Note, KEYS),
    st.builds(Delete, KEYS),
    st.builds(Move, KEYS, KEYS),
    st.builds(Move, st.integers(13, 24), st.integers(1, 12)),  # mostly to where the backfill has been
)


@pytest.fixture(scope="module")
def url(cluster: Cluster) -> Iterator[str]:
    """One database for all examples: both shapes are in sync, and nothing is in the table."""
    url = cluster.primary.create_database("any_schedule")
    people(url, 0)
    expanded(M, url)
    yield url
    cluster.primary.drop_database("any_schedule")


@pytest.fixture(scope="module")
def ours(url: str) -> Iterator[Connection]:
    with connected(url, purpose="any schedule") as conn:
        yield conn


@pytest.fixture(scope="module")
def app(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url) as conn:
        yield conn


@pytest.fixture(autouse=True, scope="module")
def hurrying() -> Iterator[None]:
    with schedules.hurrying():
        yield


def begin_anew(app: psycopg.Connection[Any], before: dict[int, str | None]) -> None:
    """Rows as they were before the migration, in ranges that nobody has begun."""
    app.rollback()
    app.execute("TRUNCATE people")
    app.execute("SET LOCAL zdm.backfill = 'on'")  # the triggers see nothing
    for key, value in before.items():
        app.execute("INSERT INTO people (id, full_name) VALUES (%s, %s)", (key, value))
    app.execute("DELETE FROM zdm.range")
    app.commit()


@given(
    before=st.dictionaries(KEYS, st.one_of(st.none(), VALUES), min_size=6, max_size=20),
    schedule=st.lists(transactions(ACTS), max_size=8),
    backfilling=backfillings(KEYS),
)
def test_any_schedule(
    ours: Connection,
    app: psycopg.Connection[Any],
    before: dict[int, str | None],
    schedule: list[Transaction[Pair]],
    backfilling: Backfilling,
) -> None:
    begin_anew(app, before)
    application = Application(app, {key: (value, up(value)) for key, value in before.items()}, schedule)
    backfilling.run(ours, M, application)
    held = {
        key: (old, new) for key, old, new in app.execute("SELECT id, full_name, display_name FROM people").fetchall()
    }
    app.rollback()
    assert held == application.rows
