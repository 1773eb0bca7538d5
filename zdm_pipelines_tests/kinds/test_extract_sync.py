"""Sync of an extracted table: whoever writes through whichever shape, both shapes hold the newest values."""

from __future__ import annotations

import json
from typing import Any, cast

import psycopg
import pytest
from psycopg import errors

from zdm_pipelines_tests.conftest import Filled
from zdm_pipelines_tests.kinds.extraction import ADDRESSES, SETTINGS, USERS, Extraction, one, sql

Profile = dict[str, Any] | None


@pytest.fixture
def settings(filled: Filled) -> Extraction:
    """Three users, both shapes in sync; users 1 and 2 copied, 3 not."""
    url, found = filled(_settings)
    return cast(Extraction, found).at(url)


def _settings(url: str) -> Extraction:
    sql(url, USERS.format(rows=3))
    found = Extraction(url, SETTINGS).expand()
    with found.server.connect(purpose="test") as session:
        found.batch(session, None, ("3",))
    return found


def both(url: str, key: int = 1) -> tuple[Any, Any]:
    """The old value, and the new row without its key."""
    old = sql(url, "SELECT profile FROM users WHERE id = %s", key)
    new = sql(url, "SELECT theme, notifications_enabled FROM user_settings WHERE user_id = %s", key)
    assert len(new) <= 1
    return (old[0][0] if old else "gone"), (new[0] if new else None)


def profile(theme: str | None, notifications: bool | None) -> dict[str, Any]:
    return {"theme": theme, "notifications": notifications}


@pytest.mark.parametrize(
    ("statement", "old", "new"),
    [
        # old code
        ("UPDATE users SET profile = profile || '{\"theme\": \"a\"}' WHERE id = 1", profile("a", False), ("a", False)),
        ("UPDATE users SET profile = '{}' WHERE id = 1", {}, (None, True)),
        ("UPDATE users SET profile = NULL WHERE id = 1", None, None),
        ("UPDATE users SET profile = profile WHERE id = 1", profile("t1", False), ("t1", False)),
        ("UPDATE users SET name = 'x' WHERE id = 1", profile("t1", False), ("t1", False)),
        ("DELETE FROM users WHERE id = 1", "gone", None),
        ("DELETE FROM users WHERE id = 1; INSERT INTO users (id, profile) VALUES (1, '{\"theme\": \"b\"}')", {"theme": "b"}, ("b", True)),
        ("DELETE FROM users WHERE id = 1; INSERT INTO users (id) VALUES (1)", None, None),
        ("INSERT INTO users (id, profile) VALUES (1, '{\"theme\": \"u\"}') ON CONFLICT (id) DO UPDATE SET profile = excluded.profile", {"theme": "u"}, ("u", True)),
        ("INSERT INTO users (id, profile) VALUES (1, '{}') ON CONFLICT (id) DO NOTHING", profile("t1", False), ("t1", False)),
        # new code
        ("UPDATE user_settings SET theme = 'n' WHERE user_id = 1", profile("n", False), ("n", False)),
        ("UPDATE user_settings SET theme = NULL WHERE user_id = 1", profile(None, False), (None, False)),
        ("DELETE FROM user_settings WHERE user_id = 1", None, None),
        ("DELETE FROM user_settings WHERE user_id = 1; INSERT INTO user_settings VALUES (1, 'again')", profile("again", True), ("again", True)),
        ("WITH gone AS (DELETE FROM user_settings WHERE user_id = 2 RETURNING *) UPDATE user_settings SET theme = (SELECT theme FROM gone) WHERE user_id = 1",
         profile("t2", False), ("t2", False)),
        ("INSERT INTO user_settings (user_id, theme) VALUES (1, 'up') ON CONFLICT (user_id) DO UPDATE SET theme = excluded.theme", profile("up", False), ("up", False)),
        ("INSERT INTO user_settings (user_id, theme) VALUES (1, 'up') ON CONFLICT (user_id) DO NOTHING", profile("t1", False), ("t1", False)),
        ("MERGE INTO user_settings USING (VALUES (1, 'm')) s (i, t) ON user_id = i WHEN MATCHED THEN UPDATE SET theme = t", profile("m", False), ("m", False)),
        # one after the other: the newest counts
        ("BEGIN; UPDATE users SET profile = '{\"theme\": \"a\"}' WHERE id = 1; UPDATE user_settings SET theme = 'b' WHERE user_id = 1; COMMIT", profile("b", True), ("b", True)),
        ("BEGIN; UPDATE user_settings SET theme = 'b' WHERE user_id = 1; UPDATE users SET profile = '{\"theme\": \"a\"}' WHERE id = 1; COMMIT", {"theme": "a"}, ("a", True)),
        # a dual writer, and one in a single statement: what it writes first counts, and a WITH comes after
        ("UPDATE users SET profile = '{\"theme\": \"d\", \"more\": 1}' WHERE id = 1; UPDATE user_settings SET theme = 'd', notifications_enabled = true WHERE user_id = 1",
         {"theme": "d", "more": 1}, ("d", True)),
        ("WITH a AS (UPDATE users SET profile = '{\"theme\": \"a\"}' WHERE id = 1) UPDATE user_settings SET theme = 'b' WHERE user_id = 1", profile("b", False), ("b", False)),
        ("WITH b AS (UPDATE user_settings SET theme = 'b' WHERE user_id = 1) UPDATE users SET profile = '{\"theme\": \"a\"}' WHERE id = 1", {"theme": "a"}, ("a", True)),
        # sessions in which ordinary triggers are silent
        ("SET session_replication_role = replica; UPDATE users SET profile = '{}' WHERE id = 1", {}, (None, True)),
        ("SET session_replication_role = replica; UPDATE user_settings SET theme = 'r' WHERE user_id = 1", profile("r", False), ("r", False)),
        # sessions that find other things under the same names
        ("SET search_path = ''; UPDATE public.users SET profile = '{\"theme\": \"s\"}' WHERE id = 1", {"theme": "s"}, ("s", True)),
        ("CREATE SCHEMA evil; CREATE FUNCTION evil.jsonb_build_object(text, text, text, boolean) RETURNS jsonb LANGUAGE sql AS $$ SELECT '1'::jsonb $$; "
         "SET search_path = evil, pg_catalog; UPDATE public.user_settings SET theme = 's' WHERE user_id = 1", profile("s", False), ("s", False)),
        # transactions taken back
        ("BEGIN; UPDATE users SET profile = '{}' WHERE id = 1; ROLLBACK", profile("t1", False), ("t1", False)),
        ("BEGIN; UPDATE user_settings SET theme = 'never' WHERE user_id = 1; ROLLBACK", profile("t1", False), ("t1", False)),
        ("BEGIN; SAVEPOINT s; UPDATE user_settings SET theme = 'never' WHERE user_id = 1; ROLLBACK TO s; UPDATE user_settings SET theme = 'kept' WHERE user_id = 1; COMMIT",
         profile("kept", False), ("kept", False)),
        # everything at once
        ("TRUNCATE users", "gone", None),
        ("TRUNCATE user_settings", None, None),
    ],
)  # fmt: skip
def test_a_write(settings: Extraction, statement: str, old: Any, new: Any) -> None:
    sql(settings.url, statement)
    assert both(settings.url) == (old, new)
    # And the backfill changes nothing that was written, only fills what was not.
    settings.backfill()
    assert both(settings.url) == (old, new)
    assert settings.agree()


@pytest.mark.parametrize(
    ("statement", "old", "new"),
    [
        # What new code leaves out is taken from the row that was not copied yet.
        ("INSERT INTO user_settings (user_id, theme) VALUES (3, 'n')", profile("n", False), ("n", False)),
        ("INSERT INTO user_settings (user_id) VALUES (3)", profile("t3", False), ("t3", False)),
        ("INSERT INTO user_settings VALUES (3, 'n', true)", profile("n", True), ("n", True)),
        ("INSERT INTO user_settings (user_id, theme) VALUES (3, 'n') ON CONFLICT (user_id) DO UPDATE SET theme = excluded.theme", profile("n", False), ("n", False)),
        ("UPDATE user_settings SET theme = 'n' WHERE user_id = 3", profile("t3", False), None),
        ("DELETE FROM user_settings WHERE user_id = 3", profile("t3", False), None),
        ("UPDATE users SET profile = '{\"theme\": \"a\"}' WHERE id = 3", {"theme": "a"}, ("a", True)),
        # Nothing is taken from a row that says nothing.
        ("UPDATE users SET profile = NULL WHERE id = 3; INSERT INTO user_settings (user_id) VALUES (3)", profile(None, True), (None, True)),
    ],
)  # fmt: skip
def test_a_row_not_copied_yet(settings: Extraction, statement: str, old: Any, new: Any) -> None:
    sql(settings.url, "UPDATE users SET profile = profile || '{\"notifications\": false}' WHERE id = 3")
    sql(settings.url, "SET zdm.backfill = 'on'; DELETE FROM user_settings WHERE user_id = 3")
    settings_row = both(settings.url, 3)
    assert settings_row == (profile("t3", False), None)
    sql(settings.url, statement)
    assert both(settings.url, 3) == (old, new)
    settings.backfill()
    assert both(settings.url, 3) == (old, new or ("t3", False))
    assert settings.agree()


def test_keys_that_change(settings: Extraction) -> None:
    url = settings.url
    settings.backfill()
    sql(url, "UPDATE users SET id = 10 WHERE id = 1")
    assert both(url, 1) == ("gone", None)
    assert both(url, 10) == (profile("t1", False), ("t1", False))
    sql(url, "UPDATE users SET profile = NULL WHERE id = 2")
    sql(url, "UPDATE user_settings SET user_id = 2 WHERE user_id = 10")
    assert both(url, 10) == (None, None)
    assert both(url, 2) == (profile("t1", False), ("t1", False))
    sql(url, "UPDATE users SET id = CASE id WHEN 2 THEN 30 ELSE id END")
    assert settings.agree()


def test_many_rows_in_one_statement(settings: Extraction) -> None:
    url = settings.url
    sql(url, "INSERT INTO users SELECT n, 'm', jsonb_build_object('theme', 'm' || n) FROM generate_series(100, 1100) n")
    sql(url, "UPDATE users SET profile = profile || '{\"notifications\": false}' WHERE id % 2 = 0")
    sql(url, "UPDATE user_settings SET theme = theme || '!' WHERE user_id % 3 = 0 AND user_id >= 100")
    sql(url, "DELETE FROM user_settings WHERE user_id % 5 = 0 AND user_id >= 100")
    assert one(url, "SELECT count(*) FROM users WHERE id >= 100 AND profile IS NULL") == 201
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO users (id) SELECT generate_series(5000, 5002)")
        with connection.cursor().copy("COPY user_settings (user_id, theme) FROM STDIN") as copy:
            for key in range(5000, 5003):
                copy.write_row((key, f"c{key}"))
    assert both(url, 5001) == (profile("c5001", True), ("c5001", True))
    settings.backfill()
    assert settings.agree()


def test_a_write_of_new_code_costs_the_old_shape_nothing_that_does_not_change(settings: Extraction) -> None:
    """`down` would lose what `up` does not read."""
    url = settings.url
    sql(url, 'UPDATE users SET profile = \'{"theme": "a", "notifications": true, "more": 7}\' WHERE id = 1')
    sql(url, "UPDATE user_settings SET theme = theme WHERE user_id = 1")
    assert both(url)[0]["more"] == 7
    sql(url, "UPDATE user_settings SET theme = 'b' WHERE user_id = 1")
    assert both(url)[0] == profile("b", True)


def test_what_cannot_be_mapped_is_no_error_of_the_application(settings: Extraction) -> None:
    url = settings.url
    bad = '{"theme": "x", "notifications": "perhaps"}'
    sql(url, "UPDATE users SET profile = %s WHERE id = 1", bad)
    assert both(url) == (json.loads(bad), None)
    assert one(url, "SELECT failed FROM zdm.writer WHERE failed IS NOT NULL") == "22P02"
    with settings.server.connect(purpose="test") as session, pytest.raises(errors.InvalidTextRepresentation):
        settings.batch(session, ("1",), ("2",))
    sql(url, "INSERT INTO user_settings (user_id, theme) VALUES (1, 'new')")
    assert both(url) == (profile("new", True), ("new", True))


def test_a_constraint_of_the_new_table_refuses_no_write_of_old_code(settings: Extraction) -> None:
    url = settings.url
    sql(url, "ALTER TABLE user_settings ADD CHECK (theme <> 'ugly')")
    sql(url, 'UPDATE users SET profile = \'{"theme": "ugly"}\' WHERE id = 1')
    assert both(url) == ({"theme": "ugly"}, None)
    assert settings.counts()[1] == 2
    with settings.server.connect(purpose="test") as session, pytest.raises(errors.CheckViolation):
        settings.batch(session, ("1",), ("2",))
    with pytest.raises(errors.CheckViolation):
        sql(url, "INSERT INTO user_settings VALUES (1, 'ugly')")


@pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
def test_a_trigger_of_the_application_changes_the_old_columns(settings: Extraction, when: str) -> None:
    """Whatever it makes of them, both shapes agree."""
    url = settings.url
    body = {
        "BEFORE": "NEW.profile := jsonb_set(NEW.profile, '{theme}', to_jsonb(upper(NEW.profile->>'theme'))); RETURN NEW;",
        "AFTER": "IF NEW.profile->>'theme' <> upper(NEW.profile->>'theme') THEN UPDATE users SET profile = jsonb_set(NEW.profile, '{theme}', to_jsonb(upper(NEW.profile->>'theme'))) WHERE id = NEW.id; END IF; RETURN NULL;",
    }  # fmt: skip
    sql(url, f"CREATE FUNCTION loud() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body[when]} END $$")
    sql(url, f"CREATE TRIGGER loud {when} INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION loud()")
    sql(url, "UPDATE user_settings SET theme = 'new' WHERE user_id = 1")
    assert both(url) == (profile("NEW", False), ("NEW", False))
    sql(url, 'UPDATE users SET profile = \'{"theme": "old"}\' WHERE id = 1')
    assert both(url) == ({"theme": "OLD"}, ("OLD", True))
    settings.backfill()
    assert settings.agree()


def test_a_trigger_of_the_application_that_suppresses_a_write(settings: Extraction) -> None:
    url = settings.url
    sql(url, "CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
    sql(url, "CREATE TRIGGER never BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION never()")
    sql(url, "UPDATE user_settings SET theme = 'new' WHERE user_id = 1; DELETE FROM user_settings WHERE user_id = 2")
    assert both(url) == (profile("t1", False), ("t1", False))
    assert both(url, 2) == (profile("t2", True), ("t2", True))


def test_writers_are_known_by_the_shape_they_write(settings: Extraction) -> None:
    url = settings.url
    wrote = "SELECT array_agg(DISTINCT wrote ORDER BY wrote) FROM zdm.writer WHERE wrote <> 'names'"
    sql(
        url,
        "INSERT INTO users (id, name) VALUES (50, 'x'); UPDATE users SET id = 51 WHERE id = 50; DELETE FROM users WHERE id = 51",
    )
    assert one(url, wrote) is None  # new code does so, too
    sql(url, "INSERT INTO users (id) VALUES (52)")
    sql(url, "INSERT INTO user_settings (user_id, theme) VALUES (52, 'x')")
    assert one(url, wrote) == ["new"]
    sql(url, "UPDATE users SET profile = NULL WHERE id = 1")
    assert one(url, wrote) == ["new", "old"]


def test_whoever_may_not_write_the_new_table_locks_no_row(settings: Extraction) -> None:
    url = settings.url
    sql(url, "DROP ROLE IF EXISTS zdm_nobody; CREATE ROLE zdm_nobody")
    try:
        with psycopg.connect(url) as connection:
            connection.execute("SET ROLE zdm_nobody")
            connection.execute("SELECT zdm.first_settings(1)")
            assert connection.execute("SELECT FROM zdm.source_settings FOR UPDATE").fetchall() == []
            sql(url, "SET lock_timeout = '1s'; UPDATE users SET name = 'free' WHERE id = 1")
            with pytest.raises(errors.InsufficientPrivilege):
                connection.execute("SELECT zdm.note_settings('{1}', 'old', NULL)")
        sql(url, "GRANT INSERT, UPDATE, SELECT ON user_settings TO zdm_nobody")
        with pytest.raises(errors.ObjectNotInPrerequisiteState, match="cannot update view"):
            sql(url, "SET ROLE zdm_nobody; UPDATE zdm.source_settings SET zdm_1 = 9")
        sql(url, "SET ROLE zdm_nobody; UPDATE user_settings SET theme = 'by somebody' WHERE user_id = 1")
        assert both(url)[0] == profile("by somebody", False)
    finally:
        sql(url, "DROP OWNED BY zdm_nobody; DROP ROLE zdm_nobody")


def test_behind_the_tombstone_the_old_value_is_kept_up(settings: Extraction) -> None:
    url = settings.backfill().tombstone().url
    sql(url, "UPDATE user_settings SET theme = 'late' WHERE user_id = 1")
    sql(url, "INSERT INTO users (id) VALUES (9); INSERT INTO user_settings (user_id, theme) VALUES (9, 'nine')")
    sql(url, "DELETE FROM user_settings WHERE user_id = 2")
    found = sql(url, "SELECT zdm_tombstone_profile FROM users WHERE id IN (1, 2, 9) ORDER BY id")
    assert [value for (value,) in found] == [profile("late", False), None, profile("nine", True)]
    sql(url, 'UPDATE users SET zdm_tombstone_profile = \'{"theme": "by hand"}\' WHERE id = 3')
    assert sql(url, "SELECT theme FROM user_settings WHERE user_id = 3") == [("by hand",)]
    assert settings.agree()
    sql(url, "TRUNCATE user_settings")
    assert settings.agree()


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize(
    "statement",
    [
        'UPDATE users SET profile = \'{"theme": "r"}\' WHERE id = 3',
        "UPDATE users SET profile = NULL WHERE id = 3",
        "DELETE FROM users WHERE id = 3",
        "INSERT INTO user_settings (user_id, theme) VALUES (3, 'r') ON CONFLICT (user_id) DO UPDATE SET theme = 'r'",
    ],
)
def test_a_snapshot_from_before_the_copy(settings: Extraction, level: psycopg.IsolationLevel, statement: str) -> None:
    """What it cannot see it cannot overwrite: it has to be repeated, and is right then."""
    with psycopg.connect(settings.url) as app:
        app.isolation_level = level
        app.execute(statement)  # not copied yet: no trouble
        app.rollback()
        app.execute("SELECT FROM users")
        settings.backfill()
        with pytest.raises(errors.SerializationFailure):
            app.execute(statement)
        app.rollback()
        app.execute(statement)
        app.commit()
    assert settings.agree()


# -- several old columns, composite keys ----------------------------------------------------------------------

TWO: dict[str, Any] = {
    "kind": "extract_table",
    "old": ["Theme", "notify"],
    "new": {
        "table": '"Other s".settings',
        "key": {"b": "id", "a": "tenant"},
        "columns": {
            "theme": {"type": "varchar(9)", "up": '"Theme"'},
            "notify": {
                "type": "text",
                "up": "CASE WHEN notify THEN 'yes' ELSE 'no' END",
                "nullable": False,
                "default": "'no'",
            },
        },
    },
    "down": {"Theme": "theme", "notify": "settings.notify = 'yes'"},
}


@pytest.fixture
def two(filled: Filled) -> Extraction:
    url, found = filled(_two)
    return cast(Extraction, found).at(url)


def _two(database: str) -> Extraction:
    sql(database, 'CREATE SCHEMA "Other s"')
    sql(
        database,
        'CREATE TABLE users (tenant text COLLATE "C", id int, "Theme" text, notify boolean NOT NULL DEFAULT false, PRIMARY KEY (tenant, id))',
    )
    sql(
        database,
        "INSERT INTO users SELECT 't' || n % 3, n, CASE WHEN n % 2 = 0 THEN 'th' || n END, n % 4 = 0 FROM generate_series(1, 12) n",
    )
    return Extraction(database, TWO).expand()


@pytest.mark.parametrize(
    ("statement", "old", "new"),
    [
        ("UPDATE users SET \"Theme\" = 'x' WHERE id = 4", ("x", True), ("x", "yes")),
        ("UPDATE users SET \"Theme\" = NULL WHERE id = 4", (None, True), (None, "yes")),
        ("UPDATE users SET \"Theme\" = NULL, notify = false WHERE id = 4", (None, False), None),
        ("UPDATE \"Other s\".settings SET notify = 'no' WHERE b = 4", ("th4", False), ("th4", "no")),
        ("DELETE FROM \"Other s\".settings WHERE b = 4", (None, False), None),
        ("UPDATE users SET tenant = 't9' WHERE id = 4", ("th4", True), ("th4", "yes")),
        # too long for the new column: the application's write goes through
        ("UPDATE users SET \"Theme\" = 'much too long' WHERE id = 4", ("much too long", True), None),
    ],
)  # fmt: skip
def test_several_columns(two: Extraction, statement: str, old: Any, new: Any) -> None:
    two.backfill()
    assert one(two.url, 'SELECT count(*) FROM "Other s".settings') == 6
    sql(two.url, statement)
    assert sql(two.url, 'SELECT "Theme", notify FROM users WHERE id = 4') == [old]
    assert sql(two.url, 'SELECT theme, notify FROM "Other s".settings WHERE b = 4') == ([new] if new else [])
    assert two.agree() == ("too long" not in statement)


# -- an array -------------------------------------------------------------------------------------------------

PEOPLE = """
CREATE TABLE users (id bigint PRIMARY KEY, name text, addresses jsonb);
INSERT INTO users SELECT n, 'u' || n, (SELECT jsonb_agg(jsonb_build_object('street', 's' || n || i, 'zip', i)) FROM generate_series(1, n) i)
FROM generate_series(0, 3) n;
"""


@pytest.fixture
def addresses(filled: Filled) -> Extraction:
    """Users 0 to 3 with as many addresses, all copied."""
    url, found = filled(_addresses)
    return cast(Extraction, found).at(url)


def _addresses(database: str) -> Extraction:
    sql(database, PEOPLE)
    return Extraction(database, ADDRESSES).expand().backfill()


def places(url: str, key: int) -> tuple[Any, Any]:
    """The streets in the old array, and the new rows by their numbers."""
    old = sql(url, "SELECT addresses FROM users WHERE id = %s", key)
    listed = (
        [e.get("street") for e in old[0][0]] if old and isinstance(old[0][0], list) else (old[0][0] if old else "gone")
    )
    return listed, dict(sql(url, "SELECT nr, street FROM user_addresses WHERE user_id = %s ORDER BY nr", key))


@pytest.mark.parametrize(
    ("statement", "old", "new"),
    [
        ("SELECT 1", ["s31", "s32", "s33"], {1: "s31", 2: "s32", 3: "s33"}),
        # old code
        ("UPDATE users SET addresses = addresses - 0 WHERE id = 3", ["s32", "s33"], {1: "s32", 2: "s33"}),
        ("UPDATE users SET addresses = addresses || '{\"street\": \"more\"}' WHERE id = 3", ["s31", "s32", "s33", "more"], {1: "s31", 2: "s32", 3: "s33", 4: "more"}),
        ("UPDATE users SET addresses = '[]' WHERE id = 3", [], {}),
        ("UPDATE users SET addresses = NULL WHERE id = 3", None, {}),
        ("UPDATE users SET addresses = 'null' WHERE id = 3", None, {}),
        ("UPDATE users SET name = 'x' WHERE id = 3", ["s31", "s32", "s33"], {1: "s31", 2: "s32", 3: "s33"}),
        ("DELETE FROM users WHERE id = 3", "gone", {}),
        ("UPDATE users SET id = 7 WHERE id = 3", "gone", {}),
        ("TRUNCATE users", "gone", {}),
        # new code
        ("UPDATE user_addresses SET street = 'n' WHERE user_id = 3 AND nr = 2", ["s31", "n", "s33"], {1: "s31", 2: "n", 3: "s33"}),
        ("DELETE FROM user_addresses WHERE user_id = 3 AND nr = 2", ["s31", "s33"], {1: "s31", 3: "s33"}),
        ("DELETE FROM user_addresses WHERE user_id = 3", None, {}),
        ("INSERT INTO user_addresses VALUES (3, 9, 'more')", ["s31", "s32", "s33", "more"], {1: "s31", 2: "s32", 3: "s33", 9: "more"}),
        ("UPDATE user_addresses SET nr = nr + 1 WHERE user_id = 3 AND nr = 3", ["s31", "s32", "s33"], {1: "s31", 2: "s32", 4: "s33"}),
        ("UPDATE user_addresses SET user_id = 3, nr = 8 WHERE user_id = 1", ["s31", "s32", "s33", "s11"], {1: "s31", 2: "s32", 3: "s33", 8: "s11"}),
        ("BEGIN; DELETE FROM user_addresses WHERE user_id = 3; INSERT INTO user_addresses VALUES (3, 1, 'a'), (3, 2, 'b'); COMMIT", ["a", "b"], {1: "a", 2: "b"}),
        ("WITH gone AS (DELETE FROM user_addresses WHERE user_id = 3 RETURNING nr) INSERT INTO user_addresses SELECT 3, max(nr) + 7, 'only' FROM gone", ["only"], {10: "only"}),
        ("WITH gone AS (DELETE FROM user_addresses WHERE user_id = 3) INSERT INTO user_addresses VALUES (3, 10, 'only')", ["only"], {10: "only"}),
        ("TRUNCATE user_addresses", None, {}),
        # both
        ("BEGIN; UPDATE user_addresses SET street = 'n' WHERE user_id = 3; UPDATE users SET addresses = addresses - 2 WHERE id = 3; COMMIT", ["n", "n"], {1: "n", 2: "n"}),
        ("BEGIN; UPDATE users SET addresses = addresses - 2 WHERE id = 3; DELETE FROM user_addresses WHERE user_id = 3 AND nr = 1; COMMIT", ["s32"], {2: "s32"}),
        ("BEGIN; DELETE FROM user_addresses WHERE user_id = 3; ROLLBACK", ["s31", "s32", "s33"], {1: "s31", 2: "s32", 3: "s33"}),
    ],
)  # fmt: skip
def test_a_write_to_an_array(addresses: Extraction, statement: str, old: Any, new: Any) -> None:
    sql(addresses.url, statement)
    assert places(addresses.url, 3) == (old, new)
    assert addresses.agree()
    addresses.backfill()
    assert places(addresses.url, 3) == (old, new)


@pytest.mark.parametrize(
    ("statement", "old", "new"),
    [
        # The elements that new code does not replace are taken along.
        ("INSERT INTO user_addresses VALUES (3, 4, 'more')", ["s31", "s32", "s33", "more"], {1: "s31", 2: "s32", 3: "s33", 4: "more"}),
        ("INSERT INTO user_addresses VALUES (3, 2, 'mine'), (3, 4, 'more')", ["s31", "mine", "s33", "more"], {1: "s31", 2: "mine", 3: "s33", 4: "more"}),
        ("INSERT INTO user_addresses VALUES (3, 2, 'mine') ON CONFLICT (user_id, nr) DO UPDATE SET street = excluded.street", ["s31", "mine", "s33"], {1: "s31", 2: "mine", 3: "s33"}),
        ("UPDATE users SET addresses = addresses - 0 WHERE id = 3", ["s32", "s33"], {1: "s32", 2: "s33"}),
    ],
)  # fmt: skip
def test_an_array_not_copied_yet(addresses: Extraction, statement: str, old: Any, new: Any) -> None:
    sql(addresses.url, "SET zdm.backfill = 'on'; DELETE FROM user_addresses WHERE user_id = 3")
    assert addresses.counts()[1:] == (1, 0, 0, 0, 1)
    sql(addresses.url, statement)
    assert places(addresses.url, 3) == (old, new)
    addresses.backfill()
    assert places(addresses.url, 3) == (old, new)
    assert addresses.agree()


@pytest.mark.parametrize("value", ['{"street": "x"}', '"text"', "5", '[{"street": "x", "zip": "no number"}]', "[{}]"])
def test_what_is_no_array_of_such_elements(addresses: Extraction, value: str) -> None:
    """The application's write goes through, nothing is held of it, and a batch says why."""
    addresses.one_by_one(addresses.change.enforce)
    sql(addresses.url, "UPDATE users SET addresses = %s WHERE id = 3", value)
    assert places(addresses.url, 3)[1] == {}
    with addresses.server.connect(purpose="test") as session, pytest.raises(errors.DatabaseError):
        addresses.batch(session, None, None)
    sql(addresses.url, "INSERT INTO user_addresses VALUES (3, 1, 'n')")
    assert places(addresses.url, 3) == (["n"], {1: "n"})
    assert addresses.agree()


NAMED: dict[str, Any] = {
    **ADDRESSES,
    "new": {
        "table": "public.user_addresses",
        "key": {"user_id": "id"},
        "element_key": "label",
        "columns": {
            "label": {"type": "text", "up": "element->>'label'"},
            "street": {"type": "text", "up": "element->>'street'"},
            "nr": {"type": "integer", "up": "position::integer"},
        },
    },
    "down": "coalesce(jsonb_agg(jsonb_build_object('label', label, 'street', street) ORDER BY nr), '[]')",
}


@pytest.fixture
def labelled(filled: Filled) -> Extraction:
    url, found = filled(_labelled)
    return cast(Extraction, found).at(url)


def _labelled(database: str) -> Extraction:
    sql(database, "CREATE TABLE users (id int PRIMARY KEY, addresses jsonb NOT NULL DEFAULT '[]')")
    sql(
        database,
        """INSERT INTO users VALUES (1, '[{"label": "home", "street": "a"}, {"label": "work", "street": "b"}]')""",
    )
    return Extraction(database, NAMED).expand().backfill()


@pytest.mark.parametrize(
    ("statement", "old", "new"),
    [
        ("UPDATE users SET addresses = addresses - 0 WHERE id = 1", ["work"], [("work", "b", 1)]),
        ("UPDATE users SET addresses = jsonb_build_array(addresses->1, addresses->0) WHERE id = 1", ["work", "home"], [("home", "a", 2), ("work", "b", 1)]),
        ("DELETE FROM user_addresses WHERE label = 'home'", ["work"], [("work", "b", 2)]),
        ("DELETE FROM user_addresses", [], []),
        ("INSERT INTO user_addresses VALUES (1, 'new', 'c', 3)", ["home", "work", "new"], [("home", "a", 1), ("new", "c", 3), ("work", "b", 2)]),
    ],
)  # fmt: skip
def test_elements_with_a_key_of_their_own(labelled: Extraction, statement: str, old: Any, new: Any) -> None:
    sql(labelled.url, statement)
    assert [e["label"] for e in one(labelled.url, "SELECT addresses FROM users")] == old
    assert sql(labelled.url, "SELECT label, street, nr FROM user_addresses ORDER BY label") == new
    assert labelled.agree()


def test_elements_with_the_same_key(labelled: Extraction) -> None:
    url = labelled.url
    sql(url, """UPDATE users SET addresses = '[{"label": "x", "street": "1"}, {"label": "x", "street": "2"}]'""")
    assert one(url, "SELECT count(*) FROM user_addresses") == 0
    assert one(url, "SELECT failed FROM zdm.writer WHERE failed IS NOT NULL") == "21000"
    assert labelled.counts()[1:] == (1, 0, 0, 0, 1)
    labelled.backfill()  # takes the first of them
    assert labelled.counts()[1:] == (0, 0, 1, 0, 0)
    sql(url, """UPDATE users SET addresses = '[{"street": "nameless"}]'""")
    assert one(url, "SELECT count(*) FROM user_addresses") == 0
    sql(url, "UPDATE users SET addresses = DEFAULT")
    assert labelled.agree()


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize(
    "statement",
    [
        """UPDATE users SET addresses = '[{"label": "other"}]' WHERE id = 1""",
        "UPDATE users SET addresses = '[]' WHERE id = 1",
        "DELETE FROM users WHERE id = 1",
    ],
)
def test_a_snapshot_from_before_the_array_was_copied(
    labelled: Extraction, level: psycopg.IsolationLevel, statement: str
) -> None:
    sql(labelled.url, "SET zdm.backfill = 'on'; DELETE FROM user_addresses")
    with psycopg.connect(labelled.url) as app:
        app.isolation_level = level
        app.execute("SELECT FROM users")
        labelled.backfill()
        with pytest.raises(errors.SerializationFailure):
            app.execute(statement)
        app.rollback()
        app.execute(statement)
        app.commit()
    assert labelled.agree()


# -- triggers of the application that write while the sync writes -----------------------------------------------

ANSWER = """
CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {statement}; RETURN NULL; END $$;
CREATE TRIGGER other AFTER INSERT OR UPDATE ON {table} FOR EACH ROW WHEN ({when}) EXECUTE FUNCTION other()"""
OLD_2 = 'UPDATE users SET profile = profile || \'{"theme": "by a trigger"}\' WHERE id = 2'
NEW_2 = "UPDATE user_settings SET theme = 'by a trigger' WHERE user_id = 2"


@pytest.mark.parametrize(
    ("table", "when", "statement"),
    [
        ("user_settings", "NEW.user_id = 1", OLD_2),
        ("user_settings", "NEW.user_id = 1", NEW_2),
        ("users", "NEW.id = 1", OLD_2),
        ("users", "NEW.id = 1", NEW_2),
    ],
)
@pytest.mark.parametrize(
    "write",
    [
        'UPDATE users SET profile = \'{"theme": "old"}\' WHERE id = 1',
        "UPDATE user_settings SET theme = 'new' WHERE user_id = 1",
    ],
)
def test_a_trigger_writes_another_row(settings: Extraction, table: str, when: str, statement: str, write: str) -> None:
    url = settings.backfill().url
    sql(url, ANSWER.format(table=table, when=when, statement=statement))
    sql(url, write)
    assert both(url, 2) == (profile("by a trigger", True), ("by a trigger", True))
    assert settings.agree()


@pytest.mark.parametrize("statement", [OLD_2, NEW_2])
def test_a_trigger_writes_another_row_during_a_batch(settings: Extraction, statement: str) -> None:
    url = settings.backfill().url
    sql(url, ANSWER.format(table="user_settings", when="NEW.user_id = 1", statement=statement))
    sql(url, "SET zdm.backfill = 'on'; DELETE FROM user_settings WHERE user_id = 1")
    settings.backfill()
    assert both(url, 2) == (profile("by a trigger", True), ("by a trigger", True))
    assert settings.agree()


def test_a_trigger_writes_the_same_row_in_the_other_shape(settings: Extraction) -> None:
    """The shape that was written last counts, and whoever answers each write with another comes to an end."""
    url = settings.backfill().url
    shout = (
        "UPDATE users SET profile = jsonb_set(profile, '{theme}', to_jsonb(upper(NEW.theme))) WHERE id = NEW.user_id"
    )
    sql(url, ANSWER.format(table="user_settings", when="true", statement=shout))
    sql(url, 'UPDATE users SET profile = \'{"theme": "old"}\' WHERE id = 1')
    assert both(url) == ({"theme": "OLD"}, ("OLD", True))
    sql(url, "DROP FUNCTION other CASCADE")
    more = "UPDATE users SET profile = jsonb_set(profile, '{theme}', to_jsonb(NEW.theme || '!')) WHERE id = NEW.user_id"
    sql(url, ANSWER.format(table="user_settings", when="true", statement=more))
    sql(url, 'UPDATE users SET profile = \'{"theme": "old"}\' WHERE id = 1')
    assert both(url)[1][0].startswith("old!")
