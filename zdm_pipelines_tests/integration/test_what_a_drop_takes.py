"""What a drop takes: whatever came to the old column since expand passes to the new one, or the gate names it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from zdm_pipelines.model.errors import GateRefused, PreflightError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import contract
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import plan, rollback
from zdm_pipelines_tests.helpers import one, people, replaced, sql, validated, walk, work

PLAIN: dict[str, Any] = {"up": "full_name", "down": "display_name"}
MIGRATION = replaced(**PLAIN)
FUNCTION = "CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "


_numbers = count(1)


@pytest.fixture
def url(database: str) -> str:
    people(database, 50)
    return database


@pytest.fixture(scope="module")
def reads_switched(cluster: Cluster) -> str:
    """The name of a database in which reads are switched, to copy."""
    made = cluster.primary.create_database("reads_switched")
    people(made, 50)
    walk(MIGRATION, made, State.SWITCHED)
    return "reads_switched"


@pytest.fixture
def later(server: Server, reads_switched: str) -> Iterator[str]:
    """A copy of it: whatever is attached there came after expand."""
    name = f"later_{next(_numbers)}"
    yield server.create_database(name, template=reads_switched)
    server.drop_database(name)


def reasons(m: Migration, url: str) -> list[str]:
    """What the gate says, which is what `status` says."""
    said = contract.refusals(work(m, url))
    if said:
        with pytest.raises(GateRefused) as refused:
            contract.run(work(m, url))
        assert list(refused.value.reasons) == said
    return said


def switched(url: str, setup: str = "", **declared: Any) -> Migration:
    if setup:
        sql(url, setup)
    m = replaced(**(PLAIN | declared))
    walk(m, url, State.SWITCHED)
    return m


def finish(m: Migration, url: str) -> None:
    """Nothing stands against it: to the end, and nothing of the old column is left."""
    assert contract.refusals(work(m, url)) == []
    walk(m, url, State.CONTRACTED)


# -- what passes to the new column ------------------------------------------------------------------------------------

CARRIED = [
    ("CREATE UNIQUE INDEX uq ON people (full_name)",
     "SELECT count(*) FROM pg_index WHERE indrelid = 'people'::regclass AND indisunique AND NOT indisprimary", "uq"),
    ("CREATE INDEX lowered ON people (lower(full_name)) WHERE full_name IS NOT NULL",
     "SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%lower(display_name)%'", "lowered"),
    ("ALTER TABLE people ADD CONSTRAINT uq UNIQUE (full_name)",
     "SELECT count(*) FROM pg_constraint WHERE conrelid = 'people'::regclass AND contype = 'u'", "uq"),
    ("ALTER TABLE people ADD CONSTRAINT no_spam CHECK (full_name <> 'spam')",
     "SELECT count(*) FROM pg_constraint WHERE conrelid = 'people'::regclass AND contype = 'c'", "no_spam"),
    ("CREATE TABLE names (name text PRIMARY KEY); INSERT INTO names SELECT full_name FROM people; "
     "ALTER TABLE people ADD CONSTRAINT known FOREIGN KEY (full_name) REFERENCES names",
     "SELECT count(*) FROM pg_constraint WHERE conrelid = 'people'::regclass AND contype = 'f'", "known"),
    ("CREATE STATISTICS together (ndistinct) ON full_name, note FROM people",
     "SELECT count(*) FROM pg_statistic_ext WHERE stxrelid = 'people'::regclass", "CREATE STATISTICS"),
    ("GRANT SELECT (full_name), UPDATE (full_name) ON people TO pg_monitor WITH GRANT OPTION",
     "SELECT count(*) FROM information_schema.column_privileges WHERE grantee = 'pg_monitor' AND is_grantable = 'YES'", "GRANT SELECT"),
    ("GRANT INSERT (full_name) ON people TO PUBLIC",
     "SELECT count(*) FROM information_schema.column_privileges WHERE grantee = 'PUBLIC'", "GRANT INSERT"),
    ("COMMENT ON COLUMN people.full_name IS 'it''s \\ shown'",
     "SELECT (col_description(attrelid, attnum) = 'it''s \\ shown')::int FROM pg_attribute WHERE attrelid = 'people'::regclass "
     "AND attname = 'display_name'", "COMMENT ON COLUMN"),
    ("ALTER TABLE people ALTER full_name SET STATISTICS 900",
     "SELECT (attstattarget = 900)::int FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname = 'display_name'", "SET STATISTICS"),
    ("ALTER TABLE people ALTER full_name SET (n_distinct = -0.5)",
     "SELECT (attoptions = '{n_distinct=-0.5}')::int FROM pg_attribute WHERE attrelid = 'people'::regclass "
     "AND attname = 'display_name'", "n_distinct"),
    ("ALTER TABLE people ALTER full_name SET STORAGE EXTERNAL",
     "SELECT (attstorage = 'e')::int FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname = 'display_name'", "SET STORAGE"),
    ("ALTER TABLE people ALTER full_name SET COMPRESSION pglz",
     "SELECT (attcompression = 'p')::int FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname = 'display_name'", "SET COMPRESSION"),
]  # fmt: skip


@pytest.mark.parametrize(("attach", "stands", "said"), CARRIED)
def test_what_came_later_passes_to_the_new_column(later: str, attach: str, stands: str, said: str) -> None:
    m, url = MIGRATION, later
    sql(url, attach)
    found = reasons(m, url)
    assert found
    assert all("not in place" in reason and reason.endswith("run validate") for reason in found)
    assert any(said in reason for reason in found), found
    validated(m, url)
    finish(m, url)
    assert one(url, stands) >= 1


def test_what_stood_before_passes_to_the_new_column(url: str) -> None:
    for attach, *_ in CARRIED:
        sql(url, attach.replace("CONSTRAINT uq", "CONSTRAINT uq_too"))
    finish(switched(url), url)
    for _, stands, _ in CARRIED:
        assert one(url, stands) >= 1


def test_grants_and_storage_are_there_before_the_first_row(url: str) -> None:
    sql(
        url, "GRANT SELECT (full_name) ON people TO pg_monitor; ALTER TABLE people ALTER full_name SET STORAGE EXTERNAL"
    )
    walk(replaced(**PLAIN), url, State.EXPANDED)
    sql(url, "SET ROLE pg_monitor; SELECT display_name FROM people")
    assert one(url, "SELECT attstorage::text FROM pg_attribute WHERE attname = 'display_name'") == "e"


def test_what_the_new_column_has_of_its_own_stays(later: str) -> None:
    m, url = MIGRATION, later
    sql(url, "COMMENT ON COLUMN people.full_name IS 'old'; COMMENT ON COLUMN people.display_name IS 'new'; "
             "CREATE UNIQUE INDEX by_old ON people (full_name); CREATE UNIQUE INDEX by_hand ON people (display_name)")  # fmt: skip
    finish(m, url)
    assert one(url, "SELECT count(*) FROM pg_index WHERE indrelid = 'people'::regclass") == 2
    assert (
        one(url, "SELECT col_description('people'::regclass, attnum) FROM pg_attribute WHERE attname = 'display_name'")
        == "new"
    )


def test_storage_that_the_new_type_cannot_have_is_left_out(url: str) -> None:
    sql(
        url,
        "UPDATE people SET full_name = id; ALTER TABLE people ALTER full_name SET STORAGE EXTERNAL, ALTER full_name SET COMPRESSION pglz",
    )
    new: dict[str, Any] = {"name": "number", "type": "bigint"}
    finish(switched(url, new=new, up="full_name::bigint", down="number::text"), url)


def test_what_belongs_to_an_index_passes_to_its_successor_and_back(url: str) -> None:
    sql(url, "CREATE INDEX by_full_name ON people (lower(full_name)); COMMENT ON INDEX by_full_name IS 'for login'; "
             "ALTER TABLE people CLUSTER ON by_full_name; ALTER INDEX by_full_name ALTER COLUMN 1 SET STATISTICS 700; "
             "ALTER TABLE people ADD CONSTRAINT full_name_set CHECK (full_name <> ''); "
             "COMMENT ON CONSTRAINT full_name_set ON people IS 'never empty'")  # fmt: skip
    m = switched(url)
    marked = "SELECT c.relname FROM pg_index JOIN pg_class c ON c.oid = indexrelid WHERE indisclustered"
    assert sql(url, marked) == [("by_display_name",)]
    rollback.run(work(m, url), to=State.BACKFILLED)
    assert sql(url, marked) == [("by_full_name",)]
    finish(switched(url), url)
    assert sql(url, marked) == [("by_display_name",)]
    assert one(url, "SELECT obj_description('by_display_name'::regclass)") == "for login"
    assert one(url, "SELECT attstattarget FROM pg_attribute WHERE attrelid = 'by_display_name'::regclass") == 700
    assert (
        one(url, "SELECT obj_description(oid) FROM pg_constraint WHERE conname = 'display_name_set'") == "never empty"
    )


def test_what_was_built_later_is_taken_back_with_the_rest(later: str) -> None:
    m, url = MIGRATION, later
    sql(
        url,
        "CREATE UNIQUE INDEX full_name_uq ON people (full_name); ALTER TABLE people ADD CONSTRAINT full_name_set CHECK (full_name <> '')",
    )
    validated(m, url)
    validated(m, url)
    assert one(url, "SELECT count(*) FROM pg_index WHERE indrelid = 'people'::regclass") == 3
    rollback.run(work(m, url), to=State.BACKFILLED)
    assert one(url, "SELECT count(*) FROM pg_index WHERE indrelid = 'people'::regclass") == 2
    assert one(url, "SELECT count(*) FROM pg_constraint WHERE conrelid = 'people'::regclass AND contype = 'c'") == 1


def test_an_interrupted_build_of_what_came_later_is_gone_on_with(later: str) -> None:
    m, url = MIGRATION, later
    sql(url, "CREATE INDEX full_name_key ON people (full_name); CREATE INDEX display_name_key ON people (display_name); "
             "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'display_name_key'::regclass")  # fmt: skip
    validated(m, url)
    finish(m, url)
    assert sql(
        url,
        "SELECT indexrelid::regclass::text, indisvalid FROM pg_index WHERE indrelid = 'people'::regclass AND NOT indisprimary",
    ) == [("display_name_key", True)]


@pytest.mark.parametrize(
    "setup", ["", "ALTER SEQUENCE people_ticket_seq OWNED BY NONE; CREATE SEQUENCE other OWNED BY people.ticket"]
)
def test_a_sequence_outlives_the_column_that_it_belongs_to(url: str, setup: str) -> None:
    sql(url, "ALTER TABLE people ADD ticket serial; ALTER TABLE people ALTER ticket DROP DEFAULT; " + setup)
    new = {"name": "ticket_no", "type": "bigint", "nullable": False, "default": "nextval('people_ticket_seq')"}
    m = replaced(old="ticket", new=new, up="ticket::bigint", down="ticket_no::integer")
    walk(m, url, State.SWITCHED)
    finish(m, url)
    sql(url, "INSERT INTO people (note) VALUES ('x')")
    owned = one(url, "SELECT count(*) FROM pg_depend WHERE classid = 'pg_class'::regclass AND deptype = 'a' AND refobjid = 'people'::regclass "
                     "AND objid IN (SELECT oid FROM pg_class WHERE relkind = 'S')")  # fmt: skip
    assert owned == 1


# -- what the gate names ----------------------------------------------------------------------------------------------

NAMED = [
    ("CREATE VIEW names AS SELECT id, full_name FROM people WHERE note <> 'full_name'", "view names", True),
    ("CREATE VIEW names WITH (security_barrier) AS SELECT upper(p.full_name) AS full_name FROM people p JOIN people q USING (full_name)",
     "view names", True),
    ("CREATE MATERIALIZED VIEW names AS SELECT full_name, count(*) FROM people GROUP BY full_name", "materialized view names", True),
    ("CREATE VIEW names AS SELECT count(*) FROM people GROUP BY full_name; CREATE RULE r AS ON INSERT TO names DO INSTEAD "
     "DELETE FROM people WHERE full_name = ''", "rule r on view names", False),
    ("CREATE POLICY mine ON people USING (full_name <> 'x') WITH CHECK (full_name <> 'y')", "policy mine", True),
    ("CREATE TABLE pets (name text); CREATE POLICY ours ON pets USING (EXISTS (SELECT FROM people WHERE full_name = pets.name))",
     "policy ours", True),
    (FUNCTION + "CREATE TRIGGER full_name AFTER UPDATE OF full_name ON people FOR EACH ROW WHEN (OLD.full_name <> NEW.full_name) "
     "EXECUTE FUNCTION t()", "trigger full_name", True),
    (FUNCTION + "CREATE CONSTRAINT TRIGGER late AFTER INSERT ON people DEFERRABLE INITIALLY DEFERRED FOR EACH ROW "
     "WHEN (NEW.full_name <> '') EXECUTE FUNCTION t()", "trigger late", True),
    ("CREATE PUBLICATION chosen FOR TABLE people (id, full_name)", "publication chosen", True),
    ("CREATE PUBLICATION chosen FOR TABLE people WHERE (full_name <> '')", "publication chosen", True),
    ("CREATE STATISTICS s ON lower(full_name), note FROM people", "statistics object s", False),
    ("ALTER TABLE people ADD g text GENERATED ALWAYS AS (upper(full_name)) STORED", "column g", False),
    ("CREATE FUNCTION f() RETURNS bigint BEGIN ATOMIC SELECT count(full_name) FROM people; END", "function f", False),
    ("CREATE UNIQUE INDEX u ON people (full_name); CREATE FUNCTION f() RETURNS void BEGIN ATOMIC INSERT INTO people (note) "
     "VALUES ('') ON CONFLICT (full_name) DO NOTHING; END", "function f", False),
    ("ALTER TABLE people ADD CONSTRAINT u UNIQUE (full_name); CREATE FUNCTION f() RETURNS void BEGIN ATOMIC INSERT INTO people "
     "(note) VALUES ('') ON CONFLICT ON CONSTRAINT u DO NOTHING; END", "function f", False),
    ("CREATE UNIQUE INDEX u ON people (full_name); CREATE TABLE pets (owner text REFERENCES people (full_name))", "pets_owner_fkey", False),
    ("CREATE UNIQUE INDEX u ON people (full_name); ALTER TABLE people ADD boss text REFERENCES people (full_name)", "people_boss_fkey", False),
    ("CREATE TABLE child () INHERITS (people)", "table child inherits", "NO INHERIT"),
    ("CREATE TABLE p (LIKE people) PARTITION BY RANGE (id); ALTER TABLE people DROP CONSTRAINT people_pkey, ALTER id DROP IDENTITY, "
     "ALTER id SET NOT NULL, ADD PRIMARY KEY (id); ALTER TABLE p ATTACH PARTITION people DEFAULT", "inherits from p", "DETACH"),
    ("CREATE TYPE person AS (id bigint, full_name text, note text, display_name text); "
     "ALTER TABLE people OF person", "is of type person", "NOT OF"),
    ("ALTER TABLE people ALTER full_name SET DEFAULT 'guest'", "got the default", "DROP DEFAULT"),
    ("ALTER TABLE people ALTER full_name SET NOT NULL", "became NOT NULL", "DROP NOT NULL"),
    ("CREATE INDEX half ON people (full_name); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'half'::regclass",
     'index "half" of full_name is invalid', False),
    ("ALTER TABLE people ADD CONSTRAINT apart EXCLUDE (full_name WITH =)", "exclusion constraint", False),
]  # fmt: skip


@pytest.mark.parametrize(("attach", "said", "way_out"), NAMED)
def test_what_cannot_pass_is_named(later: str, attach: str, said: str, way_out: bool | str) -> None:
    m, url = MIGRATION, later
    sql(url, attach)
    found = reasons(m, url)
    assert any(said in reason for reason in found), found
    if not way_out:
        return
    for reason in found:
        statement = re.split(r": (?=[A-Z]{2})", reason, maxsplit=1)[1]
        sql(url, statement.partition(", and give ")[0].rpartition(", or ")[2])
    finish(m, url)


def test_the_way_out_of_a_view_keeps_its_columns(url: str) -> None:
    m = switched(url, "UPDATE people SET full_name = 'full_name' WHERE id = 1")
    sql(
        url,
        "CREATE VIEW names AS SELECT p.full_name, 'full_name' AS word FROM people p WHERE p.full_name = 'full_name'",
    )
    (reason,) = contract.refusals(work(m, url))
    sql(url, reason.partition(" reads full_name: ")[2])
    finish(m, url)
    assert sql(url, "SELECT full_name, word FROM names") == [("full_name", "full_name")]


# -- who names the column in a text -----------------------------------------------------------------------------------

MENTIONS = [
    ("CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM NEW.full_name; RETURN NULL; END'; "
     "CREATE TRIGGER audit AFTER INSERT ON people FOR EACH ROW EXECUTE FUNCTION audit()", "function audit()"),
    ("CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN PERFORM to_jsonb(NEW) ->> 'full_name'; RETURN NULL; END$$; "
     "CREATE TRIGGER audit AFTER INSERT ON people FOR EACH ROW EXECUTE FUNCTION audit()", "function audit()"),
    ("CREATE FUNCTION report() RETURNS bigint LANGUAGE sql AS 'SELECT count(FULL_NAME) FROM people'", "function report()"),
    ("CREATE FUNCTION report(p people) RETURNS text LANGUAGE sql AS 'SELECT p.full_name'", "function report(people)"),
    ("CREATE PROCEDURE tidy() LANGUAGE plpgsql AS $$BEGIN EXECUTE 'UPDATE people SET full_name = NULL'; END$$", "function tidy()"),
    ("ALTER TABLE people ADD tsv tsvector; CREATE TRIGGER search BEFORE INSERT ON people FOR EACH ROW EXECUTE FUNCTION "
     "tsvector_update_trigger('tsv', 'pg_catalog.english', 'full_name')", "trigger search"),
    ("CREATE TABLE kept (p people)", "column p of table kept"),
    ("CREATE TYPE pair AS (a people, b people)", "column a of composite type pair"),
    ("CREATE FUNCTION guard() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN PERFORM 'people.full_name'; END$$", "function guard()"),
]  # fmt: skip


@pytest.mark.parametrize(("attach", "called"), MENTIONS)
def test_who_names_the_column_is_a_reason_unless_said_otherwise(later: str, attach: str, called: str) -> None:
    m, url = MIGRATION, later
    sql(url, attach)
    found = reasons(m, url)
    assert found
    assert all("contract.unaffected" in reason for reason in found)
    listed = [reason.rpartition("contract.unaffected: ")[2] for reason in found]
    assert called in listed
    finish(replaced(**PLAIN, contract={"unaffected": listed}), url)


@pytest.mark.parametrize("attach", [
    "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$SELECT 'full_name of somebody'$$",
    "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS $$SELECT count(*) FROM people -- full_name is not read\n$$",
    "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS $$SELECT count(*) /* full_name */ FROM people$$",
    "CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS $$SELECT count(my_full_name) FROM (SELECT 1 AS my_full_name FROM people) q$$",
    "CREATE TABLE pets (full_name text); CREATE FUNCTION f() RETURNS bigint LANGUAGE sql AS 'SELECT count(full_name) FROM pets'",
    FUNCTION + "CREATE TRIGGER plain AFTER INSERT ON people FOR EACH ROW EXECUTE FUNCTION t('full_name of a person')",
])  # fmt: skip
def test_who_means_something_else_is_no_reason(later: str, attach: str) -> None:
    m, url = MIGRATION, later
    sql(url, attach)
    finish(m, url)


def test_plan_warns_early(url: str) -> None:
    for attach, _ in MENTIONS[:1]:
        sql(url, attach)
    sql(url, FUNCTION + "CREATE TRIGGER of_old AFTER UPDATE OF full_name ON people FOR EACH ROW EXECUTE FUNCTION t(); "
                        "CREATE SEQUENCE s OWNED BY people.full_name; CREATE VIEW names AS SELECT full_name FROM people")  # fmt: skip
    said = plan.read(work(replaced(**PLAIN), url)).warnings
    for word in (
        "view names",
        "function audit()",
        "sequence s",
        'for statements that set "full_name", and not for those that set "display_name"',
    ):
        assert any(word in warning for warning in said), (word, said)
    assert not any("of_old fires for every row" in warning for warning in said)


def test_a_default_without_successor_is_refused(url: str) -> None:
    sql(url, "ALTER TABLE people ALTER full_name SET DEFAULT 'guest'")
    with pytest.raises(PreflightError, match=r"would get NULL .*declare new\.default"):
        plan.read(work(replaced(**PLAIN), url))
    m = switched(url, new={"name": "display_name", "type": "text", "default": "'guest'"})
    finish(m, url)
    assert one(url, "INSERT INTO people (id) VALUES (900) RETURNING display_name") == "guest"


def test_a_default_that_is_given_up_on_purpose(url: str) -> None:
    sql(url, "ALTER TABLE people ALTER full_name SET DEFAULT 'guest'")
    finish(switched(url, new={"name": "display_name", "type": "text", "default": "NULL"}), url)
    assert one(url, "INSERT INTO people (id) VALUES (900) RETURNING display_name") is None


# -- every kind that the server knows ---------------------------------------------------------------------------------

# For each catalog whose rows can depend on a column: which of the above attaches one such row.
ATTACHED = {
    "pg_attrdef": "SET DEFAULT|GENERATED ALWAYS",
    "pg_class": "CREATE UNIQUE INDEX|CREATE SEQUENCE",
    "pg_constraint": "ADD CONSTRAINT",
    "pg_policy": "CREATE POLICY",
    "pg_proc": "BEGIN ATOMIC",
    "pg_publication_rel": "CREATE PUBLICATION",
    "pg_rewrite": "CREATE VIEW",
    "pg_statistic_ext": "CREATE STATISTICS",
    "pg_trigger": "CREATE TRIGGER",
}
# Those whose rows cannot depend on a column of a table: they hang on a whole table, on types, roles or the database.
APART = {
    "pg_am", "pg_amop", "pg_amproc", "pg_cast", "pg_collation", "pg_conversion", "pg_database", "pg_default_acl",
    "pg_event_trigger", "pg_extension", "pg_foreign_data_wrapper", "pg_foreign_server", "pg_language", "pg_largeobject",
    "pg_namespace", "pg_opclass", "pg_operator", "pg_opfamily", "pg_parameter_acl", "pg_publication",
    "pg_publication_namespace", "pg_authid", "pg_auth_members", "pg_subscription", "pg_tablespace", "pg_transform",
    "pg_ts_config", "pg_ts_dict", "pg_ts_parser", "pg_ts_template", "pg_type", "pg_user_mapping",
}  # fmt: skip


def test_every_class_of_objects_that_the_server_knows_is_attached_by_a_test(url: str) -> None:
    """`pg_identify_object_as_address` knows the classes; a new version that brings one fails here."""
    classes = {
        name
        for (name,) in sql(
            url,
            "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'oid' "
            "WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r' AND c.relname NOT IN "
            "('pg_enum', 'pg_largeobject_metadata')",
        )
    }
    assert classes - APART == set(ATTACHED)
    attaching = [attach for attach, *_ in (*CARRIED, *NAMED)] + ["CREATE SEQUENCE"]
    for pattern in ATTACHED.values():
        for alternative in pattern.split("|"):
            assert any(alternative in attach for attach in attaching), alternative


def test_every_setting_of_a_column_is_carried_or_compared(url: str) -> None:
    """A column of pg_attribute that a new version brings fails here, until somebody decides what becomes of it."""
    carried = {"attacl", "attoptions", "attstattarget", "attstorage", "attcompression"}
    compared = {"attnotnull", "atthasdef", "attidentity"}
    of_the_type = {"atttypid", "attlen", "atttypmod", "attndims", "attbyval", "attalign", "attcollation"}
    of_its_place = {"attrelid", "attname", "attnum", "attcacheoff", "attisdropped", "attislocal", "attinhcount"}
    refused = {"attgenerated", "attfdwoptions"}  # generated columns, and foreign tables
    of_the_server = {"atthasmissing", "attmissingval"}
    known = carried | compared | of_the_type | of_its_place | refused | of_the_server
    there = {
        n
        for (n,) in sql(
            url, "SELECT attname FROM pg_attribute WHERE attrelid = 'pg_attribute'::regclass AND attnum > 0"
        )
    }
    assert there - known == set()
