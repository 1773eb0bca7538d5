"""Ledger: moved by compare-and-set, kept by the database's own constraints, safe for several processes at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import psycopg
import pytest
from alembic import command
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.engine import sessions
from zdm_pipelines.ledger import schema
from zdm_pipelines.ledger.declarations import to_store
from zdm_pipelines.model.errors import LockNotAcquired, MigrationBusy, PreflightError, StateConflict
from zdm_pipelines.model.migration import Database
from zdm_pipelines.model.states import State
from zdm_pipelines.model.tuning import declared_settings
from zdm_pipelines.model.values import Moved
from zdm_pipelines.phases import contract, switch_reads, validate
from zdm_pipelines.verbs import pause, rollback, status, watch
from zdm_pipelines_tests.helpers import (
    Background,
    Worker,
    at,
    backfilled,
    eventually,
    expanded,
    holding,
    one,
    people,
    ranges,
    replaced,
    sql,
    state,
    walk,
    work,
)

M = replaced(backfill={"range_rows": 100, "batch_rows": 50})
STATES = (State.PLANNED, *M.lifecycle.states, State.ROLLED_BACK)


@pytest.fixture
def url(database: str) -> str:
    people(database, 300)
    return database


def test_two_processes_expand_at_once(url: str) -> None:
    workers = [Worker("expand", M, url) for _ in range(3)]
    assert [w.end()[0] for w in workers] == [False] * 3
    assert state(M, url) == State.EXPANDED
    assert sql(url, "SELECT what, count(*) FROM zdm.event GROUP BY 1") == [("expanded", 1)]
    assert len(ranges(M, url)) == 3


def test_two_processes_run_every_phase_at_once(url: str) -> None:
    for phase, target in (
        ("expand", State.EXPANDED), ("backfill", State.BACKFILLED), ("validate", State.VALIDATED),
        ("switch_reads", State.SWITCHED),
    ):  # fmt: skip
        for worker in [Worker(phase, M, url) for _ in range(2)]:
            worker.end()
        assert state(M, url) == target
    assert one(url, "SELECT sum(rows) FROM zdm.range") == 300


def test_a_second_migration_on_the_same_table(url: str) -> None:
    expanded(M, url)
    other = replaced(name="people_note", old="note", new={"name": "remark", "type": "text"}, up="note", down="remark")
    with pytest.raises(PreflightError, match=r"under migration people_display_name \(expanded\)"):
        expanded(other, url)
    assert one(url, "SELECT count(*) FROM pg_attribute WHERE attname = 'remark'") == 0
    rollback.run(work(M, url), to=State.ROLLED_BACK)
    expanded(other, url)
    with pytest.raises(PreflightError, match="under migration people_note"):
        expanded(M, url)


def test_two_migrations_expand_on_one_table_at_once(url: str) -> None:
    other = replaced(name="people_note", old="note", new={"name": "remark", "type": "text"}, up="note", down="remark")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(expanded, M, url), pool.submit(expanded, other, url)
        errors = [f.exception() for f in (first, second)]
    assert [e is None for e in errors].count(True) == 1
    lost = next(e for e in errors if e is not None)
    assert isinstance(lost, (StateConflict, PreflightError)), repr(lost)
    assert one(url, "SELECT count(*) FROM zdm.migration WHERE state = 'expanded'") == 1
    new = "SELECT count(*) FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname IN ('remark', 'display_name')"
    assert one(url, new) == 1


def test_compare_and_set(url: str) -> None:
    expanded(M, url)
    with connected(url, purpose="test") as conn:
        entry = ledger.find(conn, M.name)
        assert entry is not None
        moved = ledger.move(conn, entry, State.BACKFILLING, what="first")
        assert moved.version == entry.version + 1
        with pytest.raises(StateConflict, match="by somebody else"):
            ledger.move(conn, entry, State.BACKFILLED, what="second, from what it read before")
        assert state(M, url) == State.BACKFILLING
        assert one(url, "SELECT count(*) FROM zdm.event WHERE what LIKE 'second%%'") == 0


@pytest.mark.parametrize(
    ("start", "to"), [p for p in product(STATES, State) if p[1] not in M.lifecycle.transitions(p[0])]
)
def test_only_declared_transitions(start: State, to: State) -> None:
    entry: Any = ledger.Entry(
        id=1, name="m", state=start, version=1, change=to_store(M), catalog=None, facts={}, switched_at=None,  # type: ignore[arg-type]
        tombstoned_at=None,
    )  # fmt: skip
    with pytest.raises(StateConflict, match=f"cannot go from {start} to {to}"):
        ledger.move(None, entry, to, what="planted")  # type: ignore[arg-type]


def test_events_are_append_only(url: str) -> None:
    walk(M, url, State.VALIDATED)
    for statement in ("UPDATE zdm.event SET what = 'x'", "DELETE FROM zdm.event", "TRUNCATE zdm.event"):
        with pytest.raises(psycopg.errors.RaiseException, match="append-only"):
            sql(url, statement)
    moves = sql(url, "SELECT from_state, to_state FROM zdm.event WHERE to_state IS NOT NULL ORDER BY id")
    assert moves == [
        ("planned", "expanded"),
        ("expanded", "backfilling"),
        ("backfilling", "backfilled"),
        ("backfilled", "validated"),
    ]
    assert all("postgres via zdm people_display_name" in a for (a,) in sql(url, "SELECT actor FROM zdm.event"))


def test_events_survive_a_rollback(url: str) -> None:
    expanded(M, url)
    rollback.run(work(M, url), to=State.ROLLED_BACK)
    expanded(M, url)
    assert [e.split(" by ")[0][20:] for e in status.read(work(M, url)).events] == [
        "expanded (rolled_back → expanded)", "rolled back (expanded → rolled_back)", "expanded (planned → expanded)",
    ]  # fmt: skip


def test_two_runs_of_the_same_range(url: str) -> None:
    """The second waits for the first and then finds nothing to do; no row is moved twice."""
    expanded(M, url)
    key = ranges(M, url)[1].range.partition
    entered = threading.Event()

    def slowly(_: Any) -> None:
        entered.set()
        threading.Event().wait(0.5)

    first = Background(lambda: backfilled(M, url, partitions=[key], batch=slowly))
    assert entered.wait(30)
    second = backfilled(M, url, partitions=[key])
    assert sum(r.rows for r in first.result()) == 100
    assert [(r.rows, r.already, r.done) for r in second] == [(0, 100, True)]
    assert one(url, "SELECT rows FROM zdm.range WHERE ordinal = 2") == 100


def test_a_range_that_another_run_keeps(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expanded(M, url)
    monkeypatch.setattr(sessions, "BUSY_SECONDS", 0.3)
    monkeypatch.setattr(sessions.take, "__kwdefaults__", {"shared": False, "wait": 0.3})
    with connected(url, purpose="other run") as conn:
        (identity,) = sql(url, "SELECT id FROM zdm.migration")[0]
        assert sessions.take(conn, f"zdm:range:{identity}:1")
        with pytest.raises(MigrationBusy, match="000001-from-start"):
            backfilled(M, url, partitions=["000001-from-start"])


def test_max_parallel_holds_over_all_runs(url: str) -> None:
    m = replaced(backfill={"range_rows": 50, "batch_rows": 25, "max_parallel": 2})
    expanded(m, url)
    keys = [r.range.partition for r in ranges(m, url)]
    assert len(keys) == 6
    working: set[str] = set()
    most, lock = 0, threading.Lock()

    def slowly(moved: Moved) -> None:
        nonlocal most
        with lock:
            working.add(moved.partition)
            held = one(
                url,
                "SELECT count(*) FROM pg_locks l JOIN (SELECT hashtextextended('zdm:slot:' || m.id || ':' || n, 0) AS h "
                "FROM zdm.migration m, generate_series(0, 31) n) s ON ((l.classid::bigint << 32) | l.objid::bigint) = s.h "
                "WHERE l.locktype = 'advisory' AND l.granted",
            )
            most = max(most, held)
        threading.Event().wait(0.1)

    def moving(part: list[str]) -> Background:
        return Background(lambda: backfilled(m, url, partitions=part, batch=slowly))

    runs = [moving(keys[::2]), moving(keys[1::2])]
    for run in runs:
        run.result()
    assert working == set(keys)
    assert most == 2


def test_a_phase_while_a_range_is_moved(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BUSY_SECONDS", 0.3)
    expanded(M, url)
    go_on = threading.Event()
    job = Background(lambda: backfilled(M, url, batch=lambda _: go_on.wait(30)))
    eventually(lambda: state(M, url) == State.BACKFILLING)
    calls: list[Callable[[], Any]] = [
        lambda: validate.run(work(M, url)),
        lambda: contract.run(work(M, url)),
        lambda: switch_reads.run(work(M, url)),
    ]
    for call in calls:
        with pytest.raises(MigrationBusy, match="is being worked on by zdm people_display_name range"):
            call()
    go_on.set()
    job.result()
    assert state(M, url) == State.BACKFILLED


def test_a_ledger_from_a_newer_version(url: str) -> None:
    expanded(M, url)
    rollback.run(work(M, url), to=State.ROLLED_BACK)
    sql(url, "UPDATE zdm.schema_version SET version_num = '9999'")
    with pytest.raises(StateConflict, match="upgrade zdm_pipelines"):
        expanded(M, url)
    assert one(url, "SELECT state FROM zdm.migration") == State.ROLLED_BACK


def test_another_declaration(url: str) -> None:
    expanded(M, url)
    other = replaced(up="'m:' || full_name")
    for call in (lambda: backfilled(other, url), lambda: expanded(other, url)):
        with pytest.raises(StateConflict, match="another declaration of up; put"):
            call()
    assert state(M, url) == State.EXPANDED
    assert one(url, "SELECT count(display_name) FROM people") == 0


def test_what_differs_is_said_with_its_values(url: str) -> None:
    expanded(M, url)
    other = replaced(new={"name": "display_name", "type": "varchar(80)"}, up="pgp_sym_encrypt(full_name, 'secret')")
    with pytest.raises(StateConflict, match=r"declaration of new.type \(text, now varchar\(80\)\), up; put defs"):
        backfilled(other, url)


COLUMNS = "SELECT attname FROM pg_attribute WHERE attrelid = 'people'::regclass AND attnum > 0 AND NOT attisdropped"


def test_brakes_work_with_another_declaration(url: str) -> None:
    """A rollback takes back what was begun: it touches no column that only the edited file names."""
    before = sql(url, COLUMNS)
    walk(M, url, State.SWITCHED)
    other = replaced(old="full_name", new={"name": "note", "type": "text"}, up="full_name", down="note")
    with pytest.raises(StateConflict, match=r"another declaration of new\.name"):
        contract.undo(work(other, url))
    assert [h.reason for h in pause.pause(work(other, url), reason="lunch")] == ["lunch"]
    switch_reads.run(work(other, url), percent=0)
    assert one(url, "SELECT percent FROM zdm.flag") == 0
    assert rollback.run(work(other, url), to=State.ROLLED_BACK, force=True) == State.ROLLED_BACK
    assert sql(url, COLUMNS) == before


@pytest.mark.parametrize("key", ["touch", "new.collation", "kind"])
def test_a_declaration_that_a_newer_version_stored(url: str, key: str) -> None:
    """One clear refusal for whoever needs the declaration; brakes do not need it."""
    walk(M, url, State.SWITCHED)
    path = key.split(".")
    sql(url, "UPDATE zdm.migration SET change = jsonb_set(change, %s, %s)", path, '"merge_columns"')
    calls: list[Callable[[], Any]] = [
        lambda: backfilled(M, url),
        lambda: expanded(M, url),
        lambda: validate.run(work(M, url)),
    ]
    for call in calls:
        with pytest.raises(StateConflict, match=f"{key} is not understood here; upgrade zdm_pipelines here"):
            call()
    assert any("not understood here" in reason for reason in contract.refusals(work(M, url)))
    assert status.read(work(M, url)).state == State.SWITCHED
    assert [h.reason for h in pause.pause(work(M, url), reason="lunch")] == ["lunch"]
    switch_reads.run(work(M, url), percent=0)
    assert (one(url, "SELECT percent FROM zdm.flag"), state(M, url)) == (0, State.VALIDATED)
    with pytest.raises(StateConflict, match=f"{key} is not understood here; upgrade zdm_pipelines here"):
        switch_reads.run(work(M, url), percent=50)
    with pytest.raises(StateConflict, match="upgrade zdm_pipelines here"):
        rollback.run(work(M, url), to=State.ROLLED_BACK)


def test_a_state_that_only_a_newer_version_knows(url: str) -> None:
    expanded(M, url)
    sql(url, "UPDATE zdm.migration SET state = 'marching'")
    with pytest.raises(StateConflict, match="is marching, which only a newer version"):
        backfilled(M, url)
    assert [h.reason for h in pause.pause(work(M, url), reason="lunch")] == ["lunch"]


def test_a_flag_of_another_migration(url: str) -> None:
    sql(url, "CREATE TABLE pets (id int PRIMARY KEY, full_name text)")
    expanded(replaced(reads={"flag": "shared"}), url)
    with pytest.raises(StateConflict, match="flag shared"):
        expanded(replaced(name="pets_name", table="pets", reads={"flag": "shared"}), url)
    assert (
        one(url, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'pets'::regclass AND attname = 'display_name'")
        == 0
    )


@pytest.mark.parametrize("where", STATES)
def test_phases_say_what_to_run_first(url: str, where: State) -> None:
    """In a state where a phase cannot run, it changes nothing and names the way out."""
    at(M, url, where)
    calls = {
        "expand": (lambda: expanded(M, url), {State.TOMBSTONED, State.CONTRACTED}),
        "backfill": (lambda: backfilled(M, url), {State.PLANNED, State.ROLLED_BACK, State.TOMBSTONED, State.CONTRACTED}),
        "validate": (lambda: validate.run(work(M, url)), {State.PLANNED, State.ROLLED_BACK, State.EXPANDED, State.BACKFILLING,
                                                   State.TOMBSTONED, State.CONTRACTED}),
        "switch": (lambda: switch_reads.run(work(M, url)), {State.PLANNED, State.ROLLED_BACK, State.EXPANDED, State.BACKFILLING,
                                                      State.BACKFILLED, State.TOMBSTONED, State.CONTRACTED}),
    }  # fmt: skip
    for call, refused in calls.values():
        if where in refused:
            with pytest.raises(StateConflict, match=f"is {where}"):
                call()
            assert state(M, url) == where


# -- a ledger made by the previous version ----------------------------------------------------------------


def as_before(url: str) -> None:
    """What version 0001 left: no holds, no tuning, no heartbeat, no proofs, no note of who names a column."""
    sql(url, "DROP TRIGGER IF EXISTS zzz_zdm_people_display_name_names ON people")
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
    with engine.begin() as connection:
        command.downgrade(schema._alembic(connection), "0001")


def version(url: str) -> str:
    return str(one(url, "SELECT version_num FROM zdm.schema_version"))


@pytest.fixture
def old_ledger(url: str) -> str:
    """A backfill that the previous version began: one range of three is done."""
    expanded(M, url)
    backfilled(M, url, partitions=[ranges(M, url)[0].range.partition])
    as_before(url)
    return url


def test_status_of_a_ledger_from_the_previous_version(old_ledger: str) -> None:
    found = status.read(work(M, old_ledger))
    assert (found.state, found.ranges_done, found.rows_moved, found.holds) == (State.BACKFILLING, 1, 100, ())
    assert not pause.resume(work(M, old_ledger))
    assert pause.settings(work(M, old_ledger)) == (declared_settings(M), {})
    assert pause.reset(work(M, old_ledger)) == declared_settings(M)
    assert watch.against(work(M, old_ledger)) == []
    assert version(old_ledger) == "0001"  # whoever only looks changes nothing


def test_backfill_upgrades_the_ledger_and_goes_on(old_ledger: str) -> None:
    m = replaced(
        backfill={"range_rows": 100, "batch_rows": 50},
        throttle={"replication_lag": {"pause_above": "60s"}, "wal_rate": {"pause_above": "1TB"}},
    )
    assert sum(moved.rows for moved in backfilled(m, old_ledger)) == 200
    assert version(old_ledger) == "0005"
    assert state(m, old_ledger) == State.BACKFILLED
    assert one(old_ledger, "SELECT sum(rows) FROM zdm.range") == 300
    walk(m, old_ledger, State.CONTRACTED)


def test_several_who_find_an_old_ledger_upgrade_it_once(old_ledger: str) -> None:
    keys = [r.range.partition for r in ranges(M, old_ledger)]
    jobs = [Background(lambda k=key: backfilled(M, old_ledger, partitions=[k])) for key in keys]  # type: ignore[misc]
    jobs.append(Background(lambda: watch.look(work(M, old_ledger, database=Database(name="app")))))
    jobs.append(Background(lambda: pause.tune(work(M, old_ledger), {"throttle": {"nice": 0.5}})))
    for job in jobs:
        job.result()
    assert state(M, old_ledger) == State.BACKFILLED
    assert pause.settings(work(M, old_ledger))[1] == {"throttle": {"nice": 0.5}}


@pytest.mark.parametrize(
    "call",
    [
        lambda url: pause.pause(work(M, url), reason="lunch"),
        lambda url: pause.tune(work(M, url), {"throttle": {"nice": 1}}),
        lambda url: watch.look(work(M, url, database=Database(name="app"))),
    ],
    ids=["pause", "tune", "watch"],
)
def test_whoever_steers_upgrades_the_ledger(old_ledger: str, call: Callable[[str], Any]) -> None:
    call(old_ledger)
    assert version(old_ledger) == "0005"
    pause.pause(work(M, old_ledger), reason="dinner")
    assert [h.reason for h in status.read(work(M, old_ledger)).holds] == ["dinner"]
    assert [h.reason for h in watch.against(work(M, old_ledger))] == ["dinner"]
    pause.resume(work(M, old_ledger))
    backfilled(M, old_ledger)
    assert state(M, old_ledger) == State.BACKFILLED


@pytest.mark.parametrize("target", [State.BACKFILLED, State.VALIDATED, State.SWITCHED, State.TOMBSTONED])
def test_the_other_phases_go_on_with_an_old_ledger(url: str, target: State) -> None:
    """None of them asks what the new version added."""
    walk(M, url, target)
    as_before(url)
    walk(M, url, State.CONTRACTED)


def test_a_rollback_with_an_old_ledger(old_ledger: str) -> None:
    rollback.run(work(M, old_ledger), to=State.ROLLED_BACK)
    expanded(M, old_ledger)
    assert version(old_ledger) == "0005"


def test_an_upgrade_never_waits_for_long(old_ledger: str) -> None:
    """The application writes into the ledger's tables: whoever upgrades gives up, and does it when run again."""
    with holding(old_ledger, "LOCK TABLE zdm.migration IN ROW EXCLUSIVE MODE"):
        with pytest.raises(LockNotAcquired, match="ledger: its tables are in use; run it again"):
            ledger.ensure(server_at(old_ledger))
        assert version(old_ledger) == "0001"
    ledger.ensure(server_at(old_ledger))
    assert version(old_ledger) == "0005"
