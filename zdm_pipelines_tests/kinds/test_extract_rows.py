"""Rows of an extracted table: batches beside the application, parity, steps there and back."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import Any, cast

import psycopg
import pytest
from psycopg import errors

from zdm_pipelines.model.capabilities import ALL, Notes
from zdm_pipelines.model.values import Statement
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests.conftest import Filled
from zdm_pipelines_tests.kinds.extraction import (
    ADDRESSES,
    SETTINGS,
    USERS,
    Background,
    Extraction,
    eventually,
    holding,
    one,
    sql,
    waiting,
)

ROWS = 200
LISTS = """
CREATE TABLE public.users (id bigint PRIMARY KEY, name text, addresses jsonb);
INSERT INTO public.users SELECT n, 'u' || n,
  (SELECT jsonb_agg(jsonb_build_object('street', 's' || n || i, 'zip', i)) FROM generate_series(1, n % 4) i)
FROM generate_series(1, {rows}) n;
"""


# A trigger of the application's that runs before ours, and waits where it is told to.
SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END';
CREATE TRIGGER a_slow AFTER UPDATE ON users FOR EACH ROW WHEN (NEW.name = 'slow') EXECUTE FUNCTION slow()"""


def dump(server: Server, url: str) -> str:
    """The schema as pg_dump prints it, without the ledger and without what differs at each call."""
    text = server.run("pg_dump", "--schema-only", "--exclude-schema=zdm", database=url.rsplit("/", 1)[1]).stdout
    return "\n".join(line for line in text.splitlines() if not re.match(r"\\(un)?restrict ", line))


@pytest.fixture
def settings(filled: Filled) -> Extraction:
    """Many users, both shapes in sync, nothing copied."""
    url, found = filled(_settings)
    return cast(Extraction, found).at(url)


def _settings(database: str) -> Extraction:
    sql(database, USERS.format(rows=ROWS))
    return Extraction(database, SETTINGS).expand()


@pytest.fixture
def lists(filled: Filled) -> Extraction:
    """Many users with lists of addresses, both shapes in sync, nothing copied."""
    url, found = filled(_lists)
    return cast(Extraction, found).at(url)


def _lists(database: str) -> Extraction:
    sql(database, LISTS.format(rows=ROWS))
    return Extraction(database, ADDRESSES, name="lists").expand()


# -- steps there and back -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "rows"), [(SETTINGS, USERS), (ADDRESSES, LISTS)])
def test_every_step_and_its_undo(server: Server, database: str, change: dict[str, Any], rows: str) -> None:
    sql(database, rows.format(rows=20))
    before = dump(server, database)
    found = Extraction(database, change).expand()
    expanded = dump(server, database)
    assert expanded != before
    found.backfill()
    enforce = found.change.enforce
    assert found.one_by_one(enforce)
    assert found.one_by_one(enforce) == 0
    for check in found.change.checks:
        assert one(database, check.count) == 0
    validated = dump(server, database)
    retire = found.change.retire
    assert retire is not None
    found.tombstone()
    assert "zdm_tombstone_" in dump(server, database)
    found.undo(retire.tombstone())
    found.tombstoned = False
    assert dump(server, database) == validated
    found.undo(enforce)
    assert dump(server, database) == expanded
    found.undo(found.change.expand)
    assert dump(server, database) == before
    assert (
        one(
            database,
            "SELECT count(*) FROM pg_proc WHERE pronamespace = 'zdm'::regnamespace AND proname NOT IN ('refuse_change', 'flag_times', 'writer_once', 'note_named')",
        )
        == 0
    )


def test_contract_leaves_the_new_table_alone(settings: Extraction) -> None:
    url = settings.url
    settings.backfill().one_by_one(settings.change.enforce)
    retire = settings.change.retire
    assert retire is not None
    with settings.server.connect(purpose="test") as session:
        assert retire.dependents(session) == []
        sql(url, "CREATE VIEW themes AS SELECT profile->>'theme' FROM users")
        assert len(retire.dependents(session)) == 1
        sql(url, "DROP VIEW themes")
    settings.tombstone()
    settings.run(settings.change.retire.drop() if settings.change.retire else [])
    assert sql(
        url, "SELECT attname FROM pg_attribute WHERE attrelid = 'users'::regclass AND attnum > 0 AND NOT attisdropped"
    ) == [("id",), ("name",)]
    assert (
        one(
            url,
            "SELECT count(*) FROM pg_proc WHERE pronamespace = 'zdm'::regnamespace AND proname NOT IN ('refuse_change', 'flag_times', 'writer_once', 'note_named')",
        )
        == 0
    )
    assert (
        one(
            url,
            "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal AND tgrelid IN ('users'::regclass, 'user_settings'::regclass)",
        )
        == 0
    )
    sql(url, "INSERT INTO users (id) VALUES (9999); INSERT INTO user_settings (user_id) VALUES (9999)")
    assert sql(url, "SELECT theme, notifications_enabled FROM user_settings WHERE user_id = 9999") == [(None, True)]
    with pytest.raises(errors.NotNullViolation):
        sql(url, "UPDATE user_settings SET notifications_enabled = NULL")
    sql(url, "DELETE FROM users WHERE id = 9999")
    assert one(url, "SELECT count(*) FROM user_settings WHERE user_id = 9999") == 0


def test_behind_the_foreign_key_old_code_changes_and_deletes_keys_as_before(settings: Extraction) -> None:
    url = settings.url
    sql(url, "UPDATE users SET profile = profile || '{\"more\": 1}' WHERE id = 5")
    settings.backfill().one_by_one(settings.change.enforce)
    sql(url, "UPDATE users SET id = 5000 WHERE id = 5; DELETE FROM users WHERE id = 6")
    assert one(url, "SELECT profile FROM users WHERE id = 5000") == {"theme": "t5", "notifications": False, "more": 1}
    assert one(url, "SELECT theme FROM user_settings WHERE user_id = 5000") == "t5"
    assert settings.agree()


def test_a_unique_index_stands_before_the_first_row(database: str) -> None:
    sql(database, USERS.format(rows=5))
    new = SETTINGS["new"] | {"indexes": [{"name": "one_theme", "definition": "(lower(theme))", "unique": True}]}
    found = Extraction(database, SETTINGS | {"new": new}).expand()
    sql(database, 'UPDATE users SET profile = \'{"theme": "T1"}\' WHERE id IN (1, 2)')
    with pytest.raises(errors.UniqueViolation):
        found.backfill()
    assert found.counts()[1] >= 1


def test_grants(database: str) -> None:
    sql(database, USERS.format(rows=5))
    sql(database, 'DROP ROLE IF EXISTS "zdm Reader"; CREATE ROLE "zdm Reader"')
    try:
        sql(database, 'GRANT SELECT, INSERT ON users TO "zdm Reader"; GRANT SELECT ON users TO PUBLIC')
        warned = Extraction(database, SETTINGS).surveyed.warnings
        assert (
            'nobody else may use public.user_settings at first: GRANT INSERT, SELECT ON "public"."user_settings" TO "zdm Reader"'
            in warned
        )
        found = Extraction(database, SETTINGS | {"grants": "copy"}).expand()
        assert not any("nobody else" in w for w in found.surveyed.warnings)
        assert one(database, "SELECT has_table_privilege('zdm Reader', 'user_settings', 'INSERT')")
        assert not one(database, "SELECT has_table_privilege('zdm Reader', 'user_settings', 'DELETE')")
        found.undo(found.change.expand)
    finally:
        sql(database, 'DROP OWNED BY "zdm Reader"; DROP ROLE "zdm Reader"')


# -- batches --------------------------------------------------------------------------------------------------


def test_a_row_under_change_is_passed_over(settings: Extraction) -> None:
    url = settings.url
    with holding(
        url, 'UPDATE users SET profile = \'{"theme": "newer"}\' WHERE id = 2', "DELETE FROM users WHERE id = 3"
    ) as app:
        app.execute("INSERT INTO user_settings (user_id, theme) VALUES (4, 'newer')")
        begun = time.monotonic()
        with settings.server.connect(purpose="test") as session:
            settings.batch(session, None, None)
        assert time.monotonic() - begun < 2
        assert one(url, "SELECT count(*) FROM user_settings") == ROWS - 3
        app.commit()
    settings.backfill()
    assert sql(url, "SELECT user_id, theme FROM user_settings WHERE user_id < 5 ORDER BY 1") == [
        (1, "t1"),
        (2, "newer"),
        (4, "newer"),
    ]
    assert settings.agree()


@pytest.mark.parametrize("repair", [False, True])
@pytest.mark.parametrize(
    ("fixture", "statements", "expected"),
    [
        # New code leaves what the old column does not say by itself: both shapes agree through down only.
        ("settings", ["INSERT INTO user_settings (user_id) VALUES (3) ON CONFLICT (user_id) DO NOTHING", "UPDATE user_settings SET theme = 'mine', notifications_enabled = NULL WHERE user_id = 3"], [("mine", None)]),
        ("settings", ["UPDATE users SET profile = NULL WHERE id = 3", "INSERT INTO user_settings VALUES (3, 'again', false)"], [("again", False)]),
        # A set with a gap.
        ("lists", ["INSERT INTO user_addresses VALUES (3, 9, 'mine')", "DELETE FROM user_addresses WHERE user_id = 3 AND nr = 1"], [(2,), (3,), (9,)]),
    ],
)  # fmt: skip
def test_what_new_code_wrote_between_the_snapshot_and_the_lock_wins(
    request: pytest.FixtureRequest, fixture: str, statements: list[str], expected: list[Any], repair: bool
) -> None:
    """The batch's snapshot shows a row that waits; by its lock new code has written it."""
    found: Extraction = request.getfixturevalue(fixture)
    url, work = found.url, found.change.rows
    assert work is not None
    held = "CREATE FUNCTION held() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN true; END'"
    sql(url, held)
    if repair:
        wrong = "(3, 1, 'x'), (3, 2, 'x'), (3, 3, 'x')" if fixture == "lists" else "(3, 'x', true)"
        sql(url, f"SET zdm.backfill = 'on'; INSERT INTO {found.table} VALUES {wrong}")

    def batch() -> None:
        with found.server.connect(purpose="test") as session, session.transaction():
            session.run(Statement("SELECT set_config('zdm.backfill', 'on', true)"))
            for statement in work.batch(("3",), ("4",), pick=ALL, repair=repair):
                late = statement.sql.replace(" FOR SHARE", " AND (SELECT held()) FOR SHARE")
                session.run(Statement(late, statement.values))

    with holding(url, "SELECT pg_advisory_xact_lock(7)"):
        moving = Background(batch)
        eventually(lambda: waiting(url))
        for statement in statements:
            sql(url, statement)
    moving.result()
    columns = "nr" if fixture == "lists" else "theme, notifications_enabled"
    assert sql(url, f"SELECT {columns} FROM {found.table} WHERE user_id = 3 ORDER BY 1") == expected
    found.backfill()
    assert found.agree()


def test_repair_takes_the_old_columns_and_leaves_what_agrees_through_down(settings: Extraction) -> None:
    url = settings.backfill().url
    sql(url, "SET zdm.backfill = 'on'; UPDATE user_settings SET theme = 'unseen' WHERE user_id = 1; DELETE FROM user_settings WHERE user_id = 2;"
        "INSERT INTO user_settings VALUES (100000, 'extra'); UPDATE users SET profile = NULL WHERE id = 3")  # fmt: skip
    assert settings.counts() == (ROWS + 1, 1, 2, 1, 0, 1)
    settings.backfill()
    assert settings.counts()[1:] == (0, 2, 1, 0, 0)
    settings.backfill(repair=True)
    assert settings.counts() == (ROWS, 0, 0, 0, 0, 0)
    # NULL is what the old column makes of it, and up never gives it.
    sql(url, "UPDATE user_settings SET notifications_enabled = NULL WHERE user_id = 4")
    assert settings.counts() == (ROWS, 0, 0, 0, 1, 0)
    settings.backfill(repair=True)
    assert one(url, "SELECT notifications_enabled FROM user_settings WHERE user_id = 4") is None


def test_repair_of_arrays(lists: Extraction) -> None:
    url = lists.backfill().url
    sql(url, "SET zdm.backfill = 'on'; UPDATE user_addresses SET zip = 99 WHERE user_id = 1; DELETE FROM user_addresses WHERE user_id = 2 AND nr = 2;"
        "INSERT INTO user_addresses VALUES (4, 1, 'extra'), (100000, 1, 'extra'); DELETE FROM user_addresses WHERE user_id = 3")  # fmt: skip
    assert lists.counts() == (ROWS + 1, 1, 2, 2, 0, 1)
    lists.backfill(repair=True)
    assert lists.counts() == (ROWS, 0, 0, 0, 0, 0)
    sql(url, "DELETE FROM user_addresses WHERE user_id = 3 AND nr = 1")
    assert lists.counts() == (ROWS, 0, 0, 0, 1, 0)
    lists.backfill(repair=True)
    assert sql(url, "SELECT nr FROM user_addresses WHERE user_id = 3 ORDER BY 1") == [(2,), (3,)]


@pytest.mark.parametrize("fixture", ["settings", "lists"])
def test_keys_and_ranges_of_what_disagrees(request: pytest.FixtureRequest, fixture: str) -> None:
    found = request.getfixturevalue(fixture).backfill()
    new = found.table
    sql(
        found.url,
        f"SET zdm.backfill = 'on'; DELETE FROM {new} WHERE user_id = 9; UPDATE {new} SET user_id = -1 WHERE user_id = 5",
    )
    parity = found.change.parity
    with found.server.connect(purpose="compare") as session:

        def first(category: str, lower: Any = None, upper: Any = None) -> list[Any]:
            return [key for (key,) in session.run(parity.mismatched_keys(category, lower, upper, limit=3))]

        assert (first("missing"), first("extra"), first("different")) == ([["5"], ["9"]], [["-1"]], [])
        assert first("missing", ("6",), ("9",)) == []
        assert first("missing", ("9",), None) == [["9"]]
        assert first("extra", ("0",), None) == []
        assert session.run(parity.compare(("5",), ("6",)))[0] == (1, 1, 0, 0, 0, 1)


def test_keys_are_recorded_whoever_writes(settings: Extraction) -> None:
    settings.backfill()
    url, sync = settings.url, settings.change.sync
    assert sync is not None
    until = one(url, "SELECT (clock_timestamp() + '1 h')::text")
    step = sync.note(Notes(track_until=until))
    settings.run([step])

    def taken() -> tuple[int, int]:
        parity = settings.change.parity
        assert parity is not None
        counted: tuple[int, int] = sql(url, parity.touched_disagreeing().replace("$1", str(settings.number)))[0]
        return counted

    sql(
        url,
        "UPDATE users SET profile = '{}' WHERE id = 1; UPDATE user_settings SET theme = 'x' WHERE user_id = 2; DELETE FROM user_settings WHERE user_id = 3",
    )
    sql(
        url,
        "DELETE FROM users WHERE id = 4; UPDATE users SET id = 7000 WHERE id = 7; INSERT INTO user_settings VALUES (8000, 'nobody')",
    )
    assert taken() == (7, 1)
    sql(url, 'UPDATE users SET profile = \'{"notifications": "?"}\' WHERE id = 9')
    with pytest.raises(errors.InvalidTextRepresentation):
        taken()
    sql(
        url,
        "UPDATE users SET profile = NULL WHERE id = 9; DELETE FROM user_settings WHERE user_id = 8000; TRUNCATE user_settings",
    )
    count, bad = taken()
    assert (count, bad) == (ROWS - 1, 0)
    settings.run([step.undoing()])
    sql(url, "UPDATE users SET name = 'y', profile = '{}' WHERE id = 1")
    assert taken() == (0, 0)
    settings.run([step])
    settings.tombstone()
    sql(url, "UPDATE user_settings SET theme = 'z' WHERE user_id = 2")
    assert taken() == (0, 0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id uuid", "md5(n::text)::uuid"),
        ("tenant int, id text", "n % 7, 'doc ' || n || '''\"%\\'"),
        ("at timestamptz, device uuid", "timestamptz '2026-01-01' + n % 9 * interval '1 s', md5(n::text)::uuid"),
        ('"Na""me%" numeric', "n / 7.0"),
        ("id character(12)", "'c' || n"),
        ("id int GENERATED ALWAYS AS IDENTITY", "n"),
    ],
)
def test_any_key(database: str, key: str, value: str) -> None:
    columns = [part.split(" ")[0] for part in key.split(", ")]
    names = ", ".join(columns)
    sql(database, f"CREATE TABLE users (profile jsonb, {key}, PRIMARY KEY ({names}))")
    given = "jsonb_build_object('theme', 't' || n, 'notifications', true)"
    sql(database, f"INSERT INTO users (profile, {names}) OVERRIDING SYSTEM VALUE SELECT {given}, {value} FROM generate_series(1, 50) n")  # fmt: skip
    held = {f"of_{i}": name.strip('"').replace('""', '"') for i, name in enumerate(columns)}
    found = Extraction(database, SETTINGS | {"new": SETTINGS["new"] | {"key": held}}).expand().backfill()
    assert found.counts() == (50, 0, 0, 0, 0, 0)
    sql(database, "UPDATE users SET profile = profile || '{\"theme\": \"newer\"}' WHERE profile->>'theme' LIKE 't1%'")
    sql(database, "DELETE FROM users WHERE profile->>'theme' LIKE 't2%'")
    sql(database, "UPDATE user_settings SET theme = 'new' WHERE theme LIKE 't3%'")
    assert found.counts() == (39, 0, 0, 0, 0, 0)
    sql(database, "SET zdm.backfill = 'on'; UPDATE user_settings SET theme = 'wrong' WHERE theme LIKE 't4%'")
    assert found.counts()[3] == 11
    assert found.backfill(repair=True).agree()


def test_many_rows_exchange_their_keys(settings: Extraction) -> None:
    url = settings.url
    sql(url, "ALTER TABLE users DROP CONSTRAINT users_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    settings.backfill()
    sql(url, "UPDATE users SET id = id + 1; UPDATE users SET id = 203 - id")
    assert settings.agree()


def test_a_row_that_is_extra_no_more_is_not_removed(settings: Extraction) -> None:
    """Its source row is inserted between the statement's snapshot and its lock."""
    url, work = settings.backfill().url, settings.change.rows
    assert work is not None
    sql(url, "SET zdm.backfill = 'on'; INSERT INTO user_settings VALUES (2001, 'x'), (2002, 'x')")
    first, *others = work.batch(None, None, pick=ALL, repair=True)
    late = first.sql.replace(" FOR UPDATE", " AND (SELECT pg_advisory_xact_lock(7)) IS NOT NULL FOR UPDATE")
    assert late != first.sql

    def batch() -> None:
        with settings.server.connect(purpose="test") as session, session.transaction():
            session.run(Statement("SELECT set_config('zdm.backfill', 'on', true)"))
            for statement in (first._replace(sql=late), *others):
                session.run(statement)

    with holding(url, "SELECT pg_advisory_xact_lock(7)"):
        removing = Background(batch)
        eventually(lambda: waiting(url))
        sql(url, 'INSERT INTO users (id, profile) VALUES (2001, \'{"theme": "late"}\')')
    removing.result()
    assert sql(url, "SELECT user_id, theme FROM user_settings WHERE user_id > 2000") == [(2001, "late")]
    assert settings.agree()


# -- everything at once ---------------------------------------------------------------------------------------


class Client(Background):
    """Random transactions of one client, each over a few users."""

    def __init__(self, url: str, seed: int, choices: Callable[[random.Random, int, int], str]) -> None:
        self.url, self.dice, self.choices = url, random.Random(seed), choices
        self.ended = False
        self.transactions = 0
        super().__init__(self.write)

    def write(self) -> None:
        number = self.dice.randrange(1_000) * 1_000_000
        with psycopg.connect(self.url) as connection:
            while not self.ended:
                # Each source row in its order, as an application must that wants no deadlocks of its own.
                for key in sorted(self.dice.sample(range(1, 21), k=self.dice.randint(1, 3))):
                    number += 1
                    connection.execute(self.choices(self.dice, key, number).encode())
                    time.sleep(self.dice.choice([0, 0, 0.001, 0.01]))
                (connection.rollback if self.dice.random() < 0.1 else connection.commit)()
                self.transactions += 1


def old_settings(dice: random.Random, key: int, number: int) -> str:
    return dice.choice([
        f"UPDATE users SET profile = jsonb_build_object('theme', 'o{number}', 'notifications', {number} % 2 = 0) WHERE id = {key}",
        f"UPDATE users SET profile = profile || '{{\"theme\": \"o{number}\"}}' WHERE id = {key}",
        f"INSERT INTO users (id, profile) VALUES ({key}, '{{\"theme\": \"i{number}\"}}') ON CONFLICT (id) DO UPDATE SET profile = excluded.profile",
        f"DELETE FROM users WHERE id = {key}",
        f"UPDATE users SET profile = NULL WHERE id = {key}",
        f"UPDATE users SET name = 'n{number}' WHERE id = {key}",
    ])  # fmt: skip


def new_settings(dice: random.Random, key: int, number: int) -> str:
    lock = f"SELECT FROM users WHERE id = {key} FOR NO KEY UPDATE"
    return dice.choice([
        f"UPDATE user_settings SET theme = 'n{number}' WHERE user_id = {key}",
        f"UPDATE user_settings SET notifications_enabled = NOT notifications_enabled WHERE user_id = {key}",
        f"INSERT INTO user_settings (user_id, theme) SELECT {key}, 'n{number}' WHERE EXISTS (SELECT FROM users WHERE id = {key} FOR KEY SHARE) ON CONFLICT (user_id) DO UPDATE SET theme = excluded.theme",
        f"UPDATE user_settings SET theme = 'm{number}' WHERE user_id BETWEEN {key} AND {key}",
        f"{lock}; DELETE FROM user_settings WHERE user_id = {key}",
    ])  # fmt: skip


def old_lists(dice: random.Random, key: int, number: int) -> str:
    return dice.choice([
        f"UPDATE users SET addresses = coalesce(addresses, '[]') || '{{\"street\": \"o{number}\", \"zip\": {number}}}' WHERE id = {key}",
        f"UPDATE users SET addresses = coalesce(addresses, '[]') - 0 WHERE id = {key}",
        f"UPDATE users SET addresses = jsonb_set(addresses, '{{0,street}}', '\"s{number}\"') WHERE id = {key} AND jsonb_array_length(addresses) > 0",
        f"UPDATE users SET addresses = NULL WHERE id = {key}",
        f"UPDATE users SET name = 'n{number}' WHERE id = {key}",
    ])  # fmt: skip


def new_lists(dice: random.Random, key: int, number: int) -> str:
    lock = f"SELECT FROM users WHERE id = {key} FOR NO KEY UPDATE"
    return dice.choice([
        f"UPDATE user_addresses SET street = 'n{number}' WHERE user_id = {key} AND nr = 1",
        f"INSERT INTO user_addresses VALUES ({key}, {number % 7 + 1}, 'i{number}') ON CONFLICT (user_id, nr) DO UPDATE SET street = excluded.street",
        f"{lock}; DELETE FROM user_addresses WHERE user_id = {key} AND nr = {number % 4}",
        f"{lock}; DELETE FROM user_addresses WHERE user_id = {key}; INSERT INTO user_addresses VALUES ({key}, 1, 'r{number}', 1), ({key}, 2, 'r{number}', 2)",
    ])  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("fixture", "old", "new"), [("settings", old_settings, new_settings), ("lists", old_lists, new_lists)]
)
def test_any_interleaving(request: pytest.FixtureRequest, fixture: str, old: Any, new: Any, seed: int) -> None:
    """No client of either shape fails, no snapshot shows a disagreement, and at the end nothing is missing."""
    found: Extraction = request.getfixturevalue(fixture)
    table = found.table
    # Triggers of the application's, which run before ours: each write holds its first lock for a while.
    sql(
        found.url,
        "CREATE FUNCTION pause() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(random() * 0.02); RETURN NULL; END'",
    )
    for paused in ("users", table):
        sql(
            found.url,
            f"CREATE TRIGGER a_pause AFTER INSERT OR UPDATE OR DELETE ON {paused} FOR EACH ROW EXECUTE FUNCTION pause()",
        )
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = one(found.url, deadlocks)
    clients = [Client(found.url, 100 * seed + n, choices) for n, choices in enumerate((old, old, new, new))]
    try:
        for _ in range(4):
            found.backfill()
            _, _, extra, different, _, _ = found.counts()
            assert (extra, different) == (0, 0)
            # Once more; whoever writes the new table has the source row locked.
            again = "SELECT id FROM users WHERE id % 3 <> 0 FOR NO KEY UPDATE SKIP LOCKED"
            sql(found.url, "SET zdm.backfill = 'on';"
                f"WITH again AS MATERIALIZED ({again}) DELETE FROM {table} USING again WHERE user_id = id")  # fmt: skip
            time.sleep(0.5)
    finally:
        for client in clients:
            client.ended = True
        for client in clients:
            client.result()
    found.backfill()
    assert found.agree()
    assert all(client.transactions > 10 for client in clients)
    assert one(found.url, deadlocks) == before


def test_an_update_of_new_code_that_waited_loses_no_column(settings: Extraction) -> None:
    """It waits for the source row without holding its own, and starts from what old code left."""
    url = settings.backfill().url
    with holding(url, 'UPDATE users SET profile = \'{"theme": "old", "notifications": true}\' WHERE id = 1') as app:
        writing = Background(lambda: sql(url, "UPDATE user_settings SET theme = 'new' WHERE user_id = 1"))
        eventually(lambda: waiting(url))
        app.execute("UPDATE users SET profile = profile || '{\"notifications\": false}' WHERE id = 1")
        app.commit()
        writing.result()
    assert sql(url, "SELECT theme, notifications_enabled FROM user_settings WHERE user_id = 1") == [("new", False)]
    assert one(url, "SELECT profile FROM users WHERE id = 1") == {"theme": "new", "notifications": False}


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE user_settings SET theme = 'n' WHERE user_id = 1",
        "INSERT INTO user_settings (user_id, theme) VALUES (1, 'n') ON CONFLICT (user_id) DO UPDATE SET theme = 'n'",
        "MERGE INTO user_settings USING (VALUES (1)) s (i) ON user_id = i WHEN MATCHED THEN UPDATE SET theme = 'n'",
        "BEGIN; SELECT FROM users WHERE id = 1 FOR NO KEY UPDATE; DELETE FROM user_settings WHERE user_id = 1; COMMIT",
    ],
)
def test_new_code_that_meets_old_code_waits(settings: Extraction, statement: str) -> None:
    """Old code has locked the source row, and not yet the new one."""
    url = settings.backfill().url
    sql(url, SLOW)
    with holding(url, "SELECT pg_advisory_xact_lock(7)"):
        old = Background(
            lambda: sql(url, "UPDATE users SET name = 'slow', profile = '{\"theme\": \"o\"}' WHERE id = 1")
        )
        eventually(lambda: waiting(url) == 1)
        new = Background(lambda: sql(url, statement))
        eventually(lambda: waiting(url) == 2)
        time.sleep(1.2)  # longer than the server waits before it looks for deadlocks
    old.result()
    new.result()
    assert settings.agree()
    assert sql(url, "SELECT theme FROM user_settings WHERE user_id = 1") == ([] if "DELETE" in statement else [("n",)])


@pytest.mark.parametrize("write", ["UPDATE user_settings SET theme = 'n' WHERE user_id = 1", "SELECT put()"])
def test_new_code_with_few_rights_waits_too(settings: Extraction, write: str) -> None:
    """It may update one column, or calls a function that may with its owner's rights."""
    url = settings.backfill().url
    sql(url, SLOW)
    sql(
        url,
        "DROP ROLE IF EXISTS zdm_some, zdm_owner; CREATE ROLE zdm_some; CREATE ROLE zdm_owner;"
        "CREATE FUNCTION put() RETURNS void LANGUAGE sql SECURITY DEFINER AS $$ UPDATE public.user_settings SET theme = 'n' WHERE user_id = 1 $$;"
        "ALTER FUNCTION put() OWNER TO zdm_owner; GRANT SELECT, UPDATE ON user_settings TO zdm_owner;"
        + ("GRANT SELECT, UPDATE (theme) ON user_settings TO zdm_some" if "put" not in write else ""),
    )
    try:
        with holding(url, "SELECT pg_advisory_xact_lock(7)"):
            old = Background(
                lambda: sql(url, "UPDATE users SET name = 'slow', profile = '{\"theme\": \"o\"}' WHERE id = 1")
            )
            eventually(lambda: waiting(url) == 1)
            new = Background(lambda: sql(url, f"SET ROLE zdm_some; {write}"))
            eventually(lambda: waiting(url) == 2)
        old.result()
        new.result()
        assert sql(url, "SELECT theme FROM user_settings WHERE user_id = 1") == [("n",)]
        assert settings.agree()
    finally:
        sql(url, "DROP OWNED BY zdm_some, zdm_owner; DROP ROLE zdm_some, zdm_owner")


def test_a_delete_of_new_code_that_meets_old_code_is_ended_or_right(settings: Extraction) -> None:
    """The one order that no hook reaches: the server ends one of the two, and both shapes agree."""
    url = settings.backfill().url
    sql(url, SLOW)
    outcomes = []
    with holding(url, "SELECT pg_advisory_xact_lock(7)"):
        old = Background(
            lambda: sql(url, "UPDATE users SET name = 'slow', profile = '{\"theme\": \"o\"}' WHERE id = 1")
        )
        eventually(lambda: waiting(url) == 1)
        new = Background(lambda: sql(url, "DELETE FROM user_settings WHERE user_id = 1"))
        eventually(lambda: waiting(url) == 2)
    for thread in (old, new):
        try:
            thread.result()
            outcomes.append("done")
        except errors.DeadlockDetected:
            outcomes.append("ended")
    assert sorted(outcomes) == ["done", "ended"]
    assert settings.agree()


def test_new_code_waits_for_nobody_elses_row(settings: Extraction) -> None:
    url = settings.backfill().url
    with holding(url, "UPDATE users SET name = 'held' WHERE id <> 1"):
        sql(url, "SET lock_timeout = '1s'; UPDATE user_settings SET theme = 'x' WHERE user_id = 1;"
            "DELETE FROM user_settings WHERE user_id = 1; INSERT INTO user_settings VALUES (1, 'y')")  # fmt: skip
    with holding(url, "SELECT FROM users WHERE id = 1 FOR KEY SHARE"):  # somebody's foreign key
        sql(url, "SET lock_timeout = '1s'; UPDATE user_settings SET theme = 'x' WHERE user_id = 1")
    assert settings.agree()


@pytest.mark.parametrize("fixture", ["settings", "lists"])
@pytest.mark.parametrize("statement", ["TRUNCATE users, {new}", "TRUNCATE {new}, users", "TRUNCATE users CASCADE"])
def test_both_tables_are_emptied(request: pytest.FixtureRequest, fixture: str, statement: str) -> None:
    found: Extraction = request.getfixturevalue(fixture).backfill()
    if "CASCADE" in statement:
        found.one_by_one(found.change.enforce)
    sql(found.url, statement.format(new=found.table))
    assert one(found.url, f"SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM {found.table})") == 0
    sql(found.url, "INSERT INTO users (id) VALUES (1)")
    assert found.counts() == (1, 0, 0, 0, 0, 0)
