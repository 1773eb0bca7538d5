"""What the application notices: transactions that keep one snapshot, and what counts on a table's columns, named before expand."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors

from zdm_pipelines.model.migration import Migration
from zdm_pipelines.verbs import plan
from zdm_pipelines_tests.helpers import (
    backfilled,
    contracted,
    expanded,
    holding,
    one,
    people,
    replaced,
    sql,
    validated,
    work,
)
from zdm_pipelines_tests.integration.test_application_triggers import extract, purge
from zdm_pipelines_tests.integration.test_signals import counted as counted  # a fixture


@pytest.fixture
def url(database: str) -> str:
    people(database, 20)
    return database


def warnings(m: Migration, url: str) -> str:
    return "\n".join(plan.read(work(m, url)).warnings)


# -- transactions that keep one snapshot ------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("kind", ["replace", "purge"])
def test_such_a_transaction_fails_once_and_succeeds_again(url: str, level: str, kind: str) -> None:
    m = purge() if kind == "purge" else replaced()
    expanded(m, url)
    if kind == "purge":
        validated(m, url)
    with psycopg.connect(url) as application:
        application.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        application.execute("SELECT count(*) FROM people")
        told = warnings(m, url) if kind == "replace" else ""
        (contracted if kind == "purge" else backfilled)(m, url)
        with pytest.raises(errors.SerializationFailure):
            application.execute("UPDATE people SET note = 'x', full_name = 'y' WHERE id = 5")
        application.rollback()
        application.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        application.execute("UPDATE people SET note = 'x', full_name = 'y' WHERE id = 5")  # as such code retries
    assert told == ""  # expand's plan is that of the day on which it ran
    if kind == "replace":
        assert one(url, "SELECT display_name FROM people WHERE id = 5") == "n:y"
        validated(m, url)


def test_rows_that_were_not_written_meanwhile_are_no_matter(url: str) -> None:
    """A batch that only locks, or passes rows over, is met by nobody."""
    m = extract()
    expanded(m, url)
    with psycopg.connect(url) as application:
        application.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        application.execute("SELECT count(*) FROM people")
        backfilled(m, url)
        application.execute("UPDATE people SET note = 'x' WHERE id = 5")


@pytest.fixture
def role(url: str) -> Iterator[str]:
    name = "zdm_test_" + uuid.uuid4().hex[:8]
    sql(url, f"CREATE ROLE {name}")
    yield name
    sql(url, f"DROP ROLE {name}")


@pytest.mark.parametrize("kind", ["replace", "extract", "purge"])
def test_who_has_such_transactions_by_default_is_named(url: str, role: str, kind: str) -> None:
    m = {"replace": replaced, "extract": extract, "purge": purge}[kind]()
    assert "serialize" not in warnings(m, url)
    name = url.rsplit("/", 1)[1]
    sql(url, f"ALTER ROLE {role} SET default_transaction_isolation = 'repeatable read'")
    sql(url, f"ALTER ROLE {role} IN DATABASE {name} SET default_transaction_isolation = 'serializable'")
    sql(url, f"ALTER DATABASE {name} SET default_transaction_isolation TO 'REPEATABLE READ'")
    told = warnings(m, url)
    assert f"role {role} has default_transaction_isolation REPEATABLE READ" in told
    assert f"role {role} in database {name} has default_transaction_isolation SERIALIZABLE" in told
    assert f"database {name} has default_transaction_isolation REPEATABLE READ" in told
    assert "let such code retry" in told


def test_a_session_that_keeps_a_snapshot_now_is_named(url: str) -> None:
    with psycopg.connect(url, application_name="books") as application:
        application.execute("SELECT count(*) FROM people")
        assert "keeps a snapshot" not in warnings(replaced(), url)  # READ COMMITTED keeps none
    with holding(url, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SELECT count(*) FROM people", name="books"):
        assert "books (role postgres) keeps a snapshot between statements" in warnings(replaced(), url)


# -- what counts on the columns --------------------------------------------------------------------------------

ATOMIC = "BEGIN ATOMIC {}; END"
FUNCTIONS = {
    "sql, *": ("SETOF people LANGUAGE sql AS 'SELECT * FROM people'", False),
    "sql, listed": ("SETOF people LANGUAGE sql AS 'SELECT id, full_name, note FROM people'", True),
    "sql, frozen *": ("SETOF people LANGUAGE sql BEGIN ATOMIC SELECT * FROM people; END", True),
    "plpgsql, *": ("SETOF people LANGUAGE plpgsql AS 'BEGIN RETURN QUERY SELECT * FROM people; END'", False),
    "plpgsql, listed": (
        "SETOF people LANGUAGE plpgsql AS 'BEGIN RETURN QUERY SELECT id, full_name, note FROM people; END'", True
    ),
    "row variable": (
        "people LANGUAGE plpgsql AS 'DECLARE r people; BEGIN SELECT * INTO r FROM people LIMIT 1; RETURN r; END'", False
    ),
    "row constructor": ("people LANGUAGE plpgsql AS $$BEGIN RETURN ROW(1::bigint, 'a'::text, 'b'::text); END$$", True),
    "row cast": ("people LANGUAGE sql AS $$SELECT ROW(1::bigint, 'a'::text, 'b'::text)::people$$", True),
}  # fmt: skip


@pytest.mark.parametrize("which", FUNCTIONS)
def test_functions_that_give_rows_of_the_table(url: str, which: str) -> None:
    """Those that fail once there is one column more are named, and no others."""
    declared, fails = FUNCTIONS[which]
    sql(url, f"CREATE FUNCTION giving() RETURNS {declared}")
    m = replaced()
    assert ("function giving() gives rows of public.people and lists their columns" in warnings(m, url)) == fails
    expanded(m, url)
    try:
        sql(url, "SELECT * FROM giving()")
    except psycopg.Error:
        assert fails
        sql(url, "CREATE OR REPLACE FUNCTION giving() RETURNS SETOF people LANGUAGE sql AS 'SELECT * FROM people'"
            if "SETOF" in declared else "SELECT 1")  # the way out  # fmt: skip
        assert sql(url, "SELECT * FROM giving()") if "SETOF" in declared else True
    else:
        assert not fails


@pytest.mark.parametrize(
    ("body", "fails"),
    [
        ("INSERT INTO audit VALUES (NEW.*)", True),
        ("INSERT INTO audit SELECT OLD.*", True),
        ("INSERT INTO audit (id, full_name, note) SELECT (NEW).*", True),
        ("INSERT INTO audit (id, full_name, note) VALUES (NEW.id, NEW.full_name, NEW.note)", False),
        ("IF NEW.* IS DISTINCT FROM OLD.* THEN INSERT INTO audit (id) VALUES (NEW.id); END IF", False),
    ],
)
def test_triggers_that_copy_whole_rows(url: str, body: str, fails: bool) -> None:
    sql(
        url,
        "CREATE TABLE audit (id bigint, full_name text, note text); CREATE FUNCTION keep() RETURNS trigger "
        f"LANGUAGE plpgsql AS 'BEGIN {body}; RETURN NEW; END'; "
        "CREATE TRIGGER keep AFTER UPDATE ON people FOR EACH ROW EXECUTE FUNCTION keep()",
    )
    m = replaced()
    assert ('trigger "keep" inserts all columns of public.people elsewhere' in warnings(m, url)) == fails
    if fails and "(id," in body:
        sql(url, "CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN INSERT INTO audit (id) VALUES (NEW.id); RETURN NEW; END'")  # fmt: skip
    elif fails:
        sql(url, "ALTER TABLE audit ADD display_name text")  # the way out
    expanded(m, url)
    sql(url, "UPDATE people SET full_name = 'x' WHERE id = 1")
    assert one(url, "SELECT count(*) FROM audit") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO people VALUES (DEFAULT, 'a', 'b')",
        "INSERT INTO people SELECT 900, 'a', 'b'",
        "INSERT INTO people SELECT * FROM (SELECT 900::bigint, 'a', 'b') AS staged",
        "MERGE INTO people USING (VALUES (1)) s ON false WHEN NOT MATCHED THEN INSERT VALUES (DEFAULT, 'a', 'b')",
        "COPY people (id, full_name, note) FROM PROGRAM 'echo 900,a,b' WITH (FORMAT csv)",
        "DO $$ DECLARE r people; BEGIN SELECT * INTO r FROM people WHERE id = 1; r.id := 900; r.full_name := 'a'; "
        "r.display_name := NULL; INSERT INTO people VALUES (r.*); END $$",
    ],
)
def test_inserts_without_a_column_list_are_mirrored(url: str, statement: str) -> None:
    m = replaced()
    expanded(m, url)
    sql(url, statement)
    assert one(url, "SELECT display_name FROM people WHERE full_name = 'a'") == "n:a"
    assert one(url, "SELECT count(*) FROM zdm.writer WHERE wrote = 'old'") == 1  # so that contract waits for it


def test_views_go_on(url: str) -> None:
    sql(url, "CREATE VIEW everybody AS SELECT * FROM people")
    m = replaced()
    expanded(m, url)
    sql(url, "UPDATE everybody SET full_name = 'w' WHERE id = 1")
    assert one(url, "SELECT display_name FROM people WHERE id = 1") == "n:w"
    assert len(sql(url, "SELECT * FROM everybody")[0]) == 3


def test_statements_that_were_run_without_columns_are_named(counted: str) -> None:
    texts = (
        "COPY people FROM STDIN", "copy public.people from stdin with (format csv)",
        "INSERT INTO people VALUES ($1, $2, $3)", "INSERT INTO archive SELECT * FROM people WHERE id < $1",
    )  # fmt: skip
    harmless = (
        "COPY people (id) FROM STDIN", "COPY people_old FROM STDIN", "INSERT INTO people (id) VALUES ($1)",
        "INSERT INTO peoples VALUES ($1)", "INSERT INTO a SELECT * FROM people2", "SELECT * FROM people",
    )  # fmt: skip
    fill = 'INSERT INTO "their tools".called (queryid, query, calls, total_exec_time) VALUES (1, %s, 1, 1)'
    for text in harmless:
        sql(counted, fill, text)
    assert "pg_stat_statements" not in warnings(replaced(), counted)
    for text in texts:
        sql(counted, fill, text)
    told = warnings(replaced(), counted)
    assert "pg_stat_statements has COPY public.people FROM without columns: it fails once there is one more" in told
    assert "pg_stat_statements has INSERT INTO public.people without columns" in told
    assert "pg_stat_statements has INSERT … SELECT * FROM public.people" in told


# -- two unique columns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "told"),
    [
        ("ALTER TABLE people ADD CONSTRAINT people_name UNIQUE (full_name)", True),
        ("CREATE UNIQUE INDEX people_name ON people (full_name)", True),
        ("CREATE UNIQUE INDEX people_name ON people (full_name, note)", True),
        ("ALTER TABLE people ADD CONSTRAINT people_name UNIQUE (full_name) DEFERRABLE", False),
        ("CREATE INDEX people_name ON people (full_name)", False),
        ("CREATE UNIQUE INDEX people_name ON people (note)", False),
    ],
)
def test_a_unique_column_that_gets_a_twin_is_told(url: str, index: str, told: bool) -> None:
    sql(url, index)
    assert (
        'unique "people_name" has a twin on "display_name" from validate until' in warnings(replaced(), url)
    ) == told


LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"


def twins(url: str, **declared: Any) -> Migration:
    """A unique column, and its twin on the new one."""
    sql(url, "ALTER TABLE people ADD UNIQUE (full_name)")
    m = replaced(**declared)
    expanded(m, url)
    backfilled(m, url)
    validated(m, url)
    return m


@pytest.mark.parametrize("column", ["full_name", "display_name"])
def test_upserts_of_one_key_at_once(url: str, column: str) -> None:
    """An index that takes its time stands between the two: without the lock on the key most such upserts fail."""
    sql(url, """
ALTER TABLE people ADD UNIQUE (full_name);
CREATE FUNCTION slow(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.003); RETURN $1; END';
CREATE INDEX people_slow ON people (slow(note))""")  # fmt: skip
    m = replaced()
    expanded(m, url)
    backfilled(m, url)
    validated(m, url)
    done, failed, halt = list[str](), list[str](), time.monotonic() + 3

    def upsert(number: int) -> None:
        with psycopg.connect(url, autocommit=True) as conn:
            at = number
            while time.monotonic() < halt:
                at += 1
                key = ("n:k" if column == "display_name" else "k") + str(at % 3)
                try:
                    conn.execute(
                        f"INSERT INTO people ({column}) VALUES (%s) ON CONFLICT ({column}) DO UPDATE SET note = 'x'",
                        [key],
                    )
                except errors.UniqueViolation as error:
                    failed.append(str(error))
                conn.execute(f"DELETE FROM people WHERE {column} = %s", [key])
                conn.execute(f"INSERT INTO people ({column}) VALUES (%s) ON CONFLICT DO NOTHING", [key])
                conn.execute(f"DELETE FROM people WHERE {column} = %s", [key])
                done.append(key)

    writers = [threading.Thread(target=upsert, args=[n]) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    # A session that does not get to run for a while holds its lock for longer than others wait.
    assert len(failed) * 50 <= len(done), (len(failed), len(done), failed[0])
    assert one(url, "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM 'n:' || full_name") == 0


def test_inserts_of_two_keys_in_opposite_order_do_not_wait_for_each_other(url: str) -> None:
    twins(url)
    insert = "INSERT INTO people (full_name) VALUES (%s) ON CONFLICT DO NOTHING"
    with psycopg.connect(url) as one_session, psycopg.connect(url) as another:
        for session, key in ((one_session, "v1"), (another, "v2"), (one_session, "v2"), (another, "v1")):
            session.execute("SET statement_timeout = '2s'; SET deadlock_timeout = '100ms'")
            session.execute(insert, [key])


def test_a_transaction_locks_few_keys(url: str) -> None:
    twins(url)
    insert = "INSERT INTO people (full_name) SELECT %s || n FROM generate_series(1, 1000) AS n"
    with psycopg.connect(url) as conn:
        for word, level, locks in (("a", "READ COMMITTED", 16), ("b", "READ COMMITTED", 16), ("c", "SERIALIZABLE", 0)):
            conn.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
            conn.execute(insert, [word])
            assert conn.execute(LOCKS).fetchone() == (locks,)
            conn.commit()
        conn.execute("INSERT INTO people (full_name, note) VALUES (NULL, 'nobody meets it')")
        assert conn.execute(LOCKS).fetchone() == (0,)


def test_the_key_of_an_expression_that_fails_stops_no_insert(url: str) -> None:
    """The twin stands from validate on, which finds such a row; until then the application's insert goes through."""
    sql(url, "ALTER TABLE people ADD UNIQUE (full_name)")
    declared = {"people_full_name_key": "USING btree (display_name)"}
    sql(url, "CREATE UNIQUE INDEX by_length ON people ((length(full_name)), id) WHERE id > 0")
    expanded(replaced(rebuild={**declared, "by_length": "USING btree ((1 / (length(display_name) - 3)), id)"}), url)
    sql(url, "INSERT INTO people (full_name) VALUES ('k')")
    assert one(url, "SELECT display_name FROM people WHERE full_name = 'k'") == "n:k"


def test_a_renamed_column_of_the_key_stops_no_insert(url: str) -> None:
    sql(url, "CREATE UNIQUE INDEX people_both ON people (full_name, note)")
    m = replaced()
    expanded(m, url)
    backfilled(m, url)
    validated(m, url)
    sql(url, "ALTER TABLE people RENAME note TO remark")
    sql(url, "INSERT INTO people (full_name, remark) VALUES ('k', 'r') ON CONFLICT (full_name, remark) DO NOTHING")
    assert one(url, "SELECT display_name FROM people WHERE full_name = 'k'") == "n:k"
