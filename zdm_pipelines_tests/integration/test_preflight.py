"""Preflight: bad input gives one clear error and changes nothing; odd names run the whole way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError

from zdm_pipelines.model.errors import DatabaseUnreachable, MissingPrivilege, PreflightError, ZdmError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import switch_reads
from zdm_pipelines.sandbox import processes
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import plan, status
from zdm_pipelines_tests.helpers import WALK, dump, expanded, one, people, replaced, sql, surveyed, walk, work


@pytest.fixture
def url(database: str) -> str:
    people(database, 50)
    return database


def refused(server: Server, url: str, m: Migration, *words: str, by: str | None = None) -> PreflightError:
    """Expand says no, in these words, and leaves the database as it is."""
    before = dump(server, url)
    with pytest.raises(PreflightError) as caught:
        expanded(m, by or url)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.thing
    assert caught.value.way_out
    assert dump(server, url) == before
    assert one(url, "SELECT to_regnamespace('zdm') IS NULL")
    return caught.value


@pytest.mark.parametrize(
    ("setup", "declared", "words"),
    [
        ("", {"table": "public.peoples"}, ["table public.peoples", "does not exist", "did you mean public.people"]),
        ("", {"table": "other.people"}, ["table other.people", "does not exist"]),
        ("", {"table": "public.People"}, ['public."People"', "did you mean public.people"]),
        ("", {"old": "full_nam"}, ['column "full_nam"', "does not exist", "did you mean full_name"]),
        ("", {"old": "Full_Name"}, ['column "Full_Name"', "did you mean full_name"]),
        ("CREATE TABLE keyless (full_name text)", {"table": "keyless"}, ["public.keyless", "no primary key"]),
        ("CREATE VIEW v AS TABLE people", {"table": "v"}, ["public.v", "is a view"]),
        ("CREATE MATERIALIZED VIEW v AS TABLE people", {"table": "v"}, ["is a materialized view"]),
        ("CREATE TABLE p (id int PRIMARY KEY, full_name text) PARTITION BY RANGE (id)", {"table": "p"}, ["is partitioned"]),
        ("CREATE TABLE p (id int PRIMARY KEY, full_name text) PARTITION BY RANGE (id); "
         "CREATE TABLE p1 PARTITION OF p DEFAULT", {"table": "p1"}, ["is partitioned"]),
        ("CREATE TABLE child () INHERITS (people)", {}, ["inheritance"]),
        ("CREATE TABLE child (PRIMARY KEY (id)) INHERITS (people)", {"table": "child"}, ["inheritance"]),
        ("", {"old": "id", "up": "id", "down": "display_name::bigint", "new": {"name": "display_name", "type": "bigint"}},
         ['column "id"', "primary key"]),
        ("ALTER TABLE people ADD COLUMN g text GENERATED ALWAYS AS (upper(full_name)) STORED", {"old": "g", "up": "g"},
         ['column "g"', "is generated"]),
        ("ALTER TABLE people ADD COLUMN g text GENERATED ALWAYS AS (upper(note)) STORED", {"up": "g"}, ['column "g"', "is generated"]),
        ("ALTER TABLE people ADD UNIQUE (full_name); CREATE TABLE pets (owner text REFERENCES people (full_name))", {},
         ['column "full_name"', "is referenced by pets"]),
        ("", {"new": {"name": "note", "type": "text"}}, ['column "note"', "exists already"]),
        ("", {"new": {"name": "display_name", "type": "txt"}}, ["txt", "does not exist"]),
        ("", {"new": {"name": "display_name", "type": "text NOT NULL"}}, ["more than a type"]),
        ("", {"new": {"name": "display_name", "type": "text, ADD COLUMN x int"}}, ["more than a type"]),
        ("", {"new": {"name": "display_name", "type": "text; DROP TABLE people"}}, ["display_name"]),
        ("", {"new": {"name": "display_name", "type": "text", "default": "1 / "}}, ["display_name", "syntax error"]),
        ("", {"up": "full_name ||"}, ["up: full_name ||", "syntax error"]),
        ("", {"up": "full_name); DROP TABLE people; --"}, ["up: "]),
        ("", {"up": "full_nam"}, ["up: full_nam", "does not exist"]),
        ("", {"up": "max(full_name)"}, ["up: max(full_name)", "aggregate"]),
        ("", {"up": "first_value(full_name) OVER ()"}, ["up: ", "window"]),
        ("", {"up": "unnest(ARRAY[full_name])"}, ["up: ", "set-returning"]),
        ("", {"up": "length(full_name)"}, ["up: length(full_name)", "gives integer", "is text", "explicit cast"]),
        ("", {"up": "display_name"}, ["up: display_name"]),
        ("", {"down": "full_name"}, ["down: full_name", "it is to give"]),
        ("", {"down": "upper("}, ["down: upper(", "syntax error"]),
        ("", {"up": "people::text"}, ["up: people::text", "whole row"]),
        ("", {"up": "to_json(people.*)::text"}, ["whole row"]),
        ("", {"up": "ctid::text"}, ["up: ctid::text"]),
        ("", {"up": "coalesce(full_name, '?')"}, ["display_name", "is nullable"]),
        ("", {"new": {"name": "display_name", "type": "text", "nullable": False}}, ["up: ", "coalesce"]),
        ("ALTER TABLE people ALTER COLUMN full_name SET NOT NULL", {}, ["down: ", "new code's writes would fail"]),
        ("ALTER TABLE people ALTER COLUMN full_name SET DEFAULT '?'",
         {"new": {"name": "display_name", "type": "text", "nullable": False}, "up": "coalesce(full_name, '')"},
         ["has a default", "new.default"]),
        ("CREATE SEQUENCE s; ALTER TABLE people ALTER COLUMN full_name SET DEFAULT nextval('s')::text", {},
         ['column "full_name"', "nextval"]),
        ("", {"up": "full_name || random()::text"}, ["up: ", "calls random"]),
        ("CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
         "CREATE TRIGGER zzzz BEFORE UPDATE ON people FOR EACH ROW EXECUTE FUNCTION t()", {}, ['trigger "zzzz"', "rename it"]),
        ("ALTER TABLE people ADD EXCLUDE (full_name WITH =)", {}, ["exclusion constraint"]),
        ("CREATE INDEX odd ON people ((full_name || 'x'))", {"new": {"name": "display_name", "type": "date"}, "up": "full_name::date",
         "down": "display_name::text"}, ["odd", "cannot be built"]),
        ("ALTER TABLE people ADD CHECK (full_name <> 'x y')", {"new": {"name": "display_name", "type": "integer"},
         "up": "full_name::integer", "down": "display_name::text"}, ["people_full_name_check", "speaks of values", "rebuild:"]),
        ("ALTER TABLE people ADD CHECK (full_name <> 'x y')", {"new": {"name": "display_name", "type": "integer"},
         "up": "full_name::integer", "down": "display_name::text",
         "rebuild": {"people_full_name_check": "CHECK (display_name <> 'x y')"}}, ["people_full_name_check", "does not fit"]),
    ],
)  # fmt: skip
def test_a_declaration_that_does_not_fit(
    server: Server, url: str, setup: str, declared: dict[str, Any], words: list[str]
) -> None:
    if setup:
        sql(url, setup)
    refused(server, url, replaced(**declared), *words)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"new": {"name": "d" * 64, "type": "text"}}, "64 bytes"),
        ({"old": "ü" * 32}, "64 bytes"),
        ({"table": "public." + "t" * 64}, "64 bytes"),
        ({"table": "a.b.c"}, "is not a table name"),
        ({"name": "Upper"}, "pattern"),
        ({"old": "display_name"}, "both"),
        ({"backfill": {"batch_rows": 0}}, "greater than 0"),
        ({"backfill": {"batch_target": "250"}}, "not a duration"),
        ({"backfill": {"batch_target": 250}}, "not a duration"),
        ({"contract": {"confidence_window": 7.5}}, "not a duration"),
        ({"reads": {"ramp": [50, 10, 100]}}, "rise"),
        ({"reads": {"ramp": [50]}}, "end at 100"),
        ({"throttle": {"replication_lag": {"pause_above": "1s", "resume_below": "2s"}}}, "resume_below"),
        ({"backfill": {"batch_row": 5}}, "Extra inputs"),
    ],
)
def test_a_declaration_that_cannot_be_meant(declared: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        replaced(**declared)


def test_every_problem_is_told_at_once(server: Server, url: str) -> None:
    m = replaced(up="upper(", down="lower(")
    assert len(refused(server, url, m, "up: upper(", "down: lower(").problems) == 2


def test_unreachable(url: str) -> None:
    port = processes.free_port()
    with pytest.raises(DatabaseUnreachable, match=f"127.0.0.1:{port}") as caught:
        expanded(replaced(), f"postgresql://app:secret@127.0.0.1:{port}/app")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "bad",
    [
        "postgres//app:hush@127.0.0.1/app",
        "postgresql://app:hu@sh@127.0.0.1:1/app",
        "postgresql://app:hush@127.0.0.1:port/app",
        "hush",
    ],
)
def test_an_unreadable_url_keeps_its_password(bad: str) -> None:
    with pytest.raises(DatabaseUnreachable) as caught:
        expanded(replaced(), bad)
    assert "hush" not in str(caught.value)
    assert "sh@" not in str(caught.value)


def test_wrong_password(own_server: Server) -> None:
    url = own_server.create_database("app")
    people(url, 5)
    sql(url, "CREATE ROLE app LOGIN PASSWORD 'right'")
    hba = own_server.data / "pg_hba.conf"
    hba.write_text("host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n")
    own_server.reload()
    wrong = url.replace("postgres@", "app:hush@")
    with pytest.raises(DatabaseUnreachable, match="password authentication failed") as caught:
        expanded(replaced(), wrong)
    assert "hush" not in str(caught.value)
    assert one(url, "SELECT to_regnamespace('zdm') IS NULL")


def test_a_read_only_replica(cluster: Cluster, url: str) -> None:
    cluster.wait_caught_up()
    name = url.rsplit("/", 1)[1]
    refused(cluster.primary, url, replaced(), "read-only replica", "primary", by=cluster.replica.url(name))


# -- privileges -------------------------------------------------------------------------------------------


@pytest.fixture
def limited(url: str) -> Iterator[str]:
    """The URL of a role that owns the table and has nothing else."""
    name = url.rsplit("/", 1)[1]
    sql(
        url,
        f"CREATE ROLE limited LOGIN; REVOKE ALL ON DATABASE {name} FROM PUBLIC; GRANT CONNECT ON DATABASE {name} TO limited",
    )
    sql(url, "ALTER TABLE people OWNER TO limited")
    try:
        yield url.replace("postgres@", "limited@")
    finally:
        sql(url, "REASSIGN OWNED BY limited TO postgres; DROP OWNED BY limited; DROP ROLE limited")


def grant(url: str, *what: str) -> None:
    name = url.rsplit("/", 1)[1]
    for one_grant in what:
        sql(url, f"GRANT {one_grant.format(name=name)} TO limited")


TEMP, LEDGER, INDEXES = "TEMPORARY ON DATABASE {name}", "CREATE ON DATABASE {name}", "CREATE, USAGE ON SCHEMA public"


@pytest.mark.parametrize(
    ("granted", "words"),
    [
        ([LEDGER, INDEXES], ["GRANT TEMPORARY ON DATABASE"]),
        ([TEMP, INDEXES], ["zdm schema", "GRANT CREATE ON DATABASE"]),
        ([TEMP, LEDGER], ["may not create indexes", "GRANT CREATE ON SCHEMA"]),
    ],
)
def test_a_missing_privilege(server: Server, url: str, limited: str, granted: list[str], words: list[str]) -> None:
    grant(url, *granted)
    refused(server, url, replaced(), *words, by=limited)


def test_the_table_of_somebody_else(server: Server, url: str, limited: str) -> None:
    grant(url, TEMP, LEDGER, INDEXES, "ALL ON people")
    sql(url, "ALTER TABLE people OWNER TO postgres; GRANT ALL ON people TO limited")
    refused(server, url, replaced(), "belongs to role postgres", by=limited)


def test_what_preflight_asks_for_is_enough(url: str, limited: str) -> None:
    grant(url, TEMP, LEDGER, INDEXES)
    walk(replaced(), limited, State.CONTRACTED)
    assert one(url, "SELECT count(*) FROM people WHERE display_name = 'n:v' || id") == 50


def test_a_ledger_made_by_an_administrator(url: str, limited: str) -> None:
    grant(url, TEMP, INDEXES)
    sql(url, "CREATE SCHEMA zdm AUTHORIZATION limited")
    walk(replaced(), limited, State.CONTRACTED)


def test_a_ledger_of_another_role(url: str, limited: str) -> None:
    grant(url, TEMP, LEDGER, INDEXES)
    sql(url, "CREATE TABLE pets (id int PRIMARY KEY, full_name text)")
    expanded(replaced(name="pets_name", table="pets"), url)
    before = one(url, "SELECT count(*) FROM zdm.event")
    with pytest.raises((PreflightError, MissingPrivilege), match="zdm belongs to role postgres"):
        expanded(replaced(), limited)
    assert one(url, "SELECT count(*) FROM zdm.event") == before


def test_rows_hidden_by_a_policy(server: Server, url: str, limited: str) -> None:
    """Rows that our role does not see would be neither moved nor compared, and then dropped."""
    grant(url, TEMP, LEDGER, INDEXES)
    sql(
        url,
        "CREATE POLICY visible ON people USING (id > 10); ALTER TABLE people ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
    )
    refused(server, url, replaced(), "row-level security", by=limited)
    sql(url, "ALTER TABLE people NO FORCE ROW LEVEL SECURITY")
    walk(replaced(), limited, State.VALIDATED)
    sql(url, "ALTER TABLE people FORCE ROW LEVEL SECURITY")
    switch_reads.run(work(replaced(), limited))
    with pytest.raises((ZdmError, psycopg.Error)):
        dict(WALK)[State.CONTRACTED](replaced(), limited)
    assert status.read(work(replaced(), limited)).state == State.SWITCHED


# -- names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "key", "old", "new"),
    [
        ('"Order Items"."weird ""name"""', "the %id", "Full Name", "Display Name"),
        ("public.select", "from", "where", "group"),
        ("public.tabelle_ü", "schlüssel", "straße", "名前"),
        ('"a.b"."c.d"', "e.f", "g.h", "i.j"),
        ("public." + "t" * 63, "k" * 63, "o" * 63, "n" * 63),
        ("public.people", "id", "it's", "$1 %s {x} \\"),
        ("public.people", "id", "old", "row"),
        ("public.new", "old", "tg_op", "wrote"),
        ("public.people", "minute", "failed", "record"),
    ],
)
def test_odd_names_run_the_whole_way(server: Server, database: str, table: str, key: str, old: str, new: str) -> None:
    def q(name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    m = replaced(
        table=table,
        old=old,
        new={"name": new, "type": "text", "nullable": False},
        up=f"'n:' || coalesce({q(old)}, '')",
        down=f"substr({q(new)}, 3)",
        rebuild={"said": f"CHECK ({q(new)} <> '')"},
        backfill={"range_rows": 20, "batch_rows": 7},
    )
    name = m.table_name
    with psycopg.connect(database, autocommit=True, cursor_factory=psycopg.RawCursor) as c:
        if name.schema != "public":
            c.execute(f"CREATE SCHEMA {q(name.schema)}".encode())
        c.execute(
            f"CREATE TABLE {name.sql} ({q(key)} bigint PRIMARY KEY, {q(old)} text UNIQUE CONSTRAINT said CHECK ({q(old)} <> ''))".encode()
        )
        c.execute(f"CREATE INDEX ON {name.sql} (lower({q(old)})) WHERE {q(old)} IS NOT NULL".encode())
        c.execute(f"INSERT INTO {name.sql} SELECT n, 'v' || n FROM generate_series(1, 100) n".encode())

        def wrote(now: State) -> None:
            surveyed(m, database) if now != State.CONTRACTED else None
            if now in (State.EXPANDED, State.SWITCHED):
                c.execute(f"UPDATE {name.sql} SET {q(old)} = 'a{now}' WHERE {q(key)} = 50".encode())
            c.execute(f"UPDATE {name.sql} SET {q(new)} = 'n:b{now}' WHERE {q(key)} = 60".encode())

        plan.read(work(m, database))
        walk(m, database, State.CONTRACTED, then=wrote)
        rows = c.execute(f"SELECT {q(key)}, {q(new)} FROM {name.sql} ORDER BY 1".encode()).fetchall()
    expected = {n: f"n:v{n}" for n in range(1, 101)} | {50: "n:aswitched", 60: "n:bcontracted"}
    assert dict(rows) == expected


def test_a_publication_of_all_tables_is_named_and_stops_nothing(own_server):
    own_server.settings["wal_level"] = "logical"
    own_server.restart()
    url = own_server.create_database("app")
    people(url, 50)
    sql(url, "CREATE PUBLICATION everything FOR ALL TABLES")
    m = replaced()
    warnings = surveyed(m, url).warnings
    assert all("publication everything" in warning for warning in warnings)
    assert sum("--schema=zdm" in warning for warning in warnings) == 1
    walk(m, url, State.CONTRACTED)
