"""Outages: a database that goes away for seconds, a process that freezes; the phase goes on by itself."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest
from alembic import command

from zdm_pipelines import ledger
from zdm_pipelines.dialects.postgres.connection import connected, scalar
from zdm_pipelines.engine import sessions
from zdm_pipelines.model.errors import DatabaseUnreachable
from zdm_pipelines.model.states import State
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import rollback
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
    walk,
    work,
)


def away(server: Server, seconds: float) -> Background:
    """Crash the server; it is back after a while."""
    server.kill()

    def back() -> None:
        time.sleep(seconds)
        server.start()

    return Background(back)


def test_ranges_that_begin_while_the_database_is_away(own_server: Server) -> None:
    """The run had reached it: it waits for it, also where a range had not connected yet."""
    url = own_server.create_database("app")
    people(url, 2_000)
    m = replaced(backfill={"range_rows": 20, "batch_rows": 20, "max_parallel": 4})
    expanded(m, url)
    outages: list[Background] = []
    lock = threading.Lock()

    def crash(_: Any) -> None:
        with lock:
            if not outages and one(url, "SELECT count(*) FROM zdm.range WHERE done_at IS NOT NULL") >= 10:
                outages.append(away(own_server, 1.5))

    backfilled(m, url, batch=crash)
    assert len(outages) == 1
    outages[0].result()
    assert state(m, url) == State.BACKFILLED
    assert one(url, "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM 'n:' || full_name") == 0
    assert one(url, "SELECT sum(rows) FROM zdm.range") == 2_000


def test_the_database_goes_away_while_the_ledger_is_made(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = own_server.create_database("app")
    people(url, 10)
    outages: list[Background] = []
    upgrade = command.upgrade

    def crashing(*args: Any, **options: Any) -> None:
        if not outages:
            outages.append(away(own_server, 0.5))
        upgrade(*args, **options)

    monkeypatch.setattr(command, "upgrade", crashing)
    expanded(replaced(), url)
    outages[0].result()
    assert state(replaced(), url) == State.EXPANDED


def test_the_database_goes_away_between_two_connections(own_server: Server) -> None:
    """The first one found it there: the second waits for it."""
    url = own_server.create_database("app")
    outages: list[Background] = []

    def work() -> int:
        with connected(url, purpose="first"):
            pass
        if not outages:
            outages.append(away(own_server, 0.5))
        with connected(url, purpose="second") as conn:
            return int(scalar(conn, "SELECT 42"))

    assert sessions.resilient(work, thing="test") == 42
    outages[0].result()


def test_the_database_goes_away_between_two_undos(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    url = own_server.create_database("app")
    people(url, 10)
    walk(replaced(), url, State.VALIDATED)
    outages: list[Background] = []
    session = sessions.session

    def crashing(*args: Any, **options: Any) -> Any:
        if not outages:
            outages.append(away(own_server, 0.5))
        return session(*args, **options)

    monkeypatch.setattr(sessions, "session", crashing)
    assert rollback.run(work(replaced(), url), to=State.ROLLED_BACK) == State.ROLLED_BACK
    outages[0].result()


def test_a_database_that_was_never_there_is_told_at_once(own_server: Server) -> None:
    url = own_server.create_database("app")
    own_server.stop()
    begun = time.monotonic()
    for call in (expanded, backfilled):
        with pytest.raises(DatabaseUnreachable):
            call(replaced(), url)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("where", ["create_flag", "move"])
def test_a_schema_change_that_freezes_lets_the_application_go(
    database: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """It holds ACCESS EXCLUSIVE and its process stands still: the server ends it, and it begins again."""
    people(database, 10)
    original = getattr(ledger, where)
    frozen = threading.Event()

    def freezing(*args: Any, **options: Any) -> Any:
        if not frozen.is_set():
            frozen.set()
            time.sleep(4)
        return original(*args, **options)

    monkeypatch.setattr(ledger, where, freezing)
    job = Background(lambda: expanded(replaced(), database))
    assert frozen.wait(30)
    begun = time.monotonic()
    sql(database, "UPDATE people SET note = 'not for long' WHERE id = 1")
    assert time.monotonic() - begun < 3.5
    job.result()
    assert state(replaced(), database) == State.EXPANDED


@pytest.mark.parametrize("phase", [State.BACKFILLED, State.VALIDATED, State.TOMBSTONED, State.CONTRACTED])
def test_our_sessions_are_ended_by_an_administrator(database: str, phase: State) -> None:
    people(database, 3_000)
    m = replaced(
        new={"name": "display_name", "type": "text", "nullable": False},
        up="'n:' || coalesce(full_name, '')",
        backfill={"range_rows": 300, "batch_rows": 20},
    )
    walk(m, database, State.EXPANDED)
    job = Background(lambda: walk(m, database, phase))
    kills = looks = 0
    kill = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'zdm %' "
        "AND application_name NOT LIKE '% status' AND datname = current_database()"
    )
    while job.is_alive() and (looks < 6 or not kills):  # on a busy machine the first sessions come late
        time.sleep(0.05)
        kills, looks = kills + one(database, kill), looks + 1
    job.result()
    assert kills > 0
    assert state(m, database) == phase
    if phase != State.CONTRACTED:
        assert one(database, "SELECT sum(rows) FROM zdm.range") == 3_000


def test_batches_are_cancelled(database: str) -> None:
    people(database, 3_000)
    m = replaced(backfill={"range_rows": 300, "batch_rows": 20})
    expanded(m, database)
    job = Background(lambda: backfilled(m, database))
    cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'WITH zdm_moved%' AND state = 'active'"
    cancelled = 0
    while job.is_alive() and cancelled < 3:
        cancelled += one(database, cancel)
    job.result()
    assert cancelled > 0
    assert one(database, "SELECT sum(rows) FROM zdm.range") == 3_000


def test_the_application_waits_for_no_session_of_a_killed_worker(database: str) -> None:
    people(database, 10)
    expanded(replaced(), database)
    eventually(
        lambda: (
            not sql(
                database,
                "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'zdm %' AND datname = current_database()",
            )
        )
    )
    with psycopg.connect(database) as c:
        c.execute("LOCK TABLE people IN ACCESS EXCLUSIVE MODE NOWAIT")
