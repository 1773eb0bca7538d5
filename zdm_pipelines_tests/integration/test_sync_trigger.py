"""Sync trigger: whoever writes through whichever shape, both shapes hold the newest value."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from zdm_pipelines.model.errors import MappingFailed
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Moved
from zdm_pipelines.phases import backfill, validate
from zdm_pipelines_tests.conftest import Filled
from zdm_pipelines_tests.helpers import backfilled, expanded, one, people, replaced, sql, state, validated, walk, work


@pytest.fixture
def url(filled: Filled) -> str:
    """Three people, both shapes in sync, nothing moved yet."""
    return filled(_three)[0]


def _three(url: str) -> None:
    people(url, 3)
    expanded(replaced(), url)


def row(url: str, key: int = 1) -> tuple[Any, ...]:
    return sql(url, "SELECT full_name, display_name FROM people WHERE id = %s", key)[0]


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        # old code
        ("UPDATE people SET full_name = 'a' WHERE id = 1", ("a", "n:a")),
        ("UPDATE people SET full_name = NULL WHERE id = 1", (None, None)),
        ("UPDATE people SET full_name = '' WHERE id = 1", ("", "n:")),
        ("UPDATE people SET full_name = full_name WHERE id = 1", ("v1", None)),
        ("UPDATE people SET note = 'x' WHERE id = 1", ("v1", None)),
        ("DELETE FROM people WHERE id = 1; INSERT INTO people (id, full_name) VALUES (1, 'again')", ("again", "n:again")),
        ("DELETE FROM people WHERE id = 1; INSERT INTO people (id) VALUES (1)", (None, None)),
        # new code
        ("UPDATE people SET display_name = 'n:b' WHERE id = 1", ("b", "n:b")),
        ("UPDATE people SET display_name = 'n:b' WHERE id = 1; UPDATE people SET full_name = NULL, display_name = NULL WHERE id = 1",
         (None, None)),
        ("DELETE FROM people WHERE id = 1; INSERT INTO people (id, display_name) VALUES (1, 'n:c')", ("c", "n:c")),
        # dual writers: both values are kept, right or wrong
        ("UPDATE people SET full_name = 'd', display_name = 'n:d' WHERE id = 1", ("d", "n:d")),
        ("UPDATE people SET full_name = 'd', display_name = 'n:e' WHERE id = 1", ("d", "n:e")),
        ("DELETE FROM people WHERE id = 1; INSERT INTO people (id, full_name, display_name) VALUES (1, 'd', 'n:e')", ("d", "n:e")),
        # one after the other: the newest counts
        ("UPDATE people SET full_name = 'f' WHERE id = 1; UPDATE people SET display_name = 'n:g' WHERE id = 1", ("g", "n:g")),
        ("UPDATE people SET display_name = 'n:g' WHERE id = 1; UPDATE people SET full_name = 'f' WHERE id = 1", ("f", "n:f")),
        # upserts
        ("INSERT INTO people (id, full_name) VALUES (1, 'u') ON CONFLICT (id) DO UPDATE SET full_name = excluded.full_name",
         ("u", "n:u")),
        ("INSERT INTO people (id, display_name) VALUES (1, 'n:u') ON CONFLICT (id) DO UPDATE SET display_name = excluded.display_name",
         ("u", "n:u")),
        ("INSERT INTO people (id, full_name) VALUES (1, 'u') ON CONFLICT (id) DO NOTHING", ("v1", None)),
        ("INSERT INTO people (id, full_name) VALUES (1, 'u') ON CONFLICT (id) DO UPDATE SET note = 'seen'", ("v1", None)),
        ("MERGE INTO people USING (VALUES (1, 'm')) s (i, n) ON id = i WHEN MATCHED THEN UPDATE SET full_name = n", ("m", "n:m")),
        # sessions in which ordinary triggers are silent
        ("SET session_replication_role = replica; UPDATE people SET full_name = 'r' WHERE id = 1", ("r", "n:r")),
        ("SET session_replication_role = replica; UPDATE people SET display_name = 'n:r' WHERE id = 1", ("r", "n:r")),
        # sessions that find other things under the same names
        ("SET search_path = pg_catalog; UPDATE public.people SET full_name = 's' WHERE id = 1", ("s", "n:s")),
        ("SET search_path = ''; UPDATE public.people SET display_name = 'n:s' WHERE id = 1", ("s", "n:s")),
        ("CREATE SCHEMA evil; CREATE FUNCTION evil.substr(text, int) RETURNS text LANGUAGE sql AS $$ SELECT 'evil' $$; "
         "SET search_path = evil, pg_catalog; UPDATE public.people SET display_name = 'n:s' WHERE id = 1", ("s", "n:s")),
        # a column list that names everything, as some mappers write
        ("UPDATE people SET full_name = 'all', display_name = display_name, note = note WHERE id = 1", ("all", "n:all")),
        # in a transaction that is taken back
        ("BEGIN; UPDATE people SET full_name = 'never' WHERE id = 1; ROLLBACK", ("v1", None)),
        ("BEGIN; SAVEPOINT s; UPDATE people SET full_name = 'never' WHERE id = 1; ROLLBACK TO s; "
         "UPDATE people SET full_name = 'kept' WHERE id = 1; COMMIT", ("kept", "n:kept")),
    ],
)  # fmt: skip
def test_a_write(url: str, statement: str, expected: tuple[Any, ...]) -> None:
    sql(url, statement)
    assert row(url) == expected
    # And the backfill changes no value that was written, only fills what was not.
    backfilled(replaced(), url)
    full, display = row(url)
    assert full == expected[0]
    assert display == (expected[1] if expected[1] is not None or full is None else f"n:{full}")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        # A mapper that read the row before it was moved, and writes every column back after it was.
        ("UPDATE people SET full_name = 'v1', display_name = NULL, note = 'x' WHERE id = 1", ("v1", "n:v1")),
        ("UPDATE people SET full_name = 'w', display_name = NULL, note = 'x' WHERE id = 1", ("w", "n:w")),
        ("UPDATE people SET display_name = 'n:z' WHERE id = 1", ("z", "n:z")),
    ],
)
def test_null_is_no_value_where_it_may_not_be(database: str, statement: str, expected: tuple[Any, ...]) -> None:
    people(database, 3)
    m = replaced(new={"name": "display_name", "type": "text", "nullable": False}, up="'n:' || coalesce(full_name, '')")
    walk(m, database, State.BACKFILLED)
    sql(database, statement)
    assert row(database) == expected
    validated(m, database)


def test_copy(url: str) -> None:
    with psycopg.connect(url) as c:
        with c.cursor().copy("COPY people (id, full_name) FROM STDIN") as copy:
            copy.write_row((10, "old"))
        with c.cursor().copy("COPY people (id, display_name) FROM STDIN") as copy:
            copy.write_row((11, "n:new"))
    assert (row(url, 10), row(url, 11)) == (("old", "n:old"), ("new", "n:new"))


def test_many_rows_in_one_statement(url: str) -> None:
    sql(url, "INSERT INTO people (id, full_name) SELECT n, 'm' || n FROM generate_series(100, 1100) n")
    sql(url, "UPDATE people SET full_name = full_name || '!' WHERE id % 2 = 0")
    sql(url, "UPDATE people SET display_name = display_name || '?' WHERE id % 3 = 0 AND id >= 100")
    assert (
        one(url, "SELECT count(*) FROM people WHERE id >= 100 AND display_name IS DISTINCT FROM 'n:' || full_name") == 0
    )


def defaulted(url: str, *, default: str = "'unknown'") -> Migration:
    sql(url, f"CREATE TABLE people (id bigint PRIMARY KEY, full_name text NOT NULL DEFAULT {default}, note text)")
    m = replaced(new={"name": "display_name", "type": "text", "nullable": False, "default": "'n:unknown'"})
    expanded(m, url)
    return m


@pytest.mark.parametrize(
    ("columns", "values", "expected"),
    [
        ("id", "1", ("unknown", "n:unknown")),
        ("id, display_name", "1, 'n:new'", ("new", "n:new")),
        ("id, full_name", "1, 'old'", ("old", "n:old")),
        ("id, full_name", "1, 'unknown'", ("unknown", "n:unknown")),
        ("id, full_name, display_name", "1, 'unknown', 'n:new'", ("new", "n:new")),
        ("id, full_name, display_name", "1, DEFAULT, 'n:new'", ("new", "n:new")),
        ("id, full_name, display_name", "1, 'old', NULL", ("old", "n:old")),
    ],
)
def test_an_insert_where_the_old_column_has_a_default(
    database: str, columns: str, values: str, expected: tuple[Any, ...]
) -> None:
    m = defaulted(database)
    sql(database, f"INSERT INTO people ({columns}) VALUES ({values})")
    assert row(database) == expected
    walk(m, database, State.TOMBSTONED)
    sql(database, "INSERT INTO people (id) VALUES (2)")
    sql(database, "INSERT INTO people (id, display_name) VALUES (3, 'n:three')")
    tomb = "SELECT zdm_tombstone_full_name, display_name FROM people WHERE id > 1 ORDER BY id"
    assert sql(database, tomb) == [("unknown", "n:unknown"), ("three", "n:three")]
    walk(m, database, State.CONTRACTED)
    sql(database, "INSERT INTO people (id) VALUES (4)")
    assert one(database, "SELECT display_name FROM people WHERE id = 4") == "n:unknown"


def test_behind_the_tombstone_the_old_value_is_kept_up(url: str) -> None:
    m = replaced()
    walk(m, url, State.TOMBSTONED)
    sql(url, "UPDATE people SET display_name = 'n:late' WHERE id = 1")
    sql(url, "INSERT INTO people (id, display_name) VALUES (9, 'n:nine')")
    assert sql(url, "SELECT zdm_tombstone_full_name FROM people WHERE id IN (1, 9) ORDER BY id") == [
        ("late",),
        ("nine",),
    ]


# -- several columns --------------------------------------------------------------------------------------


@pytest.fixture
def named(database: str) -> str:
    sql(database, "CREATE TABLE people (id int PRIMARY KEY, first text NOT NULL, last text NOT NULL, note text)")
    sql(database, "INSERT INTO people SELECT n, 'first' || n, 'last' || n FROM generate_series(1, 5) n")
    return database


JOINED = replaced(
    old="last",
    new={"name": "display_name", "type": "text", "nullable": False},
    up="first || ' ' || last",
    down="split_part(display_name, ' ', 2)",
)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("UPDATE people SET last = 'L' WHERE id = 1", ("first1", "L", "first1 L")),
        ("UPDATE people SET first = 'F' WHERE id = 1", ("F", "last1", "F last1")),
        ("UPDATE people SET first = 'F', last = 'L' WHERE id = 1", ("F", "L", "F L")),
        ("UPDATE people SET display_name = 'first1 D' WHERE id = 1", ("first1", "D", "first1 D")),
        ("UPDATE people SET first = 'F', display_name = 'F D', last = 'D' WHERE id = 1", ("F", "D", "F D")),
        ("UPDATE people SET note = 'n' WHERE id = 1", ("first1", "last1", None)),
    ],
)
def test_up_reads_several_columns(named: str, statement: str, expected: tuple[Any, ...]) -> None:
    expanded(JOINED, named)
    sql(named, statement)
    assert sql(named, "SELECT first, last, display_name FROM people WHERE id = 1") == [expected]
    backfilled(JOINED, named)
    validated(JOINED, named)


# -- the application's own triggers -----------------------------------------------------------------------


def test_a_trigger_of_the_application_changes_the_old_column(database: str) -> None:
    """It does not name the column in SET; the sync trigger runs behind it and sees the row."""
    people(database, 3)
    sql(
        database,
        "CREATE FUNCTION tidy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.full_name := upper(NEW.full_name); RETURN NEW; END $$",
    )
    sql(database, "CREATE TRIGGER zz_tidy BEFORE INSERT OR UPDATE ON people FOR EACH ROW EXECUTE FUNCTION tidy()")
    expanded(replaced(), database)
    sql(database, "UPDATE people SET note = 'x' WHERE id = 1")
    assert row(database) == ("V1", "n:V1")
    sql(database, "INSERT INTO people (id, full_name) VALUES (9, 'nine')")
    assert row(database, 9) == ("NINE", "n:NINE")


def test_other_updates_do_not_enter_the_function(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as c:
        c.execute("SET track_functions = 'all'")
        calls = (
            "SELECT coalesce((SELECT sum(calls) FROM pg_stat_user_functions WHERE funcname LIKE 'sync\\_%'), 0)::int"
        )

        def called(statement: bytes) -> int:
            c.execute("SELECT pg_stat_force_next_flush()")
            before = c.execute(calls).fetchone()
            c.execute(statement)
            c.execute("SELECT pg_stat_force_next_flush()")
            after = c.execute(calls).fetchone()
            assert before is not None
            assert after is not None
            return int(after[0]) - int(before[0])

        assert called(b"UPDATE people SET note = 'x'") == 0
        assert called(b"UPDATE people SET full_name = full_name") == 0
        assert called(b"UPDATE people SET full_name = full_name || '.'") == 3


# -- who may write ----------------------------------------------------------------------------------------


def test_a_role_with_table_privileges_only(url: str) -> None:
    sql(url, "DROP ROLE IF EXISTS plain_writer")
    sql(url, "CREATE ROLE plain_writer")
    sql(url, "GRANT SELECT, INSERT, UPDATE ON people TO plain_writer; GRANT USAGE ON SCHEMA public TO plain_writer")
    try:
        with psycopg.connect(url, autocommit=True, application_name="plain") as c:
            c.execute("SET ROLE plain_writer")
            c.execute("UPDATE people SET full_name = 'a' WHERE id = 1")
            c.execute("UPDATE people SET display_name = 'n:b' WHERE id = 2")
            c.execute("INSERT INTO people (id, full_name) VALUES (9, 'c')")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                c.execute("SELECT * FROM zdm.writer")
            assert c.execute("SELECT percent FROM zdm.flag").fetchall() == [(0,)]
        assert (row(url, 1), row(url, 2), row(url, 9)) == (("a", "n:a"), ("b", "n:b"), ("c", "n:c"))
        assert set(sql(url, "SELECT application_name, wrote FROM zdm.writer")) == {
            ("plain", w) for w in ("old", "new", "names")
        }
    finally:
        sql(url, "DROP OWNED BY plain_writer; DROP ROLE plain_writer")


def test_a_client_cannot_slip_its_own_objects_in(url: str) -> None:
    """The function runs with our rights: a temporary type of the client must not be found by its expressions."""
    m = replaced(name="ages", old="note", new={"name": "age", "type": "text"}, up="note::text", down="age::text")
    sql(url, "UPDATE zdm.migration SET state = 'rolled_back'")
    expanded(m, url)
    with psycopg.connect(url, autocommit=True) as c:
        c.execute("CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (false)")
        c.execute("UPDATE people SET note = '33' WHERE id = 1")
    assert one(url, "SELECT age FROM people WHERE id = 1") == "33"


def test_writers_are_noted_once_a_minute_and_session(url: str) -> None:
    with psycopg.connect(url, autocommit=True, application_name="batch job") as c:
        for n in range(20):
            c.execute("UPDATE people SET full_name = %s WHERE id = 1", [str(n)])
            c.execute("UPDATE people SET display_name = %s WHERE id = 1", [f"n:x{n}"])
    noted = sql(url, "SELECT wrote, count(*) FROM zdm.writer WHERE application_name = 'batch job' GROUP BY 1")
    assert {w for w, _ in noted} == {"old", "new", "names"}
    assert all(count <= 2 for _, count in noted)  # two when the minute turned over


def test_two_writers_do_not_wait_for_each_other(url: str) -> None:
    with psycopg.connect(url) as first, psycopg.connect(url) as second:
        first.execute("UPDATE people SET full_name = 'a' WHERE id = 1")
        second.execute("SET lock_timeout = '5s'")
        second.execute("UPDATE people SET full_name = 'b' WHERE id = 2")
        begun = time.monotonic()
        second.commit()
        assert time.monotonic() - begun < 4
        first.commit()


# -- mappings that fail -----------------------------------------------------------------------------------

PICKY = """
CREATE FUNCTION public.picky(t text) RETURNS integer LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN IF t = 'bad' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN length(t); END $$
"""


@pytest.mark.parametrize(
    ("up", "bad"),
    [
        ("full_name::integer", "bad"),  # a data error
        ("10 / full_name::integer", "0"),
        ("public.picky(full_name)", "bad"),  # an exception of the user's own function
    ],
)
def test_up_fails_for_a_value(database: str, up: str, bad: str) -> None:
    """The application's write goes through, validate says what is wrong, a corrected row is mirrored again."""
    sql(database, "CREATE TABLE people (id bigint PRIMARY KEY, full_name text, note text)")
    sql(database, "INSERT INTO people SELECT n, n::text FROM generate_series(1, 50) n")
    sql(database, PICKY)
    m = replaced(new={"name": "display_name", "type": "integer"}, up=up, down="display_name::text")
    walk(m, database, State.BACKFILLED)
    sql(database, "UPDATE people SET full_name = %s WHERE id = 30", bad)
    assert row(database, 30) == (bad, None)
    assert one(database, "SELECT count(*) FROM zdm.writer WHERE failed IS NOT NULL") == 1
    with pytest.raises(MappingFailed, match="people_display_name") as caught:
        validate.run(work(m, database))
    assert bad == "0" or bad not in str(caught.value)
    assert state(m, database) == State.BACKFILLED
    with pytest.raises(MappingFailed, match="30"):
        backfilled(m, database, partitions=[one(database, "SELECT partition FROM zdm.range")])
    sql(database, "UPDATE people SET full_name = '7' WHERE id = 30")
    validated(m, database)


@pytest.mark.parametrize("up", ["full_name::integer", "public.picky(full_name)"])
def test_up_fails_for_a_row_that_was_there(database: str, up: str) -> None:
    """The backfill names the key, keeps what it moved, and goes on when the row is corrected."""
    sql(database, "CREATE TABLE people (id bigint PRIMARY KEY, full_name text, note text)")
    sql(
        database,
        "INSERT INTO people SELECT n, CASE n WHEN 35 THEN 'bad' ELSE n::text END FROM generate_series(1, 50) n",
    )
    sql(database, PICKY)
    m = replaced(
        new={"name": "display_name", "type": "integer"},
        up=up,
        down="display_name::text",
        backfill={"batch_rows": 10},
    )
    expanded(m, database)
    with pytest.raises(MappingFailed, match="key 35"):
        backfilled(m, database)
    assert one(database, "SELECT count(display_name) FROM people") == 30
    sql(database, "UPDATE people SET full_name = '7' WHERE id = 35")
    assert sum(r.rows for r in backfilled(m, database)) == 19


def test_a_default_that_is_kept_apart(database: str) -> None:
    """`down` fails: the new value stays as written, the old one as it was; parity finds it."""
    sql(database, "CREATE TABLE people (id bigint PRIMARY KEY, full_name integer, note text)")
    sql(database, "INSERT INTO people SELECT n, n FROM generate_series(1, 5) n")
    m = replaced(up="full_name::text", down="display_name::integer")
    walk(m, database, State.BACKFILLED)
    sql(database, "UPDATE people SET display_name = 'many' WHERE id = 1")
    assert row(database) == (1, "many")
    (parity, *_) = validate.run(work(m, database)).checks
    assert not parity.passed
    assert "1 whose new value `down` cannot give back (first keys: 1)" in parity.summary


# -- races with the backfill ------------------------------------------------------------------------------


def between_batches(m: Migration, url: str, *statements: str) -> None:
    """Backfill with batches of ten rows; after the first one, statements run."""
    ran: list[int] = []

    def interfere(_: Any) -> None:
        if not ran:
            ran.append(1)
            for statement in statements:
                sql(url, statement)

    list(backfill.run(work(m, url), batch=interfere))
    assert ran


SMALL = replaced(backfill={"batch_rows": 10, "range_rows": 1_000})


@pytest.fixture
def crowd(database: str) -> str:
    people(database, 100)
    expanded(SMALL, database)
    return database


def test_newer_data_wins(crowd: str) -> None:
    between_batches(
        SMALL,
        crowd,
        "UPDATE people SET full_name = 'newer' WHERE id IN (3, 50)",
        "UPDATE people SET display_name = 'n:newest' WHERE id IN (4, 60)",
    )
    assert [row(crowd, k) for k in (3, 50, 4, 60)] == [("newer", "n:newer")] * 2 + [("newest", "n:newest")] * 2
    validated(SMALL, crowd)


def test_a_deleted_row_never_comes_back(crowd: str) -> None:
    between_batches(SMALL, crowd, "DELETE FROM people WHERE id IN (2, 70)")
    assert one(crowd, "SELECT count(*) FROM people") == 98
    assert sql(crowd, "SELECT 1 FROM people WHERE id IN (2, 70)") == []


def test_delete_and_insert_again(crowd: str) -> None:
    between_batches(
        SMALL,
        crowd,
        "DELETE FROM people WHERE id = 70; INSERT INTO people (id, full_name) VALUES (70, 'second life')",
        "DELETE FROM people WHERE id = 71; INSERT INTO people (id, display_name) VALUES (71, 'n:third')",
    )
    assert (row(crowd, 70), row(crowd, 71)) == (("second life", "n:second life"), ("third", "n:third"))


def test_a_row_changes_its_key_to_where_the_backfill_has_been(crowd: str) -> None:
    between_batches(SMALL, crowd, "UPDATE people SET id = -5 WHERE id = 90")
    assert row(crowd, -5) == ("v90", "n:v90")
    validated(SMALL, crowd)


def test_a_row_changes_its_key_into_a_range_that_is_done(database: str) -> None:
    """The range was proven done before, so nobody comes back to it: the row is moved as it arrives."""
    m = replaced(backfill={"batch_rows": 10, "range_rows": 50, "max_parallel": 1})
    people(database, 100)
    expanded(m, database)

    def change_key(moved: Moved) -> None:
        if moved.partition.startswith("000002"):  # the first range is done, this row's batch is yet to come
            sql(database, "UPDATE people SET id = -5 WHERE id = 100")

    list(backfill.run(work(m, database), batch=change_key))
    assert row(database, -5) == ("v100", "n:v100")
    validated(m, database)


def test_rows_inserted_behind_the_backfill(crowd: str) -> None:
    between_batches(
        SMALL,
        crowd,
        "INSERT INTO people (id, full_name) VALUES (-10, 'before'), (100000, 'after')",
        "INSERT INTO people (id, display_name) VALUES (-11, 'n:before'), (100001, 'n:after')",
    )
    assert one(crowd, "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM 'n:' || full_name") == 0
    validated(SMALL, crowd)
