"""Preflight lets nothing pass that cannot end, and refuses nothing that can."""

from __future__ import annotations

from typing import Any

import pytest

from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines_tests import walking
from zdm_pipelines_tests.helpers import one, people, replaced, sql, walk

VERSION = "SELECT current_setting('server_version_num')::int"
NOT_NULL: dict[str, Any] = {"name": "display_name", "type": "text", "nullable": False}


def problems(url: str, m: Migration) -> str:
    """What preflight says against a migration."""
    declared = walking.migration(m.table, m.change.model_dump(mode="json"))
    return "\n".join(str(p) for p in walking.survey(url, declared).problems)


@pytest.mark.parametrize(
    ("setup", "fact", "way_out"),
    [
        ("CREATE TABLE log (id bigint); CREATE RULE r AS ON UPDATE TO people DO ALSO INSERT INTO log VALUES (NEW.id)",
         'rule "r" of public.people: rewrites each UPDATE', "DROP RULE r ON people"),
        ("CREATE RULE r AS ON UPDATE TO people DO INSTEAD NOTHING", 'rule "r"', "ALTER TABLE people DISABLE RULE r"),
        ("CREATE RULE r AS ON UPDATE TO people WHERE NEW.id < 0 DO INSTEAD NOTHING", 'rule "r"', "DROP RULE r ON people"),
        ("CREATE TYPE t AS (id bigint, full_name text, note text); ALTER TABLE people OF t", "is of a composite type",
         "ALTER TABLE people NOT OF"),
        ("ALTER TABLE people ADD COLUMN zdm_tombstone_full_name text", 'column "zdm_tombstone_full_name"',
         "ALTER TABLE people RENAME zdm_tombstone_full_name TO earlier"),
        ("ALTER TABLE people ADD CONSTRAINT zdm_not_null_display_name CHECK (id > 0)", 'constraint "zdm_not_null_display_name"',
         "ALTER TABLE people RENAME CONSTRAINT zdm_not_null_display_name TO positive"),
        ("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
         "CREATE TRIGGER zzz_zdm_walked_insert AFTER INSERT ON people FOR EACH ROW EXECUTE FUNCTION f()", 'trigger "zzz_zdm_walked_insert"',
         "DROP TRIGGER zzz_zdm_walked_insert ON people"),
        ("UPDATE people SET note = 'bad' WHERE id = 7; ALTER TABLE people ADD CONSTRAINT no_bad CHECK (note <> 'bad') NOT VALID",
         'constraint "no_bad" of public.people: was never proven, and rows break it (keys: 7)', "UPDATE people SET note = 'good' WHERE id = 7"),
        ("UPDATE people SET full_name = '' WHERE id = 7; ALTER TABLE people ADD CONSTRAINT c CHECK (full_name <> '') NOT VALID",
         '(keys: 7)', "ALTER TABLE people DROP CONSTRAINT c"),
        ("CREATE DOMAIN d AS text; ALTER TABLE people ADD x d; UPDATE people SET x = 'bad' WHERE id = 9; "
         "ALTER TABLE people ADD CONSTRAINT c CHECK (x::text <> 'bad') NOT VALID", "(keys: 9)", "UPDATE people SET x = NULL"),
        ('ALTER TABLE people RENAME note TO "a$zdm_sync$b"', "holds $zdm_", 'ALTER TABLE people RENAME "a$zdm_sync$b" TO note'),
        ("ALTER TABLE people REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR TABLE people", "no replica identity",
         "ALTER TABLE people REPLICA IDENTITY DEFAULT"),
        ("ALTER TABLE people REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR ALL TABLES", "no replica identity",
         "DROP PUBLICATION p"),
        ("ALTER TABLE people REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE people (id, full_name, note)", "a list of columns",
         "ALTER TABLE people REPLICA IDENTITY DEFAULT"),
        ("CREATE UNIQUE INDEX i ON people (id); ALTER TABLE people REPLICA IDENTITY USING INDEX i; DROP INDEX i; "
         "CREATE PUBLICATION p FOR TABLE people", "whose index is gone", "ALTER TABLE people REPLICA IDENTITY DEFAULT"),
    ],
)  # fmt: skip
def test_what_cannot_end_is_refused_and_the_way_out_leads_on(
    database: str, setup: str, fact: str, way_out: str
) -> None:
    people(database, 20)
    try:
        sql(database, setup)
    except Exception:
        if one(database, VERSION) >= 150000:
            raise
        pytest.skip("this server has no lists of columns")
    m = replaced(
        new=NOT_NULL,
        up="coalesce('n:' || full_name, '')",
        name="walked",
        rebuild={"c": "drop"} if " c CHECK (full" in setup else {},
    )
    assert fact in problems(database, m)
    sql(database, way_out)
    m = replaced(new=NOT_NULL, up="coalesce('n:' || full_name, '')", name="walked")
    assert problems(database, m) == ""
    walk(m, database, State.BACKFILLED)


def test_a_not_null_that_was_never_proven(database: str) -> None:
    if one(database, VERSION) < 180000:
        pytest.skip("Postgres 18 brought it")
    people(database, 20)
    sql(
        database,
        "UPDATE people SET note = NULL WHERE id = 3; ALTER TABLE people ADD CONSTRAINT nn NOT NULL note NOT VALID",
    )
    assert "(keys: 3)" in problems(database, replaced())


def test_columns_that_were_dropped_count(database: str) -> None:
    listed = ", ".join(f"c{n} bool" for n in range(1598))
    sql(database, f"CREATE TABLE people (id bigint PRIMARY KEY, full_name text, {listed})")
    assert "has 1600 columns, 0 of them dropped" in problems(database, replaced())
    sql(database, "ALTER TABLE people " + ", ".join(f"DROP c{n}" for n in range(1598)))
    assert "has 1600 columns, 1598 of them dropped" in problems(database, replaced())
    sql(database, "CREATE TABLE copy (LIKE people INCLUDING ALL); DROP TABLE people; ALTER TABLE copy RENAME TO people")
    assert problems(database, replaced()) == ""


@pytest.mark.parametrize(
    ("table", "fact"),
    [("pg_catalog.pg_class", "belongs to the server"), ("information_schema.sql_features", "belongs to the server")],
)
def test_tables_of_nobody(database: str, table: str, fact: str) -> None:
    with pytest.raises(Exception, match=fact):
        problems(database, replaced(table=table))


@pytest.mark.parametrize(
    ("setup", "m"),
    [
        # The other columns are NOT NULL, so no row gives NULL.
        ("", {"new": NOT_NULL, "up": "CASE WHEN full_name IS NULL THEN 'of ' || id ELSE full_name END", "down": "display_name"}),
        ("ALTER TABLE people ALTER note SET NOT NULL", {"new": NOT_NULL, "up": "coalesce(full_name, '') || note", "down": "display_name"}),
        ("ALTER TABLE people ALTER full_name SET NOT NULL, ALTER note SET NOT NULL",
         {"down": "coalesce(display_name, '') || note", "new": NOT_NULL, "up": "full_name"}),
        # A valid check, or a domain, says what NOT NULL says.
        ("ALTER TABLE people ADD CHECK (full_name IS NOT NULL)", {"new": NOT_NULL, "up": "full_name", "down": "display_name"}),
        # Rules, constraints and publications that stand against nothing of ours.
        ("CREATE TABLE log (id bigint); CREATE RULE r AS ON INSERT TO people DO ALSO INSERT INTO log VALUES (NEW.id)", {}),
        ("CREATE RULE r AS ON DELETE TO people DO INSTEAD NOTHING", {}),
        ("CREATE RULE r AS ON UPDATE TO people DO INSTEAD NOTHING; ALTER TABLE people DISABLE RULE r", {}),
        ("ALTER TABLE people ADD CONSTRAINT no_bad CHECK (note <> 'bad') NOT VALID", {}),
        ("UPDATE people SET note = 'bad', full_name = NULL WHERE id = 7; "
         "ALTER TABLE people ADD CONSTRAINT no_bad CHECK (note <> 'bad') NOT VALID", {}),
        ("ALTER TABLE people REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR TABLE people WITH (publish = 'insert')", {}),
        ("ALTER TABLE people REPLICA IDENTITY FULL; CREATE PUBLICATION p FOR TABLE people", {}),
        ("ALTER TABLE people ADD EXCLUDE (note WITH =)", {}),
        ("ALTER TABLE people SET UNLOGGED", {}),
    ],
)  # fmt: skip
def test_what_can_end_is_let_through(database: str, setup: str, m: dict[str, Any]) -> None:
    people(database, 20)
    sql(database, setup or "SELECT 1")
    walk(replaced(**m), database, State.VALIDATED)


EXTRACT: dict[str, Any] = {
    "kind": "extract_table", "old": "full_name",
    "new": {"table": "names", "key": {"person": "id"}, "columns": {"full_name": {"type": "text", "up": "full_name"}}},
    "down": "full_name",
}  # fmt: skip
PURGE: dict[str, Any] = {"kind": "purge_rows", "where": "id < 10"}


@pytest.mark.parametrize(
    ("change", "setup", "fact"),
    [
        (EXTRACT, "CREATE RULE r AS ON UPDATE TO people DO INSTEAD NOTHING", "rewrites each UPDATE"),
        (EXTRACT, "ALTER TABLE people REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR TABLE people", "no replica identity"),
        (EXTRACT, "ALTER TABLE people ADD zdm_tombstone_full_name text", "a later step needs"),
        (EXTRACT, "CREATE TYPE t AS (id bigint, full_name text, note text); ALTER TABLE people OF t", "composite type"),
        (PURGE, "ALTER TABLE people REPLICA IDENTITY NOTHING; CREATE PUBLICATION p FOR TABLE people", "publishes each DELETE"),
        (PURGE, "CREATE RULE r AS ON DELETE TO people DO INSTEAD NOTHING", "has rules"),
    ],
)  # fmt: skip
def test_other_kinds(database: str, change: dict[str, Any], setup: str, fact: str) -> None:
    people(database, 20)
    declared = walking.migration("people", change)
    assert [str(p) for p in walking.survey(database, declared).problems] == []
    sql(database, setup)
    assert fact in "\n".join(str(p) for p in walking.survey(database, declared).problems)


def test_an_event_trigger_is_named(database: str) -> None:
    people(database, 20)
    sql(database, "CREATE FUNCTION e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'")
    sql(database, "CREATE EVENT TRIGGER watcher ON ddl_command_start EXECUTE FUNCTION e()")
    found = walking.survey(database, walking.migration("people", replaced().change.model_dump(mode="json")))
    assert any('event trigger "watcher"' in warning for warning in found.warnings)
