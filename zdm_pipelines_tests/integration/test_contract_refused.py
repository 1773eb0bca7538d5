"""Contract refused: one test per reason; the table, the state and the sync function are afterwards as they were before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from zdm_pipelines.dialects.postgres.kinds.replace_column import ReplaceColumnSql
from zdm_pipelines.model.errors import GateRefused
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import backfill, contract, switch_reads
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import rollback
from zdm_pipelines_tests.helpers import (
    Background,
    at,
    dump,
    eventually,
    expanded,
    function_source,
    one,
    people,
    read_in_full_for,
    replaced,
    sql,
    state,
    tracks,
    walk,
    work,
)

ROWS = 300
TRIGGERS = ("zzz_zdm_people_display_name_insert", "zzz_zdm_people_display_name_update")


def declared(**sections: Any) -> Migration:
    return replaced(backfill={"range_rows": 100, "batch_rows": 50}, **sections)


@pytest.fixture
def url(database: str) -> str:
    people(database, ROWS)
    return database


@contextmanager
def refused(
    server: Server, url: str, m: Migration, *reasons: str, run: Callable[[], Any] | None = None
) -> Iterator[None]:
    """Contract says no for these reasons, and leaves everything as it is."""
    yield
    before = (dump(server, url), state(m, url), sql(url, "TABLE people ORDER BY id"))
    function = function_source(url, m) if one(url, "SELECT to_regclass('zdm.migration') IS NOT NULL") else ""
    with pytest.raises(GateRefused) as caught:
        (run or (lambda: contract.run(work(m, url))))()
    for reason in reasons:
        assert any(reason in r for r in caught.value.reasons), caught.value.reasons
    assert len(caught.value.reasons) == len(reasons), caught.value.reasons
    assert (dump(server, url), state(m, url), sql(url, "TABLE people ORDER BY id")) == before
    if function:
        assert function_source(url, m) == function
        assert one(url, "SELECT count(*) FROM zdm.touched") == 0


@pytest.mark.parametrize(
    ("where", "reasons"),
    [
        (State.PLANNED, ["run expand first"]),
        (State.ROLLED_BACK, ["is rolled_back, contract begins from switched"]),
        (State.EXPANDED, ["is expanded", "3 of 3 ranges", "check parity", "check backfill_complete", "check constraints_valid",
                          "reads are at 0 %", "never fully switched"]),
        (State.BACKFILLING, ["is backfilling", "2 of 3 ranges", "check parity", "check backfill_complete",
                             "check constraints_valid", "reads are at 0 %", "never fully switched"]),
        (State.BACKFILLED, ["is backfilled", "check parity", "check backfill_complete", "check constraints_valid",
                            "reads are at 0 %", "never fully switched"]),
        (State.VALIDATED, ["is validated", "reads are at 0 %", "never fully switched"]),
        (State.SWITCHING, ["is switching", "reads are at 50 %", "never fully switched"]),
    ],
)  # fmt: skip
def test_in_another_state(server: Server, url: str, where: State, reasons: list[str]) -> None:
    m = declared()
    at(m, url, where)
    with refused(server, url, m, *reasons):
        pass


def test_again_when_contracted_does_nothing(server: Server, url: str) -> None:
    m = declared()
    walk(m, url, State.CONTRACTED)
    before = dump(server, url)
    assert contract.run(work(m, url)).state == State.CONTRACTED
    assert dump(server, url) == before


def switched(url: str, m: Migration | None = None) -> Migration:
    m = m or declared()
    walk(m, url, State.SWITCHED)
    return m


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        ("UPDATE zdm.range SET done_at = NULL WHERE ordinal = 2", "1 of 3 ranges are not backfilled: 000002"),
        ("UPDATE zdm.check_result SET passed = false, summary = 'planted' WHERE name = 'parity'", "check parity failed: planted"),
        ("DELETE FROM zdm.check_result WHERE name = 'backfill_complete'", "check backfill_complete never ran"),
        ("UPDATE zdm.flag SET percent = 50", "reads are at 50 %"),
        (f"ALTER TABLE people DISABLE TRIGGER {TRIGGERS[0]}", "is disabled"),
        (f"ALTER TABLE people ENABLE REPLICA TRIGGER {TRIGGERS[1]}", "is disabled"),
        (f"ALTER TABLE people ENABLE TRIGGER {TRIGGERS[1]}", "is disabled"),
        (f"DROP TRIGGER {TRIGGERS[1]} ON people", "is missing"),
        ("CREATE VIEW names AS SELECT full_name FROM people", "view names"),
        ("CREATE MATERIALIZED VIEW names AS SELECT count(full_name) FROM people", "view names"),
        ("CREATE POLICY mine ON people USING (full_name <> '')", "policy mine"),
        ("ALTER TABLE people ADD COLUMN upper_name text GENERATED ALWAYS AS (upper(full_name)) STORED", "upper_name"),
        ("CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT count(full_name) FROM people; END", "function f"),
        ("CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER named "
         "AFTER UPDATE OF full_name ON people FOR EACH ROW EXECUTE FUNCTION t()", "trigger named"),
        ("CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER zzzz "
         "BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION t()", "trigger zzzz runs behind"),
        ("CREATE STATISTICS s ON full_name, note FROM people", "not in place: CREATE STATISTICS public.s_zdm"),
    ],
)  # fmt: skip
def test_when_switched_but(server: Server, url: str, plant: str, reason: str) -> None:
    m = switched(url)
    sql(url, plant)
    with refused(server, url, m, reason):
        pass


def test_when_the_flag_is_gone(server: Server, url: str) -> None:
    m = switched(url)
    sql(url, "DELETE FROM zdm.flag")
    with refused(server, url, m, "reads are at 0 %", "never fully switched"):
        pass


def test_when_a_foreign_key_points_at_the_old_column(server: Server, url: str) -> None:
    m = switched(url)
    sql(url, "CREATE UNIQUE INDEX by_name ON people (full_name)")
    sql(url, "CREATE TABLE pets (owner text REFERENCES people (full_name))")
    with refused(server, url, m, "pets_owner_fkey", "by_name"):
        pass


def test_within_the_confidence_window(server: Server, url: str) -> None:
    m = switched(url, declared(contract={"confidence_window": "7d"}))
    with refused(server, url, m, "the confidence window ends in"):
        pass
    read_in_full_for(url, "7 days 1 minute")
    assert contract.run(work(m, url)).state == State.TOMBSTONED


def test_the_confidence_window_begins_anew_when_reads_went_back(server: Server, url: str) -> None:
    m = switched(url, declared(contract={"confidence_window": "1h"}))
    read_in_full_for(url, "2 hours")
    switch_reads.run(work(m, url), percent=99)
    switch_reads.run(work(m, url), percent=100)
    with refused(server, url, m, "the confidence window ends in"):
        pass


def test_within_the_tombstone_window(server: Server, url: str) -> None:
    m = declared(contract={"tombstone_window": "1d"})
    walk(m, url, State.TOMBSTONED)
    with refused(server, url, m, "it is kept for 24 h more"):
        pass
    sql(url, "UPDATE zdm.migration SET tombstoned_at = now() - interval '25 hours'")
    assert contract.run(work(m, url)).state == State.CONTRACTED


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        ("CREATE VIEW names AS SELECT zdm_tombstone_full_name FROM people", "view names"),
        (f"DROP TRIGGER {TRIGGERS[0]} ON people", "is missing"),
        ("UPDATE zdm.flag SET percent = 99", "reads are at 99 %"),
        ("ALTER TABLE people RENAME zdm_tombstone_full_name TO back", "is called back now"),
    ],
)  # fmt: skip
def test_when_tombstoned_but(server: Server, url: str, plant: str, reason: str) -> None:
    m = declared()
    walk(m, url, State.TOMBSTONED)
    sql(url, plant)
    with refused(server, url, m, reason):
        pass


def test_tombstoned_and_the_data_disagrees(server: Server, url: str) -> None:
    m = declared()
    walk(m, url, State.TOMBSTONED)
    planted(url, "UPDATE people SET display_name = 'n:other' WHERE id = 7")
    with refused(server, url, m, "1 different (first keys: 7) in range 000001-from-start"):
        pass


def test_stragglers(server: Server, url: str) -> None:
    m = switched(url, declared(contract={"straggler_window": "1h"}))
    with psycopg.connect(url, application_name="nightly report") as c:
        c.execute("UPDATE people SET full_name = 'late' WHERE id = 1")
    with refused(server, url, m, "straggler: nightly report (role postgres)"):
        pass
    sql(url, "UPDATE zdm.writer SET at = at - interval '61 minutes'")
    assert contract.run(work(m, url)).state == State.TOMBSTONED


def test_new_code_is_no_straggler(url: str) -> None:
    m = switched(url, declared(contract={"straggler_window": "1h"}))
    sql(url, "UPDATE people SET display_name = 'n:new' WHERE id = 1")
    sql(url, "INSERT INTO people (display_name) VALUES ('n:inserted')")
    assert contract.run(work(m, url)).state == State.TOMBSTONED


def test_another_declaration(server: Server, url: str) -> None:
    switched(url)
    other = declared(down="substr(display_name, 4)")
    with refused(server, url, other, "another declaration"):
        pass


def test_what_the_caller_knows(server: Server, url: str) -> None:
    m = switched(url)
    with refused(server, url, m, "planted", run=lambda: contract.run(work(m, url), more_reasons=["planted"])):
        pass


CONSTRAINED = """
CREATE TABLE public.people (id bigint PRIMARY KEY, full_name text NOT NULL UNIQUE CHECK (full_name <> ''), note text);
CREATE INDEX people_full_name_idx ON people (full_name, note);
INSERT INTO people SELECT n, 'v' || n FROM generate_series(1, 300) n;
"""


@pytest.mark.parametrize(
    ("plant", "reasons"),
    [
        ("DROP INDEX people_display_name_idx", ["build index"]),
        ("ALTER TABLE people DROP CONSTRAINT people_display_name_key", ["build index", "make it the constraint"]),
        ("ALTER TABLE people DROP CONSTRAINT people_display_name_check",
         ["add constraint", "validate constraint"]),
        ("ALTER TABLE people ALTER display_name DROP NOT NULL", ["NOT NULL", "add constraint", "validate constraint"]),
        ("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'people_display_name_idx'::regclass",
         ["remove an unfinished index", "build index"]),
    ],
)  # fmt: skip
def test_without_index_or_constraint(server: Server, database: str, plant: str, reasons: list[str]) -> None:
    sql(database, CONSTRAINED)
    m = declared(new={"name": "display_name", "type": "text", "nullable": False})
    walk(m, database, State.SWITCHED)
    sql(database, plant)
    with refused(server, database, m, *[f"not in place: {r}" if r != "NOT NULL" else r for r in reasons]):
        pass


def planted(url: str, statement: str) -> None:
    """Change data behind the sync trigger's back; it looks untouched afterwards."""
    with psycopg.connect(url) as c:
        for trigger in TRIGGERS:
            c.execute(f"ALTER TABLE people DISABLE TRIGGER {trigger}".encode())
        c.execute(statement.encode())
        for trigger in TRIGGERS:
            c.execute(f"ALTER TABLE people ENABLE ALWAYS TRIGGER {trigger}".encode())


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE people SET display_name = 'n:other' WHERE id = 142", "1 different (first keys: 142)"),
        ("UPDATE people SET display_name = NULL WHERE id = 142", "1 missing (first keys: 142)"),
        ("UPDATE people SET full_name = NULL WHERE id = 142", "1 extra (first keys: 142)"),
        ("INSERT INTO people (id, full_name) VALUES (1000, 'late')", "1 missing (first keys: 1000)"),
    ],
)
def test_every_record_says_yes_but_the_data_disagrees(server: Server, url: str, statement: str, found: str) -> None:
    m = switched(url)
    planted(url, statement)
    with refused(server, url, m, found):
        pass
    assert "disagree" in one(url, "SELECT detail::text FROM zdm.event WHERE what = 'contract refused'")


def during_the_scan(m: Migration, url: str, *statements: str) -> None:
    """Contract, with statements run after its first range was compared."""
    once: list[int] = []

    def interfere(_: int) -> None:
        once.append(1)
        if len(once) == 3:  # the last range: all were compared
            for statement in statements:
                sql(url, statement)

    contract.run(work(m, url), compared=interfere)
    assert len(once) == 3


def test_a_row_written_during_the_scan_disagrees(server: Server, url: str) -> None:
    m = switched(url)
    wrong = "UPDATE people SET full_name = 'one', display_name = 'n:two' WHERE id = 5"
    before = dump(server, url)
    with pytest.raises(GateRefused, match="1 of 1 rows written during the proof disagree"):
        during_the_scan(m, url, wrong)
    assert (dump(server, url), state(m, url)) == (before, State.SWITCHED)
    assert not tracks(url, m)
    assert one(url, "SELECT count(*) FROM zdm.touched") == 0


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read"])
def test_a_row_written_between_scan_and_lock_disagrees(server: Server, url: str, isolation: str) -> None:
    """The writer commits after everything was compared but the rows seen under the lock.

    With the database's default isolation: our sessions have their own.
    """
    database = one(url, "SELECT current_database()")
    sql(url, f"ALTER DATABASE \"{database}\" SET default_transaction_isolation = '{isolation}'")
    m = switched(url)
    with psycopg.connect(url) as writer:
        begun: list[int] = []

        def begin(_: int) -> None:
            if not begun:
                begun.append(1)
                writer.execute("UPDATE people SET full_name = 'one', display_name = 'n:two' WHERE id = 5")

        before = dump(server, url)
        job = Background(lambda: contract.run(work(m, url), compared=begin))
        # Queueing for ACCESS EXCLUSIVE: the scan and the drain are over.
        eventually(
            lambda: sql(
                url,
                "SELECT 1 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock' AND relation = 'people'::regclass",
            )
        )
        writer.commit()
    with pytest.raises(GateRefused, match="1 of 1 rows written during the proof disagree"):
        job.result()
    assert (dump(server, url), state(m, url)) == (before, State.SWITCHED)
    assert not tracks(url, m)


def test_a_wrong_row_moves_by_its_key_to_where_the_scan_has_been(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not compared where it stood, and is written in neither shape."""
    m = switched(url, replaced(backfill={"range_rows": 100, "max_parallel": 1}))
    last = one(url, "SELECT max(id) FROM people")
    with psycopg.connect(url, autocommit=True) as behind:
        behind.execute("SET zdm.backfill = 'on'")  # the trigger looks away: the row disagrees before the proof begins
        behind.execute("UPDATE people SET full_name = 'stale' WHERE id = %s", [last])
    compare = ReplaceColumnSql.compare

    def moving(self: ReplaceColumnSql, lower: Any, upper: Any) -> Any:
        if lower is not None and upper is None:  # its range is the next: the first one was compared
            sql(url, "UPDATE people SET id = -1 WHERE id = %s", last)
        return compare(self, lower, upper)

    monkeypatch.setattr(ReplaceColumnSql, "compare", moving)
    with pytest.raises(GateRefused, match="1 of 1 rows written during the proof disagree"):
        contract.run(work(m, url))
    assert state(m, url) == State.SWITCHED
    assert not tracks(url, m)


def test_right_rows_written_during_the_scan_are_no_obstacle(url: str) -> None:
    m = switched(url)
    during_the_scan(
        m,
        url,
        "UPDATE people SET full_name = full_name || '!' WHERE id < 100",
        "UPDATE people SET display_name = 'n:new' WHERE id = 200",
        "DELETE FROM people WHERE id = 201",
        "UPDATE people SET id = 5000, full_name = 'moved' WHERE id = 202",
        "INSERT INTO people (id, full_name) VALUES (9000, 'x'), (9001, NULL)",
    )
    assert state(m, url) == State.TOMBSTONED
    assert not tracks(url, m)


def test_a_trigger_switched_off_and_on_during_the_scan(server: Server, url: str) -> None:
    """Behind the back of the trigger nothing is recorded: the whole proof is void."""
    m = switched(url)
    with pytest.raises(GateRefused, match="was changed during the proof"):
        during_the_scan(
            m,
            url,
            f"ALTER TABLE people DISABLE TRIGGER {TRIGGERS[1]}",
            "UPDATE people SET display_name = 'n:other' WHERE id = 7",
            f"ALTER TABLE people ENABLE ALWAYS TRIGGER {TRIGGERS[1]}",
        )
    assert state(m, url) == State.SWITCHED
    assert not tracks(url, m)


def test_a_writer_from_before_the_proof_is_waited_for(url: str) -> None:
    """It wrote with the sync function that records nothing; until it ends, the proof would not see it."""
    m = switched(url)
    with psycopg.connect(url) as writer:
        writer.execute("UPDATE people SET full_name = 'one', display_name = 'n:two' WHERE id = 5")
        job = Background(lambda: contract.run(work(m, url)))
        eventually(lambda: tracks(url, m))
        assert job.is_alive()
        writer.commit()
    with pytest.raises(GateRefused, match=r"1 different \(first keys: 5\)"):
        job.result()
    assert state(m, url) == State.SWITCHED


def test_a_prepared_transaction_from_before_the_proof_is_waited_for(own_server: Server) -> None:
    """No session holds its locks, but it is a writer all the same."""
    own_server.settings["max_prepared_transactions"] = "5"
    own_server.restart()
    url = own_server.create_database("app")
    people(url, ROWS)
    m = switched(url)
    with psycopg.connect(url) as writer:
        writer.execute("UPDATE people SET full_name = 'one', display_name = 'n:two' WHERE id = 5")
        writer.execute("PREPARE TRANSACTION 'two phases'")
    job = Background(lambda: contract.run(work(m, url)))
    eventually(lambda: tracks(url, m))
    job.join(1)
    assert job.is_alive()
    sql(url, "COMMIT PREPARED 'two phases'")
    with pytest.raises(GateRefused, match="disagree"):
        job.result()
    assert state(m, url) == State.SWITCHED


@pytest.mark.parametrize("style", ["ISO, DMY", "SQL, DMY", "German"])
def test_keys_written_during_the_scan_are_found_whatever_the_clients_settings(database: str, style: str) -> None:
    """A date recorded as the client's session prints it would be read back as another day, or not at all."""
    sql(
        database,
        "CREATE TABLE people (day date, at timestamptz, weight float8, full_name text, PRIMARY KEY (day, at, weight))",
    )
    sql(
        database,
        "INSERT INTO people SELECT date '2026-03-01' + n, timestamptz '2026-03-04 10:00+00', 0.1::float8 + 0.2::float8 + n, 'v' || n "
        "FROM generate_series(1, 300) n",
    )
    m = switched(database)

    def interfere(_: int) -> None:
        with psycopg.connect(database) as c:
            c.execute(f"SET datestyle = '{style}'".encode())
            c.execute("SET timezone = 'Asia/Kolkata'")
            c.execute("SET extra_float_digits = 0")
            c.execute("UPDATE people SET full_name = 'one', display_name = 'n:two' WHERE full_name = 'v2'")

    with pytest.raises(GateRefused, match="disagree"):
        contract.run(work(m, database), compared=interfere)
    assert state(m, database) == State.SWITCHED


def test_a_contract_that_was_killed_leaves_nothing_that_grows_for_ever(url: str) -> None:
    """Tracking ends by itself, and with the next run."""
    m = switched(url)
    with pytest.raises(KeyboardInterrupt):
        contract.run(work(m, url), compared=lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert not tracks(url, m)
    assert state(m, url) == State.SWITCHED
    assert contract.run(work(m, url)).state == State.TOMBSTONED


def test_rows_moved_after_validation_void_the_proof(server: Server, url: str) -> None:
    m = switched(url)
    planted(url, "INSERT INTO people (id, full_name) VALUES (1000, 'late')")
    list(backfill.run(work(m, url), partitions=[one(url, "SELECT partition FROM zdm.range WHERE upper IS NULL")]))
    assert state(m, url) in (State.BACKFILLING, State.BACKFILLED)
    with refused(
        server, url, m, "contract begins from switched", "check parity", "check backfill_complete",
        "check constraints_valid", "never fully switched",
    ):  # fmt: skip
        pass


def test_rollback_of_expand_never_drops_what_another_declaration_names(server: Server, url: str) -> None:
    """The file may have been edited since: the column it names now is the application's."""
    m = declared()
    before = dump(server, url)
    expanded(m, url)
    edited = declared(new={"name": "note", "type": "text"}, up="full_name", down="note")
    assert rollback.run(work(edited, url), to=State.ROLLED_BACK, force=True) == State.ROLLED_BACK
    assert dump(server, url) == before
    assert one(url, "SELECT count(note) FROM people") == ROWS
