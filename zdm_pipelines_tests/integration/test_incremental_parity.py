"""Incremental parity: what nobody wrote since it was proven is not read again, and no write is missed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.engine.proof import parity, proofs
from zdm_pipelines.model.capabilities import Notes
from zdm_pipelines.model.errors import DatabaseUnreachable, GateRefused, MappingFailed
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Catalog, KeyRange, Report, Statement
from zdm_pipelines.phases import contract, validate
from zdm_pipelines.phases.beginning import bound
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import rollback
from zdm_pipelines_tests.conftest import Filled
from zdm_pipelines_tests.helpers import (
    Background,
    Worker,
    backfilled,
    eventually,
    expanded,
    function_source,
    holding,
    one,
    people,
    ranges,
    replaced,
    sql,
    state,
    surveyed,
    walk,
    work,
)

ROWS, RANGES = 1_000, 10
M = replaced(backfill={"range_rows": 100, "batch_rows": 50, "max_parallel": 3})
TRIGGER = "zzz_zdm_people_display_name_update"


@pytest.fixture
def url(filled: Filled) -> str:
    """Ten ranges of a hundred people, all proven, and nobody has written since."""
    return filled(proven)[0]


def proven(url: str, m: Migration = M) -> None:
    people(url, ROWS)
    walk(m, url, State.VALIDATED)
    assert len(ranges(m, url)) == RANGES
    assert held(url) == RANGES


def held(url: str) -> int:
    return int(one(url, "SELECT count(proof) FROM zdm.range"))


def read(report: Report) -> int:
    """How many ranges were read; the check and the report say the same."""
    assert report.facts["ranges_compared"] == report.checks[0].facts["ranges_compared"]
    assert report.facts["ranges_compared_earlier"] == RANGES - report.facts["ranges_compared"]
    return int(report.facts["ranges_compared"])


def unseen(url: str, statement: str, *params: Any) -> None:
    """Write as our backfill would, behind the trigger's back, and leave no trace of it."""
    with psycopg.connect(url) as c:
        c.execute("SET zdm.backfill = 'on'")
        c.execute(statement.encode(), params or None)


def wrong(url: str, key: int) -> None:
    unseen(url, "UPDATE people SET display_name = 'n:wrong' WHERE id = %s", key)


def agrees(url: str, m: Migration = M) -> Report:
    report = validate.run(work(m, url))
    assert all(c.passed for c in report.checks), report.summary
    return report


# -- what is read -----------------------------------------------------------------------------------------


def test_nothing_is_read_when_nobody_wrote(url: str) -> None:
    report = agrees(url)
    assert read(report) == 0
    assert report.rows == 0
    assert report.checks[0].facts["rows"] == ROWS
    assert report.checks[0].summary == "1,000 rows agree (0 compared now, the rest unwritten since it was compared)"
    assert held(url) == RANGES


def test_the_range_that_was_written_and_no_other_is_read(url: str) -> None:
    wrong(url, 250)  # behind everybody's back: only who reads this range can know
    sql(url, "UPDATE people SET full_name = 'x', display_name = 'n:y' WHERE id = 750")
    report = validate.run(work(M, url))
    assert read(report) == 1
    assert report.rows == 100
    assert report.checks[0].facts["first_different_keys"] == ["750"]
    (bad,) = report.facts["partitions_to_repeat"]
    assert state(M, url) == State.BACKFILLED
    assert held(url) == RANGES - 1
    backfilled(M, url, partitions=[bad], repair=True)
    report = agrees(url)
    assert read(report) == 1  # that range again; 250 still is not seen
    assert report.checks[0].summary == "1,000 rows agree (100 compared now, the rest unwritten since it was compared)"
    # What reads everything sees it.
    report = validate.run(work(M, url), full=True)
    assert read(report) == RANGES
    assert report.checks[0].facts["first_different_keys"] == ["250"]
    assert report.rows == ROWS


def test_contract_reads_everything(url: str) -> None:
    walk(M, url, State.SWITCHED)
    wrong(url, 250)
    assert read(agrees(url)) == 0
    function = function_source(url, M)
    with pytest.raises(GateRefused, match=r"1 different \(first keys: 250\)"):
        contract.run(work(M, url))
    assert function_source(url, M) == function
    # Validate, which is to be run now, finds it as well.
    report = validate.run(work(M, url))
    assert read(report) == RANGES
    assert report.checks[0].facts["first_different_keys"] == ["250"]


def test_a_contract_that_is_refused_leaves_proofs_their_worth(url: str) -> None:
    """Its sync functions noted writes as the one before did."""
    walk(M, url, State.SWITCHED)
    with pytest.raises(KeyboardInterrupt):
        contract.run(work(M, url), compared=lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    sql(url, "UPDATE people SET full_name = 'x' WHERE id = 750")
    assert read(agrees(url)) == 1


def test_writes_while_contract_records_keys_are_noted(url: str) -> None:
    walk(M, url, State.SWITCHED)

    def interfere(_: int) -> None:
        sql(url, "UPDATE people SET full_name = 'x', display_name = 'n:y' WHERE id = 350")

    with pytest.raises(GateRefused):
        contract.run(work(M, url), compared=interfere)
    report = validate.run(work(M, url))
    assert read(report) == 1
    assert report.checks[0].facts["first_different_keys"] == ["350"]


def test_writes_behind_the_tombstone_are_noted(url: str) -> None:
    walk(M, url, State.TOMBSTONED)
    sql(url, "UPDATE people SET display_name = 'n:late' WHERE id = 350")
    rollback.run(work(M, url), to=State.SWITCHED)
    sql(url, "UPDATE people SET display_name = 'n:later' WHERE id = 950")
    assert read(agrees(url)) == 2


def test_a_contracted_migration_leaves_no_lines(url: str) -> None:
    sql(url, "UPDATE people SET full_name = 'x' WHERE id = 350")
    assert one(url, "SELECT count(*) FROM zdm.written") > 0
    walk(M, url, State.CONTRACTED)
    assert one(url, "SELECT count(*) FROM zdm.written") == 0
    sql(url, "UPDATE people SET display_name = 'x' WHERE id = 350")


# -- every way to write -----------------------------------------------------------------------------------

WRITES = [
    # a statement, and the ranges that are read afterwards
    ("UPDATE people SET full_name = 'x' WHERE id = 5", 1),
    ("UPDATE people SET display_name = 'n:x' WHERE id = 5", 1),
    ("UPDATE people SET full_name = 'x', display_name = 'n:y' WHERE id = 5", 1),
    ("UPDATE people SET note = 'x'", 0),
    ("UPDATE people SET full_name = full_name", 0),
    ("UPDATE people SET full_name = full_name || '!'", RANGES),
    ("INSERT INTO people (id, full_name) VALUES (5000, 'x')", 1),
    ("INSERT INTO people (id, full_name, display_name) VALUES (-5, 'x', 'n:y')", 1),
    ("INSERT INTO people (id, full_name) SELECT n, 'x' FROM generate_series(2000, 3000) n", 1),
    ("INSERT INTO people (id, full_name) VALUES (5, 'u') ON CONFLICT (id) DO UPDATE SET full_name = 'u'", 1),
    ("INSERT INTO people (id, full_name) VALUES (5, 'u') ON CONFLICT (id) DO UPDATE SET id = 8000", 2),
    ("MERGE INTO people USING (VALUES (5, 'm'), (7000, 'm')) s (i, n) ON id = i WHEN MATCHED THEN UPDATE SET full_name = n "
     "WHEN NOT MATCHED THEN INSERT (id, full_name) VALUES (i, n)", 2),
    ("UPDATE people SET id = 4000 WHERE id = 5", 1),  # where it arrives
    ("DELETE FROM people WHERE id = 5", 0),
    ("TRUNCATE people", 0),
    ("SET session_replication_role = replica; UPDATE people SET full_name = 'r' WHERE id = 5", 1),
    ("SET search_path = ''; UPDATE public.people SET full_name = 's' WHERE id = 5", 1),
    ("BEGIN; UPDATE people SET full_name = 'never' WHERE id = 5; ROLLBACK", 0),
    ("BEGIN; UPDATE people SET full_name = 'x' WHERE id = 5; ROLLBACK; UPDATE people SET full_name = 'x' WHERE id = 6", 1),
    ("BEGIN; SAVEPOINT s; UPDATE people SET full_name = 'never' WHERE id = 5; ROLLBACK TO s; COMMIT", 0),
    ("BEGIN; SAVEPOINT s; UPDATE people SET full_name = 'never' WHERE id = 5; ROLLBACK TO s; "
     "UPDATE people SET full_name = 'x' WHERE id = 6; COMMIT", 1),
    ("BEGIN; SAVEPOINT s; UPDATE people SET full_name = 'x' WHERE id = 5; RELEASE s; "
     "UPDATE people SET full_name = 'x' WHERE id = 6; COMMIT", 1),
    ("DO $$ BEGIN BEGIN UPDATE people SET full_name = 'x' WHERE id = 5; RAISE 'no'; EXCEPTION WHEN others THEN END; "
     "UPDATE people SET full_name = 'x' WHERE id = 6; END $$", 1),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "expected"), WRITES)
def test_a_write(url: str, statement: str, expected: int) -> None:
    if statement.startswith("MERGE") and one(url, "SELECT current_setting('server_version_num')::int") < 150000:
        pytest.skip("this server has no MERGE")
    sql(url, statement)
    incremental = validate.run(work(M, url))
    assert read(incremental) == expected
    whole = validate.run(work(M, url), full=True)
    for category in ("missing", "extra", "different"):
        assert incremental.checks[0].facts[category] == whole.checks[0].facts[category]
    assert [c.passed for c in incremental.checks] == [c.passed for c in whole.checks]


def test_copy(url: str) -> None:
    with psycopg.connect(url) as c, c.cursor().copy("COPY people (id, full_name) FROM STDIN") as copy:
        copy.write_row((-10, "x"))
        copy.write_row((10_000, "x"))
    assert read(agrees(url)) == 2


def test_short_sessions_leave_no_more_lines(url: str) -> None:
    for n in range(10):
        sql(url, f"UPDATE people SET full_name = 'short {n}' WHERE id IN (5, 950)")
    assert one(url, "SELECT count(*) FROM zdm.written") == 2
    assert read(agrees(url)) == 2
    assert read(agrees(url)) == 0


def test_a_line_of_a_transaction_that_is_open_is_no_line(url: str) -> None:
    with psycopg.connect(url) as first, psycopg.connect(url) as second:
        first.execute("UPDATE people SET full_name = 'first' WHERE id = 5")
        second.execute("UPDATE people SET full_name = 'second' WHERE id = 6")
        first.rollback()
        second.commit()
    assert one(url, "SELECT count(*) FROM zdm.written") == 1
    assert read(agrees(url)) == 1


def test_a_function_made_anew_while_writers_are_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mapping may be another one than that which was proven."""
    waited = proofs._waited

    def meanwhile(*given: Any, **named: Any) -> bool:
        sql(url, "CREATE OR REPLACE FUNCTION some_mapping() RETURNS text LANGUAGE sql AS 'SELECT 1::text'")
        return waited(*given, **named)

    monkeypatch.setattr(proofs, "_waited", meanwhile)
    assert read(agrees(url)) == RANGES
    monkeypatch.undo()
    assert read(agrees(url)) == RANGES  # nothing of it is remembered
    assert read(agrees(url)) == 0


def test_a_null_key_is_refused_as_it_was(url: str) -> None:
    with pytest.raises(psycopg.errors.NotNullViolation, match='"id" of relation "people"'):
        sql(url, "UPDATE people SET id = NULL WHERE id = 5")


def test_a_session_leaves_one_line_a_range_and_epoch(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as c:
        for n in range(30):
            c.execute("UPDATE people SET full_name = %s WHERE id IN (5, 950)", [str(n)])
        assert one(url, "SELECT count(*) FROM zdm.written") == 2
        assert read(agrees(url)) == 2
        assert read(agrees(url)) == 0
        for n in range(30):
            c.execute("UPDATE people SET full_name = %s WHERE id = 5", [f"again {n}"])
        assert one(url, "SELECT count(*) FROM zdm.written") == 1
        assert read(agrees(url)) == 1
        c.execute("DISCARD ALL")
        c.execute("UPDATE people SET full_name = 'x' WHERE id = 5")
        assert read(agrees(url)) == 1
        c.execute("UPDATE people SET full_name = 'y' WHERE id = 6")
        c.execute("RESET ALL")
        c.execute("UPDATE people SET full_name = 'z' WHERE id = 7")
        assert read(agrees(url)) == 1
    assert one(url, "SELECT count(*) FROM zdm.written") == 0  # older than every proof


# -- transactions that are open while ranges are compared -------------------------------------------------


def test_a_transaction_that_begins_before_the_check_and_commits_after_it(url: str) -> None:
    """It wrote with the function of before: nothing is remembered of what is compared meanwhile."""
    told: list[str] = []
    m = replaced(backfill={"range_rows": 100}, locks={"give_up_after": "0.5s"})
    sql(url, "UPDATE people SET full_name = 'x' WHERE id = 950")
    with holding(url, "UPDATE people SET full_name = 'a', display_name = 'n:b' WHERE id = 5") as writer:
        report = validate.run(work(m, url, tell=told.append))
        assert all(c.passed for c in report.checks)
        assert read(report) == 1
        assert any("will be compared again" in line for line in told), told
        assert held(url) == RANGES - 1
        writer.commit()
    report = validate.run(work(m, url))
    assert read(report) == 2
    assert report.checks[0].facts["first_different_keys"] == ["5"]


def test_a_writer_that_ends_soon_is_waited_for(url: str) -> None:
    with holding(url, "UPDATE people SET full_name = 'a', display_name = 'n:b' WHERE id = 5") as writer:
        job = Background(lambda: validate.run(work(M, url)))
        job.join(1.0)
        assert job.is_alive()
        writer.commit()
    report = job.result()
    assert read(report) == 1
    assert report.checks[0].facts["first_different_keys"] == ["5"]


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("session_wrote_before", [False, True])
def test_a_write_that_is_committed_after_the_range_was_compared(
    url: str, level: str, session_wrote_before: bool
) -> None:
    """Its transaction began before validate did, took its snapshot then, and wrote while ranges were compared."""
    with psycopg.connect(url) as writer:
        if session_wrote_before:
            writer.execute("UPDATE people SET full_name = 'before' WHERE id = 7")
            writer.commit()
            agrees(url)
        writer.execute(f"BEGIN ISOLATION LEVEL {level}".encode())
        writer.execute("SELECT count(*) FROM people")
        wrote: list[int] = []

        def write(_: int) -> None:
            if not wrote:
                wrote.append(1)
                writer.execute("UPDATE people SET full_name = 'a', display_name = 'n:b' WHERE id = 5")

        report = validate.run(work(M, url), full=True, compared=write)
        assert all(c.passed for c in report.checks)
        assert wrote
        writer.commit()
    report = validate.run(work(M, url))
    assert read(report) == 1
    assert report.checks[0].facts["first_different_keys"] == ["5"]


@pytest.fixture
def two_phases(own_server: Server) -> str:
    own_server.settings["max_prepared_transactions"] = "5"
    own_server.restart()
    url = own_server.create_database("app")
    proven(url)
    return url


def test_prepared_transactions(two_phases: str) -> None:
    """The session's settings outlive PREPARE, its lines wait for COMMIT PREPARED or never come."""
    url = two_phases
    m = replaced(backfill={"range_rows": 100}, locks={"give_up_after": "0.5s"})
    with psycopg.connect(url, autocommit=True) as c:
        for end in ("COMMIT", "ROLLBACK"):
            c.execute("BEGIN; UPDATE people SET full_name = 'x' WHERE id = 5; PREPARE TRANSACTION 'one'")
            # While it is open, the session goes on to write into the same range.
            c.execute("UPDATE people SET full_name = 'a', display_name = 'n:b' WHERE id = 6")
            report = validate.run(work(m, url))
            assert (read(report), report.checks[0].facts["first_different_keys"]) == (1, ["6"])
            c.execute(f"{end} PREPARED 'one'".encode())
            c.execute("UPDATE people SET full_name = 'v6', display_name = 'n:v6' WHERE id = 6")
            assert read(agrees(url)) == 1
            assert read(agrees(url)) == 0
        # Rolled back before the session writes again.
        c.execute("BEGIN; UPDATE people SET full_name = 'y' WHERE id = 5; PREPARE TRANSACTION 'two'")
        c.execute("ROLLBACK PREPARED 'two'")
        c.execute("UPDATE people SET full_name = 'a', display_name = 'n:b' WHERE id = 6")
        report = validate.run(work(m, url))
        assert (read(report), report.checks[0].facts["first_different_keys"]) == (1, ["6"])
    # Prepared during the check, committed after it.
    sql(url, "UPDATE people SET full_name = 'v6', display_name = 'n:v6' WHERE id = 6")
    agrees(url)
    wrote: list[int] = []

    def write(_: int) -> None:
        if not wrote:
            wrote.append(1)
            sql(
                url,
                "BEGIN; UPDATE people SET full_name = 'a', display_name = 'n:b' WHERE id = 500; PREPARE TRANSACTION 'late'",
            )

    assert all(c.passed for c in validate.run(work(m, url), full=True, compared=write).checks)
    sql(url, "COMMIT PREPARED 'late'")
    report = validate.run(work(m, url))
    assert (read(report), report.checks[0].facts["first_different_keys"]) == (1, ["500"])


# -- what voids proofs ------------------------------------------------------------------------------------


def swap(url: str) -> None:
    """Two columns exchange their names: no row is written, and every row disagrees."""
    sql(url, "ALTER TABLE people RENAME full_name TO tmp; ALTER TABLE people RENAME note TO full_name; "
             "ALTER TABLE people RENAME tmp TO note")  # fmt: skip


def unmarked(url: str) -> None:
    """An earlier version puts its sync function in place."""
    with connected(url, purpose="test") as conn:
        entry = ledger.find(conn, M.name)
        assert entry is not None
        sync = bound(work(M, url), entry).sync
        assert sync is not None
        conn.execute(sync.note(Notes()).sql.encode())


def begin_anew(url: str) -> None:
    rollback.run(work(M, url), to=State.ROLLED_BACK)
    walk(M, url, State.BACKFILLED)


VOIDS: list[Callable[[str], object]] = [
    lambda url: sql(url, f"ALTER TABLE people DISABLE TRIGGER {TRIGGER}; ALTER TABLE people ENABLE ALWAYS TRIGGER {TRIGGER}"),
    lambda url: sql(url, "BEGIN; ALTER TABLE people DISABLE TRIGGER ALL; ALTER TABLE people ENABLE ALWAYS TRIGGER "
                    f"{TRIGGER}; ALTER TABLE people ENABLE ALWAYS TRIGGER {TRIGGER.replace('update', 'insert')}; COMMIT"),
    unmarked,
    lambda url: sql(url, "CREATE FUNCTION public.helper() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
    lambda url: sql(url, "ALTER TABLE people RENAME note TO remark"),
    lambda url: rollback.run(work(M, url), to=State.BACKFILLED),
    lambda url: (rollback.run(work(M, url), to=State.EXPANDED), backfilled(M, url)),
    begin_anew,
    lambda url: sql(url, "UPDATE zdm.range SET proof = NULL"),
]  # fmt: skip


@pytest.mark.parametrize("void", VOIDS)
def test_what_voids_every_proof(url: str, void: Callable[[str], object]) -> None:
    assert read(agrees(url)) == 0
    void(url)
    unseen(url, "UPDATE people SET full_name = 'a', display_name = 'n:b' WHERE id = 5")
    report = validate.run(work(M, url))
    assert read(report) == RANGES
    assert report.checks[0].facts["first_different_keys"] == ["5"]


def test_columns_that_exchange_their_names(url: str) -> None:
    swap(url)
    report = validate.run(work(M, url))
    assert read(report) == RANGES
    assert report.checks[0].facts["different"] == ROWS


def test_an_older_function_between_two_of_ours(url: str) -> None:
    """It noted nothing; a contract that is refused must not put a function in place that looks as if it had."""
    walk(M, url, State.SWITCHED)
    agrees(url)
    unmarked(url)
    sql(url, "UPDATE people SET full_name = 'a', display_name = 'n:b' WHERE id = 5")
    with pytest.raises(GateRefused):
        contract.run(work(M, url))
    assert "zdm.written" not in function_source(url, M)
    report = validate.run(work(M, url))
    assert read(report) == RANGES
    assert report.checks[0].facts["first_different_keys"] == ["5"]
    assert "zdm.written" in function_source(url, M)


@pytest.mark.parametrize("mode", ["DISABLE TRIGGER", "ENABLE TRIGGER"])
def test_a_trigger_that_is_off_proves_nothing(url: str, mode: str) -> None:
    sql(url, f"ALTER TABLE people {mode} {TRIGGER}")
    for _ in range(2):
        assert read(agrees(url)) == RANGES
        assert held(url) == 0
    sql(url, f"ALTER TABLE people ENABLE ALWAYS TRIGGER {TRIGGER}")
    assert read(agrees(url)) == RANGES
    assert read(agrees(url)) == 0


def test_batches_void_their_range(url: str) -> None:
    keys = [r.range.partition for r in ranges(M, url)]
    unseen(url, "UPDATE people SET display_name = NULL WHERE id = 350")
    assert sum(moved.rows for moved in backfilled(M, url, partitions=[keys[3]])) == 1
    assert read(agrees(url)) == 1
    wrong(url, 450)
    backfilled(M, url, partitions=[keys[4]], repair=True)
    assert read(agrees(url)) == 1
    assert read(agrees(url)) == 0


def test_batches_void_every_range_where_triggers_write_more(url: str) -> None:
    """What a trigger of the application's writes while our backfill moves a row, the sync takes for ours."""
    sql(
        url,
        "CREATE FUNCTION also() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "UPDATE people SET full_name = 'also' WHERE id = 850 AND NEW.id <> 850; RETURN NULL; END $$; "
        "CREATE TRIGGER also AFTER UPDATE ON people FOR EACH ROW EXECUTE FUNCTION also()",
    )
    assert read(agrees(url)) == RANGES  # a function was made anew
    assert read(agrees(url)) == 0
    wrong(url, 450)
    agrees(url)
    backfilled(M, url, partitions=[ranges(M, url)[4].range.partition], repair=True)
    assert read(validate.run(work(M, url))) == RANGES


def test_a_validate_that_is_killed_keeps_what_it_proved(url: str) -> None:
    sql(url, "UPDATE people SET full_name = full_name || '!'")
    came: list[int] = []

    def interrupt(_: int) -> None:
        came.append(1)
        if len(came) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate.run(work(M, url), compared=interrupt)
    assert 4 <= held(url) < RANGES
    assert read(agrees(url)) == RANGES - 4


@pytest.mark.slow
def test_killed_anywhere(url: str) -> None:
    sql(url, "UPDATE people SET full_name = 'a', display_name = 'n:a' WHERE id IN (5, 950)")
    for kill_at in range(2, 60, 6):
        sql(url, "UPDATE people SET full_name = full_name || 'b' WHERE id IN (5, 950)")
        killed, _ = Worker("validate", M, url, kill_at=kill_at).end()
        sql(url, "UPDATE people SET full_name = 'x', display_name = 'n:y' WHERE id = 5")
        report = validate.run(work(M, url))
        assert report.checks[0].facts["first_different_keys"] == ["5"], kill_at
        sql(url, "UPDATE people SET full_name = 'a', display_name = 'n:a' WHERE id = 5")
        agrees(url)
        if not killed:
            break


# -- where there are no proofs ----------------------------------------------------------------------------


def keyed(url: str, key: str, value: str, m: Migration = M) -> None:
    sql(url, f"CREATE TABLE people (id {key} PRIMARY KEY, full_name text, note text)")
    sql(url, f"INSERT INTO people SELECT {value}, 'v' || n FROM generate_series(1, 1000) n; ANALYZE people")
    walk(m, url, State.VALIDATED)


@pytest.mark.parametrize(
    ("key", "value", "last"),
    [
        ("smallint", "n", "1000"),
        ("integer", "n * 1000", "1000000"),
        ("bigint", "-n", "-1"),
        ("numeric(10, 2)", "n + 0.5", "1000.5"),
        ("numeric", "n / 3.0", "NaN"),
        ("uuid", "md5(n::text)::uuid", "ffffffff-0000-0000-0000-000000000000"),
        ("date", "date '2026-01-01' + n", "infinity"),
        ("timestamp(3)", "timestamp '2026-01-01' + n * interval '1 h'", "2099-01-01"),
        ("timestamptz", "timestamptz '2026-01-01' + n * interval '1 h'", "2099-01-01"),
        ("time", "time '00:00' + n * interval '1 s'", "24:00"),
        ("oid", "n", "4000000000"),
    ],
)
def test_keys_that_say_their_range(database: str, key: str, value: str, last: str) -> None:
    keyed(database, key, value)
    count = len(ranges(M, database))
    assert count > 2
    report = validate.run(work(M, database))
    assert report.facts["ranges_compared"] == 0
    sql(database, f"INSERT INTO people VALUES ('{last}', 'x') ON CONFLICT (id) DO UPDATE SET full_name = 'x'")
    report = validate.run(work(M, database))
    assert (report.facts["ranges_compared"], report.checks[0].passed) == (1, True)
    # Each row's bucket is the range in which the ranges' own bounds find it, whatever the session's settings.
    with psycopg.connect(database, autocommit=True) as c:
        c.execute("SET datestyle = 'German'; SET timezone = 'Asia/Kolkata'")
        for place, r in enumerate(ranges(M, database)):
            sql(database, "DELETE FROM zdm.written")
            lower = None if r.range.lower is None else r.range.lower[0]
            upper = None if r.range.upper is None else r.range.upper[0]
            c.execute(
                f"UPDATE people SET full_name = full_name || '!' WHERE (%(l)s::text IS NULL OR id >= %(l)s::text::{key}) "
                f"AND (%(u)s::text IS NULL OR id < %(u)s::text::{key})".encode(),
                {"l": lower, "u": upper},
            )
            assert sql(database, "SELECT DISTINCT bucket FROM zdm.written") == [(place,)]


@pytest.mark.parametrize(
    ("table", "m"),
    [
        ("id text PRIMARY KEY", M),
        ("id varchar(20) PRIMARY KEY", M),
        ("id number PRIMARY KEY", M),  # a domain
        ("id int, other int DEFAULT 1, PRIMARY KEY (id, other)", M),
        ("id int PRIMARY KEY", replaced(up="'n:' || to_char(now(), 'YYYY') || full_name", down="substr(display_name, 7)",
                                        backfill={"range_rows": 100})),
    ],
)  # fmt: skip
def test_where_everything_is_read_every_time(database: str, table: str, m: Migration) -> None:
    sql(database, "CREATE DOMAIN number AS int")
    sql(database, f"CREATE TABLE people ({table}, full_name text)")
    sql(
        database,
        "INSERT INTO people (id, full_name) SELECT n, 'v' || n FROM generate_series(1, 1000) n; ANALYZE people",
    )
    walk(m, database, State.VALIDATED)
    report = validate.run(work(m, database))
    assert report.facts["ranges_compared"] == len(ranges(m, database)) > 1
    assert "zdm.written" not in function_source(database, m)
    assert held(database) == 0


def test_a_single_range(database: str) -> None:
    m = replaced()
    people(database, 10)
    walk(m, database, State.VALIDATED)
    assert validate.run(work(m, database)).facts["ranges_compared"] == 0
    sql(database, "INSERT INTO people (full_name) VALUES ('x')")
    assert validate.run(work(m, database)).facts["ranges_compared"] == 1


def test_a_row_that_agrees_through_down_but_waits_to_be_moved(database: str) -> None:
    """Parity calls it alike; the backfill is not complete all the same."""
    people(database, 10)
    m = replaced(
        new={"name": "display_name", "type": "text", "nullable": False},
        up="coalesce(full_name, 'nobody')",
        down="nullif(display_name, 'nobody')",
    )
    walk(m, database, State.BACKFILLED)
    unseen(database, "UPDATE people SET full_name = NULL, display_name = NULL WHERE id = 5")
    report = validate.run(work(m, database), full=True)
    assert {c.name: c.passed for c in report.checks} == {
        "parity": True, "backfill_complete": False, "constraints_valid": False,
    }  # fmt: skip
    assert report.checks[1].facts["rows_left"] == 1
    assert held(database) == 0
    assert not validate.run(work(m, database)).checks[1].passed


# -- everything at once -----------------------------------------------------------------------------------


class Application:
    """Sessions that write in every way there is, some of it wrong."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(seed * 10 + n,)) for n in range(4)]
        self.errors: list[BaseException] = []

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        try:
            with psycopg.connect(self.url, autocommit=True) as c:
                while not self.stop.wait(rng.random() * 0.02):
                    try:
                        self._transaction(c, rng)
                    except (
                        psycopg.errors.UniqueViolation,
                        psycopg.errors.SerializationFailure,
                        psycopg.errors.DeadlockDetected,
                    ):
                        c.rollback()
                    if rng.random() < 0.05:
                        c.execute("DISCARD ALL")
        except BaseException as error:
            self.errors.append(error)

    def _transaction(self, c: psycopg.Connection[Any], rng: random.Random) -> None:
        c.execute(f"BEGIN ISOLATION LEVEL {rng.choice(['READ COMMITTED', 'REPEATABLE READ'])}".encode())
        for _ in range(rng.randint(1, 3)):
            savepoint = rng.random()
            if savepoint < 0.5:
                c.execute("SAVEPOINT s")
            self._write(c, rng)
            if savepoint < 0.2:
                c.execute("ROLLBACK TO s")
            self.stop.wait(rng.random() * 0.02)
        c.execute("COMMIT" if rng.random() < 0.8 else "ROLLBACK")

    def _write(self, c: psycopg.Connection[Any], rng: random.Random) -> None:
        # Half of the ranges are left alone, so that there is something not to read.
        key = rng.choice([n for n in range(1, ROWS) if (n // 100) % 2 == 0])
        value = str(rng.randint(1, 9))
        c.execute(
            rng.choice(
                [
                    b"UPDATE people SET full_name = %(v)s WHERE id = %(k)s",
                    b"UPDATE people SET display_name = 'n:' || %(v)s WHERE id = %(k)s",
                    b"UPDATE people SET full_name = %(v)s, display_name = 'n:dual' WHERE id = %(k)s",
                    b"DELETE FROM people WHERE id = %(k)s",
                    b"INSERT INTO people (id, full_name) VALUES (%(k)s, %(v)s) ON CONFLICT (id) DO UPDATE SET full_name = %(v)s",
                    b"UPDATE people SET id = %(k)s + 1 WHERE id = %(k)s",
                ]
            ),
            {"k": key, "v": value},
        )

    def __enter__(self) -> Application:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(60)


@pytest.mark.parametrize("seed", range(4))
def test_incremental_and_full_verdicts_agree(url: str, seed: int) -> None:
    """Writers go on over several validates; each time they pause, what is not read must be right."""
    rng = random.Random(seed)
    taken = 0
    for _ in range(3):
        with Application(url, rng.randint(0, 10**6)) as application:
            for _ in range(2):
                validate.run(work(M, url), full=rng.random() < 0.2)
                threading.Event().wait(rng.random() * 0.1)
        assert not application.errors, application.errors
        incremental = validate.run(work(M, url))
        taken += RANGES - read(incremental)
        expected = one(url, "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM 'n:' || full_name")
        facts = incremental.checks[0].facts
        assert facts["missing"] + facts["extra"] + facts["different"] == expected
        whole = validate.run(work(M, url), full=True)
        assert incremental.facts["partitions_to_repeat"] == whole.facts["partitions_to_repeat"]
        assert {k: v for k, v in facts.items() if k.startswith("first")} == {
            k: v for k, v in whole.checks[0].facts.items() if k.startswith("first")
        }
    assert taken > 0


# -- several ranges at once -------------------------------------------------------------------------------


class Sql:
    """Comparisons that take as long, and give as much, as a test wants: by the range's place."""

    guard = None

    def __init__(self, *statements: str, over: Catalog | None = None) -> None:
        self.statements = statements
        self._over = over

    @property
    def over(self) -> Catalog:
        assert self._over is not None  # asked for the row only for which a comparison raises
        return self._over

    @property
    def guarded(self) -> Sql:
        return self

    def compare(self, lower: Any, upper: Any) -> Statement:
        return Statement(self.statements[int(lower[0])])

    def touched_disagreeing(self) -> str:
        raise NotImplementedError

    def mismatched_keys(self, category: str, lower: Any, upper: Any, *, limit: int) -> Statement:
        return Statement(f"SELECT ARRAY['{category} {lower[0]}/' || n] FROM generate_series(1, 3) n LIMIT {limit}")


def counts(*, seconds: float = 0.0, different: int = 0) -> str:
    return f"SELECT 10, 0, 0, {different}, 0, 0 FROM (SELECT pg_sleep({seconds})) s"


def of(statements: Sql) -> list[KeyRange]:
    return [
        KeyRange(ordinal=n + 1, partition=f"range {n}", lower=(str(n),), upper=None)
        for n in range(len(statements.statements))
    ]


@contextmanager
def leaving_nothing(url: str) -> Iterator[None]:
    """No thread and no session outlives it."""
    yield
    assert not [t for t in threading.enumerate() if t.name == "zdm compare"]
    sessions = (
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE '%%compare%%' AND datname = current_database()"
    )
    eventually(lambda: not sql(url, sessions), timeout=5)


def test_the_order_is_that_of_the_ranges(database: str) -> None:
    work = Sql(counts(seconds=0.5, different=3), counts(), counts(different=3), counts(seconds=0.1, different=3))
    told: list[int] = []
    with leaving_nothing(database):
        found = parity.compare(server_at(database), "m", work, of(work), parallel=4, tell=told.append)
    assert (found.rows, found.different, told) == (40, 9, [10] * 4)
    assert found.partitions == ("range 0", "range 2", "range 3")
    assert found.keys == {"different": tuple((f"different {k}",) for k in ("0/1", "0/2", "0/3", "2/1", "2/2"))}


def test_as_many_at_once_as_declared(database: str) -> None:
    for parallel, expected in ((1, 1), (3, 3), (9, 4)):
        work = Sql(*[counts(seconds=0.3)] * 8)
        most = 0

        def look(_: int) -> None:
            nonlocal most
            most = max(
                most, one(database, "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'zdm m compare'")
            )

        with leaving_nothing(database):
            parity.compare(server_at(database), "m", work, of(work), parallel=parallel, tell=look)
        assert most == expected


def test_a_snapshot_is_open_for_one_range_at_most(database: str) -> None:
    work = Sql(*[counts(seconds=0.2)] * 8)
    oldest: list[float] = []

    def look(_: int) -> None:
        oldest.append(
            float(one(database, "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0) "
                                "FROM pg_stat_activity WHERE application_name = 'zdm m compare'"))
        )  # fmt: skip

    parity.compare(server_at(database), "m", work, of(work), parallel=2, tell=look)
    assert max(oldest) < 0.4


class Interrupted(BaseException):
    """As Dagster's, which is raised in the main thread."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, Interrupted, ValueError])
def test_an_interrupt_ends_what_is_under_way(database: str, error: type[BaseException]) -> None:
    work = Sql(counts(), counts(seconds=60), counts(seconds=60))

    def interrupt(_: int) -> None:
        eventually(lambda: one(database, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%%pg_sleep(60)%%' "
                               "AND application_name = 'zdm m compare' AND state = 'active'") == 2)  # fmt: skip
        raise error

    with leaving_nothing(database), pytest.raises(error):
        Background(lambda: parity.compare(server_at(database), "m", work, of(work), parallel=3, tell=interrupt)).result(
            timeout=10
        )


def test_an_error_ends_what_is_under_way(database: str) -> None:
    people(database, 0)  # the row is gone by the time it is looked for
    work = Sql(counts(seconds=60), "SELECT 1 / 0", counts(seconds=60), over=surveyed(replaced(), database))
    with leaving_nothing(database), pytest.raises(MappingFailed, match="m range range 1"):
        Background(lambda: parity.compare(server_at(database), "m", work, of(work), parallel=3)).result(timeout=10)


def test_a_lost_connection_ends_what_is_under_way(database: str) -> None:
    work = Sql(counts(seconds=60), "SELECT pg_terminate_backend(pg_backend_pid())", counts(seconds=60))
    with leaving_nothing(database), pytest.raises(psycopg.OperationalError):
        Background(lambda: parity.compare(server_at(database), "m", work, of(work), parallel=3)).result(timeout=10)


def test_a_validate_outlasts_a_lost_connection(url: str) -> None:
    """It begins anew, and finds what was proven before the loss."""
    sql(url, "UPDATE people SET full_name = full_name || '!'")
    lost: list[int] = []

    def lose(_: int) -> None:
        if not lost:
            lost.append(1)
            sql(url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                     "WHERE application_name LIKE 'zdm people_display_name%%' AND datname = current_database()")  # fmt: skip

    with leaving_nothing(url):
        report = validate.run(work(M, url), compared=lose)
    assert all(c.passed for c in report.checks)


def test_fewer_connections_than_wanted(database: str) -> None:
    """One is enough; none is an error."""
    sql(database, "DROP ROLE IF EXISTS two_at_most; CREATE ROLE two_at_most LOGIN CONNECTION LIMIT 2")
    try:
        role = database.replace("postgres@", "two_at_most@")
        work = Sql(*[counts(seconds=0.1)] * 6)
        assert parity.compare(server_at(role), "m", work, of(work), parallel=4).rows == 60
        with psycopg.connect(role), psycopg.connect(role), pytest.raises(DatabaseUnreachable):
            parity.compare(server_at(role), "m", work, of(work), parallel=4)
    finally:
        eventually(lambda: not sql(database, "SELECT 1 FROM pg_stat_activity WHERE usename = 'two_at_most'"))
        sql(database, "DROP ROLE two_at_most")


def test_nothing_to_compare(database: str) -> None:
    assert parity.compare(server_at(database), "m", Sql(), [], parallel=4).agrees


def test_expand_again_keeps_proofs(url: str) -> None:
    expanded(M, url)
    assert read(agrees(url)) == 0
