"""Parity: one planted difference of each category in a full range is found, named by range and key, and mended."""

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest

from zdm_pipelines.model.errors import ParityMismatch, StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import switch_reads, validate
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests.helpers import backfilled, one, people, replaced, sql, state, validated, walk, work

ROWS = 300_000
BIG = replaced(up="full_name", down="display_name", backfill={"range_rows": 100_000, "batch_rows": 10_000})


@pytest.fixture(scope="module")
def big(cluster: Any) -> str:
    """Three ranges of 100,000 rows, all moved and right."""
    url = str(cluster.primary.create_database("parity_big"))
    people(url, ROWS)
    sql(url, "UPDATE people SET full_name = '' WHERE id = 150000; UPDATE people SET full_name = NULL WHERE id = 150001")
    walk(BIG, url, State.VALIDATED)
    assert one(url, "SELECT count(*) FROM zdm.range") == 3
    return url


def planted(url: str, m: Migration, *statements: str, table: str = "people") -> None:
    """Change data behind the sync triggers' backs."""
    triggers = [f"zzz_zdm_{m.name}_{event}" for event in ("insert", "update")]
    with psycopg.connect(url) as c:
        for trigger in triggers:
            c.execute(f"ALTER TABLE {table} DISABLE TRIGGER {trigger}".encode())
        for statement in statements:
            c.execute(statement.encode())
        for trigger in triggers:
            c.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {trigger}".encode())


@pytest.mark.parametrize(
    ("statement", "category", "key"),
    [
        ("UPDATE people SET display_name = 'V150000' WHERE id = 150010", "different", "150010"),
        ("UPDATE people SET display_name = display_name || ' ' WHERE id = 150010", "different", "150010"),
        ("UPDATE people SET display_name = NULL WHERE id = 150010", "missing", "150010"),
        ("UPDATE people SET full_name = NULL WHERE id = 150010", "extra", "150010"),
        ("UPDATE people SET display_name = NULL WHERE id = 150000", "missing", "150000"),  # NULL for ''
        ("UPDATE people SET display_name = '' WHERE id = 150001", "extra", "150001"),  # '' for NULL
        ("INSERT INTO people (id, full_name) VALUES (400000, 'late')", "missing", "400000"),
    ],
)
def test_one_row_in_a_hundred_thousand(big: str, statement: str, category: str, key: str) -> None:
    planted(big, BIG, statement)
    report = validate.run(work(BIG, big))
    assert report.state == State.BACKFILLED == state(BIG, big)
    assert report.rows >= ROWS
    (bad,) = report.facts["partitions_to_repeat"]
    assert re.match(r"000003" if key == "400000" else r"00000[23]-from-1", bad)
    facts = report.checks[0].facts
    counts = {c: facts[c] for c in ("missing", "extra", "different")}
    assert counts == {c: int(c == category) for c in counts}
    assert facts[f"first_{category}_keys"] == [key]
    with pytest.raises(ParityMismatch, match=bad) as caught:
        validate.raise_if_failed(report)
    assert caught.value.partitions == (bad,)
    assert "V150000" not in str(report) + str(caught.value)
    with pytest.raises(StateConflict, match="is backfilled"):
        switch_reads.run(work(BIG, big))

    assert sum(r.rows for r in backfilled(BIG, big, partitions=[bad], repair=True)) == 1
    validated(BIG, big)
    assert one(big, "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM full_name") == 0
    assert one(big, "SELECT count(*) FROM people WHERE full_name IS NULL") >= 1


def test_repair_is_refused_once_reads_are_switched(database: str) -> None:
    people(database, 10)
    m = replaced()
    walk(m, database, State.SWITCHED)
    with pytest.raises(StateConflict, match="is the truth"):
        backfilled(m, database, repair=True)


def test_without_repair_only_missing_rows_are_filled(database: str) -> None:
    """What the new shape holds may be newer: it is not overwritten unless asked for."""
    people(database, 10)
    m = replaced()
    walk(m, database, State.VALIDATED)
    planted(
        database,
        m,
        "UPDATE people SET display_name = 'n:other' WHERE id = 1",
        "UPDATE people SET display_name = NULL WHERE id = 2",
    )
    everything = [r for (r,) in sql(database, "SELECT partition FROM zdm.range")]
    assert sum(r.rows for r in backfilled(m, database, partitions=everything)) == 1
    assert sql(database, "SELECT display_name FROM people WHERE id < 3 ORDER BY id") == [("n:other",), ("n:v2",)]
    assert state(m, database) == State.BACKFILLED
    assert sum(r.rows for r in backfilled(m, database, partitions=everything, repair=True)) == 1
    validated(m, database)


# -- what equal means -------------------------------------------------------------------------------------

EQUAL = [
    # old type, new type, up, down, old value, new value, whether they agree
    ("numeric", "numeric", "1.0", "1.00", True),
    ("numeric", "numeric", "1.0", "1.01", False),
    ("text", "text", "'a'", "'a '", False),
    ("text", "text", "'a'", "'A'", False),
    ("text", "text", "''", "NULL", False),
    ("varchar(10)", "varchar(20)", "'a'", "'a '", False),
    ("character(5)", "character(5)", "'a'", "'a  '", True),  # the padding is no part of its value
    ("jsonb", "jsonb", """'{"a": 1, "b": 1.0}'""", """'{"b": 1.00, "a": 1}'""", True),
    ("jsonb", "jsonb", """'{"a": 1}'""", """'{"a": 2}'""", False),
    ("json", "json", """'{"a": 1}'""", """'{"a": 1}'""", True),
    ("json", "json", """'{"a": 1}'""", """'{"a": 2}'""", False),
    ("json", "json", """'{"a": 1}'""", "NULL", False),
    ("json[]", "json[]", """ARRAY['{"a": 1}']::json[]""", """ARRAY['{"a": 1}']::json[]""", True),
    ("json[]", "json[]", """ARRAY['{"a": 1}']::json[]""", """ARRAY['{"a": 2}']::json[]""", False),
    ("point", "point", "'(1,2)'", "'(1,2)'", True),
    ("point", "point", "'(1,2)'", "'(1,3)'", False),
    ("timestamptz", "timestamptz", "'2026-01-01 00:00+00'", "'2026-01-01 01:00+01'", True),
    ("timestamptz", "timestamptz", "'2026-01-01 00:00+00'", "'2026-01-01 00:00:00.000001+00'", False),
    ("double precision", "double precision", "'NaN'", "'NaN'", True),
    ("double precision", "double precision", "0.1", "0.1::real", False),
    ("bytea", "bytea", "'\\x00'", "'\\x0000'", False),
    ("text[]", "text[]", "ARRAY['a', NULL]", "ARRAY['a', NULL]", True),
    ("text[]", "text[]", "ARRAY['a', NULL]", "ARRAY['a', '']", False),
    ("interval", "interval", "'24 hours'", "'1 day'", True),  # its own equality
    ("int4range", "int4range", "'[1,3)'", "'[1,2]'", True),
    ("inet", "inet", "'10.0.0.1'", "'10.0.0.1/32'", True),
    ("uuid", "uuid", "'00000000-0000-0000-0000-00000000000a'", "'00000000-0000-0000-0000-00000000000A'", True),
    ("shout", "shout", "'a'", "'A'", False),  # a collation that calls them alike
]
TYPES = """
CREATE COLLATION public.unlike (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE DOMAIN public.shout AS text COLLATE public.unlike;
"""


@pytest.fixture(scope="module")
def types_template(cluster: Any) -> str:
    url = cluster.primary.create_database("parity_types")
    try:
        sql(url, TYPES)
    except psycopg.Error:  # a server without ICU: the type is then compared as the text it is
        sql(url, "CREATE DOMAIN public.shout AS text")
    return "parity_types"


@pytest.mark.parametrize(("old_type", "new_type", "old", "new", "agree"), EQUAL)
def test_what_equal_means(
    server: Server, types_template: str, old_type: str, new_type: str, old: str, new: str, agree: bool
) -> None:
    name = "parity_equal"
    url = server.create_database(name, template=types_template)
    try:
        sql(url, f"CREATE TABLE people (id int PRIMARY KEY, full_name {old_type})")
        sql(url, f"INSERT INTO people VALUES (1, {old}), (2, NULL)")
        m = replaced(new={"name": "display_name", "type": new_type}, up="full_name", down="display_name")
        walk(m, url, State.BACKFILLED)
        planted(url, m, f"UPDATE people SET display_name = {new} WHERE id = 1")
        report = validate.run(work(m, url))
        assert report.checks[0].passed == agree
        if not agree:
            backfilled(m, url, partitions=report.facts["partitions_to_repeat"], repair=True)
        validated(m, url)
        walk(m, url, State.CONTRACTED)
    finally:
        server.drop_database(name)


def test_citext_is_compared_as_text(server: Server, database: str) -> None:
    if not sql(database, "SELECT 1 FROM pg_available_extensions WHERE name = 'citext'"):
        # Stands in for it where the extension is not built: another type with an equality of its own.
        sql(database, "CREATE DOMAIN public.citext AS text")
    else:
        sql(database, "CREATE EXTENSION citext")
    sql(database, "CREATE TABLE people (id int PRIMARY KEY, full_name citext); INSERT INTO people VALUES (1, 'Ada')")
    m = replaced(new={"name": "display_name", "type": "public.citext"}, up="full_name", down="display_name")
    walk(m, database, State.BACKFILLED)
    planted(database, m, "UPDATE people SET display_name = 'ADA'")
    assert not validate.run(work(m, database)).checks[0].passed


def test_rows_that_agree_through_down_only_are_counted(database: str) -> None:
    sql(
        database,
        "CREATE TABLE people (id int PRIMARY KEY, full_name int); INSERT INTO people SELECT n, n FROM generate_series(1, 9) n",
    )
    m = replaced(new={"name": "display_name", "type": "bigint"}, up="full_name * 100", down="display_name / 100")
    walk(m, database, State.BACKFILLED)
    sql(database, "UPDATE people SET display_name = 1234 WHERE id = 5")
    assert sql(database, "SELECT full_name FROM people WHERE id = 5") == [(12,)]
    assert validated(m, database).facts["agree_through_down_only"] == 1


def test_values_without_an_equality_are_compared_as_text(database: str) -> None:
    people(database, 100)
    sql(
        database,
        "CREATE DOMAIN documented AS json; ALTER TABLE people ADD COLUMN doc documented; "
        "UPDATE people SET doc = json_build_object('id', id)",
    )
    m = replaced(old="doc", up="doc::text", down="display_name::documented")
    walk(m, database, State.VALIDATED)
    planted(database, m, """UPDATE people SET display_name = '{"id" : 8}' WHERE id = 7""")
    report = validate.run(work(m, database))
    assert report.state == State.BACKFILLED
    assert report.checks[0].facts["different"] == 1
