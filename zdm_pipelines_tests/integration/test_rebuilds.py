"""Rebuilds: what stands on the old column stands on the new one as the same thing, or the migration is refused."""

from __future__ import annotations

from typing import Any

import pytest

from zdm_pipelines.model.errors import PreflightError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import validate
from zdm_pipelines_tests import walking
from zdm_pipelines_tests.helpers import expanded, one, replaced, sql, state, walk, work

VERSION = "SELECT current_setting('server_version_num')::int"
TABLE = """
CREATE TABLE owner (id int PRIMARY KEY, code text UNIQUE, UNIQUE (id, code));
INSERT INTO owner SELECT n, 'c' || n FROM generate_series(1, 10) n;
CREATE TABLE people (id bigint PRIMARY KEY, o int, status text NOT NULL DEFAULT 'active', price numeric(10, 2), note text);
INSERT INTO people SELECT n, 1 + n % 10, CASE n % 2 WHEN 0 THEN 'active' ELSE 'gone' END, n, 'n' || n FROM generate_series(1, 20) n;
"""


def widened(**more: Any) -> Migration:
    """A wider type takes over: `up` gives each value as it is."""
    given: dict[str, Any] = {
        "old": "o",
        "new": {"name": "owner_id", "type": "bigint"},
        "up": "o",
        "down": "owner_id::int",
    }
    return replaced(**(given | more))


def coded(**more: Any) -> Migration:
    """Other values take over."""
    new = {"name": "state", "type": "text", "nullable": False, "default": "'A'"}
    return replaced(
        old="status", new=new, up="CASE status WHEN 'active' THEN 'A' ELSE 'G' END",
        down="CASE state WHEN 'A' THEN 'active' ELSE 'gone' END", **more,
    )  # fmt: skip


def on_new(url: str, m: Migration) -> dict[str, str]:
    """Definitions of the indexes and constraints that read the new column, by name."""
    rows = sql(
        url,
        "SELECT c.relname, pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "WHERE i.indrelid = 'people'::regclass UNION ALL SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE conrelid = 'people'::regclass AND contype <> 'n'",
    )
    return {name: definition for name, definition in rows if m.change.new.name in definition}  # type: ignore[attr-defined]


def enforced(url: str, m: Migration) -> dict[str, str]:
    """What a migration builds on the new column, by steps alone."""
    bound = walking.change(url, walking.migration("people", m.change.model_dump(mode="json")))
    sql(url, f"ALTER TABLE people ADD COLUMN {m.change.new.name} {m.change.new.type}")  # type: ignore[attr-defined]
    if not m.change.new.nullable:  # type: ignore[attr-defined]
        sql(url, f"UPDATE people SET {m.change.new.name} = {m.change.up}")  # type: ignore[attr-defined]
    walking.run(url, bound.enforce)
    assert walking.run(url, bound.enforce) == []
    found = on_new(url, m)
    walking.undo(url, bound.enforce)
    assert on_new(url, m) == {}
    return found


def problems(url: str, m: Migration) -> str:
    """What preflight says against a migration."""
    return "\n".join(
        str(p) for p in walking.survey(url, walking.migration("people", m.change.model_dump(mode="json"))).problems
    )


# -- names ------------------------------------------------------------------------------------------------------------


def test_taken_names_never_stand_for_another_index(database: str) -> None:
    sql(
        database,
        TABLE
        + "CREATE INDEX a ON people (o); CREATE UNIQUE INDEX a_zdm ON people (o, id); CREATE INDEX a_zdm_zdm ON people (o, note); "
        "ALTER TABLE people ADD CONSTRAINT a CHECK (o > 0)",
    )
    m = widened()
    walk(m, database, State.CONTRACTED)
    found = on_new(database, m)
    assert len(found) == 4
    assert sum("UNIQUE INDEX" in d for d in found.values()) == 1
    assert sum("(owner_id, note)" in d for d in found.values()) == 1
    assert sum(d.startswith("CHECK") for d in found.values()) == 1


def test_a_name_taken_after_expand_is_told_and_nothing_of_it_is_touched(database: str) -> None:
    sql(database, TABLE + "CREATE INDEX people_o ON people (o)")
    m = widened()
    walk(m, database, State.BACKFILLED)
    sql(database, "CREATE INDEX people_owner_id ON people (note)")
    with pytest.raises(
        PreflightError, match='build index "people_owner_id": relation "people_owner_id" already exists'
    ):
        validate.raise_if_failed(validate.run(work(m, database)))
    assert one(database, "SELECT pg_get_indexdef('people_owner_id'::regclass) LIKE '%%(note)'")
    sql(database, "ALTER INDEX people_owner_id RENAME TO mine")
    walk(m, database, State.VALIDATED)
    assert set(on_new(database, m)) == {"people_owner_id"}


# -- values -----------------------------------------------------------------------------------------------------------

SPEAK = [
    "CREATE UNIQUE INDEX it ON people (note) WHERE status = 'active'",
    "CREATE INDEX it ON people (note) WHERE status = 'active'",
    "CREATE UNIQUE INDEX it ON people (note, lower(status))",
    "CREATE UNIQUE INDEX it ON people (note) WHERE status IS NOT NULL",
    "ALTER TABLE people ADD CONSTRAINT it CHECK (status <> 'x')",
    "ALTER TABLE people ADD CONSTRAINT it CHECK (status IN ('active', 'gone'))",
    "ALTER TABLE people ADD CONSTRAINT it CHECK (status <> note)",
]


@pytest.mark.parametrize("said", SPEAK)
def test_what_speaks_of_other_values_is_refused(database: str, said: str) -> None:
    sql(database, TABLE + said)
    found = problems(database, coded())
    assert '"it": speaks of values of "status"' in found
    assert "rebuild: {it: " in found
    assert "rebuild: {it: drop}" in found
    assert problems(database, coded(rebuild={"it": "drop"})) == ""


@pytest.mark.parametrize(
    ("setup", "m"),
    [
        ("CHECK (price < 1000)", {"old": "price", "new": {"name": "cents", "type": "bigint"}, "up": "(price * 100)::bigint", "down": "cents / 100.0"}),
        # The same values, and operators that compute otherwise.
        ("CHECK (o / 2 < 6)", {"new": {"name": "owner_id", "type": "numeric"}, "down": "owner_id::int"}),
        ("CHECK (note < 'zz')", {"old": "note", "new": {"name": "n2", "type": 'text COLLATE "C"'}, "up": "note", "down": "n2"}),
        # Rounded, cut off, and with a value for NULL.
        ("CHECK (price <> 1.25)", {"old": "price", "new": {"name": "p2", "type": "numeric(10, 1)"}, "up": "price", "down": "p2"}),
        ("CHECK (note <> 'ab')", {"old": "note", "new": {"name": "n2", "type": "varchar(2)"}, "up": "note::varchar(2)", "down": "n2"}),
        ("CHECK (coalesce(note, '-') <> '')", {"old": "note", "new": {"name": "n2", "type": "text", "nullable": False},
         "up": "coalesce(note, '')", "down": "n2"}),
    ],
)  # fmt: skip
def test_a_check_is_carried_only_where_it_says_the_same(database: str, setup: str, m: dict[str, Any]) -> None:
    sql(database, TABLE + f"ALTER TABLE people ADD CONSTRAINT it {setup}")
    assert 'check "it": speaks of values' in problems(database, widened(**m))


@pytest.mark.parametrize(
    ("setup", "m"),
    [
        ("CHECK (o > 0 AND o / 2 < 6)", {}),
        ("CHECK (o > 0)", {"up": "o::bigint"}),
        ("CHECK (o > 0)", {"up": "coalesce(o, 1)", "new": {"name": "owner_id", "type": "bigint", "nullable": False}}),
        ("CHECK (note <> 'x' AND note <> id::text)", {"old": "note", "new": {"name": "n2", "type": "varchar"}, "up": "note", "down": "n2"}),
        ("CHECK (price < 1000)", {"old": "price", "new": {"name": "p2", "type": "numeric(14, 4)"}, "up": "people.price", "down": "p2"}),
    ],
)  # fmt: skip
def test_a_check_of_the_same_values_is_carried(database: str, setup: str, m: dict[str, Any]) -> None:
    sql(database, TABLE + f"ALTER TABLE people ADD CONSTRAINT it {setup}")
    assert "CHECK" in enforced(database, widened(**m))["it_zdm"]


def test_what_is_declared_stands_on_the_new_column(database: str) -> None:
    sql(database, TABLE + SPEAK[0] + "; ALTER TABLE people ADD CONSTRAINT known CHECK (status IN ('active', 'gone'))")
    m = coded(rebuild={"it": "(note) WHERE state = 'A'", "known": "CHECK (state IN ('A', 'G'))"})
    walk(m, database, State.CONTRACTED)
    assert on_new(database, m) == {
        "it_zdm": "CREATE UNIQUE INDEX it_zdm ON public.people USING btree (note) WHERE (state = 'A'::text)",
        "known_zdm": "CHECK ((state = ANY (ARRAY['A'::text, 'G'::text])))",
    }


@pytest.mark.parametrize(
    ("said", "fact"),
    [
        ({"other": "drop"}, "rebuild: other: is no index or constraint of column"),
        ({"it": "(note) WHERE"}, "syntax error"),
        ({"it": "(note) WHERE status = 'active'"}, "does not exist"),
        ({"it": "(note); DROP TABLE people"}, "multiple commands"),
    ],
)
def test_what_cannot_be_declared(database: str, said: dict[str, str], fact: str) -> None:
    sql(database, TABLE + SPEAK[0])
    assert fact in problems(database, coded(rebuild=said))


def test_rows_that_collide_are_named(database: str) -> None:
    sql(
        database,
        "CREATE TABLE people (id int PRIMARY KEY, channel text NOT NULL, d date NOT NULL, CONSTRAINT one_a_day UNIQUE (channel, d)); "
        "INSERT INTO people VALUES (1, 'acme', '2025-04-02'), (2, 'Acme', '2025-04-02'), (3, 'x', '2025-04-02')",
    )
    m = replaced(
        old="channel",
        new={"name": "channel_ci", "type": "text", "nullable": False},
        up="lower(channel)",
        down="channel_ci",
    )
    walk(m, database, State.BACKFILLED)
    with pytest.raises(PreflightError, match=r"keys of rows that break it: 1, 2") as caught:
        validate.raise_if_failed(validate.run(work(m, database)))
    assert "acme" not in str(caught.value)
    assert state(m, database) == State.BACKFILLED
    sql(database, "UPDATE people SET channel = 'Acme Inc' WHERE id = 2")
    walk(m, database, State.CONTRACTED)


@pytest.mark.parametrize(
    ("rebuild", "keys"), [({"it": "CHECK (owner_id > 2)"}, "10, 20"), ({"it": "CHECK (owner_id <> 3)"}, "2, 12")]
)  # fmt: skip
def test_rows_that_break_a_check_are_named(database: str, rebuild: dict[str, str], keys: str) -> None:
    sql(database, TABLE + "UPDATE people SET o = 5 WHERE o = 2; ALTER TABLE people ADD CONSTRAINT it CHECK (o > 0)")
    m = widened(rebuild=rebuild)
    walk(m, database, State.BACKFILLED)
    with pytest.raises(PreflightError, match=rf"validate constraint .*keys of rows that break it: {keys}\)"):
        validate.raise_if_failed(validate.run(work(m, database)))


# -- properties -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "setup", "wanted"),
    [
        (15, "FOREIGN KEY (o) REFERENCES owner ON DELETE SET NULL (o)",
         "FOREIGN KEY (owner_id) REFERENCES owner(id) ON DELETE SET NULL (owner_id)"),
        (14, "FOREIGN KEY (o) REFERENCES owner MATCH FULL ON UPDATE CASCADE ON DELETE SET DEFAULT DEFERRABLE INITIALLY DEFERRED",
         "FOREIGN KEY (owner_id) REFERENCES owner(id) MATCH FULL ON UPDATE CASCADE ON DELETE SET DEFAULT "
         "DEFERRABLE INITIALLY DEFERRED"),
        (14, "FOREIGN KEY (o) REFERENCES owner NOT VALID", "FOREIGN KEY (owner_id) REFERENCES owner(id) NOT VALID"),
        (18, "FOREIGN KEY (o) REFERENCES owner NOT ENFORCED", "FOREIGN KEY (owner_id) REFERENCES owner(id) NOT ENFORCED"),
        (15, "FOREIGN KEY (o, note) REFERENCES owner (id, code) ON DELETE SET NULL (note) NOT VALID",
         "FOREIGN KEY (owner_id, note) REFERENCES owner(id, code) ON DELETE SET NULL (note) NOT VALID"),
        (14, "CHECK (o > 0) NOT VALID", "CHECK ((owner_id > 0)) NOT VALID"),
        (18, "CHECK (o > 5) NOT ENFORCED", "CHECK ((owner_id > 5)) NOT ENFORCED"),
        (14, "CHECK (o > 0) NO INHERIT", "CHECK ((owner_id > 0)) NO INHERIT"),
    ],
)  # fmt: skip
def test_constraints_are_carried_as_they_are(database: str, since: int, setup: str, wanted: str) -> None:
    if one(database, VERSION) < since * 10000:
        pytest.skip(f"Postgres {since} brought it")
    sql(database, TABLE + f"ALTER TABLE people ADD CONSTRAINT it {setup}")
    assert enforced(database, widened()) == {"it_zdm": wanted}


@pytest.mark.parametrize(
    ("since", "setup", "wanted"),
    [
        (15, "UNIQUE NULLS NOT DISTINCT (o, id) INCLUDE (note) WITH (fillfactor = 70) DEFERRABLE",
         "UNIQUE NULLS NOT DISTINCT (owner_id, id) INCLUDE (note) DEFERRABLE"),
        (14, "UNIQUE (id) INCLUDE (o)", "UNIQUE (id) INCLUDE (owner_id)"),
    ],
)  # fmt: skip
def test_unique_constraints_are_carried_as_they_are(database: str, since: int, setup: str, wanted: str) -> None:
    if one(database, VERSION) < since * 10000:
        pytest.skip(f"Postgres {since} brought it")
    sql(database, TABLE + f"ALTER TABLE people ADD CONSTRAINT it {setup}")
    found = enforced(database, widened())["it_zdm"]
    assert found == wanted


@pytest.mark.parametrize(
    ("setup", "tail"),
    [
        ("CREATE INDEX it ON people USING brin (o) WITH (pages_per_range = 16)", "USING brin (owner_id) WITH (pages_per_range='16')"),
        ("CREATE INDEX it ON people (o DESC NULLS LAST, lower(note) text_pattern_ops)",
         "USING btree (owner_id DESC NULLS LAST, lower(note) text_pattern_ops)"),
        ("CREATE INDEX it ON people (note) INCLUDE (o) WHERE price > 1", "USING btree (note) INCLUDE (owner_id) WHERE (price > (1)::numeric)"),
        ("CREATE INDEX it ON people (abs(o)) WHERE o IS NOT NULL", "USING btree (abs(owner_id)) WHERE (owner_id IS NOT NULL)"),
    ],
)  # fmt: skip
def test_indexes_are_carried_as_they_are(database: str, setup: str, tail: str) -> None:
    sql(database, TABLE + setup)
    (found,) = enforced(database, widened()).values()
    assert found.endswith(tail)


def test_a_tablespace_is_kept(database: str, server: Any, tmp_path: Any) -> None:
    place = server.data / "further"
    sql(database, f"COPY (SELECT 1) TO PROGRAM 'mkdir -p {place}'")
    name = f"further_{database.rsplit('_', 1)[1]}"
    sql(database, f"CREATE TABLESPACE {name} LOCATION '{place}'")
    try:
        sql(database, TABLE + f"CREATE INDEX it ON people (o) TABLESPACE {name} WHERE price > 1")
        bound = walking.change(database, walking.migration("people", widened().change.model_dump(mode="json")))
        assert any(f'TABLESPACE "{name}" WHERE' in s.sql or f"TABLESPACE {name} WHERE" in s.sql for s in bound.enforce)
    finally:
        sql(database, "DROP TABLE people")
        sql(database, f"DROP TABLESPACE {name}")


@pytest.mark.parametrize(
    ("since", "setup", "fact"),
    [
        (18, "CREATE TABLE rooms (room int4range, during daterange, PRIMARY KEY (room, during WITHOUT OVERLAPS)); "
         "ALTER TABLE people ADD r int4range, ADD during daterange, ADD CONSTRAINT it UNIQUE (r, during WITHOUT OVERLAPS)",
         'constraint "it": is a constraint WITHOUT OVERLAPS'),
        (18, "CREATE TABLE rooms (room int4range, during daterange, PRIMARY KEY (room, during WITHOUT OVERLAPS)); "
         "ALTER TABLE people ADD r int4range, ADD during daterange, "
         "ADD CONSTRAINT it FOREIGN KEY (r, PERIOD during) REFERENCES rooms (room, PERIOD during)",
         'foreign key "it": is temporal'),
        (14, "ALTER TABLE people ADD r int4range, ADD CONSTRAINT it EXCLUDE USING gist (r WITH &&)", "exclusion constraint"),
    ],
)  # fmt: skip
def test_what_cannot_be_rebuilt_is_refused_before_expand(database: str, since: int, setup: str, fact: str) -> None:
    if one(database, VERSION) < since * 10000:
        pytest.skip(f"Postgres {since} brought it")
    sql(database, TABLE + setup)
    ranged: dict[str, Any] = {"old": "r", "new": {"name": "r2", "type": "int4range"}, "up": "r", "down": "r2"}
    assert fact in problems(database, widened(**ranged))
    assert problems(database, widened(**ranged, rebuild={"it": "drop"})) == ""


def test_a_primary_key_that_includes_the_column(database: str) -> None:
    sql(database, TABLE + "ALTER TABLE people DROP CONSTRAINT people_pkey, ADD PRIMARY KEY (id) INCLUDE (o)")
    assert "is the primary key, which includes it" in problems(database, widened())


# -- foreign keys -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "fact"),
    [
        ({"up": "o + 0"}, "values that up does not keep"),
        ({"up": "coalesce(o, 0)", "new": {"name": "owner_id", "type": "bigint", "nullable": False}}, "values that up does not keep"),
        ({"rebuild": {"it": "FOREIGN KEY (owner_id) REFERENCES owner"}}, "cannot be declared anew"),
    ],
)  # fmt: skip
def test_a_foreign_key_to_other_values(database: str, m: dict[str, Any], fact: str) -> None:
    sql(database, TABLE + "ALTER TABLE people ADD CONSTRAINT it FOREIGN KEY (o) REFERENCES owner")
    assert fact in problems(database, widened(**m))
    assert problems(database, widened(**m | {"rebuild": {"it": "drop"}})) == ""


def test_a_foreign_key_refers_to_the_table_of_the_original(database: str) -> None:
    sql(database, TABLE + "ALTER TABLE people ADD CONSTRAINT it FOREIGN KEY (o) REFERENCES owner")
    m = widened()
    walk(m, database, State.BACKFILLED)
    sql(database, "ALTER TABLE owner RENAME TO owner_of_today; CREATE TABLE owner (id int PRIMARY KEY)")
    sql(database, "INSERT INTO owner SELECT generate_series(1, 10)")
    with pytest.raises(Exception, match="still not so"):
        validate.run(work(m, database))
    assert on_new(database, m) == {}
    sql(database, "DROP TABLE owner; ALTER TABLE owner_of_today RENAME TO owner")
    walk(m, database, State.CONTRACTED)


def test_what_an_earlier_version_kept_is_known_again(database: str) -> None:
    """Its definitions were printed under the search path of the session, and without what is kept today."""
    sql(
        database,
        TABLE + "ALTER TABLE people ADD CONSTRAINT it FOREIGN KEY (o) REFERENCES owner; CREATE INDEX i ON people (o)",
    )
    m = widened()
    expanded(m, database)
    later = "'{where,tablespace,columns,elements,nulls_distinct,validated}'::text[]"
    kept = f"(SELECT jsonb_agg(r - {later}) FROM jsonb_array_elements(catalog #> '{{facts,rebuilds}}') r)"
    sql(database, f"UPDATE zdm.migration SET catalog = jsonb_set(catalog, '{{facts,rebuilds}}', {kept})")
    sql(database, "UPDATE zdm.migration SET catalog = replace(catalog::text, 'public.owner(', 'owner(')::jsonb")
    walk(m, database, State.CONTRACTED)
    assert set(on_new(database, m)) == {"it_zdm", "i_zdm"}
