"""Ways out of preflight: each refusal is met, what its message says is done to the letter, and the migration begins.

The names are odd ones throughout, so that every statement which a message prints must be quoted as the server wants it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import psycopg
import pytest

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.model.errors import PreflightError, Problem
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.phases import contract, expand, validate
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import rollback
from zdm_pipelines_tests.helpers import eventually, one, sql, work
from zdm_pipelines_tests.refusals import in_order, printed, problems

T = '"public"."Order Items"'
C = '"weird ""name"'
ITEMS = f"""
CREATE TABLE {T} (id bigint PRIMARY KEY, {C} text, note text NOT NULL DEFAULT '');
INSERT INTO {T} SELECT n, 'v' || n, 'note ' || n FROM generate_series(1, 20) n;
CREATE INDEX "By Note" ON {T} (note);
CREATE FUNCTION t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN coalesce(NEW, OLD); END';
ANALYZE;
"""
AGAIN = r"""
DO $$ DECLARE what text; BEGIN
  FOR what IN SELECT format('PUBLICATION %I', pubname) FROM pg_publication
    UNION ALL SELECT format('FOREIGN DATA WRAPPER %I CASCADE', fdwname) FROM pg_foreign_data_wrapper
    UNION ALL SELECT format('SCHEMA %I CASCADE', nspname) FROM pg_namespace
    WHERE nspname NOT LIKE 'pg\_%' AND nspname NOT IN ('information_schema', 'zdm')
  LOOP EXECUTE 'DROP ' || what; END LOOP;
  CREATE SCHEMA public; GRANT USAGE ON SCHEMA public TO PUBLIC; TRUNCATE zdm.migration CASCADE;
END $$"""
REPLACE: dict[str, Any] = {
    "kind": "replace_column", "old": 'weird "name', "new": {"name": "Shown", "type": "text"}, "up": C, "down": '"Shown"',
}  # fmt: skip
NOT_NULL = {"name": "Shown", "type": "text", "nullable": False}
NEW: dict[str, Any] = {
    "table": 'public."Item Names"', "key": {"item": "id"}, "columns": {"Shown": {"type": "text", "up": C}},
}  # fmt: skip
EXTRACT: dict[str, Any] = {"kind": "extract_table", "old": 'weird "name', "new": NEW, "down": '"Shown"'}
EACH: dict[str, Any] = EXTRACT | {
    "each": f"to_jsonb(ARRAY[{C}])", "down": """min("Shown")""",
    "new": NEW | {"position": "nr", "columns": {"Shown": {"type": "text", "up": "element #>> '{}'"}}},
}  # fmt: skip
PURGE: dict[str, Any] = {"kind": "purge_rows", "where": "id < 10"}
KEPT = PURGE | {"archive": {"table": '"Old Things"."Order Items"'}}
FAMILY = KEPT | {"children": "delete"}
ADD: dict[str, Any] = {"kind": "add_index", "name": "New One", "columns": [C]}
DROP: dict[str, Any] = {"kind": "drop_index", "name": "By Note", "unused_for": None}
EXCHANGE: dict[str, Any] = {
    "kind": "replace_index",
    "old": "By Note",
    "new": {"name": "New One", "columns": ["note", "id"]},
}
PERIODS = f"ALTER TABLE {T} ADD a int4range, ADD b int4range; "
RANGE = {"old": "b", "new": {"name": "Shown", "type": "int4range"}, "up": "b"}
NOTHING: dict[str, Any] = {}  # is left to be done: the migration is taken out

ROLE = "Way Out"
GRANTED = (
    f'DROP SCHEMA zdm CASCADE; ALTER TABLE {T} OWNER TO "{ROLE}"; GRANT USAGE, CREATE ON SCHEMA public TO "{ROLE}"; '
    f'GRANT CREATE, TEMPORARY ON DATABASE "{{database}}" TO "{ROLE}"; '
)
TREE = (
    "CREATE TABLE p (id bigint PRIMARY KEY, note text, b text) PARTITION BY RANGE (id); "
    'CREATE TABLE "p 1" PARTITION OF p DEFAULT; CREATE INDEX "By B" ON p (b); '
)


@dataclass(frozen=True)
class Case:
    """A refusal and its way out."""

    change: Mapping[str, Any]
    says: str  # fragments of the message in their order, with … between: thing, fact and way out
    setup: str
    way: str | Mapping[str, Any]  # a statement, or what is declared instead; NOTHING is left to be done
    printed: bool = True  # the message has the statement as it is run here
    role: bool = False  # the migration runs as a role that may do little
    more: Mapping[str, Any] = field(default_factory=dict)  # what is declared besides

    @property
    def kind(self) -> str:
        return str(self.change["kind"])


def alter(words: str) -> str:
    return f"ALTER TABLE {T} {words}"


CASES = [
    # -- the table
    Case(REPLACE, "table … does not exist in this database … write its exact name", "", {"table": 'public."Order Items"'},
         more={"table": 'public."Order Item"'}),
    Case(REPLACE, "column … does not exist … the table has", "", {"old": 'weird "name'}, more={"old": "weird name"}),
    Case(REPLACE, "belongs to the server or to the ledger … name a table of the application's", "",
         {"table": 'public."Order Items"'}, more={"table": "pg_catalog.pg_class"}),
    Case(REPLACE, "is a partition of a table that is partitioned", TREE, 'ALTER TABLE public.p DETACH PARTITION public."p 1"',
         more={"table": 'public."p 1"', "old": "b", "up": "b"}),
    Case(REPLACE, "name the table that holds the rows", f'CREATE VIEW v AS TABLE {T}',
         {"table": 'public."Order Items"'}, more={"table": "public.v"}),
    Case(REPLACE, "has a parent or children by inheritance", f'CREATE TABLE "Child 1" () INHERITS ({T})',
         'ALTER TABLE public."Child 1" NO INHERIT public."Order Items"'),
    Case(REPLACE, "belongs to role … which we are not a member of … or GRANT", GRANTED + alter("OWNER TO owner_of_items"),
         f'GRANT "owner_of_items" TO "{ROLE}"', role=True),
    Case(REPLACE, "has no primary key … ADD PRIMARY KEY USING INDEX it", alter("DROP CONSTRAINT \"Order Items_pkey\""),
         f'CREATE UNIQUE INDEX CONCURRENTLY "it" ON {T} (id); ' + alter('ADD PRIMARY KEY USING INDEX "it"'), printed=False),
    Case(REPLACE, "has row-level security that may hide rows from our role … or ALTER TABLE",
         GRANTED + alter("ENABLE ROW LEVEL SECURITY; ") + alter("FORCE ROW LEVEL SECURITY"), alter("NO FORCE ROW LEVEL SECURITY"), role=True),
    Case(REPLACE, "role … may not create the zdm schema … GRANT CREATE ON DATABASE", GRANTED + 'REVOKE CREATE ON DATABASE "{database}" FROM "Way Out"',
         f'GRANT CREATE ON DATABASE "{{database}}" TO "{ROLE}"', role=True),
    Case(REPLACE, "role … may not create the zdm schema … let an administrator run CREATE SCHEMA", GRANTED + 'REVOKE CREATE ON DATABASE "{database}" FROM "Way Out"',
         f'CREATE SCHEMA zdm AUTHORIZATION "{ROLE}"', role=True),
    Case(REPLACE, "role … may not write to the zdm schema", GRANTED + "CREATE SCHEMA zdm AUTHORIZATION owner_of_items; GRANT USAGE ON SCHEMA zdm TO \"Way Out\"",
         f'GRANT ALL ON SCHEMA zdm TO "{ROLE}"', role=True),
    Case(REPLACE, "may not create temporary objects", GRANTED + 'REVOKE TEMPORARY ON DATABASE "{database}" FROM PUBLIC, "Way Out"',
         f'GRANT TEMPORARY ON DATABASE "{{database}}" TO "{ROLE}"', role=True),
    Case(REPLACE, "may not create indexes in schema", GRANTED + 'REVOKE CREATE ON SCHEMA public FROM "Way Out"',
         f'GRANT CREATE ON SCHEMA "public" TO "{ROLE}"', role=True),
    Case(REPLACE, "the role may not do this … see docs/production.md for the grants", GRANTED + f'REVOKE SELECT ON {T} FROM "{ROLE}"',
         f'GRANT SELECT ON {T} TO "{ROLE}"', role=True, printed=False),
    # -- what is in the way of a later step
    Case(REPLACE, "rule … rewrites each … our own too … first; a trigger can do what it does", f'CREATE RULE "R 1" AS ON UPDATE TO {T} DO INSTEAD NOTHING',
         f'DROP RULE "R 1" ON {T}'),
    Case(REPLACE, "is of a composite type", f"CREATE TYPE i AS (id bigint, {C} text, note text); " + alter("OF i"), alter("NOT OF")),
    Case(REPLACE, "publication … publishes each", alter("REPLICA IDENTITY NOTHING; ") + f"CREATE PUBLICATION p FOR TABLE {T}", alter("REPLICA IDENTITY DEFAULT")),
    Case(REPLACE, "was never proven, and rows break it … or go without it until the end",
         alter("ADD CONSTRAINT \"No 7\" CHECK (note <> 'note 7') NOT VALID"), alter('DROP CONSTRAINT "No 7"')),
    Case(REPLACE, "was never proven, and rows break it … correct them", alter("ADD CONSTRAINT \"No 7\" CHECK (note <> 'note 7') NOT VALID"),
         f"UPDATE {T} SET note = 'n' WHERE id = 7", printed=False),
    Case(REPLACE, "has a name that a later step needs … drop it, or ALTER TABLE", alter('ADD COLUMN "zdm_tombstone_weird ""name" text'),
         alter('RENAME COLUMN "zdm_tombstone_weird ""name" TO "a_zdm_tombstone_weird ""name"')),
    Case(REPLACE, "has a name that a later step needs … drop it, or ALTER TABLE", alter('ADD CONSTRAINT "zdm_not_null_Shown" CHECK (id > 0)'),
         alter('RENAME CONSTRAINT "zdm_not_null_Shown" TO "a_zdm_not_null_Shown"'), more={"new": NOT_NULL, "up": f"coalesce({C}, '')"}),
    Case(REPLACE, "has a name that a later step needs … drop it, or ALTER TRIGGER", f"CREATE TRIGGER zzz_zdm_way_out_insert BEFORE UPDATE ON {T} FOR EACH ROW EXECUTE FUNCTION t()",
         f'ALTER TRIGGER "zzz_zdm_way_out_insert" ON {T} RENAME TO "a_zzz_zdm_way_out_insert"'),
    Case(REPLACE, "which quotes the bodies of our functions … write or name it otherwise", alter('RENAME note TO "$zdm_sync$"'), alter('RENAME "$zdm_sync$" TO note'), printed=False),
    # -- the old column
    Case(REPLACE, "is generated by the server … DROP EXPRESSION first", alter("ADD g text GENERATED ALWAYS AS (upper(note)) STORED"),
         alter('ALTER COLUMN "g" DROP EXPRESSION'), more={"old": "g", "up": "g"}),
    Case(REPLACE, "is generated by the server … DROP IDENTITY first", alter("ADD g int GENERATED ALWAYS AS IDENTITY"),
         alter('ALTER COLUMN "g" DROP IDENTITY'), more={"old": "g", "up": "g::bigint", "down": '"Shown"::int', "new": NOT_NULL | {"type": "bigint"}}),
    Case(REPLACE, "has a default that calls … DROP DEFAULT, and let old code name a value", alter(f"ALTER {C} SET DEFAULT random()::text"), alter(f"ALTER COLUMN {C} DROP DEFAULT")),
    Case(REPLACE, "inserts that name neither would … declare new.default", alter(f"ALTER {C} SET DEFAULT 'x'"), {"new": REPLACE["new"] | {"default": "'x'"}}),
    Case(REPLACE, "inserts that name neither would … or 'NULL' if that is what you want", alter(f"ALTER {C} SET DEFAULT 'x'"), {"new": REPLACE["new"] | {"default": "NULL"}}),
    Case(REPLACE, "is part of the primary key … make another one the primary key first", alter(f'DROP CONSTRAINT "Order Items_pkey", ADD PRIMARY KEY (id, {C})'),
         f"CREATE UNIQUE INDEX CONCURRENTLY k ON {T} (id); " + alter('DROP CONSTRAINT "Order Items_pkey", ADD PRIMARY KEY USING INDEX k'), printed=False,
         more={"new": NOT_NULL}),
    Case(REPLACE, "key column … is generated, and a trigger sees it empty … DROP EXPRESSION first",
         alter("ADD k bigint GENERATED ALWAYS AS (0) STORED; ") + alter('DROP CONSTRAINT "Order Items_pkey", ADD PRIMARY KEY (id, k)'), alter('ALTER COLUMN "k" DROP EXPRESSION')),
    Case(REPLACE, "exists already … choose another name for new", alter('ADD "Shown" text'), {"new": {"name": "Other", "type": "text"}, "down": '"Other"'}),
    Case(REPLACE, "is referenced by … let that refer to another column, or drop it first", alter(f'ADD UNIQUE ({C}); ') +
         f'CREATE TABLE "Pets 1" (o text, CONSTRAINT "F 1" FOREIGN KEY (o) REFERENCES {T} ({C}))', 'ALTER TABLE public."Pets 1" DROP CONSTRAINT "F 1"'),
    Case(REPLACE, "trigger … sorts behind the sync trigger", f'CREATE TRIGGER "zzz~" BEFORE UPDATE ON {T} FOR EACH ROW EXECUTE FUNCTION t()',
         f'ALTER TRIGGER "zzz~" ON {T} RENAME TO "a_zzz~"'),
    # -- the new column
    Case(REPLACE, "new column … correct new.type or new.default", "", {"new": REPLACE["new"]}, more={"new": {"name": "Shown", "type": "txt"}}),
    Case(REPLACE, "says more than a type … and use nullable and default for the rest", "", {"new": NOT_NULL, "up": f"coalesce({C}, '')"},
         more={"new": {"name": "Shown", "type": "text NOT NULL"}}),
    Case(REPLACE, "cannot be added to a table with rows … declare a type that takes NULL", "CREATE DOMAIN d AS text NOT NULL", {"new": {"name": "Shown", "type": "text"}},
         more={"new": {"name": "Shown", "type": "d"}}),
    Case(REPLACE, "would rewrite the whole table while nobody can read it, for each row … write type", "CREATE DOMAIN d AS text CHECK (VALUE <> '')", {"new": {"name": "Shown", "type": "text"}},
         more={"new": {"name": "Shown", "type": "d"}}),
    Case(REPLACE, "has a default of its own … or one without default, and declare new.default", "CREATE DOMAIN d AS text DEFAULT 'x'", {"new": {"name": "Shown", "type": "text"}},
         more={"new": {"name": "Shown", "type": "d"}}),
    # -- up and down
    Case(REPLACE, "which may give another value each time … from the row", "", {"up": C}, more={"up": f"{C} || random()::text"}),
    Case(REPLACE, "write an explicit cast, as", "", {"up": f"(length({C}))::text"}, more={"up": f"length({C})", "down": '"Shown"'}),
    Case(REPLACE, "which another session answers otherwise … from the row", "", {"up": C}, more={"up": f"{C} || current_user"}),
    Case(REPLACE, "reads the whole row … name the columns that", "", {"up": C}, more={"up": '"Order Items"::text'}),
    Case(REPLACE, "is no expression over … one row … of the table", "", {"up": C}, more={"up": f"max({C})"}),
    Case(REPLACE, "which it is to give … compute it from the", "", {"down": '"Shown"'}, more={"down": C}),
    Case(REPLACE, "is generated, and a trigger sees it empty … write its expression out in up and down", alter(f"ADD g text GENERATED ALWAYS AS (upper({C})) STORED"),
         {"up": f"upper({C})"}, more={"up": "g"}),
    Case(REPLACE, "gives NULL for NULL … old code's writes would fail … or declare nullable: true", "", {"new": REPLACE["new"]}, more={"new": NOT_NULL}),
    Case(REPLACE, "gives NULL for NULL … old code's writes would fail … write coalesce", "", {"up": f"coalesce({C}, '')"}, more={"new": NOT_NULL}),
    Case(REPLACE, "gives NULL for NULL … new code's writes would fail … or nullable: false", alter(f"ALTER {C} SET NOT NULL"), {"new": NOT_NULL}),
    Case(REPLACE, "gives NULL for NULL … new code's writes would fail … write coalesce", alter(f"ALTER {C} SET NOT NULL"), {"down": """coalesce("Shown", '')""", "new": NOT_NULL}),
    Case(REPLACE, "could not be told from a row never moved … declare nullable: false, or let", "", {"new": NOT_NULL}, more={"up": f"coalesce({C}, '?')"}),
    Case(REPLACE, "could not be told from a row never moved … or let up and down read one column each", "", {"up": C}, more={"up": f"coalesce({C}, '?')"}),
    Case(REPLACE, "and up or down fails on NULL … let both take NULL, or declare nullable: false", "CREATE FUNCTION strictly(x text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS "
         "$$BEGIN IF x IS NULL THEN RAISE 'none'; END IF; RETURN x; END$$", {"up": C}, more={"up": f"strictly({C})"}),
    # -- indexes and constraints of the old column
    Case(REPLACE, "no index or constraint of column … write the exact name of one", f'CREATE INDEX "I 1" ON {T} ({C})', {"rebuild": {"I 1": "USING btree (\"Shown\")"}},
         more={"rebuild": {"I 2": "drop"}}),
    Case(REPLACE, "is the primary key, which includes it … make the primary key anew without it first", alter(f'DROP CONSTRAINT "Order Items_pkey", ADD PRIMARY KEY (id) INCLUDE ({C})'),
         f"CREATE UNIQUE INDEX CONCURRENTLY k ON {T} (id); " + alter('DROP CONSTRAINT "Order Items_pkey", ADD PRIMARY KEY USING INDEX k'), printed=False),
    Case(REPLACE, "is the replica identity … let the primary key be it", alter(f"ALTER {C} SET NOT NULL; ") + f'CREATE UNIQUE INDEX "I 1" ON {T} ({C}); ' +
         alter('REPLICA IDENTITY USING INDEX "I 1"'), alter("REPLICA IDENTITY DEFAULT"), more={"new": NOT_NULL}),
    Case(REPLACE, "is an exclusion constraint, which no server builds while the table is written … and make what you need afterwards",
         alter(f'ADD CONSTRAINT "E 1" EXCLUDE ({C} WITH =)'), {"rebuild": {"E 1": "drop"}}),
    Case(REPLACE, "speaks of values of … declare under change what stands on the new column", f'CREATE INDEX "I 1" ON {T} (id) WHERE {C} = \'v1\'',
         {"rebuild": {"I 1": "USING btree (id) WHERE \"Shown\" = 'n:v1'"}}, more={"up": f"'n:' || {C}", "down": 'substr("Shown", 3)'}),
    Case(REPLACE, "speaks of values of … for nothing", alter(f'ADD CONSTRAINT "C 1" CHECK ({C} <> \'x\')'),
         {"rebuild": {"C 1": "drop"}}, more={"up": f"'n:' || {C}", "down": 'substr("Shown", 3)'}),
    Case(REPLACE, "cannot be built on the new column … declare another, as rebuild", f'CREATE INDEX "I 1" ON {T} ({C} text_pattern_ops)',
         {"rebuild": {"I 1": 'USING btree ("Shown")'}}, more={"new": {"name": "Shown", "type": "integer"}, "up": f"length({C})", "down": '"Shown"::text'}),
    Case(REPLACE, "does not fit the new column … declare what does, as rebuild", alter(f'ADD CONSTRAINT "C 1" CHECK ({C} LIKE \'v%\')'),
         {"rebuild": {"C 1": 'CHECK ("Shown" > 0)'}}, more={"rebuild": {"C 1": "CHECK (\"Shown\" LIKE 'v%')"}, "new": {"name": "Shown", "type": "integer"}, "up": f"length({C})", "down": '"Shown"::text'}),
    Case(REPLACE, "foreign key … cannot be declared anew: only the server knows it … and add what you need afterwards", "CREATE TABLE q (o text PRIMARY KEY); " +
         f"INSERT INTO q SELECT {C} FROM {T}; " + alter(f'ADD CONSTRAINT "F 1" FOREIGN KEY ({C}) REFERENCES q'), {"rebuild": {"F 1": "drop"}}, more={"rebuild": {"F 1": "FOREIGN KEY"}}),
    Case(REPLACE, "refers to values that up does not keep … and add what you need afterwards", "CREATE TABLE q (o text PRIMARY KEY); " +
         f"INSERT INTO q SELECT {C} FROM {T}; " + alter(f'ADD CONSTRAINT "F 1" FOREIGN KEY ({C}) REFERENCES q'), {"rebuild": {"F 1": "drop"}},
         more={"up": f"'n:' || {C}", "down": 'substr("Shown", 3)'}),
    Case(REPLACE, "to which our role may not refer … GRANT REFERENCES ON", GRANTED + 'CREATE TABLE "Q 1" (o text PRIMARY KEY); ' +
         f'INSERT INTO "Q 1" SELECT {C} FROM {T}; ' + alter(f'ADD CONSTRAINT "F 1" FOREIGN KEY ({C}) REFERENCES "Q 1"'), f'GRANT REFERENCES ON public."Q 1" TO "{ROLE}"', role=True),
    Case(REPLACE, "is a constraint WITHOUT OVERLAPS, which no server builds … first, or declare", PERIODS + alter('ADD CONSTRAINT "U 1" UNIQUE (a, b WITHOUT OVERLAPS)'),
         alter('DROP CONSTRAINT "U 1"'), more=RANGE),
    Case(REPLACE, "is temporal (PERIOD) … first, or declare", PERIODS + "CREATE TABLE q (a int4range, b int4range, PRIMARY KEY (a, b WITHOUT OVERLAPS)); " +
         alter('ADD CONSTRAINT "F 1" FOREIGN KEY (a, PERIOD b) REFERENCES q (a, PERIOD b)'), alter('DROP CONSTRAINT "F 1"'), more=RANGE),
    Case(REPLACE, "is generated by the server … leave it: its successor is a generated column of its own", alter("ADD g text GENERATED ALWAYS AS (upper(note)) VIRTUAL"),
         NOTHING, more={"old": "g", "up": "g"}),
    Case(EXTRACT, "is generated by the server … leave it: its successor is a generated column of its own", alter("ADD g text GENERATED ALWAYS AS (upper(note)) VIRTUAL"),
         NOTHING, more={"old": "g", "new": NEW | {"columns": {"Shown": {"type": "text", "up": "g"}}}}),
    # -- extract_table
    Case(EXTRACT, "is generated by the server … DROP EXPRESSION first", alter("ADD g text GENERATED ALWAYS AS (upper(note)) STORED"), alter('ALTER COLUMN "g" DROP EXPRESSION'),
         more={"old": "g", "new": NEW | {"columns": {"Shown": {"type": "text", "up": "g"}}}}),
    Case(EXTRACT, "is generated by the server … DROP IDENTITY first", alter("ADD g int GENERATED ALWAYS AS IDENTITY"),
         alter('ALTER COLUMN "g" DROP IDENTITY, ALTER COLUMN "g" DROP NOT NULL'), printed=False,
         more={"old": "g", "new": NEW | {"columns": {"Shown": {"type": "int", "up": "g"}}}}),
    Case(EXTRACT, "is part of the primary key … make another one the primary key first", alter(f'DROP CONSTRAINT "Order Items_pkey", ADD PRIMARY KEY (id, {C})'),
         f"CREATE UNIQUE INDEX CONCURRENTLY k ON {T} (id); " + alter(f'DROP CONSTRAINT "Order Items_pkey", ADD PRIMARY KEY USING INDEX k, ALTER {C} DROP NOT NULL'), printed=False),
    Case(EXTRACT, "is NOT NULL without a default … DROP NOT NULL", alter(f"ALTER {C} SET NOT NULL"), alter(f"ALTER COLUMN {C} DROP NOT NULL")),
    Case(EXTRACT, "is NOT NULL without a default … or SET DEFAULT", alter(f"ALTER {C} SET NOT NULL"), alter(f"ALTER COLUMN {C} SET DEFAULT ''"), printed=False),
    Case(EXTRACT, "so that no value cannot be told from one … SET DEFAULT a constant", alter(f"ALTER {C} SET DEFAULT random()::text"), alter(f"ALTER COLUMN {C} SET DEFAULT ''"), printed=False),
    Case(EXTRACT, "so that no value cannot be told from one … or DROP DEFAULT", alter(f"ALTER {C} SET DEFAULT random()::text"), alter(f"ALTER COLUMN {C} DROP DEFAULT"), printed=False),
    Case(EXTRACT, "is referenced by … let that refer to another column, or drop it first", alter(f'ADD UNIQUE ({C}); ') +
         f'CREATE TABLE "Pets 1" (o text, CONSTRAINT "F 1" FOREIGN KEY (o) REFERENCES {T} ({C}))', 'ALTER TABLE public."Pets 1" DROP CONSTRAINT "F 1"'),
    Case(EXTRACT, "has no schema: there is no … create the schema, or name another", "", 'CREATE SCHEMA "Far Away"', more={"new": NEW | {"table": '"Far Away".n'}}, printed=False),
    Case(EXTRACT, "new table … exists already … choose another name, or drop it", "CREATE TABLE taken ()", {"new": NEW}, more={"new": NEW | {"table": "public.taken"}}),
    Case(EXTRACT, "is called as the source … choose another name", "CREATE SCHEMA other", {"new": NEW}, more={"new": NEW | {"table": 'other."Order Items"'}}),
    Case(EXTRACT, "index … exists already … choose another name", "", {"new": NEW}, more={"new": NEW | {"indexes": [{"name": "By Note", "definition": '("Shown")'}]}}),
    Case(EXTRACT, "may not create tables in schema", GRANTED + 'CREATE SCHEMA "Far Away"; GRANT USAGE ON SCHEMA "Far Away" TO "Way Out"', f'GRANT CREATE ON SCHEMA "Far Away" TO "{ROLE}"', role=True,
         more={"new": NEW | {"table": '"Far Away".n'}}),
    Case(EXTRACT, "and the primary key of … hold each column of the primary key, once", "", {"new": NEW}, more={"new": NEW | {"key": {"item": "note"}}}),
    Case(EXTRACT, "key column … is generated, and a trigger sees it empty", alter("ADD k bigint GENERATED ALWAYS AS (0) STORED; ") +
         alter('DROP CONSTRAINT "Order Items_pkey", ADD PRIMARY KEY (id, k)'), alter('ALTER COLUMN "k" DROP EXPRESSION'), more={"new": NEW | {"key": {"item": "id", "k": "k"}}}),
    Case(EACH, "with each, element and position are names of ours", alter("ADD element text"), alter("RENAME element TO elem"), printed=False),
    Case(EXTRACT, "new column … correct its type or default", "", {"new": NEW}, more={"new": NEW | {"columns": {"Shown": {"type": "txt", "up": C}}}}),
    Case(EXTRACT, "says more than a type … and use nullable and default for the rest", "", {"new": NEW | {"columns": {"Shown": {"type": "text", "up": C, "nullable": False}}}},
         more={"new": NEW | {"columns": {"Shown": {"type": "text NOT NULL", "up": C}}}}),
    Case(EXTRACT, "which stays in … read the columns under old and the primary key only", "", {"new": NEW}, more={"new": NEW | {"columns": {"Shown": {"type": "text", "up": "note"}}}}),
    Case(EXTRACT, "which stays in … or name it in old", "", {"old": ['weird "name', "note"], "down": {'weird "name': '"Shown"', "note": '"Shown"'}},
         more={"new": NEW | {"columns": {"Shown": {"type": "text", "up": "note"}}}}),
    Case(EACH, "is no expression over … rows … of the table", "", {"down": 'min("Shown")'}, more={"down": '"Shown"'}),
    # -- purge_rows
    Case(PURGE, "is the name of a column of … choose another name", "", {"where": "id < least", "once": {"least": "5"}}, more={"where": "id < 5", "once": {"note": "5"}}),
    Case(PURGE, "is NULL, which no row compares with … correct once.", "", {"once": {"x": "5"}}, more={"where": "id < x", "once": {"x": "NULL::int"}}),
    Case(PURGE, "cannot be computed … correct once.", "", {"once": {"x": "5"}}, more={"where": "id < x", "once": {"x": "no_such"}}),
    Case(PURGE, "rows would go that no dry run counted … compute the moment once", alter("ADD created_at timestamptz"),
         {"where": "created_at < cutoff", "once": {"cutoff": "now() - interval '90 days'"}}, more={"where": "created_at < now() - interval '90 days'"}),
    Case(PURGE, "rows would go that no dry run counted … or write it out with its time zone", alter("ADD created_at timestamptz"),
         {"where": "created_at < '2025-01-01 00:00:00+00'"}, more={"where": "created_at < note::timestamptz"}),
    Case(PURGE, "is no predicate over one row … correct where", "", {"where": "id < 10"}, more={"where": "id"}),
    Case(PURGE, "rule … rewrites each … our own too", f'CREATE RULE "R 1" AS ON DELETE TO {T} DO INSTEAD NOTHING', f'DROP RULE "R 1" ON {T}'),
    Case(PURGE, "publication … publishes each", alter("REPLICA IDENTITY NOTHING; ") + f"CREATE PUBLICATION p FOR TABLE {T}", alter("REPLICA IDENTITY DEFAULT")),
    Case(FAMILY, "leads back to … set it to NULL for the rows that go, and drop it first", 'CREATE SCHEMA "Old Things"; ' + alter(f'ADD boss bigint CONSTRAINT "F 1" REFERENCES {T}'), alter('DROP CONSTRAINT "F 1"')),
    Case(KEPT, "does not exist … CREATE SCHEMA", "", 'CREATE SCHEMA "Old Things"'),
    Case(KEPT, "may not be written by our role … GRANT USAGE, CREATE ON SCHEMA", GRANTED + 'CREATE SCHEMA "Old Things"', f'GRANT USAGE, CREATE ON SCHEMA "Old Things" TO "{ROLE}"', role=True),
    Case(KEPT, "archive … exists already … choose another name for the archive", 'CREATE SCHEMA "Old Things"; CREATE TABLE "Old Things"."Order Items" ()', {"archive": {"table": '"Old Things".other'}}),
    Case(FAMILY, "columns, and an archive needs one more: the server has room for no more … declare no archive", 'CREATE SCHEMA "Old Things"; ' +
         f"CREATE TABLE kids (id int PRIMARY KEY, i bigint REFERENCES {T}, {', '.join(f'c{n} bool' for n in range(1598))})", {"archive": None}),
    Case(PURGE, "and where is tried on a copy with … drop columns that nobody needs", alter(", ".join(f"ADD c{n} bool" for n in range(1597))),
         alter("DROP c0, DROP c1"), printed=False),
    Case(KEPT, "of its own … declare no archive", 'CREATE SCHEMA "Old Things"; ' + alter("ADD zdm_transaction int"), {"archive": None}),
    Case(KEPT, "and may keep one that was archived … declare no archive, or", 'CREATE SCHEMA "Old Things"; ' + f'CREATE TRIGGER "T 1" BEFORE DELETE ON {T} FOR EACH ROW EXECUTE FUNCTION t()',
         f'DROP TRIGGER "T 1" ON {T}'),
    Case(KEPT, "and may keep one that was archived … declare no archive", 'CREATE SCHEMA "Old Things"; ' + f'CREATE TRIGGER "T 1" BEFORE DELETE ON {T} FOR EACH ROW EXECUTE FUNCTION t()', {"archive": None}),
    Case(FAMILY, "is set to NULL or a default, which no archive keeps … declare no archive", f'CREATE SCHEMA "Old Things"; CREATE TABLE kids (id int PRIMARY KEY, i bigint REFERENCES {T} ON DELETE SET NULL)', {"archive": None}),
    Case(FAMILY, "has no primary key, so its rows cannot come back … declare no archive", f'CREATE SCHEMA "Old Things"; CREATE TABLE kids (i bigint REFERENCES {T})', {"archive": None}),
    Case(FAMILY, "is one of several along which rows go … declare no archive", f'CREATE SCHEMA "Old Things"; CREATE TABLE kids (id int PRIMARY KEY, i bigint REFERENCES {T}, j bigint REFERENCES {T})', {"archive": None}),
    # -- indexes
    Case(ADD, "cannot be built … correct the declaration of the index", "", {"columns": [C]}, more={"columns": ["no_such"]}),
    Case(ADD, "partition … is a foreign table, which has no indexes … detach it", 'CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; ' + TREE.replace(' PRIMARY KEY', '').partition('CREATE INDEX')[0] +
         'CREATE FOREIGN TABLE f PARTITION OF p FOR VALUES FROM (1) TO (2) SERVER s', 'ALTER TABLE p DETACH PARTITION f', printed=False,
         more={"table": "public.p", "columns": ["note"]}),
    Case(ADD, "in schema … is the name of something else … choose another name", "", {"name": "New One"}, more={"name": "By Note"}),
    Case(ADD, "in schema … exists already, as declared … nothing is left to be done: take the migration out", "", NOTHING, more={"name": "By Note", "columns": ["note"]}),
    Case(ADD, "is the same as index … or drop it first", TREE, 'DROP INDEX "By B"', more={"table": "public.p", "columns": ["b"]}, printed=False),
    Case(DROP, "index … does not exist … write the exact name of an index of", "", {"name": "By Note"}, more={"name": "By note"}),
    Case(DROP, "index … is on another table … write the exact name of an index of", "CREATE TABLE o (a int); CREATE INDEX oa ON o (a)", {"name": "By Note"}, more={"name": "oa"}),
    Case(DROP, "is on a partitioned table and cannot be dropped concurrently … run it yourself in a quiet moment", TREE, 'DROP INDEX "By B"', more={"table": "public.p", "name": "By B"}, printed=False),
    Case(DROP, "backs constraint … nothing is left to be done then", alter('ADD CONSTRAINT "U 1" UNIQUE (note)'), 'ALTER TABLE public."Order Items" DROP CONSTRAINT "U 1"', more={"name": "U 1"}),
    Case(DROP, "is what foreign key … refers to … first", f'CREATE UNIQUE INDEX "U 1" ON {T} (note); CREATE TABLE "Pets 1" (o text, CONSTRAINT "F 1" FOREIGN KEY (o) REFERENCES {T} (note))',
         'ALTER TABLE public."Pets 1" DROP CONSTRAINT "F 1"', more={"name": "U 1"}),
    Case(DROP, "is the replica identity of its table … first", f'CREATE UNIQUE INDEX "U 1" ON {T} (note); ' + alter('REPLICA IDENTITY USING INDEX "U 1"'), 'ALTER TABLE public."Order Items" REPLICA IDENTITY DEFAULT', more={"name": "U 1"}),
    Case(DROP, "belongs to index … of the partitioned table … takes both … run it yourself in a quiet", TREE, 'DROP INDEX public."By B"', more={"table": 'public."p 1"', "name": "p 1_b_idx"}),
    Case(EXCHANGE, "is the replica identity of its table … first", f'CREATE UNIQUE INDEX "U 1" ON {T} (note); ' + alter('REPLICA IDENTITY USING INDEX "U 1"'), 'ALTER TABLE public."Order Items" REPLICA IDENTITY DEFAULT', more={"old": "U 1"}),
]  # fmt: skip

_numbers = count(1)


@pytest.fixture(scope="module")
def begun(cluster: Cluster) -> Iterator[str]:
    """The name of a database with a ledger and a table, to copy."""
    name = "way_out"
    made = cluster.primary.create_database(name)
    sql(made, ITEMS)
    sql(made, f'CREATE ROLE "{ROLE}" LOGIN; CREATE ROLE owner_of_items')
    ledger.ensure(server_at(made))
    yield name
    cluster.primary.drop_database(name)
    sql(cluster.primary.url(), f'DROP ROLE "{ROLE}", owner_of_items')


@pytest.fixture(scope="module")
def reused(cluster: Cluster, begun: str) -> Iterator[str]:
    """A copy of it that several tests have, one after another: most of them take less time than a copy."""
    yield cluster.primary.create_database("way_out_reused", template=begun)
    cluster.primary.drop_database("way_out_reused")


@pytest.fixture
def again(reused: str) -> str:
    """The same, as it was at first."""
    sql(reused, f"{AGAIN}; {ITEMS}")
    return reused


@pytest.fixture
def url(server: Server, begun: str) -> Iterator[str]:
    """A copy of it."""
    name = f"way_out_{next(_numbers)}"
    yield server.create_database(name, template=begun)
    server.drop_database(name)


def declared(change: Mapping[str, Any], **waits: Any) -> Migration:
    """A migration of the odd table; contract waits for nothing but what is said."""
    change = dict(change)
    return Migration.model_validate(
        {
            "name": "way_out", "database": "app", "table": change.pop("table", 'public."Order Items"'), "change": change,
            "throttle": {"replication_lag": None, "latency_p95": None},
            "locks": {"timeout": "200ms", "give_up_after": "60s"}, "reads": {"ramp": [100]},
            "contract": {"confidence_window": "0s", "tombstone_window": "0s", "straggler_window": "0s"} | waits,
        }
    )  # fmt: skip


def begin(m: Migration, url: str) -> None:
    """The first phase, before which everything is looked at."""
    first = m.lifecycle.phases[0]
    if first is Phase.EXPAND:
        expand.run(work(m, url))
    elif first is Phase.VALIDATE:
        validate.raise_if_failed(validate.run(work(m, url)))
    else:
        contract.run(work(m, url))


def refused(m: Migration, url: str, says: str) -> Problem:
    """The finding of this wording."""
    with pytest.raises(PreflightError) as caught:
        begin(m, url)
    found = [problem for problem in caught.value.problems if in_order(says, str(problem))]
    assert found, caught.value.problems
    return found[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.says}")
def test_the_way_out_leads_through(request: pytest.FixtureRequest, case: Case) -> None:
    url = request.getfixturevalue("url" if case.role else "again")
    database = one(url, "SELECT current_database()")
    if case.role:
        sql(url, f'REVOKE owner_of_items FROM "{ROLE}"')
    if case.setup:
        sql(url, case.setup.replace("{database}", database))
    ours = url.replace("://postgres", "://Way%20Out") if case.role else url
    change = {**case.change, **case.more}
    said = refused(declared(change), ours, case.says)
    if isinstance(case.way, str):
        statement = case.way.replace("{database}", database)
        assert not case.printed or statement in said.way_out, said.way_out
        for each in statement.split("; "):
            sql(url, each)
    elif case.way is NOTHING:
        return
    else:
        change = change | dict(case.way)
    if "nothing is left to be done" in said.way_out or "run it yourself" in said.way_out:
        with pytest.raises(PreflightError, match="does not exist"):
            begin(declared(change), ours)
        return
    begin(declared(change), ours)


# -- what is no matter of one statement --------------------------------------------------------------------------------


def test_a_table_under_another_migration(url: str) -> None:
    m = declared(REPLACE)
    other = m.model_copy(update={"name": "other"})
    begin(other, url)
    said = refused(m, url, "is under migration other (expanded); finish or roll back that one first")
    assert said.thing == 'table public."Order Items"'
    rollback.run(work(other, url), to=State.ROLLED_BACK)
    begin(m, url)


def test_a_replica(cluster: Cluster, url: str) -> None:
    m, name = declared(REPLACE), one(url, "SELECT current_database()")
    assert cluster.replica is not None
    replica = cluster.replica.url(name)
    eventually(lambda: connects(replica))
    refused(m, replica, "database: is a read-only replica; point the URL at the primary")
    begin(m, url)


def connects(url: str) -> bool:
    try:
        return bool(one(url, "SELECT to_regclass('zdm.migration') IS NOT NULL"))
    except psycopg.OperationalError:
        return False


def test_a_temporary_table(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as somebody:
        somebody.execute('CREATE TEMPORARY TABLE "Order Items" (id bigint PRIMARY KEY, "weird ""name" text)')
        (schema,) = somebody.execute("SELECT pg_my_temp_schema()::regnamespace::text").fetchone() or ("",)
        m = declared(REPLACE | {"table": f'{schema}."Order Items"'})
        refused(m, url, "is temporary: no other session sees its rows; name a table that stays")
        begin(declared(REPLACE), url)


# -- completeness -----------------------------------------------------------------------------------------------------

# Whose way out is followed elsewhere, or cannot be: fragments of the message, and why.
APART = {
    "database: ": "that a session may not write: test_role_limits, which runs the statement that is printed",
    "whether a step reads the whole table is not seen … let an administrator RESET it": "test_role_limits",
    "publication … contract.unaffected": "test_subscribers, which prepares a real subscriber, or lists columns",
    "finish or roll back that one first": "test_a_table_under_another_migration",
    "is a read-only replica … point the URL at the primary": "test_a_replica",
    "is temporary: no other session sees its rows … name a table that stays": "test_a_temporary_table",
    "the server refuses to try the change on a temporary copy … see which trigger on events": "test_preflight_ends, which disables an "
    "event trigger",
    "copy it into a new table first: only that gives dropped ones back": "test_preflight_ends, which copies it",
    "dropped, and the server has room for": "the same",
    "mend it, then run validate": "of validate: kinds/test_stories, over duplicates",
    "is partitioned … this kind of change works on ordinary tables only": "no way but another table: a limit of these kinds",
    "is unreadable": "no print of the server's is read otherwise; should one be, it is not guessed at",
    "cannot stand on the new column": "where up keeps every value, the server takes each foreign key",
    "depends on it … drop it, or make it anew without the index": "no object of Postgres 18 depends on an index and on no constraint",
    "would rewrite the whole table while nobody can read it … declare otherwise what it is for": "no step of today's does so: "
    "test_preflight_ends looks at the rehearsal itself, on steps of its own",
    "would read the whole table while nobody can write it … declare otherwise what it is for": "the same",
    "would lock … declare otherwise what it is for": "the same",
    "the server refuses it: … declare otherwise what it is for": "the same",
}


def test_every_refusal_has_a_way_out_that_is_followed() -> None:
    untold = []
    for site in [*problems(), *printed("indexes.holders")]:
        said = [case.says for case in CASES if f"kinds/{case.kind}" in site.file or "kinds/" not in site.file]
        untold += site.untold([*said, *APART])
    assert untold == []


def test_each_case_names_one_refusal() -> None:
    for case in CASES:
        sites = [*problems(), *printed("indexes.holders")]
        found = [s for s in sites if (f"kinds/{case.kind}" in s.file or "kinds/" not in s.file) and s.says(case.says)]
        assert len(found) == 1, (case.says, [(s.file, s.line) for s in found])
