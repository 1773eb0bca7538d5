"""Holds: whoever places one lifts it and no other; signals seen from outside place and lift their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres.connection import Connection, connected
from zdm_pipelines.engine import tuning
from zdm_pipelines.engine.signals import DEADLINE
from zdm_pipelines.ledger import holds
from zdm_pipelines.model.errors import SpecError, StateConflict, Throttled
from zdm_pipelines.model.holds import EVERY
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.tuning import declared_settings
from zdm_pipelines.verbs import pause, watch
from zdm_pipelines_tests.helpers import (
    Background,
    backfilled,
    eventually,
    expanded,
    holding,
    one,
    people,
    replaced,
    sql,
    state,
    walk,
    work,
)

APP = Database(name="app")
NAME = "people_display_name"
LOAD = "signal:load"
SLOW = {"range_rows": 5_000, "batch_rows": 5, "max_parallel": 1}


@pytest.fixture
def conn(database: str) -> Iterator[Connection]:
    """A database with a ledger, and a connection to it."""
    ledger.ensure(server_at(database))
    with connected(database, purpose="test") as opened:
        yield opened


def owners(url: str, migration: str = NAME) -> list[str]:
    with connected(url, purpose="test") as opened:
        return [h.owner for h in holds.standing(opened, migration)]


# -- the table of holds -----------------------------------------------------------------------------------


def test_a_hold_stands_until_it_is_lifted(conn):
    assert holds.place(conn, NAME, "anna", "an import")
    assert not holds.place(conn, NAME, "anna", "a longer import")
    (hold,) = holds.standing(conn, NAME)
    assert (hold.migration, hold.owner, hold.reason) == (NAME, "anna", "a longer import")
    assert holds.lift(conn, NAME, "anna")
    assert not holds.lift(conn, NAME, "anna")
    assert holds.standing(conn, NAME) == []


def test_a_renewed_hold_is_as_old_as_it_was(conn):
    holds.place(conn, NAME, "anna", "one")
    (first,) = holds.standing(conn, NAME)
    time.sleep(0.01)
    holds.place(conn, NAME, "anna", "two")
    assert holds.standing(conn, NAME)[0].since == first.since


def test_a_hold_that_is_not_renewed_expires_and_then_begins_anew(conn):
    assert holds.place(conn, NAME, LOAD, "high", seconds=0.4)
    assert not holds.place(conn, NAME, LOAD, "higher", seconds=0.2)
    (first,) = holds.standing(conn, NAME)
    time.sleep(0.25)
    assert holds.standing(conn, NAME) == []
    assert holds.place(conn, NAME, LOAD, "high again", seconds=60)
    assert holds.standing(conn, NAME)[0].since > first.since


def test_a_hold_of_all_stands_against_each_and_is_not_lifted_by_one(conn):
    holds.place(conn, EVERY, "anna", "a failover")
    holds.place(conn, NAME, "anna", "an import")
    holds.place(conn, "another", "bert", "nobody's business")
    assert [(h.migration, h.reason) for h in holds.standing(conn, NAME)] == [("*", "a failover"), (NAME, "an import")]
    assert [h.owner for h in holds.standing(conn, "another")] == ["anna", "bert"]
    holds.lift(conn, NAME, "anna")
    assert [h.migration for h in holds.standing(conn, NAME)] == ["*"]


def test_two_who_place_the_same_hold_at_once_place_one(conn, database):
    def place() -> bool:
        with connected(database, purpose="test") as mine:
            return holds.place(mine, NAME, LOAD, "high", seconds=60)

    jobs = [Background(place) for _ in range(8)]
    assert sum(job.result() for job in jobs) == 1
    assert len(holds.standing(conn, NAME)) == 1


# -- pause and resume -------------------------------------------------------------------------------------


def test_pause_and_resume(database):
    people(database, 10)
    m = replaced()
    with pytest.raises(StateConflict, match="no ledger yet"):
        pause.pause(work(m, database), reason="too early")
    assert not pause.resume(work(m, database))
    expanded(m, database)
    assert [h.reason for h in pause.pause(work(m, database), reason="lunch")] == ["lunch"]
    pause.pause(work(m, database), reason="a long lunch")
    assert [h.owner for h in pause.pause(work(m, database), reason="an import", owner="anna")] == ["operator", "anna"]
    assert pause.resume(work(m, database))
    assert not pause.resume(work(m, database))
    assert [h.owner for h in watch.against(work(m, database))] == ["anna"]
    assert pause.resume(work(m, database), owner="anna")
    assert watch.against(work(m, database)) == []
    told = [
        what for (what,) in sql(database, "SELECT what FROM zdm.event WHERE what ~ '^(paused|resumed)' ORDER BY id")
    ]
    assert told == ["paused by operator: lunch", "paused by anna: an import", "resumed by operator", "resumed by anna"]


@pytest.mark.parametrize("owner", ["signal:load", "signal:", "window", "ledger", "*"])
def test_nobody_speaks_for_a_signal(database, owner):
    with pytest.raises(SpecError, match="by what it speaks of"):
        pause.pause(work(replaced(), database), reason="x", owner=owner)
    with pytest.raises(SpecError, match="by what it speaks of"):
        pause.resume(work(replaced(), database), owner=owner)


def test_a_hold_has_an_owner(database):
    with pytest.raises(SpecError, match="has no owner"):
        pause.pause(work(replaced(), database), reason="x", owner=" ")


def test_a_run_waits_for_every_hold_and_for_each(database):
    people(database, 500)
    m = replaced(backfill=SLOW, throttle={"nice": 1})
    expanded(m, database)
    pause.pause(work(m, database), reason="lunch")
    pause.pause(work(m, database), reason="a failover", owner="anna", every=True)
    told: list[str] = []
    job = Background(lambda: backfilled(m, database, tell=told.append))
    eventually(lambda: any("lunch" in t and "a failover" in t for t in told))
    pause.resume(work(m, database))
    eventually(lambda: told[-1] == "waiting: a failover (hold of anna)")
    time.sleep(1)
    assert not one(database, "SELECT sum(rows) FROM zdm.range")
    pause.resume(work(m, database), owner="anna", every=True)
    job.result()
    assert state(m, database) == State.BACKFILLED


def test_a_run_that_waits_too_long_says_for_whom(database):
    people(database, 50)
    m = replaced(throttle={"max_wait": "500ms"})
    expanded(m, database)
    pause.pause(work(m, database), reason="lunch")
    with pytest.raises(Throttled, match=r"lunch \(hold of operator\)") as error:
        backfilled(m, database)
    assert error.value.reasons == ("lunch",)
    assert state(m, database) in (State.EXPANDED, State.BACKFILLING)


# -- looking at signals -----------------------------------------------------------------------------------


@pytest.fixture
def load(database: str) -> Callable[[float], Any]:
    """A number that a signal reads, set by what this gives; the table to migrate is there too."""
    people(database, 200)
    sql(database, "CREATE TABLE load (value float8); INSERT INTO load VALUES (0)")
    return lambda value: sql(database, "UPDATE load SET value = %s", value)


def watched(query: str = "SELECT value FROM public.load", **limits: Any) -> Migration:
    limit = {"pause_above": 10, "resume_below": 5, **limits}
    return replaced(throttle={"sql": [{"name": "load", "query": query, **limit}]})


def test_a_bad_signal_places_its_hold_and_a_good_one_lifts_it(database, load):
    m = watched()
    expanded(m, database)
    assert watch.look(work(m, database, database=APP)).against == ()
    load(11)
    look = watch.look(work(m, database, database=APP))
    assert look.state == State.EXPANDED
    assert [v.bad for v in look.verdicts] == [True]
    assert [(h.owner, h.reason) for h in look.against] == [(LOAD, "load is 11, above 10; goes on at 5")]
    assert watch.against(work(m, database)) == list(look.against)
    load(5)
    assert watch.look(work(m, database, database=APP)).against == ()
    assert watch.against(work(m, database)) == []


def test_between_the_limits_the_last_verdict_stays_whoever_gave_it(database, load):
    """Each look is a process of its own: what it knows of the last one is the hold."""
    m, seen = watched(), []
    expanded(m, database)
    for value in (7, 11, 7, 5.1, 10, 5, 7, 10, 10.1):
        load(value)
        seen.append(bool(watch.look(work(m, database, database=APP)).against))
    assert seen == [False, True, True, True, True, False, False, False, True]


def test_a_signal_that_recovers_lifts_no_other_hold(database, load):
    m = watched()
    expanded(m, database)
    pause.pause(work(m, database), reason="lunch")
    pause.pause(work(m, database), reason="a failover", owner="load", every=True)
    load(11)
    assert {h.owner for h in watch.look(work(m, database, database=APP)).against} == {"operator", "load", LOAD}
    load(0)
    assert {h.owner for h in watch.look(work(m, database, database=APP)).against} == {"operator", "load"}


def test_a_look_at_some_signals_leaves_the_others_alone(database, load):
    m = watched()
    m = m.model_copy(update={"throttle": m.throttle.model_copy(update={"sql": (
        *m.throttle.sql, m.throttle.sql[0].model_copy(update={"name": "other"}),
    )})})  # fmt: skip
    expanded(m, database)
    load(11)
    assert {h.owner for h in watch.look(work(m, database, database=APP)).against} == {LOAD, "signal:other"}
    load(0)
    assert {h.owner for h in watch.look(work(m, database, database=APP), only=["other"]).against} == {LOAD}
    assert watch.look(work(m, database, database=APP)).against == ()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT NULL::int", "it gave NULL that is no finite number"),
        ("SELECT 'eleven'", "it gave a str that is no finite number"),
        ("SELECT 'NaN'::float8", "that is no finite number"),
        ("SELECT true", "it gave a bool that is no finite number"),
        ("SELECT 1/0", "DivisionByZero"),
        ("SELECT no_such_column FROM load", 'column "no_such_column" does not exist'),
        ("SELECT value FROM load WHERE false", "gives no row"),
        ("UPDATE load SET value = 1 RETURNING value", "read-only transaction"),
    ],
)
def test_what_cannot_be_read_is_bad_and_says_so(database, load, query, expected):
    m = watched(query)
    expanded(m, database)
    (hold,) = watch.look(work(m, database, database=APP)).against
    assert hold.owner == LOAD
    assert hold.reason.startswith("load cannot be read: ")
    assert expected in hold.reason
    assert watch.look(work(watched(), database, database=APP)).against == ()


def test_a_signal_that_hangs_is_bad_and_delays_no_other(database, load):
    m = watched("SELECT 1 FROM pg_sleep(60)")
    expanded(m, database)
    begun = time.monotonic()
    (hold,) = watch.look(work(m, database, database=APP)).against
    assert time.monotonic() - begun < 3 * DEADLINE
    assert "cannot be read" in hold.reason
    eventually(lambda: not one(database, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(60)%%' "
                                         "AND pid <> pg_backend_pid() AND state = 'active'"))  # fmt: skip


def test_a_signal_that_is_no_longer_declared_loses_its_hold(database, load):
    m = watched()
    expanded(m, database)
    load(11)
    assert len(watch.look(work(m, database, database=APP)).against) == 1
    pause.pause(work(m, database), reason="lunch")
    assert [h.owner for h in watch.look(work(replaced(), database, database=APP)).against] == ["operator"]


def test_what_was_tuned_is_what_is_looked_at(database, load):
    m = watched()
    expanded(m, database)
    load(11)
    pause.tune(work(m, database), {"throttle": {"sql": []}})
    assert watch.look(work(m, database, database=APP)).against == ()
    pause.reset(work(m, database))
    assert len(watch.look(work(m, database, database=APP)).against) == 1


def test_nobody_is_held_where_nothing_is_moved(database, load):
    m = watched()
    load(11)
    assert watch.look(work(m, database, database=APP)) == watch.Look(state=State.PLANNED)
    load(0)
    walk(m, database, State.BACKFILLED)
    load(11)
    assert watch.look(work(m, database, database=APP)) == watch.Look(state=State.BACKFILLED)
    assert owners(database) == []


def test_a_closed_window_stands_beside_the_holds(database, load):
    m = watched()
    expanded(m, database)
    hour = one(database, "SELECT extract(hour FROM clock_timestamp() AT TIME ZONE 'UTC')::int")
    window = f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00 UTC"
    pause.tune(work(m, database), {"allowed": [window]})
    load(11)
    assert [h.owner for h in watch.look(work(m, database, database=APP)).against] == [LOAD, "window"]
    assert owners(database) == [LOAD]  # nobody has to lift it
    (_, hold) = watch.against(work(m, database))
    assert hold.reason.startswith(f"outside {window}; opens at ")


# -- from inside a run ------------------------------------------------------------------------------------


def test_what_a_run_sees_others_see_as_holds_until_it_recovers(database, load):
    m = watched().model_copy(update={"backfill": replaced(backfill=SLOW).backfill})
    expanded(m, database)
    load(11)
    told: list[str] = []
    job = Background(lambda: backfilled(m, database, tell=told.append))
    eventually(lambda: owners(database) == [LOAD])
    eventually(lambda: told == ["waiting: load is 11, above 10; goes on at 5"])
    time.sleep(0.7)
    load(7)
    time.sleep(1.5)
    assert owners(database) == [LOAD]
    assert not one(database, "SELECT sum(rows) FROM zdm.range")
    load(5)
    job.result()
    assert owners(database) == []


def test_a_critical_signal_ends_the_run_at_once(database, load):
    m = watched(critical_above=20)
    expanded(m, database)
    load(21)
    begun = time.monotonic()
    with pytest.raises(Throttled, match="a signal is critical: load is 21"):
        backfilled(m, database)
    assert time.monotonic() - begun < 10


def test_a_run_that_begins_between_the_limits_goes_on_waiting(database, load):
    m = watched()
    expanded(m, database)
    load(11)
    watch.look(work(m, database, database=APP))
    load(7)
    job = Background(lambda: backfilled(m, database))
    time.sleep(2)
    assert owners(database) == [LOAD]
    assert not one(database, "SELECT sum(rows) FROM zdm.range")
    load(5)
    job.result()


def test_a_run_that_begins_between_the_limits_writes_when_nobody_waits(database, load):
    m = watched()
    expanded(m, database)
    load(7)
    Background(lambda: backfilled(m, database)).result(30)


def test_a_ledger_that_cannot_be_read_holds_a_run(database):
    people(database, 1_000)
    m = replaced(backfill=SLOW)
    expanded(m, database)
    told: list[str] = []
    begun = threading.Event()

    def slowly(_: object) -> None:
        begun.set()
        time.sleep(0.05)

    job = Background(lambda: backfilled(m, database, tell=told.append, batch=slowly))
    assert begun.wait(30)
    with holding(database, "LOCK TABLE zdm.hold IN ACCESS EXCLUSIVE MODE"):
        eventually(lambda: any("the ledger" in t for t in told))
        before = one(database, "SELECT sum(rows) FROM zdm.range")
        time.sleep(1)
        assert one(database, "SELECT sum(rows) FROM zdm.range") <= before + SLOW["batch_rows"]
    job.result()


def test_tuning_that_nobody_understands_changes_nothing(database, conn):
    m = replaced()
    with pytest.raises(SpecError, match="is not a window"):
        tuning.tune(conn, m, {"allowed": ["at night"]})
    with pytest.raises(SpecError, match="greater than 0"):
        tuning.tune(conn, m, {"backfill": {"batch_rows": 0}})
    assert tuning.tuned(conn, m.name) == {}
    assert tuning.effective(conn, m) == declared_settings(m)
