"""Strides: how many passes a table gets, and when a run gives them up."""

from __future__ import annotations

from typing import Any, cast

import pytest

from zdm_pipelines.dialects.postgres import strides as sql
from zdm_pipelines.dialects.server import Heap
from zdm_pipelines.engine.rows import strides
from zdm_pipelines.model.values import Column


def heap(**given: Any) -> Heap:
    usual: dict[str, Any] = {
        "pages": 20_000, "rows_per_page": 50.0, "free": 0.01, "correlation": 1.0, "indexed": False, "unique": False
    }  # fmt: skip
    return Heap(**{**usual, **given})


@pytest.mark.parametrize(
    ("given", "passes"),
    [
        ({}, 8),
        ({"correlation": None, "rows_per_page": None, "free": None}, 8),  # never analyzed
        ({"correlation": 0.1}, 1),
        ({"indexed": True}, 1),
        ({"pages": 99}, 1),
        ({"free": 0.25}, 4),
        ({"free": 0.5}, 2),
        ({"rows_per_page": 5.0}, 4),
        ({"rows_per_page": 1.5}, 1),
    ],
)
def test_passes_by_the_tables_statistics(given: dict[str, Any], passes: int) -> None:
    assert strides.choose(heap(**given)) == passes


def column(name: str, type_: str) -> Column:
    return Column(name=name, type=type_, not_null=True, default=None, generated=False, identity=False, number=1)


@pytest.mark.parametrize(
    ("key", "predicate"),
    [
        ([column("id", "bigint")], '(pg_catalog.hashint8("id") & 7) = 3'),
        ([column("tenant", "uuid"), column("Nr", "smallint")], '(pg_catalog.hashint8("Nr") & 7) = 3'),
        ([column("id", "uuid")], "(pg_catalog.hashtid(ctid) & 7) = 3"),
    ],
)
def test_the_rows_of_a_pass(key: list[Column], predicate: str) -> None:
    assert sql.among(key, 8, 3, None, None, rows=800)("wanted") == f"CASE WHEN {predicate} THEN wanted END"


@pytest.mark.parametrize(
    ("lower", "upper", "dense"),
    [(100, 899, True), (-900, 700, True), (100, 1_701, False), (2**62 - 9, 2**62, False), (None, 100, False)],
)
def test_numbers_with_few_gaps_are_asked_of_the_index(lower: int | None, upper: int, dense: bool) -> None:
    bound = None if lower is None else (str(lower),)
    found = sql.among([column("id", "integer")], 8, 3, bound, (str(upper),), rows=800)("wanted")
    assert ("= ANY (ARRAY(" in found) == dense
    assert ("CASE WHEN" in found) != dense


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Facts:
    """A session of a server that is asked a few things only."""

    def __init__(self, *, counted: bool = True) -> None:
        self.kept = True
        self.asked = 0
        self._answers = {
            "strides.counted": counted, "strides.pinned": "replication slot s", "strides.next_transaction": 7
        }  # fmt: skip

    def value(self, name: str, *values: Any) -> Any:
        if name != "strides.kept":
            return self._answers[name]
        assert values == ("7",)
        self.asked += 1
        return self.kept


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(strides, "time", clock)
    return clock


def test_plain_until_dead_rows_can_be_removed(clock: Clock) -> None:
    said: list[str] = []
    facts = Facts()
    striding, conn = strides.Strides(lambda: 8, tell=said.append), cast("Any", facts)
    for _ in range(20):
        striding.moved(conn, 0, 1_000, 0)  # a first pass says nothing
    for _ in range(4):
        striding.moved(conn, 1, 1_000, 0)
    assert striding.passes(conn) == 8
    striding.moved(conn, 2, 1_000, 400)
    assert [striding.passes(conn) for _ in range(3)] == [1, 1, 1]
    assert facts.asked == 0
    assert said == [
        "only 8% of the rows move in place, plain batches until dead rows can be removed, "
        "which are held by replication slot s"
    ]
    clock.now += 0.3
    assert [striding.passes(conn) for _ in range(3)] == [1, 1, 1]
    assert facts.asked == 1
    facts.kept = False
    clock.now += 0.3
    assert striding.passes(conn) == 8
    for _ in range(50):
        striding.moved(conn, 1, 1_000, 700)
    assert striding.passes(conn) == 8
    assert len(said) == 1


def test_strides_are_tried_less_often_where_something_else_keeps_dead_rows_each_time(clock: Clock) -> None:
    said: list[str] = []
    facts = Facts()
    facts.kept = False
    striding, conn = strides.Strides(lambda: 8, tell=said.append), cast("Any", facts)
    rests = []
    for _ in range(8):
        striding.moved(conn, 1, 5_000, 0)
        begun = clock.now
        while striding.passes(conn) == 1:
            clock.now += 0.25
        rests.append(clock.now - begun)
    assert rests == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert len(said) == 1
    striding.moved(conn, 1, 5_000, 5_000)
    striding.moved(conn, 1, 5_000, 0)
    clock.now += 0.25
    assert striding.passes(conn) == 8


@pytest.mark.usefixtures("clock")
def test_a_server_that_does_not_count_says_nothing() -> None:
    said: list[str] = []
    striding, conn = strides.Strides(lambda: 8, tell=said.append), cast("Any", Facts(counted=False))
    for _ in range(20):
        striding.moved(conn, 1, 1_000, 0)
    assert (striding.passes(conn), said) == (8, [])
