"""Signals: each follows what it is of, comes back with it, and raises where it cannot know."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import psycopg
import pytest
from psycopg import errors

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres import signals as built_in
from zdm_pipelines.dialects.postgres.signals import statements
from zdm_pipelines.dialects.postgres.signals.statements import Counted
from zdm_pipelines.engine import signals
from zdm_pipelines.engine.signals import DEADLINE, Signal, Surroundings
from zdm_pipelines.engine.signals.answers import read_field, read_prometheus, read_text
from zdm_pipelines.engine.signals.http import Http
from zdm_pipelines.model.throttle import HttpLimit, Limit, SqlLimit, Throttle
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests.helpers import Background, eventually, holding, one, people, replaced, sql, surveyed

MB = 1024 * 1024
Make = Callable[..., Signal]
ANY = Limit(pause_above=1)
_numbers = itertools.count(1)


@pytest.fixture
def make() -> Iterator[Make]:
    """Signals by key, or of a limit of the user's own; closed in the end."""
    made: list[Signal] = []

    def a_signal(
        key: str, url: str, *, limit: Limit = ANY, replicas: dict[str, str] | None = None, seen_by: str = ""
    ) -> Signal:
        catalog = surveyed(replaced(), url)
        made.append(
            signals.signal_named(key, limit, Surroundings(url=seen_by or url, catalog=catalog, replicas=replicas or {}))
        )
        return made[-1]

    yield a_signal
    for each in made:
        each.close()


@pytest.fixture
def prepared(database: str) -> str:
    """A database with a ledger and people."""
    people(database, 100)
    ledger.ensure(server_at(database))
    return database


@contextmanager
def nobody(server: Server, url: str) -> Iterator[tuple[str, str]]:
    """The URL and name of a role that may use the ledger and nothing else."""
    name = f"nobody_{next(_numbers)}"
    sql(url, f"CREATE ROLE {name} LOGIN; GRANT USAGE ON SCHEMA zdm TO {name}")
    sql(url, f"GRANT ALL ON ALL TABLES IN SCHEMA zdm TO {name}; GRANT SELECT ON people TO {name}")
    try:
        yield server.url(url.rsplit("/", 1)[1]).replace("postgres@", f"{name}@"), name
    finally:
        sql(url, f"DROP OWNED BY {name}; DROP ROLE {name}")


@contextmanager
def running(url: str, statement: str, *, name: str = "the app", before: str = "") -> Iterator[int]:
    """A session that runs a statement for long, or waits in it; gives its pid."""
    with psycopg.connect(url, application_name=name, autocommit=True) as conn:
        if before:
            conn.execute(before)

        def run() -> None:
            try:
                conn.execute(statement)
            except (errors.QueryCanceled, errors.AdminShutdown):
                return

        job = Background(run)
        try:
            yield conn.info.backend_pid
        finally:
            conn.cancel_safe()
            job.result()


def value(a_signal: Signal) -> float:
    return float(a_signal.read().value)


# -- the list ---------------------------------------------------------------------------------------------


def test_every_signal_that_can_be_declared_is_there() -> None:
    fields = {n for n, f in Throttle.model_fields.items() if "Limit" in str(f.annotation)} - {"sql", "http"}
    assert fields == set(built_in._BUILT_IN)


def test_every_signal_of_the_server_gives_a_number(prepared: str, make: Make) -> None:
    for key in built_in._BUILT_IN.keys() - {"statements_p95"}:
        measured = make(key, prepared).read()
        assert isinstance(measured.value, (int, float)), key
        assert measured.value >= 0, key


# -- sessions ---------------------------------------------------------------------------------------------


def test_active_sessions(server: Server, prepared: str, make: Make) -> None:
    active = make("active_sessions", prepared)
    eventually(lambda: value(active) == 0)
    with running(prepared, "SELECT pg_sleep(100)"):
        eventually(lambda: value(active) == 1)
        with running(server.url(), "SELECT pg_sleep(100)"):  # another database of the same machine
            eventually(lambda: value(active) == 2)
        with (
            running(prepared, "SELECT pg_sleep(100)", name="zdm people_display_name range 1") as ours,
            holding(prepared, "SELECT 1", name="idle in a transaction"),
        ):
            eventually(lambda: one(prepared, "SELECT state FROM pg_stat_activity WHERE pid = %s", ours) == "active")
            assert value(active) == 1
    eventually(lambda: value(active) == 0)


def test_waiting_sessions(prepared: str, make: Make) -> None:
    waiting = make("waiting_sessions", prepared)
    assert value(waiting) == 0
    with holding(prepared, "LOCK people"), running(prepared, "SELECT * FROM people"):
        eventually(lambda: value(waiting) == 1)
        with running(prepared, "SELECT * FROM people", name="zdm waits") as ours:
            eventually(lambda: one(prepared, "SELECT NOT bool_and(granted) FROM pg_locks WHERE pid = %s", ours))
            assert value(waiting) == 1
    assert value(waiting) == 0


def test_sessions_without_a_state_are_unknown(prepared: str, make: Make) -> None:
    active, waiting, oldest = (make(n, prepared) for n in ("active_sessions", "waiting_sessions", "oldest_transaction"))
    with holding(prepared, "SET track_activities = off", "BEGIN; SELECT 1"):
        for each in (active, oldest):
            with pytest.raises(errors.ObjectNotInPrerequisiteState, match="track_activities"):
                each.read()
        assert value(waiting) == 0
    eventually(lambda: value(active) == 0)
    assert value(oldest) == 0


# -- locks ------------------------------------------------------------------------------------------------

UPDATE = "UPDATE people SET note = 'x' WHERE id = 1"


def test_lock_waits_for_the_table(prepared: str, make: Make) -> None:
    waits = make("lock_waits", prepared)
    assert value(waits) == 0
    with holding(prepared, "LOCK people"), running(prepared, "SELECT * FROM people"):
        eventually(lambda: value(waits) == 1)
        with running(prepared, "SELECT 1 FROM people"):
            eventually(lambda: value(waits) == 2)
    with holding(prepared, "LOCK people"), running(prepared, "SELECT * FROM people", name="zdm waits") as ours:
        eventually(lambda: one(prepared, "SELECT NOT bool_and(granted) FROM pg_locks WHERE pid = %s", ours))
        assert value(waits) == 0
    assert value(waits) == 0


@pytest.mark.parametrize("holder", ["zdm people_display_name range 1", "another app"])
def test_lock_waits_for_a_row(prepared: str, make: Make, holder: str) -> None:
    waits = make("lock_waits", prepared)
    with holding(prepared, UPDATE, name=holder):
        assert value(waits) == 0
        with running(prepared, UPDATE):
            eventually(lambda: value(waits) == 1)
            with running(prepared, UPDATE):
                eventually(lambda: value(waits) == 2)
    assert value(waits) == 0


def test_lock_waits_elsewhere(prepared: str, make: Make) -> None:
    sql(prepared, "CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other VALUES (1)")
    waits, waiting = make("lock_waits", prepared), make("waiting_sessions", prepared)
    statement = "UPDATE other SET id = 1"
    with holding(prepared, statement), running(prepared, statement), running(prepared, "TRUNCATE other"):
        eventually(lambda: value(waiting) == 2)
        assert value(waits) == 0
    with holding(prepared, statement, name="zdm expand"), running(prepared, statement):
        eventually(lambda: value(waits) == 1)
    # Our DDL that waits itself has others wait behind it, and is no wait of others.
    with holding(prepared, "SELECT * FROM other"), running(prepared, "TRUNCATE other", name="zdm expand") as ours:
        eventually(lambda: one(prepared, "SELECT NOT bool_and(granted) FROM pg_locks WHERE pid = %s", ours))
        assert value(waits) == 0
        with running(prepared, "SELECT * FROM other"):
            eventually(lambda: value(waits) == 1)
    assert value(waits) == 0


def test_lock_waits_for_a_table_of_that_oid_in_another_database(server: Server, prepared: str, make: Make) -> None:
    name = f"copy_{next(_numbers)}"
    waits = make("lock_waits", prepared)
    copy = server.create_database(name, template=prepared.rsplit("/", 1)[1])
    assert one(copy, "SELECT 'people'::regclass::oid") == one(prepared, "SELECT 'people'::regclass::oid")
    try:
        with holding(copy, "LOCK people"), running(copy, "SELECT * FROM people") as waiter:
            eventually(lambda: one(prepared, "SELECT NOT bool_and(granted) FROM pg_locks WHERE pid = %s", waiter))
            assert value(waits) == 0
    finally:
        server.drop_database(name)


# -- WAL --------------------------------------------------------------------------------------------------

EMIT = "SELECT count(pg_logical_emit_message(false, 'test', repeat('x', 1024 * 1024))) FROM generate_series(1, {})"


def test_wal_rate(prepared: str, make: Make) -> None:
    rate = make("wal_rate", prepared)
    begun = time.monotonic()
    assert 0 <= value(rate) < MB  # nothing but beats; it took the time to measure that
    sql(prepared, EMIT.format(40))
    seen = value(rate)
    assert seen > 40 * MB / (time.monotonic() - begun + 1)
    assert seen < 41 * MB / 0.25
    eventually(lambda: value(rate) < MB)


def test_wal_rate_after_a_rest(prepared: str, make: Make) -> None:
    sql(prepared, "INSERT INTO zdm.heartbeat VALUES (now() - interval '30 min', '0/0')")  # an hour's beats are kept
    assert value(make("wal_rate", prepared)) < MB
    sql(prepared, "TRUNCATE zdm.heartbeat; INSERT INTO zdm.heartbeat VALUES (now() + interval '1 h', '0/0')")
    assert value(make("wal_rate", prepared)) < MB  # a clock that was set back leaves beats of the future
    assert one(prepared, "SELECT count(*) FROM zdm.heartbeat WHERE at > clock_timestamp()") == 0


def test_archive_backlog(own_server: Server, make: Make) -> None:
    url = own_server.url()
    people(url, 10)
    ledger.ensure(server_at(url))
    with nobody(own_server, url) as (nobodys, name):
        assert value(make("archive_backlog", url, seen_by=nobodys)) == 0  # nothing is archived
        own_server.settings |= {"archive_mode": "on", "archive_command": "false"}
        own_server.restart()
        for _ in range(3):
            sql(url, EMIT.format(1))
            sql(url, "SELECT pg_switch_wal()")
        backlog = make("archive_backlog", url)
        eventually(lambda: value(backlog) >= 3)
        seen_by_nobody = make("archive_backlog", url, seen_by=nobodys)
        with pytest.raises(errors.InsufficientPrivilege):
            seen_by_nobody.read()
        sql(url, f"GRANT pg_monitor TO {name}")
        assert value(seen_by_nobody) >= 3
        own_server.settings["archive_command"] = "true"
        own_server.reload()

        def archived() -> bool:
            sql(url, "SELECT pg_switch_wal()")  # wakes the archiver, which rests after failures
            return value(backlog) == 0

        eventually(archived)


def test_slot_retention(prepared: str, make: Make) -> None:
    retention = make("slot_retention", prepared)
    sql(prepared, "SELECT pg_create_physical_replication_slot('left_behind', true)")
    try:
        before = value(retention)
        sql(prepared, EMIT.format(20))
        assert retention.read().source == "slot left_behind"
        assert 10 * MB < value(retention) - before < 30 * MB  # what is not written yet is not counted
    finally:
        sql(prepared, "SELECT pg_drop_replication_slot('left_behind')")
    eventually(lambda: value(retention) < 10 * MB)  # the replica's own slot follows


def test_slot_retention_without_slots_and_with_a_lost_one(own_server: Server, make: Make) -> None:
    url = own_server.url()
    people(url, 10)
    retention = make("slot_retention", url)
    assert value(retention) == 0
    sql(url, "SELECT pg_create_physical_replication_slot('unused')")  # keeps nothing yet
    assert value(retention) == 0
    sql(url, "SELECT pg_create_physical_replication_slot('lost', true)")
    sql(url, EMIT.format(60))
    assert value(retention) > 50 * MB  # what is not written yet is not counted
    sql(url, "ALTER SYSTEM SET max_slot_wal_keep_size = '16MB'")
    sql(url, "SELECT pg_reload_conf()")

    def lost() -> bool:
        sql(url, "SELECT pg_switch_wal()")
        sql(url, "CHECKPOINT")
        return one(url, "SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'lost'") == "lost"

    eventually(lost)
    assert value(retention) == 0


# -- vacuum, transactions, disk ---------------------------------------------------------------------------

SLOWLY = "SET vacuum_cost_delay = 100; SET vacuum_cost_limit = 1"


def test_a_vacuum_of_the_table(prepared: str, make: Make) -> None:
    sql(prepared, "INSERT INTO people (full_name, note) SELECT repeat('x', 500), 'y' FROM generate_series(1, 5000)")
    sql(prepared, "CREATE TABLE other AS SELECT * FROM people")
    vacuums = make("autovacuum", prepared)
    assert value(vacuums) == 0
    working = "SELECT count(*) FROM pg_stat_progress_vacuum"
    with running(prepared, "VACUUM other", before=SLOWLY):
        eventually(lambda: one(prepared, working) == 1)
        assert value(vacuums) == 0
        with running(prepared, "VACUUM people", before=SLOWLY):
            eventually(lambda: value(vacuums) == 1)
            assert vacuums.read().source == "scanning heap"
        assert value(vacuums) == 0


def test_a_vacuum_of_its_toast_table(prepared: str, make: Make) -> None:
    sql(prepared, "ALTER TABLE people ALTER note SET STORAGE EXTERNAL")
    sql(prepared, "INSERT INTO people (note) SELECT repeat('x', 20000) FROM generate_series(1, 200)")
    toast = one(prepared, "SELECT reltoastrelid::regclass::text FROM pg_class WHERE oid = 'people'::regclass")
    vacuums = make("autovacuum", prepared)
    with running(prepared, f"VACUUM {toast}", before=SLOWLY):
        eventually(lambda: value(vacuums) == 1)
    assert value(vacuums) == 0


def test_autovacuum_itself(own_server: Server, make: Make) -> None:
    own_server.settings["autovacuum_naptime"] = "1s"
    own_server.restart()  # not by a reload, which meets the launcher in its first rest of a minute
    url = own_server.url()
    people(url, 20_000)
    ledger.ensure(server_at(url))
    vacuums = make("autovacuum", url)
    assert value(vacuums) == 0
    sql(
        url,
        "ALTER TABLE people SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0, "
        "autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)",
    )
    sql(url, "DELETE FROM people WHERE id % 2 = 0")
    eventually(lambda: value(vacuums) == 1, timeout=60)
    oldest = make("oldest_transaction", url)
    assert value(oldest) == 0  # what it does keeps no rows
    sql(url, "ALTER TABLE people SET (autovacuum_enabled = off)")  # which cancels it
    eventually(lambda: value(vacuums) == 0, timeout=60)


def test_oldest_transaction(server: Server, prepared: str, make: Make) -> None:
    oldest = make("oldest_transaction", prepared)
    assert value(oldest) == 0
    with holding(prepared, "SELECT 1", name="a report"), holding(prepared, "SELECT 1", name="a younger one"):
        first = value(oldest)
        assert first < 20
        eventually(lambda: value(oldest) > max(0.5, first))
        source = oldest.read().source
        assert source.startswith("a report, pid ")
        assert "SELECT" not in source
    eventually(lambda: value(oldest) == 0)
    with holding(prepared, "SELECT 1", name="zdm people_display_name range 1"), holding(server.url(), "SELECT 1"):
        assert value(oldest) == 0


def test_oldest_transaction_may_be_a_prepared_one(own_server: Server, make: Make) -> None:
    own_server.settings["max_prepared_transactions"] = "5"
    own_server.restart()
    url = own_server.url()
    people(url, 10)
    other = own_server.create_database("other")
    oldest = make("oldest_transaction", url)
    sql(other, "CREATE TABLE t (); BEGIN; SELECT * FROM t; PREPARE TRANSACTION 'elsewhere'")
    assert value(oldest) == 0
    sql(url, "BEGIN; SELECT * FROM people; PREPARE TRANSACTION 'forgotten'")
    eventually(lambda: value(oldest) > 0.2)
    assert oldest.read().source == "prepared transaction forgotten"
    sql(url, "ROLLBACK PREPARED 'forgotten'")
    assert value(oldest) == 0


def test_disk_used(prepared: str, make: Make) -> None:
    disk = make("disk_used", prepared)
    before = value(disk)
    databases = float(one(prepared, "SELECT sum(pg_database_size(oid)) FROM pg_database"))
    assert before > databases * 0.9 + 16 * MB  # at least one file of WAL
    sql(prepared, "CREATE UNLOGGED TABLE large AS SELECT repeat('x', 1000) FROM generate_series(1, 50000)")
    after = value(disk)
    assert after > before + 50 * MB
    sql(prepared, "DROP TABLE large")
    eventually(lambda: value(disk) < after - 40 * MB)


# -- privileges -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "active_sessions",
        "waiting_sessions",
        "oldest_transaction",
        "autovacuum",
        "disk_used",
        "replication_lag",
        "replication_lag_bytes",
    ],
)
def test_a_role_that_may_not_look(server: Server, prepared: str, make: Make, key: str) -> None:
    with nobody(server, prepared) as (nobodys, name), holding(prepared, "SELECT 1"):
        blind = make(key, prepared, seen_by=nobodys)
        with pytest.raises(errors.InsufficientPrivilege):
            blind.read()
        sql(prepared, f"GRANT pg_monitor TO {name}")
        assert value(blind) >= 0
        blind.close()


@pytest.mark.parametrize("key", ["lock_waits", "wal_rate", "slot_retention", "latency_p95"])
def test_a_role_that_need_not_look(server: Server, prepared: str, make: Make, key: str) -> None:
    with (
        nobody(server, prepared) as (nobodys, _),
        holding(prepared, UPDATE, name="zdm people_display_name range 1"),
        running(prepared, UPDATE),
    ):
        blind = make(key, prepared, seen_by=nobodys)
        if key == "lock_waits":
            eventually(lambda: value(blind) == 1)
        else:
            assert value(blind) >= 0
        blind.close()


def test_a_role_sees_its_own_sessions(server: Server, prepared: str, make: Make) -> None:
    with nobody(server, prepared) as (nobodys, _):
        own = [make(key, prepared, seen_by=nobodys) for key in ("active_sessions", "oldest_transaction")]
        with running(nobodys, "SELECT pg_sleep(100)"):
            eventually(lambda: all(value(each) > 0 for each in own))
        eventually(lambda: not any(value(each) for each in own))
        for each in own:
            each.close()


# -- replicas ---------------------------------------------------------------------------------------------

LAGS = ["replication_lag", "heartbeat_lag"]


@pytest.fixture
def lag(cluster: Cluster, prepared: str, make: Make) -> Callable[[str], Signal]:
    """A lag signal that sees the replica."""
    cluster.wait_caught_up()
    replicas = {"the replica": cluster.replica.url(prepared.rsplit("/", 1)[1])}
    return lambda key: make(key, prepared, replicas=replicas)


def follows(lags: list[Signal], prepared: str, stop: Callable[[], Any], go_on: Callable[[], Any]) -> None:
    """Lag is small, grows while the replica is stuck, and is small again."""

    def above(seconds: float) -> bool:
        return all(value(each) > seconds for each in lags)

    def below(seconds: float) -> bool:
        return all(value(each) < seconds for each in lags)

    eventually(lambda: below(1))
    try:
        stop()
        sql(prepared, UPDATE)
        eventually(lambda: above(2))
        assert all(each.read().source for each in lags)
        eventually(lambda: above(3))
    finally:
        go_on()
    eventually(lambda: below(1))


def test_lag_of_a_replica_that_replays_nothing(cluster: Cluster, prepared: str, lag: Callable[[str], Signal]) -> None:
    url = cluster.replica.url()
    follows(
        [lag(key) for key in LAGS],
        prepared,
        lambda: sql(url, "SELECT pg_wal_replay_pause()"),
        lambda: sql(url, "SELECT pg_wal_replay_resume()"),
    )


@pytest.mark.parametrize("process", ["walreceiver", "startup"])
def test_lag_of_a_replica_with_a_process_that_hangs(
    cluster: Cluster, prepared: str, lag: Callable[[str], Signal], process: str
) -> None:
    found = cluster.replica.process(process)
    follows([lag(key) for key in LAGS], prepared, found.suspend, found.resume)


def test_lag_in_bytes(cluster: Cluster, prepared: str, make: Make) -> None:
    behind = make("replication_lag_bytes", prepared)
    try:
        sql(cluster.replica.url(), "SELECT pg_wal_replay_pause()")
        sql(prepared, EMIT.format(20))
        eventually(lambda: value(behind) > 20 * MB)
        assert behind.read().source == "replica"
    finally:
        sql(cluster.replica.url(), "SELECT pg_wal_replay_resume()")
    eventually(lambda: value(behind) < MB)


def test_lag_of_a_replica_that_is_away(prepared: str, make: Make) -> None:
    away = make("replication_lag", prepared)
    behind = make("replication_lag_bytes", prepared)
    eventually(lambda: value(away) < 1)
    sql(prepared, "SELECT pg_create_physical_replication_slot('nobodys', true)")
    try:
        eventually(lambda: value(away) > 2)
        assert away.read().source == "slot nobodys, nobody connected"
        assert value(behind) > 0
    finally:
        sql(prepared, "SELECT pg_drop_replication_slot('nobodys')")
    eventually(lambda: value(away) < 1)


def test_a_replica_that_cannot_be_asked(prepared: str, make: Make) -> None:
    gone = prepared.replace("@127.0.0.1", "@127.0.0.1:1").rsplit(":", 1)[0] + "/nothing"
    with pytest.raises(Exception, match="cannot connect"):
        make("heartbeat_lag", prepared, replicas={"gone": gone}).read()


# -- statements -------------------------------------------------------------------------------------------


def test_percentile_of_calls() -> None:
    assert statements.p95([]) == 0
    assert statements.p95([Counted(10, 5.0)]) == 0.5
    quick, slow = Counted(94, 0.94), Counted(6, 6.0)
    assert statements.p95([slow, quick]) == 1.0
    assert statements.p95([Counted(96, 0.96), Counted(4, 4.0)]) == pytest.approx(0.01)
    assert statements.p95(Counted(1, n) for n in range(1, 21)) == 20  # as the latency's, each call by itself
    assert statements.p95(Counted(1, n) for n in range(1, 101)) == 96


def test_calls_between_two_readings() -> None:
    before = {(1, 1): Counted(10, 1.0), (1, 2): Counted(5, 5.0), (1, 3): Counted(100, 1.0), (1, 4): Counted(1, 1)}
    before[(1, 5)] = Counted(10, 0.1)
    now = {(1, 1): Counted(12, 1.5), (1, 2): Counted(5, 5.0), (1, 3): Counted(3, 0.3), (2, 1): Counted(1, 7.0)}
    now[(1, 5)] = Counted(3, 3.0)  # reset, and slower since
    assert statements.since(before, now) == {(1, 1): (2, 0.5), (1, 3): (3, 0.3), (2, 1): (1, 7.0), (1, 5): (3, 3.0)}


def test_statements_without_the_extension(prepared: str, make: Make) -> None:
    with pytest.raises(errors.UndefinedObject, match="CREATE EXTENSION pg_stat_statements"):
        make("statements_p95", prepared).read()


@pytest.fixture
def counted(own_server: Server) -> Iterator[str]:
    """A database with an extension of that name, in a schema of its own, that shows rows of a table."""
    folder = own_server.data.with_name("extensions")
    (folder / "extension").mkdir(parents=True)
    (folder / "extension" / "pg_stat_statements.control").write_text("default_version = '1.12'\n")
    (folder / "extension" / "pg_stat_statements--1.12.sql").write_text(
        """
        CREATE TABLE called (userid oid DEFAULT 10, dbid oid, toplevel bool DEFAULT true, queryid bigint, query text,
          calls bigint, total_exec_time float8);
        CREATE FUNCTION pg_stat_statements(showtext boolean) RETURNS SETOF called LANGUAGE sql AS
          'SELECT userid, coalesce(dbid, (SELECT oid FROM pg_database WHERE datname = current_database())), toplevel,
             queryid, CASE WHEN showtext THEN query END, calls, total_exec_time
           FROM "their tools".called';
        """
    )
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    own_server.settings["extension_control_path"] = f"{folder}:$system"
    own_server.reload()
    url = own_server.url()
    people(url, 10)
    eventually(lambda: one(url, "SHOW extension_control_path").startswith(str(folder)))
    sql(url, 'CREATE SCHEMA "their tools"; CREATE EXTENSION pg_stat_statements SCHEMA "their tools"')
    yield url
    shutil.rmtree(folder)


def call(url: str, queryid: int, calls: int, milliseconds: float, text: str = "SELECT app") -> None:
    """Count calls of a statement."""
    sql(
        url,
        'WITH known AS (UPDATE "their tools".called SET calls = calls + %s, total_exec_time = total_exec_time + %s '
        'WHERE queryid = %s RETURNING 1) INSERT INTO "their tools".called (queryid, query, calls, total_exec_time) '
        "SELECT %s, %s, %s, %s WHERE NOT EXISTS (SELECT FROM known)",
        calls, calls * milliseconds, queryid, queryid, text, calls, calls * milliseconds,
    )  # fmt: skip


def test_statements(counted: str, make: Make) -> None:
    took = make("statements_p95", counted)
    call(counted, 1, 1_000_000, 5_000)  # long ago
    call(counted, 2, 10, 60_000, "UPDATE t FROM zdm_batch")
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match="counts nothing"):
        took.read()
    call(counted, 1, 90, 20)
    call(counted, 2, 500, 60_000)
    call(counted, 3, 10, 300, "SELECT app, more")
    call(counted, 4, 10_000, 0.001, "  begin")
    call(counted, 5, 1, 90_000, "SELECT 1\n/* zdm_signal */")
    assert value(took) == pytest.approx(0.3)
    call(counted, 1, 90, 20)
    assert value(took) == pytest.approx(0.02)
    call(counted, 2, 1, 1)
    assert value(took) == 0  # nobody but us called anything
    sql(counted, 'UPDATE "their tools".called SET calls = 2, total_exec_time = 80 WHERE queryid = 1')  # was reset
    assert value(took) == pytest.approx(0.04)
    sql(counted, """INSERT INTO "their tools".called SELECT 10, 1, true, 9, 'SELECT elsewhere', 1, 1e6""")
    sql(
        counted,
        """INSERT INTO "their tools".called SELECT 10, NULL, false, 9, 'SELECT inside', 1, 1e6""",
    )
    call(counted, 3, 1, 100)
    assert value(took) == pytest.approx(0.1)
    sql(counted, """UPDATE "their tools".called SET queryid = NULL WHERE queryid = 3""")
    with pytest.raises(errors.InsufficientPrivilege, match="pg_monitor"):
        took.read()
    sql(counted, """ALTER TABLE "their tools".called RENAME total_exec_time TO total_time""")
    with pytest.raises(errors.UndefinedColumn, match="ALTER EXTENSION"):
        took.read()


def test_statements_of_the_first_reading(counted: str, make: Make) -> None:
    call(counted, 1, 1_000_000, 5_000)
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.05):
            call(counted, 1, 1, 7)

    job = Background(work)
    try:
        assert value(make("statements_p95", counted)) == pytest.approx(0.007, rel=0.01)
    finally:
        stop.set()
        job.result()


# -- SQL --------------------------------------------------------------------------------------------------


def asks(make: Make, url: str, query: str) -> Signal:
    return make("own", url, limit=SqlLimit(name="own", pause_above=1, query=query))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT count(*) FROM people", 100),
        ("SELECT 0.25::float8;", 0.25),
        ("SELECT 1.5 -- a number", 1.5),
        ("SELECT '100 %' LIKE '1%'", True),  # no number: the caller's to refuse
        ("SELECT NULL", None),
        ("WITH p AS (SELECT 7) TABLE p", 7),
    ],
)
def test_sql(prepared: str, make: Make, query: str, expected: Any) -> None:
    own = asks(make, prepared, query)
    assert own.read().value == expected
    assert own.read().value == expected


def test_sql_follows(prepared: str, make: Make) -> None:
    own = asks(make, prepared, "SELECT count(*) FROM people WHERE note = 'x'")
    assert value(own) == 0
    sql(prepared, UPDATE)
    assert value(own) == 1
    sql(prepared, "UPDATE people SET note = 'y'")
    assert value(own) == 0


@pytest.mark.parametrize(
    ("query", "fact"),
    [
        ("SELECT 1 WHERE false", "no row"),
        ("SELECT id FROM people", "several rows"),
        ("SELECT generate_series(1, 1000000000)", "several rows"),
        ("SELECT 1, 2", "2 columns"),
        ("SELECT", "0 columns"),
    ],
)
def test_sql_that_gives_something_else(prepared: str, make: Make, query: str, fact: str) -> None:
    own = asks(make, prepared, query)
    for _ in range(2):
        with pytest.raises(ValueError, match=fact):
            own.read()


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM people RETURNING 1",
        "WITH gone AS (DELETE FROM people RETURNING 1) SELECT count(*) FROM gone",
        "SELECT 1; DELETE FROM people",
        "SET default_transaction_read_only = off; DELETE FROM people",
        "DO 'BEGIN DELETE FROM people; END'",
        "SELECT 1 FROM people LIMIT 1 FOR UPDATE",
        "CREATE TABLE t (); SELECT 1",
        "SELECT nonsense",
        "SELECT 1 / 0",
        "",
        "SHOW",
    ],
)
def test_sql_that_fails_changes_nothing(prepared: str, make: Make, query: str) -> None:
    own = asks(make, prepared, query or " ")
    for _ in range(2):
        with pytest.raises(psycopg.Error):
            own.read()
    assert one(prepared, "SELECT count(*) FROM people") == 100
    assert one(prepared, "SELECT to_regclass('t')") is None


def test_sql_that_takes_long(prepared: str, make: Make) -> None:
    own = asks(make, prepared, "SELECT 1 FROM pg_sleep(60)")
    begun = time.monotonic()
    with pytest.raises(errors.QueryCanceled):
        own.read()
    assert time.monotonic() - begun < 30


def test_a_signal_connects_again(prepared: str, make: Make) -> None:
    own = asks(make, prepared, "SELECT 3")
    assert value(own) == 3
    sql(prepared, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'zdm throttle own'")
    with pytest.raises(psycopg.Error):
        own.read()
    assert value(own) == 3


# -- HTTP -------------------------------------------------------------------------------------------------


class Service:
    """A web service that answers what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.status = 200
        self.body: bytes = b""
        self.headers: dict[str, str] = {}
        self.length: int | None = None
        self.before: Callable[[], Any] = lambda: None
        self.asked: list[tuple[str, str | None]] = []
        self.cookies: list[str | None] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append((self.path, self.headers.get("Authorization")))
                service.cookies.append(self.headers.get("Cookie"))
                service.before()
                if self.path.startswith("/moved"):
                    service.status, service.headers = 200, {}
                self.send_response(service.status)
                for name, text in service.headers.items():
                    self.send_header(name, text)
                self.send_header("Content-Length", str(len(service.body) if service.length is None else service.length))
                self.end_headers()
                self.wfile.write(service.body)

            def log_message(self, *_: Any) -> None:
                pass

        class QuietServer(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """A reader that hung up is what some tests are about."""

        self.server = QuietServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A web service on this machine, which no proxy is asked for."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    a_service = Service()
    yield a_service
    a_service.server.shutdown()
    a_service.server.server_close()


def web(url: str, **declared: Any) -> Signal:
    return Http(HttpLimit(name="own", pause_above=1, url=url, **declared))


def test_http_number(service: Service) -> None:
    own = web(f"{service.url}/depth?of=queue")
    for body, expected in ((b"12\n", 12), (b" 0.5", 0.5), (b"-1e3", -1000), (b"0", 0)):
        service.body = body
        assert value(own) == expected
    assert set(service.asked) == {("/depth?of=queue", None)}


def test_http_field(service: Service) -> None:
    own = web(service.url, field="queues.1.depth")
    service.body = b'{"queues": [{"depth": 1}, {"depth": 42}]}'
    assert value(own) == 42
    service.body = b'{"queues": [{"depth": 1}]}'
    with pytest.raises(ValueError, match=r"has no queues\.1\.depth"):
        own.read()


def vector(*samples: str) -> bytes:
    result = [{"metric": {"instance": f"db{n}"}, "value": [1700000000.1, s]} for n, s in enumerate(samples)]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()


def test_http_prometheus(service: Service) -> None:
    own = web(f"{service.url}/tenant/", query='sum(rate(x[5m])) by (a) > 100 + {b="c&d"}')
    service.body = vector("1.5", "7.25", "-3")
    measured = own.read()
    assert (measured.value, measured.source) == (7.25, "instance=db1")
    expected = "/tenant/api/v1/query?query=sum%28rate%28x%5B5m%5D%29%29%20by%20%28a%29%20%3E%20100%20%2B%20%7Bb%3D%22c%26d%22%7D"
    assert service.asked == [(expected, None)]
    service.body = b'{"status": "success", "data": {"resultType": "scalar", "result": [1, "3"]}}'
    assert value(own) == 3


@pytest.mark.parametrize(
    ("body", "fact"),
    [
        (vector(), "the query has no result"),
        (vector("1", "NaN"), "no finite number"),
        (vector("+Inf"), "no finite number"),
        (vector("what"), "no number"),
        (b'{"status": "error", "errorType": "bad_data", "error": "a secret"}', "refuses"),
        (b'{"status": "success", "data": {"resultType": "matrix", "result": []}}', "neither a vector nor a scalar"),
        (
            b'{"status": "success", "data": {"resultType": "vector", "result": [{"histogram": []}]}}',
            "none of Prometheus",
        ),
        (b'{"status": "success"}', "none of Prometheus"),
        (b"[]", "none of Prometheus"),
        (b"<html>", "no JSON"),
        (b"[" * 60_000, "no JSON"),
    ],
)
def test_prometheus_answers_that_are_no_number(body: bytes, fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        read_prometheus(body.decode())


@pytest.mark.parametrize(
    "body", ["", "NaN", "inf", "-Infinity", "1e999", "1_0", "12 34", "true", "{}", "9" * 5000 + "x"]
)
def test_bodies_that_are_no_number(body: str) -> None:
    with pytest.raises(ValueError, match=r"no (finite )?number"):
        read_text(body)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "1e999", "true", "null", '"12"', "[1]", "{}", "1" + "0" * 400, "9" * 5000, "1,", ""]
)
def test_fields_that_are_no_number(number: str) -> None:
    with pytest.raises(ValueError, match=r"number|no JSON"):
        read_field(f'{{"a": {number}}}', "a")


@pytest.mark.parametrize("field", ["b", "a.0", "a.x", "", "a..b", "list.2", "list.-1", "list.x", "list.²"])
def test_fields_that_are_not_there(field: str) -> None:
    with pytest.raises(ValueError, match="has no"):
        read_field('{"a": 1, "list": [1, 2]}', field)


def test_http_token(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    own = web(service.url, token_env="TEST_TOKEN")
    service.body = b"1"
    monkeypatch.delenv("TEST_TOKEN", raising=False)
    with pytest.raises(ValueError, match="TEST_TOKEN is not set"):
        own.read()
    assert service.asked == []
    for token in ("first", "second\n"):
        monkeypatch.setenv("TEST_TOKEN", token)
        assert value(own) == 1
    assert [token for _, token in service.asked] == ["Bearer first", "Bearer second"]
    monkeypatch.setenv("TEST_TOKEN", "a\r\nsecret")
    with pytest.raises(ValueError, match="no token") as caught:
        own.read()
    assert "secret" not in str(caught.value)


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ({"status": 500}, "HTTP 500"),
        ({"status": 401}, "HTTP 401"),
        ({"body": b"1" * 70_000}, "longer than 64 kB"),
        ({"body": b"12", "length": 4}, "breaks off"),
        ({"body": b"\xff\xfe"}, "no text"),
        ({"body": SECRET.encode()}, "no number"),
        ({"status": 302, "headers": {"Location": f"file:///etc/{SECRET}"}}, "HTTP 302"),
        ({"status": 302, "headers": {"Location": f"ftp://localhost/{SECRET}"}}, "not followed"),
        ({"status": 302, "headers": {"Location": f"https://localhost/{SECRET}"}}, "not followed"),
        ({"status": 302, "headers": {"Location": f"http://localhost:1/{SECRET}"}}, "not followed"),
        ({"status": 302, "headers": {"Location": f"/again?{SECRET}"}}, "HTTP 302"),
    ],
)
def test_http_failures_tell_no_secrets(
    service: Service, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], fact: str
) -> None:
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    own = web(f"{service.url}/x?key={SECRET}", token_env="TEST_TOKEN")
    for name, what in answer.items():
        setattr(service, name, what)
    with pytest.raises((OSError, ValueError), match=fact) as caught:
        own.read()
    assert SECRET not in str(caught.value)
    service.status, service.body, service.length, service.headers = 200, b"5", None, {}
    assert value(own) == 5


def test_http_logs_no_secrets(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_TOKEN", SECRET)
    service.body = b"1"
    url = f"{service.url}/x?key={SECRET}"
    with caplog.at_level(logging.DEBUG):
        assert value(web(url, token_env="TEST_TOKEN")) == 1
        assert SECRET not in caplog.text
        httpx.get(url)  # what others of the process ask is theirs to log
    assert SECRET in caplog.text


def test_http_of_who_speaks_no_tls(service: Service) -> None:
    with pytest.raises(OSError, match=r"cannot be reached \(\[SSL"):
        web(service.url.replace("http:", "https:")).read()


@pytest.mark.parametrize("proxy", [f"socks5://us:{SECRET}@127.0.0.1:1", f"gopher://us:{SECRET}@127.0.0.1:1"])
def test_http_through_a_proxy_that_cannot_be_used(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(OSError, match=r"proxy that the environment names cannot be used|cannot be reached") as caught:
        web("http://127.0.0.1:1/").read()
    assert SECRET not in str(caught.value)


def test_http_sets_no_cookies_and_takes_no_compressed_answer(service: Service) -> None:
    service.body, service.headers = gzip.compress(b"1"), {"Content-Encoding": "gzip", "Set-Cookie": "a=b"}
    own = web(service.url)
    for _ in range(2):
        with pytest.raises(ValueError, match="no text"):
            own.read()
    assert service.cookies == [None, None]


def test_http_redirects_within_the_service(service: Service) -> None:
    service.status, service.headers, service.body = 307, {"Location": "/moved"}, b"8"
    assert value(web(service.url)) == 8
    assert [path for path, _ in service.asked] == ["/", "/moved"]


def test_http_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="Connection refused") as caught:
            web(f"http://127.0.0.1:{bound.getsockname()[1]}/?{SECRET}").read()
    assert SECRET not in str(caught.value)
    with pytest.raises(OSError, match="no HTTP") as caught:
        web(f"http://127.0.0.1:1/\u00e4?{SECRET}").read()
    assert SECRET not in str(caught.value)


def test_http_that_hangs(service: Service) -> None:
    go_on = threading.Event()
    service.before = lambda: go_on.wait(60)
    service.body = b"4"
    own = web(service.url)
    begun = time.monotonic()
    with pytest.raises(OSError, match="no answer within"):
        own.read()
    assert DEADLINE * 0.9 < time.monotonic() - begun < 30
    go_on.set()
    assert value(own) == 4


def test_http_that_drips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            conn, _ = listening.accept()
            with conn:
                conn.recv(4096)
                conn.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(600):
                    try:
                        conn.sendall(b"1")
                    except OSError:
                        return
                    time.sleep(0.1)

        job = Background(drip)
        with pytest.raises(OSError, match="no answer within"):
            web(f"http://127.0.0.1:{listening.getsockname()[1]}/").read()
        job.result()
