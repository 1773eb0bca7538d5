"""Limits of the role: what a server, a database or a role sets for everybody ends none of our work, or is named."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres import connection as connections
from zdm_pipelines.model.errors import DatabaseUnreachable, PreflightError, ZdmError
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.sandbox.postgres import Cluster, Server
from zdm_pipelines.verbs import doctor, pause, plan, rollback
from zdm_pipelines.verbs.failures import as_shown
from zdm_pipelines_tests.helpers import (
    backfilled,
    eventually,
    expanded,
    one,
    people,
    replaced,
    sql,
    state,
    switched,
    validated,
    walk,
    work,
)
from zdm_pipelines_tests.kinds.extraction import SETTINGS, USERS

# Settings that limit a session or change what it does, each with a value that would hurt us: ours have their own.
OURS = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "array_nulls": "off",
    "backslash_quote": "off",
    "bytea_output": "escape",
    "check_function_bodies": "off",
    "client_connection_check_interval": "0",
    "client_encoding": "LATIN1",
    "client_min_messages": "debug5",
    "default_table_access_method": "heap",  # there is no other one here
    "default_transaction_deferrable": "on",
    "default_transaction_isolation": "serializable",
    "enable_bitmapscan": "off",
    "enable_hashagg": "off",
    "enable_hashjoin": "off",
    "enable_indexonlyscan": "off",
    "enable_indexscan": "off",
    "enable_material": "off",
    "enable_mergejoin": "off",
    "enable_nestloop": "off",
    "enable_seqscan": "off",
    "enable_sort": "off",
    "enable_tidscan": "off",
    "escape_string_warning": "on",
    "exit_on_error": "on",
    "extra_float_digits": "-5",
    "gin_fuzzy_search_limit": "1",
    "idle_in_transaction_session_timeout": "20",
    "idle_session_timeout": "20",
    "lock_timeout": "1",
    "plan_cache_mode": "force_generic_plan",
    "quote_all_identifiers": "on",
    "row_security": "on",
    "session_replication_role": "replica",
    "standard_conforming_strings": "off",
    "statement_timeout": "1",
    "synchronous_commit": "off",
    "tcp_keepalives_count": "1",
    "tcp_keepalives_idle": "1",
    "tcp_keepalives_interval": "1",
    "tcp_user_timeout": "1",
    "transaction_timeout": "20",
    "transform_null_equals": "on",
    "xmlbinary": "hex",
    "xmloption": "document",
}
# Settings that are named where they stand in the way.
NAMED = {
    "default_transaction_read_only": "plan, doctor and every phase",
    "temp_file_limit": "the server, when it is met; only an administrator lifts it",
    "max_stack_depth": "the server, when it is met; only an administrator lifts it",
    "track_counts": "plan and expand: a rehearsal would see no scan",
}
# What says what an expression means is recorded when a migration begins: see the tests of the environment.
RECORDED = {
    "TimeZone", "default_text_search_config", "lc_monetary", "lc_numeric", "lc_time", "search_path",
    "timezone_abbreviations",
}  # fmt: skip
# What limits no session of ours and changes nothing that it does, and why.
LEFT = {
    "application_name": "ours has its own in every session",
    "createrole_self_grant": "makes roles",
    "deadlock_timeout": "batches give way before it, whatever it is",
    "default_tablespace": "where an administrator wants new tables and indexes",
    "default_toast_compression": "how values lie",
    "dynamic_library_path": "where code lies",
    "event_triggers": "an administrator's, who turns off what may refuse our changes",
    "extension_control_path": "where code lies",
    "file_copy_method": "makes databases",
    "gin_pending_list_limit": "how an index is kept",
    "icu_validation_level": "makes collations",
    "lc_messages": "the language of messages, which are never read",
    "lo_compat_privileges": "large objects",
    "local_preload_libraries": "loads code",
    "restrict_nonsystem_relation_kind": "views, which nothing of ours reads",
    "session_preload_libraries": "loads code",
    "synchronize_seqscans": "the order of rows, which nothing hangs on",
    "temp_tablespaces": "where an administrator wants temporary files",
    "transaction_deferrable": "of one transaction: begins as its default",
    "transaction_isolation": "of one transaction: begins as its default",
    "transaction_read_only": "of one transaction: begins as its default",
    "track_activities": "what others see of our sessions",
    "max_parallel_workers": "speed",
    "max_parallel_workers_per_gather": "speed",
    "max_parallel_maintenance_workers": "speed",
}
# Speed, logs, and what developers of the server turn.
CATEGORIES = (
    "Connections and Authentication / Authentication", "Customized Options", "Developer Options", "Preset Options",
    "Query Tuning", "Replication", "Reporting and Logging", "Resource Usage", "Statistics", "Vacuuming",
    "Write-Ahead Log",
)  # fmt: skip
DECIDED = {*OURS, *NAMED, *RECORDED, *LEFT}


def name(url: str) -> str:
    return url.rpartition("/")[2]


def set_for_all(url: str, setting: str, value: str) -> None:
    with psycopg.connect(url, autocommit=True, options="-c statement_timeout=0 -c lock_timeout=0") as connection:
        connection.execute(f"ALTER DATABASE {name(url)} SET {setting} = '{value}'")


@pytest.fixture
def hostile(server: Server, database: str) -> Iterator[str]:
    """The URL of a database with people in it whose settings all hurt."""
    people(database, 200)
    with psycopg.connect(server.url(), autocommit=True) as connection:
        for setting, value in OURS.items():
            connection.execute(f"ALTER DATABASE {name(database)} SET {setting} = '{value}'")
    yield database
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name(database)} RESET ALL")


def test_no_setting_is_forgotten(server: Server) -> None:
    found = sql(
        server.url(), "SELECT name, category FROM pg_settings WHERE context NOT IN ('internal', 'postmaster', 'sighup')"
    )
    undecided = {setting for setting, category in found if not category.startswith(CATEGORIES)} - DECIDED
    assert undecided == set()
    assert {setting for setting, _ in found} >= DECIDED


def test_our_sessions_have_their_own_settings(server: Server, hostile: str) -> None:
    with server_at(hostile).connect(purpose="test") as session:
        ours: dict[str, str] = dict(session.named("environment.settings", list(OURS)))
    assert {setting: ours[setting] for setting in OURS if setting.endswith("timeout")} == {
        "idle_in_transaction_session_timeout": "15s", "idle_session_timeout": "0", "lock_timeout": "0",
        "statement_timeout": "0", "transaction_timeout": "0", "tcp_user_timeout": "30000",
    }  # fmt: skip
    same = {setting for setting, value in OURS.items() if ours[setting] == value}
    assert same == {"default_table_access_method"}
    # What the list of our settings says is what is tried here.
    assert set(connections._SETTINGS) <= set(OURS)


def test_every_phase_and_the_way_back_under_settings_that_hurt(server: Server, hostile: str) -> None:
    m = replaced(backfill={"range_rows": 50, "batch_rows": 20})
    walk(m, hostile, State.SWITCHED)
    rollback.run(work(m, hostile), to=State.ROLLED_BACK, force=True)
    walk(m, hostile, State.CONTRACTED)


def test_a_table_is_extracted_under_settings_that_hurt(server: Server, hostile: str) -> None:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name(hostile)} RESET ALL")
        with psycopg.connect(hostile, autocommit=True) as other:
            other.execute(USERS.format(rows=50).encode())
        for setting, value in OURS.items():
            connection.execute(f"ALTER DATABASE {name(hostile)} SET {setting} = '{value}'")
    m = Migration.model_validate({
        "name": "settings", "database": "app", "table": "public.users", "change": SETTINGS,
        "throttle": {"replication_lag": None, "latency_p95": None},
    })  # fmt: skip
    expanded(m, hostile)
    assert sum(moved.rows for moved in backfilled(m, hostile)) == 50
    validated(m, hostile)


def test_the_ledger_is_brought_up_to_date_under_settings_that_hurt(hostile: str) -> None:
    ledger.ensure(server_at(hostile))
    with server_at(hostile).connect(purpose="test") as session:
        assert len(set(ledger.known_versions(session))) == 1


@pytest.mark.parametrize("role_is", ["of the role", "of the role in the database"])
def test_settings_of_a_role(database: str, role_is: str) -> None:
    """A role that becomes another one as it comes in, as owners often are; its limits are the shortest there are."""
    people(database, 20)
    where = "" if role_is == "of the role" else f" IN DATABASE {name(database)}"
    sql(
        database,
        f"CREATE ROLE owning; CREATE ROLE limited LOGIN; GRANT owning TO limited; GRANT ALL ON SCHEMA public TO owning;"
        f"GRANT CREATE ON DATABASE {name(database)} TO owning; ALTER TABLE people OWNER TO owning;"
        f"ALTER ROLE limited{where} SET role = owning; ALTER ROLE limited{where} SET statement_timeout = 1;"
        f"ALTER ROLE limited{where} SET transaction_timeout = 20; ALTER ROLE limited{where} SET search_path = ''",
    )
    try:
        walk(replaced(), database.replace("postgres@", "limited@"), State.CONTRACTED)
    finally:
        sql(database, "DROP OWNED BY owning, limited CASCADE; DROP ROLE limited; DROP ROLE owning")


# -- nothing may be written -------------------------------------------------------------------------------------------

READ_ONLY = "default_transaction_read_only is on for our role"


def follow(url: str, way_out: str) -> None:
    with psycopg.connect(url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
        connection.execute(way_out.encode())


def test_a_read_only_default_is_named_by_plan_doctor_and_expand(database: str) -> None:
    people(database, 20)
    set_for_all(database, "default_transaction_read_only", "on")
    m = replaced()
    for verb in (plan.read, lambda _: expanded(m, database)):
        with pytest.raises(PreflightError) as caught:
            verb(work(m, database))
        (problem,) = caught.value.problems
        assert problem.fact == READ_ONLY
    follow(database, problem.way_out)
    walk(m, database, State.EXPANDED)


def test_a_read_only_default_that_came_later_is_named_by_plan_and_every_phase(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    people(database, 20)
    m = replaced()
    for begun, phase in (
        (State.EXPANDED, backfilled), (State.BACKFILLED, validated), (State.VALIDATED, switched),
        (State.VALIDATED, lambda m, url: rollback.run(work(m, url), to=State.ROLLED_BACK)),
    ):  # fmt: skip
        walk(m, database, begun)
        set_for_all(database, "default_transaction_read_only", "on")
        with pytest.raises(ZdmError, match=READ_ONLY):
            phase(m, database)
        assert READ_ONLY in plan.read(work(m, database)).warnings[0]
        assert state(m, database) == begun
        with pytest.raises(psycopg.Error) as raw:
            pause.pause(work(m, database), reason="x")
        shown = as_shown(raw.value)
        assert shown is not None
        assert "takes no writes" in shown.fact
        monkeypatch.setenv("ZDM_APP_URL", database)
        (told,) = [f for f in doctor.examine(Database(name="app"), []) if f.fact == READ_ONLY]
        follow(database, told.way_out)
        assert plan.read(work(m, database)).warnings == ()
        follow(database, told.way_out.replace("SET", "RESET").removesuffix(" = off"))
        follow(database, f"ALTER DATABASE {name(database)} RESET default_transaction_read_only")
    rollback.run(work(m, database), to=State.ROLLED_BACK)


def test_read_only_by_the_options_of_the_url(database: str) -> None:
    people(database, 3)
    url = f"{database}?options=-c%20default_transaction_read_only%3Don"
    with pytest.raises(PreflightError, match="take it out of the options of the URL"):
        expanded(replaced(), url)


def test_a_replica_is_named_by_every_phase(cluster: Cluster, database: str) -> None:
    people(database, 20)
    m = replaced()
    walk(m, database, State.EXPANDED)
    cluster.wait_caught_up()
    replica = cluster.replica.url(name(database))
    with pytest.raises(PreflightError, match="is a read-only replica; point the URL at the primary"):
        backfilled(m, replica)
    assert "is a read-only replica" in plan.read(work(m, replica)).warnings[0]


# -- what cannot be lifted --------------------------------------------------------------------------------------------


def test_a_server_that_counts_nothing_is_told_before_anything_is_changed(database: str) -> None:
    people(database, 3)
    set_for_all(database, "track_counts", "off")
    with pytest.raises(PreflightError, match="track_counts: is off"):
        expanded(replaced(), database)
    sql(database, f"ALTER DATABASE {name(database)} RESET track_counts")
    expanded(replaced(), database)


def test_a_limit_of_temporary_files_is_named(database: str) -> None:
    set_for_all(database, "temp_file_limit", "64kB")
    with server_at(database).connect(purpose="test") as session, pytest.raises(psycopg.Error) as caught:
        session.execute("SELECT max(n) FROM (SELECT n FROM generate_series(1, 2000000) n ORDER BY -n OFFSET 1) s")  # type: ignore[attr-defined]
    shown = as_shown(caught.value)
    assert shown is not None
    assert "temp_file_limit" in shown.fact


@pytest.mark.parametrize("limited", ["ROLE few", "DATABASE {database}"])
def test_a_limit_of_connections_is_named(server: Server, database: str, limited: str) -> None:
    sql(database, "CREATE ROLE few LOGIN")
    try:
        sql(database, f"ALTER {limited.format(database=name(database))} CONNECTION LIMIT 1")
        url = database.replace("postgres@", "few@")
        inside = f"SELECT FROM pg_stat_activity WHERE datname = '{name(database)}'"
        eventually(lambda: not sql(server.url(), inside))  # sessions that have ended count for a moment
        with psycopg.connect(url), pytest.raises(DatabaseUnreachable, match=r"too many connections.*CONNECTION LIMIT"):
            plan.read(work(replaced(), url))
    finally:
        eventually(lambda: not sql(database, "SELECT 1 FROM pg_stat_activity WHERE usename = 'few'"))
        sql(database, "DROP ROLE few")


@contextmanager
def pooler(complaint: str) -> Iterator[str]:
    """A URL behind which somebody takes no settings as a connection is made, as poolers do."""
    told = b"SFATAL\0C08P01\0M" + complaint.encode() + b"\0\0"

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client:
                while int.from_bytes(client.recv(4096)[4:8]) in (80877103, 80877104):  # TLS? GSS? No.
                    client.sendall(b"N")
                client.sendall(b"E" + (len(told) + 4).to_bytes(4) + told)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"postgresql://app@127.0.0.1:{listening.getsockname()[1]}/app"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


def test_a_pooler_that_takes_no_settings_is_named() -> None:
    with pooler("unsupported startup parameter: options") as url, pytest.raises(ZdmError) as caught:
        plan.read(work(replaced(), url))
    assert "unsupported startup parameter: options" in caught.value.fact
    assert "pooler" in caught.value.way_out


def test_a_session_that_may_not_set_the_replication_role_back(database: str) -> None:
    people(database, 3)
    sql(database, "CREATE ROLE meek LOGIN")
    try:
        sql(database, "ALTER ROLE meek SET session_replication_role = 'replica'")
        url = database.replace("postgres@", "meek@")
        with pytest.raises(DatabaseUnreachable, match="let an administrator RESET it"):
            plan.read(work(replaced(), url))
        sql(database, "ALTER ROLE meek RESET session_replication_role")
        assert one(url, "SELECT 1") == 1
    finally:
        sql(database, "DROP ROLE meek")
