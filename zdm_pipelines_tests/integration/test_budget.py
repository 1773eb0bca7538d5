"""Budget: the migrations of a database share its places, take turns, and lose none to a worker that died."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from zdm_pipelines.dialects.postgres.connection import Connection, connected
from zdm_pipelines.engine import budget, sessions
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Moved
from zdm_pipelines.verbs import pause
from zdm_pipelines_tests.helpers import (
    Background,
    backfilled,
    eventually,
    expanded,
    one,
    people,
    replaced,
    sql,
    state,
    work,
)

BACKFILL = {"range_rows": 100, "batch_rows": 5, "batch_target": "60s", "max_parallel": 2}
TABLES = ("people", "pets")
_PLACES = (
    "SELECT l.pid FROM pg_locks l JOIN generate_series(0, 31) n "
    "ON ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended('zdm:batch:' || n, 0) "
    "WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.database = (SELECT oid FROM pg_database "
    "WHERE datname = current_database()) AND {which} "
)


def app(places: int) -> Database:
    return Database(name="app", max_parallel=places)


def of(table: str) -> Migration:
    """The migration of a table."""
    return replaced(name=f"{table}_name", table=f"public.{table}", backfill=BACKFILL)


@pytest.fixture
def url(database: str) -> str:
    """Two tables of 600 rows, each under its migration; a row takes a millisecond or two."""
    people(database, 600)
    sql(
        database,
        "CREATE TABLE pets (LIKE people INCLUDING ALL); INSERT INTO pets SELECT * FROM people; ANALYZE pets; "
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.001); RETURN NEW; END $$; "
        "CREATE TRIGGER slow BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION slow(); "
        "CREATE TRIGGER slow BEFORE UPDATE ON pets FOR EACH ROW EXECUTE FUNCTION slow()",
    )
    for table in TABLES:
        expanded(of(table), database)
    return database


def holders(url: str) -> list[int]:
    """Sessions that hold a place."""
    return [pid for (pid,) in sql(url, _PLACES.format(which="l.granted"))]


def queueing(url: str) -> list[int]:
    """Sessions that wait for one."""
    return [pid for (pid,) in sql(url, _PLACES.format(which="NOT l.granted"))]


def moved(url: str, table: str) -> int:
    """Rows moved so far."""
    return int(one(url, f"SELECT count(display_name) FROM {table}"))


def finished(url: str) -> None:
    """Both are moved, each row once, and every place was given back."""
    for table in TABLES:
        assert state(of(table), url) == State.BACKFILLED
        assert moved(url, table) == 600
        rows = "SELECT sum(r.rows) FROM zdm.range r JOIN zdm.migration m ON m.id = migration_id WHERE m.name = %s"
        assert one(url, rows, f"{table}_name") == 600
    eventually(lambda: not holders(url))


@contextlib.contextmanager
def place_in(conn: Connection, places: int) -> Iterator[bool]:
    """Queue for a place, for a moment; false when none was had."""
    had = budget.take_place(conn, places)
    try:
        yield had is not None
    finally:
        if had is not None:
            budget.give_back(conn, had)


class Watching(threading.Thread):
    """Counts the places that are held, again and again."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._over = threading.Event()
        self.seen: set[int] = set()

    def run(self) -> None:
        with connected(self._url, purpose="test") as conn:
            while not self._over.is_set():
                self.seen.add(len(conn.execute(_PLACES.format(which="l.granted").encode()).fetchall()))

    def __enter__(self) -> Watching:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(30)


@pytest.mark.parametrize("places", [1, 2, 3])
def test_two_migrations_share_the_places_and_take_turns(url: str, places: int) -> None:
    order: list[str] = []

    def run(table: str) -> Background:
        def note(_: Moved) -> None:
            order.append(table)

        return Background(lambda: backfilled(of(table), url, database=app(places), batch=note))

    with Watching(url) as watching:
        jobs = [run(table) for table in TABLES]
        for job in jobs:
            job.result()
    assert max(watching.seen) == places
    # When one had done its last batch, the other had done a fair share of its own.
    ended = min(len(order) - 1 - order[::-1].index(table) for table in TABLES)
    counts = [order[: ended + 1].count(table) for table in TABLES]
    assert min(counts) > max(counts) * 0.4, counts
    # Side by side: neither had its way for long.
    both = order[order.index(TABLES[1] if order[0] == TABLES[0] else TABLES[0]) : ended + 1]
    assert max(len(list(group)) for _, group in itertools.groupby(both)) <= 24
    finished(url)


def test_the_place_of_a_worker_that_died_is_free(url: str) -> None:
    with connected(url, purpose="worker") as dead, connected(url, purpose="other") as alive:
        with place_in(dead, 1) as had:
            assert had
            assert len(holders(url)) == 1
            with place_in(alive, 1) as had_too:
                assert not had_too
            job = Background(lambda: queued(alive))
            eventually(lambda: queueing(url))
            assert one(url, "SELECT pg_terminate_backend(%s)", dead.info.backend_pid)
            assert job.result(10)
        eventually(lambda: not holders(url))


def queued(conn: Connection) -> bool:
    """Queue for the one place there is, until it is had."""
    for _ in range(20):
        with place_in(conn, 1) as had:
            if had:
                return True
    return False


def test_a_run_whose_holder_is_killed_goes_on_and_so_does_the_other(url: str) -> None:
    jobs = [Background(lambda t=table: backfilled(of(t), url, database=app(1))) for table in TABLES]  # type: ignore[misc]
    killed = 0
    while killed < 4 and all(job.is_alive() for job in jobs):
        # Its session holds its place or is about to be lost at the next statement.
        killed += sum(one(url, "SELECT pg_terminate_backend(%s)", pid) for pid in holders(url))
        time.sleep(0.1)
    assert killed
    for job in jobs:
        job.result()
    finished(url)


def test_who_queues_for_a_place_asks_the_governor_before_writing(url: str) -> None:
    m, told = of("people"), list[str]()
    with connected(url, purpose="other") as other:
        assert sessions.take(other, budget.place(0), wait=0)
        job = Background(lambda: backfilled(m, url, database=app(1), tell=told.append))
        eventually(lambda: queueing(url))
        assert moved(url, "people") == 0
        pause.pause(work(m, url), reason="lunch")
        eventually(lambda: any("waiting: lunch" in t for t in told))
        eventually(lambda: not queueing(url))  # nobody waits for a place that could not be used
        sessions.leave(other, budget.place(0))
    time.sleep(1)
    assert moved(url, "people") == 0
    assert holders(url) == []
    pause.resume(work(m, url))
    job.result()
    assert moved(url, "people") == 600


def test_a_place_that_was_queued_for_too_long_is_given_back_unused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold was placed meanwhile."""
    monkeypatch.setattr(budget, "_LOOK_UP", 60.0)
    m, told = of("people"), list[str]()
    with connected(url, purpose="other") as other:
        assert sessions.take(other, budget.place(0), wait=0)
        job = Background(lambda: backfilled(m, url, database=app(1), tell=told.append))
        eventually(lambda: len(queueing(url)) == BACKFILL["max_parallel"])
        pause.pause(work(m, url), reason="lunch")
        time.sleep(2)  # the governor looks twice a second
        assert len(queueing(url)) == BACKFILL["max_parallel"]
        sessions.leave(other, budget.place(0))
    eventually(lambda: not queueing(url) and not holders(url))
    eventually(lambda: any("waiting: lunch" in t for t in told))
    assert moved(url, "people") == 0
    pause.resume(work(m, url))
    job.result()
    assert moved(url, "people") == 600


def test_a_queue_is_left_after_a_moment_and_nothing_stays_locked(url: str) -> None:
    with connected(url, purpose="holder") as holder, connected(url, purpose="waiter") as waiter:
        for n in range(2):
            assert sessions.take(holder, budget.place(n), wait=0)
        begun = time.monotonic()
        with place_in(waiter, 2) as had:
            assert not had
        assert 0.3 < time.monotonic() - begun < 10
        assert set(holders(url)) == {holder.info.backend_pid}
        assert waiter.info.transaction_status.name == "IDLE"
        sessions.leave(holder, budget.place(1))
        with contextlib.suppress(ZeroDivisionError), place_in(waiter, 2) as had:
            assert had
            assert len(holders(url)) == 2
            raise ZeroDivisionError
        assert set(holders(url)) == {holder.info.backend_pid}


def test_databases_have_places_of_their_own(database: str, app_database: str) -> None:
    with (
        connected(database, purpose="here") as here,
        connected(app_database, purpose="there") as there,
        place_in(here, 1) as had,
        place_in(there, 1) as had_too,
    ):
        assert had
        assert had_too
