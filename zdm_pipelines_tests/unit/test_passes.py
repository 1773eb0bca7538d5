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
    """A session of a server that is asked two things only."""

    def __init__(self, *, counted: bool = True) -> None:
        self._answers = {"strides.counted": counted, "strides.pinned": "replication slot s"}

    def value(self, name: str) -> Any:
        return self._answers[name]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(strides, "time", clock)
    return clock


def test_plain_for_a_while_when_nothing_moves_in_place(clock: Clock) -> None:
    said: list[str] = []
    striding, conn = strides.Strides(lambda: 8, tell=said.append), cast("Any", Facts())
    for _ in range(20):
        striding.moved(conn, 0, 1_000, 0)  # a first pass says nothing
    for _ in range(4):
        striding.moved(conn, 1, 1_000, 0)
    assert striding.passes == 8
    striding.moved(conn, 2, 1_000, 400)
    assert striding.passes == 1
    assert said == [
        "only 8% of the rows move in place, plain batches for 60 s: dead rows cannot be removed, "
        "held by replication slot s"
    ]
    clock.now += 61
    assert striding.passes == 8
    for _ in range(50):
        striding.moved(conn, 1, 1_000, 700)
    assert striding.passes == 8
    assert len(said) == 1


@pytest.mark.usefixtures("clock")
def test_a_server_that_does_not_count_says_nothing() -> None:
    said: list[str] = []
    striding = strides.Strides(lambda: 8, tell=said.append)
    for _ in range(20):
        striding.moved(cast("Any", Facts(counted=False)), 1, 1_000, 0)
    assert (striding.passes, said) == (8, [])
