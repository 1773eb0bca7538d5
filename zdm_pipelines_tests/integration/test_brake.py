"""Brakes: pause, reads back and rollback in every state, and what they wait for; windows begin anew when reads fell."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

from zdm_pipelines.client import flags
from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.engine import sessions
from zdm_pipelines.model.errors import GateRefused, MigrationBusy, StateConflict
from zdm_pipelines.model.migration import Database
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import contract, reads, switch_reads, validate
from zdm_pipelines.verbs import pause, rollback, status
from zdm_pipelines_tests.helpers import (
    Background,
    at,
    holding,
    one,
    people,
    read_in_full_for,
    replaced,
    sql,
    state,
    switched,
    walk,
    work,
)
from zdm_pipelines_tests.integration.conftest import Say

M = replaced(backfill={"range_rows": 20})


@pytest.fixture
def url(database: str) -> str:
    people(database, 50)
    return database


def percent(url: str) -> int:
    return int(one(url, "SELECT percent FROM zdm.flag"))


# -- reads back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [State.PLANNED, *M.lifecycle.states[:-1], State.ROLLED_BACK])
def test_reads_come_back_in_every_state(url: str, where: State) -> None:
    at(M, url, where)
    before = where not in (State.PLANNED, State.ROLLED_BACK)
    if before and where != State.TOMBSTONED:
        sql(url, "UPDATE zdm.flag SET percent = 100")  # as by a hand, or before a proof was void
    report = switch_reads.run(work(M, url), percent=0)
    assert not before or percent(url) == 0
    reading = (State.SWITCHING, State.SWITCHED, State.TOMBSTONED)
    assert state(M, url) == (State.VALIDATED if where in reading else where) == report.state
    # Behind a tombstone, the old shape came back first: whoever reads it now finds it.
    assert one(url, "SELECT full_name FROM people WHERE id = 1") == "v1"
    assert switch_reads.run(work(M, url), percent=0).state == report.state


def test_lowering_asks_for_nothing_and_raising_does(url: str) -> None:
    walk(M, url, State.SWITCHED)
    with psycopg.connect(url) as c:  # around the sync: validate finds it, and goes below
        c.execute("SET zdm.backfill = 'on'; UPDATE people SET display_name = 'n:other' WHERE id = 5")
    assert not validate.run(work(M, url), full=True).checks[0].passed
    assert state(M, url) == State.BACKFILLED
    assert switch_reads.run(work(M, url), percent=40).state == State.BACKFILLED
    assert percent(url) == 40
    with pytest.raises(StateConflict, match="run validate first"):
        switch_reads.run(work(M, url), percent=41)
    switch_reads.run(work(M, url), percent=0)
    assert percent(url) == 0


def test_when_the_old_shape_is_gone_reads_stay(url: str) -> None:
    walk(M, url, State.CONTRACTED)
    with pytest.raises(StateConflict, match="the old column is gone"):
        switch_reads.run(work(M, url), percent=0)
    assert percent(url) == 100


@pytest.mark.parametrize(
    "meanwhile",
    [
        "ALTER TABLE people RENAME TO persons",
        "ALTER TABLE people RENAME TO persons; CREATE TABLE people (id int PRIMARY KEY, full_name text, display_name text)",
        "ALTER TABLE people RENAME COLUMN note TO remark",
        "ALTER TABLE people DISABLE TRIGGER USER",
        "DELETE FROM zdm.check_result",
        "INSERT INTO zdm.hold VALUES ('*', 'somebody', 'never')",
    ],
)
def test_brakes_whatever_was_changed_by_hand(url: str, meanwhile: str) -> None:
    walk(M, url, State.SWITCHED)
    sql(url, meanwhile)
    assert pause.pause(work(M, url), reason="incident")
    switch_reads.run(work(M, url), percent=0)
    assert percent(url) == 0
    assert rollback.run(work(M, url), to=State.ROLLED_BACK, force=True) == State.ROLLED_BACK
    table = one(url, "SELECT coalesce(to_regclass('persons'), to_regclass('people'))::text")
    columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = %s::regclass AND attname = 'display_name'"
    assert one(url, columns, table) == 0
    assert one(url, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'zzz%%'") == 0
    if "CREATE TABLE" in meanwhile:  # whoever has the name now is somebody else
        assert one(url, columns, "people") == 1


def test_brakes_need_no_replica(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(M, url, State.SWITCHED)
    monkeypatch.delenv("ZDM_REPLICA", raising=False)
    for variables in (("ZDM_REPLICA",), ("ZDM_DEAD",)):
        monkeypatch.setenv("ZDM_DEAD", "postgresql://postgres@127.0.0.1:1/none")
        context = work(M, url, database=Database(name="app", replicas=variables))
        pause.pause(context, reason="incident")
        switch_reads.run(context, percent=0)
    assert rollback.run(context, to=State.ROLLED_BACK) == State.ROLLED_BACK


def test_reads_come_back_while_a_phase_is_at_work(url: str) -> None:
    walk(M, url, State.SWITCHED)
    with connected(url, purpose=f"{M.name} validate") as other:
        assert sessions.take(other, f"zdm:migration:{M.name}")
        switch_reads.run(work(M, url), percent=0)
        assert (percent(url), state(M, url)) == (0, State.VALIDATED)
        assert pause.pause(work(M, url), reason="incident")


def test_a_rollback_ends_what_is_at_work(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_GRACE_SECONDS", 0.1)
    walk(M, url, State.BACKFILLED)
    told: list[str] = []
    with connected(url, purpose=f"{M.name} validate") as other:
        assert sessions.take(other, f"zdm:migration:{M.name}")
        to = rollback.run(work(M, url, tell=told.append), to=State.ROLLED_BACK)
        assert to == state(M, url) == State.ROLLED_BACK
        assert any(f"ended what was at work: zdm {M.name} validate" in line for line in told)
        with pytest.raises(psycopg.Error):
            other.execute("SELECT 1")


def test_two_rollbacks_do_not_end_each_other(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(sessions, "BUSY_SECONDS", 0.2)
    walk(M, url, State.BACKFILLED)
    with connected(url, purpose=f"{M.name} rollback") as other:
        assert sessions.take(other, f"zdm:migration:{M.name}")
        with pytest.raises(MigrationBusy, match="rollback"):
            rollback.run(work(M, url), to=State.ROLLED_BACK)
        assert other.execute("SELECT 1").fetchone() == (1,)


def test_a_pause_waits_for_no_upgrade(url: str) -> None:
    """An upgrade of the ledger waits for the application, which a brake does not."""
    walk(M, url, State.EXPANDED)
    sql(url, "UPDATE zdm.schema_version SET version_num = '0004'; DROP TABLE zdm.home")
    with holding(url, "UPDATE people SET full_name = 'x' WHERE id = 1"):
        assert pause.pause(work(M, url), reason="incident")
        assert one(url, "SELECT version_num FROM zdm.schema_version") == "0004"


# -- on the command line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [("flag", "users_display_name", "0"), ("run", "users_display_name", "--phase", "switch-reads", "--percent", "0")],
)
@pytest.mark.parametrize("text", ["", "type: zdm_pipelines.Nonsense\n", "a: [\n"])
def test_no_declaration_is_needed(zdm: Say, defs: Path, database_of: str, words: tuple[str, ...], text: str) -> None:
    zdm("run", "users_display_name")
    zdm("run", "users_display_name", "--phase", "switch-reads", "--percent", "50")
    (defs.parent / "other").mkdir()
    (defs.parent / "other" / "defs.yaml").write_text("type: zdm_pipelines.Database\nattributes: {name: app}\n")
    defs.write_text(text)
    zdm(*words)
    assert percent(database_of) == 0
    zdm("flag", "users_display_name", "50", status=2)
    assert percent(database_of) == 0


# -- clients ----------------------------------------------------------------------------------------------


def test_a_client_keeps_a_flag_no_longer_than_is_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flags, "MAX_TTL", 0.1)
    monkeypatch.setattr(reads, "FLAG_SECONDS", 0.4)
    walk(M, url, State.SWITCHED)
    mine = flags.Flags(lambda: psycopg.connect(url), ttl=3600.0)
    other = flags.Flags(lambda: psycopg.connect(url), ttl=3600.0)
    name, failed, done = f"read_{M.name}", [], threading.Event()

    def read() -> None:
        with psycopg.connect(url, autocommit=True) as c:
            while not done.is_set():
                column = "display_name" if mine.is_on(name, 1) else "full_name"
                try:
                    c.execute(f"SELECT {column} FROM people WHERE id = 1".encode())
                except psycopg.Error as error:
                    failed.append(str(error))

    assert other.is_on(name, 1)
    client = Background(read)
    rollback.run(work(M, url), to=State.ROLLED_BACK)
    done.set()
    client.result()
    assert failed == []
    assert not other.is_on(name, 1)  # who asks for the first time since then learns it, too


def test_what_is_waited_for_is_longer_than_a_client_keeps_a_flag() -> None:
    from importlib import reload

    assert flags.Flags(lambda: psycopg.connect(""), ttl=60.0)._ttl == flags.MAX_TTL
    assert flags.MAX_TTL + float(flags._READ_TIMEOUT.removesuffix("s")) + 1 <= reload(reads).FLAG_SECONDS


def test_contract_waits_for_clients_that_read_the_old_shape(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(M, url, State.VALIDATED)
    monkeypatch.setattr(reads, "FLAG_SECONDS", 0.5)
    told: list[str] = []
    switched(M, url)
    contract.run(work(M, url, tell=told.append))
    assert any("clients may not have seen" in line for line in told)
    assert one(url, "SELECT clock_timestamp() - changed_at >= interval '0.5 s' FROM zdm.flag")


def test_a_flag_that_is_raised_while_clients_are_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(M, url, State.EXPANDED)
    monkeypatch.setattr(reads, "settle", lambda *_, **__: bool(sql(url, "UPDATE zdm.flag SET percent = 7 RETURNING 1")))
    with pytest.raises(StateConflict, match="flag raised meanwhile"):
        rollback.run(work(M, url), to=State.ROLLED_BACK)
    monkeypatch.undo()
    assert rollback.run(work(M, url), to=State.ROLLED_BACK) == State.ROLLED_BACK


# -- the confidence window --------------------------------------------------------------------------------

CONFIDENT = replaced(contract={"confidence_window": "1h"}, backfill={"range_rows": 20})


def by_zdm(url: str) -> None:
    switch_reads.run(work(CONFIDENT, url), percent=99)
    switch_reads.run(work(CONFIDENT, url), percent=100)


def by_rollback(url: str) -> None:
    rollback.run(work(CONFIDENT, url), to=State.VALIDATED)
    switched(CONFIDENT, url)


def by_hand(url: str) -> None:
    sql(url, "UPDATE zdm.flag SET percent = 99; UPDATE zdm.flag SET percent = 100")


def by_hand_in_replica_role(url: str) -> None:
    sql(
        url,
        "SET session_replication_role = replica; UPDATE zdm.flag SET percent = 99; UPDATE zdm.flag SET percent = 100",
    )


def by_hand_with_a_claim(url: str) -> None:
    by_hand(url)
    sql(url, "UPDATE zdm.flag SET full_since = '-infinity', changed_at = '-infinity'")


def by_a_row_made_anew(url: str) -> None:
    sql(
        url,
        "WITH gone AS (DELETE FROM zdm.flag RETURNING *) SELECT count(*) FROM gone; "
        f"INSERT INTO zdm.flag (name, migration_id, percent, full_since) SELECT 'read_{CONFIDENT.name}', id, 100, '-infinity' "
        "FROM zdm.migration",
    )


@pytest.mark.parametrize(
    "fall", [by_zdm, by_rollback, by_hand, by_hand_in_replica_role, by_hand_with_a_claim, by_a_row_made_anew]
)
def test_the_window_begins_anew_however_reads_fell(url: str, fall: Any) -> None:
    walk(CONFIDENT, url, State.SWITCHED)
    read_in_full_for(url, "2 hours")
    assert contract.refusals(work(CONFIDENT, url)) == []
    fall(url)
    with pytest.raises(GateRefused, match="the confidence window ends in"):
        contract.run(work(CONFIDENT, url))
    read_in_full_for(url, "2 hours")
    assert contract.run(work(CONFIDENT, url)).state == State.TOMBSTONED
    flag = status.read(work(CONFIDENT, url)).flag
    assert flag is not None
    assert flag.full_since is not None


def test_reads_that_fall_as_contract_renames(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lowers the flag by hand holds its row: contract waits for that, and sees it."""
    walk(M, url, State.SWITCHED)
    with holding(url, "UPDATE zdm.flag SET percent = 0") as other:
        trying = Background(lambda: contract.run(work(M, url)))
        trying.join(1.0)
        assert trying.is_alive()
        other.commit()
        with pytest.raises(GateRefused, match="reads are at 0 %"):
            trying.result()
    assert one(url, "SELECT full_name FROM people WHERE id = 1") == "v1"
