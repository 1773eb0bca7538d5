"""The client's flags: what they answer while the database answers, and while it does not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import psycopg
import pytest
from psycopg import errors

from zdm_pipelines.client import flags as flags_module
from zdm_pipelines.client.flags import Flags, bucket

FLAG = "read_users_display_name"


class Database:
    """Stands in for a connection: answers the one query the flags ask, or fails."""

    def __init__(self) -> None:
        self.percents: dict[str, int] = {}
        self.failure: Exception | None = None
        self.reads = 0
        self.connects = 0
        self.closed = 0

    def connect(self) -> psycopg.Connection[Any]:
        self.connects += 1
        if isinstance(self.failure, psycopg.OperationalError):
            raise self.failure
        return cast("psycopg.Connection[Any]", _Connection(self))


class _Connection:
    def __init__(self, database: Database) -> None:
        self._database = database
        self.autocommit = False

    def transaction(self) -> _Connection:
        return self

    def cursor(self, **_: object) -> _Connection:
        return self

    def __enter__(self) -> _Connection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, statement: str, values: object = None) -> _Connection:
        if "zdm.flag" in statement:
            self._database.reads += 1
            if self._database.failure is not None:
                raise self._database.failure
        return self

    def fetchall(self) -> list[tuple[str, int]]:
        return list(self._database.percents.items())

    def close(self) -> None:
        self._database.closed += 1


@pytest.fixture
def database() -> Database:
    return Database()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the flags' clock by so many seconds."""
    now = [1000.0]

    class Time:
        @staticmethod
        def monotonic() -> float:
            return now[0]

    monkeypatch.setattr(flags_module, "time", Time)

    def forward(seconds: float) -> None:
        now[0] += seconds

    return forward


def test_a_key_stays_on_while_the_percentage_rises(database: Database) -> None:
    flags = Flags(database.connect, ttl=0)
    on: set[int] = set()
    for percent in (0, 1, 10, 50, 99, 100):
        database.percents[FLAG] = percent
        now = {key for key in range(2_000) if flags.is_on(FLAG, key)}
        assert on <= now
        assert len(now) / 2_000 == pytest.approx(percent / 100, abs=0.04)
        on = now
    assert len(on) == 2_000


def test_flags_divide_keys_differently() -> None:
    assert [bucket("a", key) for key in range(50)] != [bucket("b", key) for key in range(50)]


def test_the_bucket_never_changes_between_releases() -> None:
    # Applications on different versions must agree about a user.
    assert [bucket(FLAG, key) for key in (1, 2, "3", "zoë")] == [32, 70, 16, 90]


@pytest.mark.parametrize("failure", [errors.UndefinedTable("no table"), errors.InvalidSchemaName("no schema")])
def test_before_the_first_migration_there_is_no_flag(database: Database, failure: Exception) -> None:
    database.failure = failure
    flags = Flags(database.connect)
    assert flags.percent(FLAG) is None
    assert not flags.is_on(FLAG, 1)
    assert flags.is_on(FLAG, 1, default=True)
    assert database.closed == 0


def test_an_unknown_flag_has_no_percentage(database: Database) -> None:
    database.percents = {"another": 100}
    assert Flags(database.connect).percent(FLAG) is None


def test_a_value_is_read_once_per_ttl(database: Database, clock: Callable[[float], None]) -> None:
    database.percents[FLAG] = 10
    flags = Flags(database.connect, ttl=1.0)
    assert [flags.percent(FLAG) for _ in range(100)] == [10] * 100
    database.percents[FLAG] = 20
    clock(0.9)
    assert flags.percent(FLAG) == 10
    clock(0.2)
    assert flags.percent(FLAG) == 20
    assert (database.reads, database.connects) == (2, 1)


@pytest.mark.parametrize(
    "failure",
    [
        psycopg.OperationalError("the server is gone"),
        errors.QueryCanceled("timeout"),
        errors.InsufficientPrivilege("no"),
        errors.UndefinedTable("the schema was dropped"),
    ],
)
def test_the_last_known_value_stays_when_a_read_fails(
    database: Database, clock: Callable[[float], None], failure: Exception
) -> None:
    database.percents[FLAG] = 50
    flags = Flags(database.connect, ttl=1.0)
    assert flags.percent(FLAG) == 50
    database.failure = failure
    for _ in range(3):
        clock(2)
        assert flags.percent(FLAG) == 50
    database.failure = None
    database.percents[FLAG] = 60
    clock(2)
    assert flags.percent(FLAG) == 60


def test_a_failing_database_is_not_asked_more_often(database: Database, clock: Callable[[float], None]) -> None:
    database.failure = psycopg.OperationalError("the server is gone")
    flags = Flags(database.connect, ttl=1.0)
    assert [flags.percent(FLAG) for _ in range(50)] == [None] * 50
    assert database.connects == 1
    clock(2)
    flags.percent(FLAG)
    assert database.connects == 2


def test_a_flag_that_vanished_keeps_its_last_value(database: Database, clock: Callable[[float], None]) -> None:
    database.percents[FLAG] = 100
    flags = Flags(database.connect)
    assert flags.is_on(FLAG, 1)
    del database.percents[FLAG]
    clock(5)
    assert flags.is_on(FLAG, 1)


def test_a_slow_read_holds_up_one_thread_only(database: Database, clock: Callable[[float], None]) -> None:
    database.percents[FLAG] = 30
    entered, release = threading.Event(), threading.Event()
    blocking = [False]

    class Slow(Database):
        def connect(self) -> psycopg.Connection[Any]:
            if blocking[0]:
                entered.set()
                release.wait(10)
            return super().connect()

    slow = Slow()
    slow.percents = {FLAG: 30}
    flags = Flags(slow.connect, ttl=1.0)
    assert flags.percent(FLAG) == 30
    flags.close()
    blocking[0], slow.percents = True, {FLAG: 40}
    clock(2)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(flags.percent, FLAG)
        assert entered.wait(10)
        assert flags.percent(FLAG) == 30
        release.set()
        assert reader.result(10) == 40


def test_many_threads_read_once(database: Database) -> None:
    database.percents[FLAG] = 70
    flags = Flags(database.connect, ttl=60)
    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(lambda _: flags.percent(FLAG), range(500))) == {70}
    assert database.reads == 1
