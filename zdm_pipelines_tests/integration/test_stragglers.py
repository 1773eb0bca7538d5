"""Stragglers: who names the old shape, though no value changes; one line per writer, however its sessions are pooled."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from zdm_pipelines import ledger
from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.dialects.postgres.users import Users
from zdm_pipelines.model.errors import GateRefused
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import contract
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import rollback, watch
from zdm_pipelines_tests.helpers import eventually, expanded, holding, one, people, replaced, sql, walk, work
from zdm_pipelines_tests.kinds.extraction import SETTINGS, USERS

NULLABLE = {"name": "display_name", "type": "text"}
M = replaced(new=NULLABLE, up="full_name", down="display_name", contract={"straggler_window": "1h"})
PAIR = "CREATE TABLE other (full_name text); INSERT INTO other VALUES ('x')"


def declare_extract(window: str) -> Migration:
    return replaced(table="public.users", contract={"straggler_window": window}).model_copy(
        update={
            "change": Migration.model_validate(
                {"name": "m", "database": "app", "table": "public.users", "change": SETTINGS}
            ).change
        }
    )


@pytest.fixture(scope="module")
def switched_template(cluster: Cluster) -> str:
    """A database in which all reads are on the new column, and nobody has written yet."""
    url = cluster.primary.create_database("stragglers")
    people(url, 20)
    sql(url, PAIR)
    walk(M, url, State.SWITCHED)
    return "stragglers"


@pytest.fixture
def url(server: Server, switched_template: str, request: pytest.FixtureRequest) -> Iterator[str]:
    yield server.create_database("straggling", template=switched_template)
    server.drop_database("straggling")


def say(url: str, *statements: str, name: str = "shop") -> None:
    with psycopg.connect(url, autocommit=True, application_name=name) as c:
        for statement in statements:
            c.execute(statement.encode())


NAMING = [
    "UPDATE people SET full_name = full_name, note = 'x' WHERE id = 3",
    "UPDATE people SET full_name = full_name WHERE id = -1",
    "UPDATE public.people AS p SET note = 'x', \"full_name\" = p.full_name WHERE id = 3",
    "INSERT INTO people (full_name, note) VALUES (NULL, 'anon')",
    'insert into "public"."people" as p ("note", "full_name") values (1, null)',
    "INSERT INTO people (id, note) VALUES (3, 'x') ON CONFLICT (id) DO UPDATE SET full_name = people.full_name",
    "MERGE INTO people USING (VALUES (3)) v (id) ON v.id = people.id WHEN MATCHED THEN UPDATE SET full_name = full_name",
    "WITH w AS (UPDATE people SET full_name = full_name WHERE id = 4 RETURNING id) SELECT * FROM w",
    "SET session_replication_role = replica; UPDATE people SET full_name = full_name WHERE id = 3",
    "DO $$ BEGIN UPDATE people SET full_name = full_name WHERE id = 3; END $$",
]


@pytest.mark.parametrize("statement", NAMING)
def test_who_names_the_old_column_is_a_straggler(url: str, statement: str) -> None:
    say(url, statement)
    with pytest.raises(GateRefused, match=r"straggler: shop \(role postgres\), \d+ s ago named the old shape"):
        contract.run(work(M, url))
    assert one(url, "SELECT full_name FROM people WHERE id = 3") == "v3"
    # The way out: new code is deployed there, and the window passes.
    sql(url, "UPDATE zdm.writer SET at = at - interval '62 minutes'")
    assert contract.run(work(M, url)).state == State.TOMBSTONED
    assert rollback.run(work(M, url), to=State.ROLLED_BACK, force=True) == State.ROLLED_BACK
    assert one(url, "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'zzz%%'") == 0


def test_copy_names_its_columns(url: str) -> None:
    with (
        psycopg.connect(url, autocommit=True, application_name="loader") as c,
        c.cursor().copy("COPY people (note, full_name) FROM STDIN") as copy,
    ):
        copy.write_row(("n", None))
    assert "straggler: loader (role postgres)" in contract.refusals(work(M, url))[0]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE people SET note = full_name WHERE id = 3",  # reads it: see below for what tells that
        "UPDATE people SET display_name = 'new' WHERE id = 3",
        "INSERT INTO people (display_name) SELECT full_name FROM other",
        "INSERT INTO people (display_name, note) SELECT o.full_name, 'full_name' FROM other o (full_name)",
        "INSERT INTO people (display_name) (SELECT full_name FROM other)",
        "INSERT INTO other (full_name) VALUES ('people'); INSERT INTO people (display_name) VALUES ('y')",
        "WITH o AS (INSERT INTO other (full_name) VALUES ('z') RETURNING full_name) "
        "INSERT INTO people (display_name) SELECT full_name FROM o",
        "DELETE FROM people WHERE id = 3",
        "INSERT INTO people VALUES (default, null, 'note', 'new')",
        "INSERT INTO people (display_name) VALUES ('in people (full_name)')",
    ],
)
def test_who_does_not_name_it_in_a_write_is_none(url: str, statement: str) -> None:
    say(url, statement)
    assert contract.run(work(M, url)).state == State.TOMBSTONED
    say(url, statement.replace("note = full_name", "note = display_name").replace("null, ", "null, "))


@pytest.mark.parametrize(
    "action",
    ["ON UPDATE CASCADE", "ON DELETE SET NULL", "ON DELETE SET DEFAULT"],
)
def test_what_a_foreign_key_writes_is_nobodys(database: str, action: str) -> None:
    sql(
        database,
        "CREATE TABLE teams (name text PRIMARY KEY); INSERT INTO teams VALUES ('a'), ('b'), ('dflt'); "
        f"CREATE TABLE people (id int PRIMARY KEY, full_name text DEFAULT 'dflt' REFERENCES teams {action}, note text); "
        "INSERT INTO people VALUES (1, 'a'), (2, 'b')",
    )
    m = replaced(
        new=NULLABLE | {"default": "'dflt'"}, up="full_name", down="display_name", contract={"straggler_window": "1h"}
    )
    walk(m, database, State.SWITCHED)
    change = (
        "UPDATE teams SET name = 'c' WHERE name = 'a'" if "UPDATE" in action else "DELETE FROM teams WHERE name = 'a'"
    )
    with psycopg.connect(database, autocommit=True, application_name="keeper") as c:
        c.execute(change.encode())
        after = {"ON UPDATE CASCADE": "c", "ON DELETE SET NULL": None, "ON DELETE SET DEFAULT": "dflt"}[action]
        assert sql(database, "SELECT full_name, display_name FROM people WHERE id = 1") == [(after, after)]
        assert sql(database, "SELECT wrote FROM zdm.writer") == []
        # The same session, in the same minute, by itself.
        c.execute("UPDATE people SET full_name = 'b' WHERE id = 1")
    assert "straggler: keeper" in contract.refusals(work(m, database))[0]


def test_a_trigger_of_the_application_is_a_straggler(url: str) -> None:
    sql(
        url,
        "CREATE FUNCTION copied() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "UPDATE people SET full_name = NEW.full_name WHERE id = 3; RETURN NULL; END $$; "
        "CREATE TRIGGER copied AFTER UPDATE ON other FOR EACH ROW EXECUTE FUNCTION copied()",
    )
    say(url, "UPDATE other SET full_name = 'y'", name="mirror")
    assert "straggler: mirror" in contract.refusals(work(M, url))[0]


def test_naming_an_old_column_of_an_extracted_table(database: str) -> None:
    sql(database, USERS.format(rows=10))
    m = declare_extract("1h")
    walk(m, database, State.SWITCHED)
    say(database, "UPDATE user_settings SET theme = 'new' WHERE user_id = 3")  # the sync's own write names it
    assert contract.refusals(work(m, database)) == []
    say(database, "UPDATE users SET profile = profile WHERE id = 3")
    assert "straggler: shop" in contract.refusals(work(m, database))[0]
    sql(database, "DELETE FROM zdm.writer")
    say(database, "INSERT INTO users (id, profile) VALUES (99, NULL)", name="importer")
    assert "straggler: importer" in contract.refusals(work(m, database))[0]
    sql(database, "DELETE FROM zdm.writer")
    walk(m, database, State.TOMBSTONED)


# -- windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ago", "late"), [(1, True), (30, True), (61, True), (70, False)])
def test_a_window_shorter_than_the_time_between_two_notes(url: str, ago: int, late: bool) -> None:
    """Who was noted may have written since: they are noted once a minute."""
    m = M.model_copy(update={"contract": M.contract.model_copy(update={"straggler_window": 2.0})})
    say(url, "UPDATE people SET full_name = 'x' WHERE id = 1")
    sql(url, f"UPDATE zdm.writer SET at = clock_timestamp() - interval '{ago} seconds'")
    sql(url, "SELECT 1")
    assert any("straggler" in reason for reason in contract.refusals(work(m, url))) == late


# -- how many lines ---------------------------------------------------------------------------------------

M0 = replaced(new=NULLABLE, up="full_name", down="display_name")


def lines(url: str) -> list[Any]:
    return sql(url, "SELECT application_name, wrote, count(*) FROM zdm.writer GROUP BY 1, 2 ORDER BY 1, 2")


@pytest.mark.parametrize("pooling", ["DISCARD ALL", "RESET ALL", "SET application_name = 'app-{n}'; DISCARD PLANS"])
def test_one_line_a_writer_and_minute(url: str, pooling: str) -> None:
    with psycopg.connect(url, autocommit=True, application_name="app-1", prepare_threshold=None) as c:
        for n in range(60):
            c.execute(pooling.format(n=n).encode())
            c.execute(f"SET application_name = 'app-{n}'".encode())
            c.execute("UPDATE people SET full_name = %s WHERE id = 1", [f"w{n}"])
    found = lines(url)
    assert {(name, wrote) for name, wrote, _ in found} == {("app-#", "old"), ("app-#", "names")}
    assert all(count <= 2 for *_, count in found)  # a minute may have begun meanwhile


@pytest.mark.parametrize(
    ("name", "writer"),
    [
        ("worker-3f2a91c07be", "worker-#"), ("web.1", "web.#"), ("shop", "shop"), ("", ""),
        ("api-7d9f8c6b54-10.0.3.7:51234", "api-#-#.#.#.#:#"), ("pod-550e8400-e29b-41d4-a716-446655440000", None),
    ],
)  # fmt: skip
def test_names_of_processes_are_one_writer(url: str, name: str, writer: str | None) -> None:
    say(url, "UPDATE people SET full_name = 'x' WHERE id = 1", name=name)
    found = {n for n, *_ in lines(url)}
    assert len(found) == 1
    assert writer is None or found == {writer}


def test_writers_never_wait_for_each_other(url: str) -> None:
    """One transaction stays open over its line; many others write by the same name meanwhile."""

    def write(n: int) -> None:
        with psycopg.connect(url, application_name=f"app-{n}", options="-c statement_timeout=5s") as c:
            c.execute("UPDATE people SET full_name = 'y', note = 'z' WHERE id = %s", [n])

    with holding(url, "UPDATE people SET full_name = 'x' WHERE id = 1", name="app-1"), ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(2, 14)))
    assert sum(count for *_, count in lines(url)) <= 2 * 13


def test_a_serializable_writer_reads_no_lines(url: str) -> None:
    """Else it could fail for what others note."""
    with psycopg.connect(url) as c:
        c.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        c.execute("UPDATE people SET full_name = 'y' WHERE id = 1")
        locks = "SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock' AND relation = 'zdm.writer'::regclass"
        assert one(url, locks) == 0
    assert len(lines(url)) == 2


def test_old_lines_are_pruned_and_nothing_is_forgotten(url: str) -> None:
    sql(
        url,
        "INSERT INTO zdm.writer (migration_id, at, wrote, application_name, login) "
        "SELECT id, now() - n * interval '1 minute', w, 'w' || chr(97 + n % 3), 'r' FROM zdm.migration, "
        "generate_series(1, 200) n, unnest('{old,new}'::text[]) w; "
        "INSERT INTO zdm.writer (migration_id, at, wrote, failed, application_name, login) "
        "SELECT id, now() - interval '9 days', 'old', '22P02', 'broken', 'r' FROM zdm.migration",
    )
    with connected(url, purpose="test") as conn:
        entry = ledger.find(conn, M.name)
        assert entry is not None
        before = ledger.recent_writers(conn, entry.id, ledger.OLD_SHAPE, within=3600)
        watch.look(work(M, url))  # as the sensors and the schedule do
        assert len(ledger.recent_writers(conn, entry.id, ledger.OLD_SHAPE, within=3600)) == len(before) == 3
        assert [f.application for f in ledger.failures(conn, entry.id)] == ["broken"]
    assert one(url, "SELECT count(*) FROM zdm.writer") == 7


def test_however_many_writers_there_are(url: str) -> None:
    sql(
        url,
        "INSERT INTO zdm.writer (migration_id, at, wrote, application_name, login) "
        "SELECT id, now() - n * interval '1 second', 'old', 'shop', 'v-role-' || n FROM zdm.migration, "
        "generate_series(1, 3000) n",
    )
    with pytest.raises(GateRefused):
        contract.run(work(M, url))
    assert one(url, "SELECT count(*), min(at) < now() - interval '15 min' FROM zdm.writer") == 1000


def test_a_refusal_that_is_repeated_is_noted_once(url: str) -> None:
    m = M.model_copy(update={"contract": M.contract.model_copy(update={"confidence_window": 86400.0})})
    for _ in range(3):
        with pytest.raises(GateRefused, match="confidence window"):
            contract.run(work(m, url))
    refused = "SELECT count(*) FROM zdm.event WHERE what = 'contract refused'"
    assert one(url, refused) == 1
    say(url, "UPDATE people SET full_name = full_name WHERE id = 3")
    with pytest.raises(GateRefused, match="straggler"):
        contract.run(work(m, url))
    assert one(url, refused) == 2  # other reasons


def test_keys_that_a_dead_contract_left(url: str) -> None:
    sql(url, "INSERT INTO zdm.touched (migration_id, key) SELECT id, '{1}' FROM zdm.migration")
    with connected(url, purpose="contract") as other:
        assert other.locks.take(f"zdm:migration:{M.name}")
        watch.look(work(M, url))
        assert one(url, "SELECT count(*) FROM zdm.touched") == 1  # a contract at work asks for them
    eventually(lambda: watch.look(work(M, url)) and one(url, "SELECT count(*) FROM zdm.touched") == 0)


# -- statements -------------------------------------------------------------------------------------------


COUNTED = """
CREATE SCHEMA "their tools";
CREATE TABLE "their tools".called (queryid bigint PRIMARY KEY, query text, calls bigint DEFAULT 1, toplevel bool DEFAULT true);
CREATE FUNCTION "their tools".pg_stat_statements(showtext boolean)
RETURNS TABLE (userid oid, dbid oid, toplevel bool, queryid bigint, query text, calls bigint) LANGUAGE sql AS
  'SELECT 10::oid, (SELECT oid FROM pg_database WHERE datname = current_database()), toplevel, queryid,
     CASE WHEN showtext THEN query END, calls FROM "their tools".called';
CREATE VIEW "their tools".pg_stat_statements_info AS SELECT 3::bigint AS dealloc, now() AS stats_reset;
"""


@pytest.fixture
def counted(database: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that counts statements, as an extension would that the embedded server does not have."""
    people(database, 20)
    sql(database, COUNTED)
    monkeypatch.setattr(Users, "_schema", lambda *_: '"their tools"')
    return database


def called(url: str, queryid: int, text: str) -> None:
    sql(
        url,
        'INSERT INTO "their tools".called AS c (queryid, query) VALUES (%s, %s) '
        "ON CONFLICT (queryid) DO UPDATE SET calls = c.calls + 1",
        queryid,
        text,
    )


def test_who_reads_the_old_column_is_found_by_statements(counted: str) -> None:
    reading = "SELECT note, people.full_name FROM people WHERE id = $1"
    called(counted, 1, reading)  # before reads were switched
    walk(M, counted, State.SWITCHED)
    sql(counted, "UPDATE zdm.statement SET grown_at = grown_at - interval '2 hours'")
    assert contract.refusals(work(M, counted)) == []
    called(counted, 1, reading)
    with pytest.raises(
        GateRefused, match=r"may have called a statement that names full_name since the last look .*queryid 1"
    ):
        contract.run(work(M, counted))
    assert "may have called" in contract.refusals(work(M, counted))[0]
    # The way out: nobody calls it any more, and the window passes.
    sql(counted, "UPDATE zdm.statement SET grown_at = grown_at - interval '2 hours'")
    assert contract.run(work(M, counted)).state == State.TOMBSTONED


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("SELECT full_name FROM people", True),
        ('select p."full_name" from public.people p', True),
        ("UPDATE People SET note = FULL_NAME", True),
        ("WITH p AS (SELECT * FROM people) SELECT full_name FROM p", True),
        ("SELECT id, display_name AS full_name FROM people", False),
        ('SELECT display_name AS "full_name" FROM people', False),
        ("SELECT * FROM people", False),
        ("SELECT full_name_2 FROM people", False),
        ("SELECT full_name FROM peoples", False),
        ("SELECT full_name FROM elsewhere", False),
        ('SELECT count(*) FROM ONLY "public"."people" AS "people" WHERE full_name IS NULL', False),  # as ours are
        ('UPDATE ONLY "public"."people" SET "full_name" = $1 WHERE $2 OPERATOR(pg_catalog.=) "full_name"', False),
        ("ALTER TABLE people ALTER full_name SET STATISTICS 9", False),
    ],
)
def test_which_texts_name_a_column(counted: str, text: str, names: bool) -> None:
    walk(M, counted, State.EXPANDED)
    called(counted, 1, text)
    with connected(counted, purpose="test") as conn:
        oid = int(one(counted, "SELECT 'people'::regclass::oid::bigint"))
        users = Users(migration_id=1, table=M.table_name, oid=oid, columns=("full_name",), window=3600.0)
        assert bool(users.reasons(conn, {})) == names
        assert users.reasons(conn, {"a replica": conn}) == users.reasons(conn, {})  # counts there are not kept
        assert any("dropped statements 3 times" in told for told in users.unseen(conn))


def test_a_session_whose_latest_statement_names_it(url: str) -> None:
    sql(url, "DROP TABLE other")
    with psycopg.connect(url, autocommit=True, application_name="console") as c:
        c.execute("SELECT 'people', 'full_name'")
        assert contract.refusals(work(M, url)) == []
        c.execute("SELECT full_name FROM people")
        assert "straggler: console (role postgres)" in contract.refusals(work(M, url))[0]
    eventually(lambda: contract.refusals(work(M, url)) == [])


def test_a_name_that_others_have_is_a_hint(counted: str) -> None:
    sql(counted, PAIR)
    walk(M, counted, State.SWITCHED)
    called(counted, 1, "SELECT full_name FROM people")
    assert contract.refusals(work(M, counted)) == []
    assert any("may name full_name, as another table has such a column" in t for t in contract.unseen(work(M, counted)))


def test_what_cannot_be_seen_is_said(url: str) -> None:
    assert contract.unseen(work(M, url)) == [
        "who reads full_name is not seen: pg_stat_statements is not in this database"
    ]
    assert contract.run(work(M, url)).state == State.TOMBSTONED


def test_an_earlier_migration_has_no_such_trigger(database: str) -> None:
    people(database, 5)
    expanded(M0, database)
    sql(database, f"DROP TRIGGER zzz_zdm_{M0.name}_names ON people")
    walk(M0, database, State.CONTRACTED)
