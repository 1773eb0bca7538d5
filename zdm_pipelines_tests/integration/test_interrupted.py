"""Interruptions at the worst moment: just after something was committed, and when nobody should have to wait."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from zdm_pipelines.client.flags import Flags
from zdm_pipelines.engine import sessions
from zdm_pipelines.model.errors import OutcomeUnknown, StateConflict
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import backfill, contract, reads, switch_reads, validate
from zdm_pipelines.verbs import rollback
from zdm_pipelines_tests.helpers import one, people, replaced, sql, state, tracks, walk, work

M = replaced()


@pytest.fixture
def url(database: str) -> str:
    people(database, 100)
    return database


def fails_once(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look at the tombstone, right after its commit, ends in this error."""
    real = contract._Contract._tombstoned
    failed: list[int] = []

    def tombstoned(self: Any, entry: Any) -> str:
        if not failed:
            failed.append(1)
            raise error
        return real(self, entry)

    monkeypatch.setattr(contract._Contract, "_tombstoned", tombstoned)


def test_an_interrupt_after_the_tombstone_leaves_writes_alone(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walk(M, url, State.SWITCHED)
    fails_once(KeyboardInterrupt(), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        contract.run(work(M, url))
    assert state(M, url) == State.TOMBSTONED
    sql(url, "INSERT INTO people (id, display_name) VALUES (1000, 'n:new')")
    sql(url, "UPDATE people SET display_name = 'n:newer' WHERE id = 1")
    assert one(url, "SELECT zdm_tombstone_full_name FROM people WHERE id = 1") == "newer"
    assert rollback.run(work(M, url), to=State.SWITCHED) == State.SWITCHED
    assert one(url, "SELECT full_name FROM people WHERE id = 1000") == "new"


def test_a_connection_lost_after_the_tombstone_is_no_refusal(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The windows are 0 s, so that going on would drop the column: one stage a run."""
    walk(M, url, State.SWITCHED)
    fails_once(psycopg.OperationalError("the connection is lost"), monkeypatch)
    report = contract.run(work(M, url))
    assert (report.state, state(M, url)) == (State.TOMBSTONED, State.TOMBSTONED)
    assert "out of sight" in report.summary
    assert not tracks(url, M)


def test_a_long_phase_waits_for_the_database_like_a_short_one() -> None:
    calls: list[float] = []

    def work() -> str:
        calls.append(time.monotonic())
        if len(calls) == 1:
            time.sleep(0.6)  # longer than it may be away
            raise psycopg.OperationalError("gone")
        return "done"

    assert sessions.resilient(work, thing="work", give_up_after=0.5) == "done"


def test_what_ends_the_server_each_time_is_not_sent_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def work() -> None:
        calls.append(1)
        raise psycopg.OperationalError("gone")

    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(OutcomeUnknown):
        sessions.resilient(work, thing="work", give_up_after=60)
    assert len(calls) == sessions._LOSSES + 1


def test_reads_come_back_while_a_phase_is_at_work(url: str) -> None:
    walk(M, url, State.SWITCHED)
    with work(M, url).session("proof"):
        switch_reads.run(work(M, url), percent=0)
    assert state(M, url) == State.VALIDATED
    assert one(url, "SELECT percent FROM zdm.flag") == 0


def test_a_column_goes_only_when_every_client_has_seen_that_nobody_reads_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reads, "FLAG_SECONDS", 0.6)
    walk(M, url, State.SWITCHED)
    flags = Flags(lambda: psycopg.connect(url), ttl=0.1)
    assert flags.is_on(M.flag, 1)
    seen: list[bool] = []

    def tell(statement: str) -> None:
        if "DROP COLUMN" in statement:
            seen.append(flags.is_on(M.flag, 1))

    assert rollback.run(work(M, url, tell=tell), to=State.ROLLED_BACK) == State.ROLLED_BACK
    assert seen == [False]
    assert not flags.is_on(M.flag, 1)
    flags.close()


def test_no_repair_while_the_new_column_is_read(url: str) -> None:
    """Validate failed and took the state back, but reads stayed where they were."""
    walk(M, url, State.SWITCHED)
    sql(url, "UPDATE people SET full_name = 'stale', display_name = 'n:newer' WHERE id = 5")
    validate.run(work(M, url))
    assert state(M, url) == State.BACKFILLED
    with pytest.raises(StateConflict, match="100 % of reads"):
        list(backfill.run(work(M, url), repair=True))
    assert one(url, "SELECT display_name FROM people WHERE id = 5") == "n:newer"


def test_the_sync_function_is_for_nobody_else(url: str) -> None:
    walk(M, url, State.EXPANDED)
    granted = "SELECT count(*) FROM pg_proc p, aclexplode(p.proacl) a WHERE p.proname LIKE 'sync_%' AND a.grantee = 0"
    assert one(url, granted) == 0
    assert one(url, "SELECT bool_and(proacl IS NOT NULL) FROM pg_proc WHERE proname LIKE 'sync_%'")
