"""Preflight lets nothing pass that cannot end, and refuses nothing that can."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres import rehearsal
from zdm_pipelines.dialects.postgres.connection import undone
from zdm_pipelines.model.errors import MappingFailed, ZdmError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Step
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests import walking
from zdm_pipelines_tests.helpers import dump, expanded, one, people, replaced, sql, walk

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
        (PURGE, "CREATE RULE r AS ON DELETE TO people DO INSTEAD NOTHING", "rewrites each DELETE"),
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


@pytest.mark.parametrize("at", ["CREATE TABLE", "CREATE TRIGGER"])
def test_an_event_trigger_that_refuses_is_told_and_nothing_is_changed(server: Server, database: str, at: str) -> None:
    people(database, 20)
    sql(database, "CREATE FUNCTION e() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''freeze''; END'")
    sql(database, f"CREATE EVENT TRIGGER frozen ON ddl_command_start WHEN TAG IN ('{at}') EXECUTE FUNCTION e()")
    before = dump(server, database)
    with pytest.raises(ZdmError, match="the server refuses"):
        expanded(replaced(), database)
    assert dump(server, database) == before
    sql(database, "ALTER EVENT TRIGGER frozen DISABLE")
    walk(replaced(), database, State.BACKFILLED)


def test_a_row_that_is_full_is_named(database: str) -> None:
    people(database, 20)
    sql(database, "ALTER TABLE people ALTER note SET STORAGE PLAIN; "
        "UPDATE people SET note = repeat('x', 8090), full_name = repeat('v', 20) WHERE id = 7")  # fmt: skip
    with pytest.raises(MappingFailed, match="row with key 7"):
        walk(replaced(), database, State.BACKFILLED)
    sql(database, "UPDATE people SET note = '' WHERE id = 7")
    walk(replaced(), database, State.BACKFILLED)


# -- no rewrite, no long lock -----------------------------------------------------------------------------------------

DOMAINS = """
CREATE DOMAIN checked AS text CHECK (VALUE LIKE 'n:%');
CREATE DOMAIN required AS text NOT NULL;
CREATE DOMAIN given AS text DEFAULT 'x';
CREATE DOMAIN stamped AS text DEFAULT clock_timestamp()::text;
CREATE DOMAIN outer_checked AS checked;
CREATE DOMAIN plain AS varchar(80);
CREATE TYPE filled;
CREATE FUNCTION filled_in(cstring) RETURNS filled LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION filled_out(filled) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE TYPE filled (INPUT = filled_in, OUTPUT = filled_out, LIKE = text, DEFAULT = 'x');
CREATE CAST (text AS filled) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (filled AS text) WITHOUT FUNCTION AS IMPLICIT;
"""


@pytest.mark.parametrize(
    ("kind", "fact", "instead"),
    [
        ("checked", "would rewrite the whole table", "type: text"),
        ("outer_checked", "would rewrite the whole table", "type: text"),
        ("required", "with rows", "type"),
        ("given", "has a default of its own", "type: text"),
        ("stamped", "would rewrite the whole table", "type: text"),
        ("filled", "has a default of its own", "new.default"),
    ],
)
def test_a_type_that_rewrites_or_fills_the_table_is_refused(database: str, kind: str, fact: str, instead: str) -> None:
    people(database, 20)
    sql(database, DOMAINS)
    found = problems(database, replaced(new={"name": "display_name", "type": kind}, up=f"('n:' || full_name)::{kind}"))
    assert fact in found
    assert instead in found


@pytest.mark.parametrize("kind", ["text", "plain", "varchar(100)", 'text COLLATE "C"'])
def test_the_way_out_of_a_type_that_rewrites(database: str, kind: str) -> None:
    people(database, 20)
    sql(database, DOMAINS)
    node = one(database, "SELECT relfilenode FROM pg_class WHERE oid = 'people'::regclass")
    m = replaced(new={"name": "display_name", "type": kind, "default": "'n:?'"}, up=f"('n:' || full_name)::{kind}")
    walk(m, database, State.EXPANDED)
    sql(database, "ALTER TABLE people ADD CHECK (display_name LIKE 'n:%') NOT VALID")
    walk(m, database, State.CONTRACTED)
    assert one(database, "SELECT relfilenode FROM pg_class WHERE oid = 'people'::regclass") == node


MODES = {
    "ACCESS EXCLUSIVE": {"AccessExclusiveLock"},
    "SHARE ROW EXCLUSIVE": {"ShareRowExclusiveLock"},
    "SHARE UPDATE EXCLUSIVE": {"ShareUpdateExclusiveLock"},
    "SHARE": {"ShareLock"},
    "ACCESS SHARE": {"AccessShareLock"},
}
WEAK = {"AccessShareLock", "RowShareLock", "RowExclusiveLock"}
STAND = """
CREATE TABLE parent (name text PRIMARY KEY); INSERT INTO parent SELECT 'v' || n FROM generate_series(1, 20) n;
ALTER TABLE people ADD UNIQUE (full_name), ADD CHECK (full_name <> ''), ADD FOREIGN KEY (full_name) REFERENCES parent;
CREATE INDEX ON people (full_name, note);
"""


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "replace_column", "old": "full_name", "new": NOT_NULL | {"default": "'v1'"}, "up": "full_name", "down": "display_name"},
        EXTRACT,
        PURGE | {"archive": {"table": "public.kept"}},
        {"kind": "add_index", "name": "i", "columns": ["note"]},
    ],
    ids=lambda change: change["kind"],
)  # fmt: skip
def test_each_step_takes_the_lock_that_it_says_and_neither_rewrites_nor_scans(
    database: str, change: dict[str, Any]
) -> None:
    """On a table with rows: what the rehearsal sees on an empty copy, and what the plan says."""
    people(database, 20)
    extra = {"ALTER TABLE people ALTER full_name SET NOT NULL"} if change["kind"] == "replace_column" else set()
    sql(database, STAND if extra else "SELECT 1")
    for statement in extra:
        sql(database, statement)
    ledger.ensure(server_at(database))
    bound = walking.change(database, walking.migration("people", change))
    tombstone = bound.retire.tombstone() if bound.retire is not None else []
    with psycopg.connect(database, autocommit=True) as c:
        for step in [*bound.expand, None, *bound.enforce, *tombstone]:
            if step is None:
                if extra:
                    c.execute("UPDATE people SET display_name = full_name")
                continue
            if not step.in_transaction:
                c.execute(step.sql.encode())
                continue
            with c.transaction():
                before = c.execute(STATE).fetchone()
                c.execute(step.sql.encode())
                locks = {mode for (mode,) in c.execute(HELD).fetchall()}
                assert c.execute(STATE).fetchone() == before, step.name
                said = next((modes for words, modes in MODES.items() if step.lock.startswith(words)), set())
                strong = locks - WEAK
                assert strong <= said | ({"ShareUpdateExclusiveLock"} if said else set()), (step.name, step.lock, locks)


STATE = "SELECT pg_relation_filenode('people'), pg_stat_get_xact_numscans('people'::regclass)"
HELD = """
SELECT mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation IN (
  SELECT c.oid FROM pg_class c WHERE c.oid = 'people'::regclass OR c.relname = 'parent')"""


def test_a_step_that_rewrites_scans_or_locks_others_is_seen(database: str) -> None:
    """The rehearsal itself, on steps that no plan has."""
    people(database, 5)
    sql(database, "CREATE TABLE other (note text)")
    table = rehearsal.COPY.sql
    bad = {
        f"ALTER TABLE {table} ALTER id TYPE numeric": "would rewrite the whole table",
        f"ALTER TABLE {table} ADD COLUMN x text DEFAULT clock_timestamp()::text": "would rewrite the whole table",
        f"ALTER TABLE {table} ALTER note SET NOT NULL": "would read the whole table",
        f"ALTER TABLE {table} ADD CHECK (id > 0)": "would read the whole table",
        f"CREATE INDEX ON {table} (note)": "would read the whole table",
        f"ALTER TABLE {table} INHERIT other": "would lock other too",
    }
    with server_at(database).connect(purpose="test") as session:
        found = catalogs.read(session, TableName(schema="public", name="people"))  # type: ignore[arg-type]
        with undone(session):  # type: ignore[arg-type]
            copy = rehearsal.copied(session, found)  # type: ignore[arg-type]
            for statement, fact in bad.items():
                step = Step(name="bad", sql=statement, reason="", lock="")
                assert fact in " ".join(map(str, rehearsal.rehearse(session, copy, [step]))), statement  # type: ignore[arg-type]
            good = Step(name="good", sql=f"ALTER TABLE {table} ADD COLUMN y text", reason="", lock="")
            assert rehearsal.rehearse(session, copy, [good]) == []  # type: ignore[arg-type]
