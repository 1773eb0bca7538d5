"""Schedules: what an application does between the batches of a backfill, beside a model of what its rows must hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import psycopg
import pytest
from hypothesis import strategies as st

from zdm_pipelines import ledger
from zdm_pipelines.changes import bind
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.engine.pace import Pace
from zdm_pipelines.engine.rows import ranges, revisit, worker
from zdm_pipelines.engine.rows.strides import Strides
from zdm_pipelines.engine.rows.worker import RangeWorker
from zdm_pipelines.ledger import ranges as stored
from zdm_pipelines.model.migration import Backfill, Migration
from zdm_pipelines.model.values import Moved

Row = TypeVar("Row")


class Act(Protocol[Row]):
    """Something that the application does."""

    def run(self, conn: psycopg.Connection[Any]) -> Iterator[None]:
        """Do it; batches come where this yields."""
        ...

    def model(self, rows: dict[int, Row]) -> None:
        """Do the same to rows by key, as they must be in the end."""
        ...


@dataclass(frozen=True)
class Transaction(Generic[Row]):
    """Acts with a batch between each two of them; its locks are had until it ends."""

    acts: tuple[Act[Row], ...]
    undone: frozenset[int]  # places of acts whose savepoint is rolled back
    commits: bool


def transactions(acts: st.SearchStrategy[Any]) -> st.SearchStrategy[Transaction[Any]]:
    """Transactions of up to four acts."""
    return st.builds(
        Transaction,
        st.lists(acts, min_size=1, max_size=4).map(tuple),
        st.frozensets(st.integers(0, 3), max_size=1),
        st.booleans(),
    )


class Application(Generic[Row]):
    """Does the next thing of a schedule whenever it is asked to."""

    def __init__(self, conn: psycopg.Connection[Any], before: dict[int, Row], schedule: list[Transaction[Row]]) -> None:
        self.conn = conn
        self.rows = dict(before)  # committed
        self._steps = self._run(schedule)

    def step(self, *_: object) -> None:
        next(self._steps, None)

    def finish(self) -> None:
        for _ in self._steps:
            pass

    def _run(self, schedule: list[Transaction[Row]]) -> Iterator[None]:
        for transaction in schedule:
            rows = dict(self.rows)
            for place, act in enumerate(transaction.acts):
                undone = place in transaction.undone
                self.conn.execute("SAVEPOINT here")
                yield from act.run(self.conn)
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
    """Nothing stands above this worker."""

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


@contextlib.contextmanager
def hurrying() -> Iterator[None]:
    """Rows that are locked are come back to at once: who has them goes on when we do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(revisit, "_FIRST_PAUSE", 0.0)
        patch.setattr(worker, "_QUEUE_SECONDS", 0.01)
        yield


@dataclass(frozen=True, kw_only=True)
class Backfilling:
    """How the backfill goes: in which ranges and batches, and after which of them it is interrupted."""

    cuts: list[int]
    batch_rows: int
    passes: int
    interrupted: frozenset[int]

    def run(self, ours: Connection, m: Migration, application: Application[Any]) -> None:
        """Move every range, the application doing one thing between each two batches, and the rest in the end."""
        entry = ledger.find(ours, m.name)
        assert entry is not None
        whole = ranges.Stretch(lower=None, upper=None)
        cuts = ranges.between([(str(cut),) for cut in self.cuts], within=whole, first_ordinal=1)
        stored.store(ours, entry.id, cuts)
        batches = 0

        def between(_: Moved) -> None:
            nonlocal batches
            batches += 1
            application.step()
            if batches in self.interrupted:
                raise KeyboardInterrupt

        rows = bind(m, server_at(""), entry.catalog, entry.facts, migration_id=entry.id).rows
        assert rows is not None
        application.step()
        for which in stored.progress(ours, entry.id):
            for _ in range(len(self.interrupted) + 1):
                with contextlib.suppress(KeyboardInterrupt):
                    RangeWorker(
                        ours, migration_id=entry.id, name=m.name, work=rows, control=Unthrottled(self.batch_rows),
                        strides=Strides(lambda: self.passes), patience=20.0, tell=between,
                    ).run(which.range)  # fmt: skip
                    break
        assert all(r.done for r in stored.progress(ours, entry.id))
        application.finish()


def backfillings(keys: st.SearchStrategy[int]) -> st.SearchStrategy[Backfilling]:
    """Any of them."""
    return st.builds(
        Backfilling,
        cuts=st.lists(keys, unique=True, max_size=2).map(sorted),
        batch_rows=st.integers(1, 4),
        passes=st.sampled_from([1, 2, 4]),
        interrupted=st.frozensets(st.integers(1, 12), max_size=2),
    )
