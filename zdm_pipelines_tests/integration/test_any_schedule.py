"""Any schedule: whatever the application does between two batches, in the end both shapes hold what was written last."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdm_pipelines import ledger
from zdm_pipelines.changes import bind
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres.connection import Connection, connected
from zdm_pipelines.engine.pace import Pace
from zdm_pipelines.engine.rows import ranges, revisit, worker
from zdm_pipelines.engine.rows.strides import Strides
from zdm_pipelines.engine.rows.worker import RangeWorker
from zdm_pipelines.ledger import ranges as stored
from zdm_pipelines.model.migration import Backfill
from zdm_pipelines.model.values import Moved
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines_tests.helpers import expanded, people, replaced

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


@dataclass(frozen=True)
class Put:
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
class Write:
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
class Note:
    """Write what is of no shape."""

    key: int

    def sql(self) -> str:
        return f"UPDATE people SET note = 'seen' WHERE id = {self.key}"

    def model(self, rows: Rows) -> None:
        pass


@dataclass(frozen=True)
class Delete:
    key: int

    def sql(self) -> str:
        return f"DELETE FROM people WHERE id = {self.key}"

    def model(self, rows: Rows) -> None:
        rows.pop(self.key, None)


@dataclass(frozen=True)
class Move:
    """Change a row's key to one that is free."""

    key: int
    to: int

    def sql(self) -> str:
        free = f"NOT EXISTS (SELECT FROM people WHERE id = {self.to})"
        return f"UPDATE people SET id = {self.to} WHERE id = {self.key} AND {free}"

    def model(self, rows: Rows) -> None:
        if self.key in rows and self.to not in rows:
            rows[self.to] = rows.pop(self.key)


Act = Put | Write | Note | Delete | Move
ACTS: st.SearchStrategy[Act] = st.one_of(
    st.builds(Put, KEYS, SHAPES),
    st.builds(Write, KEYS, KEYS, SHAPES),
    st.builds(Note, KEYS),
    st.builds(Delete, KEYS),
    st.builds(Move, KEYS, KEYS),
    st.builds(Move, st.integers(13, 24), st.integers(1, 12)),  # mostly to where the backfill has been
)


@dataclass(frozen=True)
class Transaction:
    """Acts with a batch between each two of them; its locks are had until it ends."""

    acts: tuple[Act, ...]
    undone: frozenset[int]  # places of acts whose savepoint is rolled back
    commits: bool


TRANSACTIONS = st.builds(
    Transaction,
    st.lists(ACTS, min_size=1, max_size=4).map(tuple),
    st.frozensets(st.integers(0, 3), max_size=1),
    st.booleans(),
)


class Application:
    """Does the next thing of a schedule whenever it is asked to."""

    def __init__(self, conn: psycopg.Connection[Any], before: Rows, schedule: list[Transaction]) -> None:
        self.conn = conn
        self.rows = dict(before)  # committed
        self._steps = self._run(schedule)

    def step(self, *_: object) -> None:
        next(self._steps, None)

    def finish(self) -> None:
        for _ in self._steps:
            pass

    def _run(self, schedule: list[Transaction]) -> Iterator[None]:
        for transaction in schedule:
            rows = dict(self.rows)
            for place, act in enumerate(transaction.acts):
                undone = place in transaction.undone
                self.conn.execute("SAVEPOINT here")
                self.conn.execute(act.sql())
                if undone:
                    self.conn.execute("ROLLBACK TO SAVEPOINT here")
                else:
                    act.model(rows)
                yield
            if transaction.commits:
                self.conn.commit()
                self.rows = rows
            else:
                self.conn.rollback()
            yield


class Unthrottled:
    def __init__(self, batch_rows: int) -> None:
        self.pace = Pace(Backfill(batch_rows=batch_rows))

    def turn(self, conn: Any) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def release(self, conn: Any) -> None:
        pass

    def rest(self, conn: Any, seconds: float) -> None:
        pass

    def statement_timeout(self) -> float:
        return 60.0


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
    """Rows that are locked are come back to at once: who has them goes on when we do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(revisit, "_FIRST_PAUSE", 0.0)
        patch.setattr(worker, "_QUEUE_SECONDS", 0.01)
        yield


def begin_anew(app: psycopg.Connection[Any], entry: ledger.Entry, before: dict[int, str | None]) -> None:
    """Rows as they were before the migration, in ranges that nobody has begun."""
    app.rollback()
    app.execute("TRUNCATE people")
    app.execute("SET LOCAL zdm.backfill = 'on'")  # the triggers see nothing
    for key, value in before.items():
        app.execute("INSERT INTO people (id, full_name) VALUES (%s, %s)", (key, value))
    app.execute("DELETE FROM zdm.range WHERE migration_id = %s", (entry.id,))
    app.commit()


@given(
    before=st.dictionaries(KEYS, st.one_of(st.none(), VALUES), min_size=6, max_size=20),
    cuts=st.lists(KEYS, unique=True, max_size=2).map(sorted),
    schedule=st.lists(TRANSACTIONS, max_size=8),
    batch_rows=st.integers(1, 4),
    passes=st.sampled_from([1, 2, 4]),
    interrupted=st.frozensets(st.integers(1, 12), max_size=2),
)
def test_any_schedule(
    ours: Connection,
    app: psycopg.Connection[Any],
    before: dict[int, str | None],
    cuts: list[int],
    schedule: list[Transaction],
    batch_rows: int,
    passes: int,
    interrupted: frozenset[int],
) -> None:
    entry = ledger.find(ours, M.name)
    assert entry is not None
    begin_anew(app, entry, before)
    whole = ranges.Stretch(lower=None, upper=None)
    stored.store(ours, entry.id, ranges.between([(str(cut),) for cut in cuts], within=whole, first_ordinal=1))
    application, batches = Application(app, {key: (value, up(value)) for key, value in before.items()}, schedule), 0

    def between(_: Moved) -> None:
        nonlocal batches
        batches += 1
        application.step()
        if batches in interrupted:
            raise KeyboardInterrupt

    rows = bind(M, server_at(""), entry.catalog, entry.facts, migration_id=entry.id).rows
    assert rows is not None
    application.step()
    for which in stored.progress(ours, entry.id):
        for _ in range(len(interrupted) + 1):
            with contextlib.suppress(KeyboardInterrupt):
                RangeWorker(
                    ours, migration_id=entry.id, name=M.name, work=rows, control=Unthrottled(batch_rows),
                    strides=Strides(lambda: passes), patience=20.0, tell=between,
                ).run(which.range)  # fmt: skip
                break
    assert all(r.done for r in stored.progress(ours, entry.id))
    application.finish()
    held = {
        key: (old, new) for key, old, new in app.execute("SELECT id, full_name, display_name FROM people").fetchall()
    }
    app.rollback()
    assert held == application.rows
