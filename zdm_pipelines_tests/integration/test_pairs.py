"""Pairs: two tables agree or not, by every type, at every place, under concurrent writes, along the key or by checksums."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres import catalog
from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.dialects.postgres.expressions import same
from zdm_pipelines.dialects.postgres.pair import Compared, PairSql, settings
from zdm_pipelines.engine.proof import pairs
from zdm_pipelines.model.errors import MappingFailed
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.values import KeyRange, Parity
from zdm_pipelines_tests.helpers import Background, eventually, one, sql

WHOLE = KeyRange(ordinal=1, partition="000001-from-start", lower=None, upper=None)
NOBODY = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'zdm %compare'"


@pytest.fixture(params=["along the key", "by checksums"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs twice: small tables would always be read along their key."""
    by_checksums = request.param == "by checksums"
    monkeypatch.setattr(pairs, "scattered", lambda *_: by_checksums)
    monkeypatch.setattr(pairs, "_SCATTERED_ROWS", 1)
    monkeypatch.setattr(pairs, "_SCATTERED_RANGES", 4)


def pair(url: str, old: str, new: str, compared: Sequence[Compared] | None = None) -> PairSql:
    """All columns of the new table besides its key, unless they are given."""
    with connected(url, purpose="test") as conn:
        one_side, other = (catalog.read(conn, TableName.parse(name)) for name in (old, new))
    key = [c.name for c in other.key]
    plain = [Compared(old=f'"{c.name}"', new=f'"{c.name}"', type=c.type) for c in other.columns if c.name not in key]
    return PairSql(old=one_side, new=other, compared=plain if compared is None else compared)


def cut(url: str, which: PairSql, rows: int = 100) -> list[KeyRange]:
    with connected(url, purpose="test") as conn:
        return pairs.cut(conn, which, range_rows=rows)


def verdict(url: str, which: PairSql, ranges: Sequence[KeyRange] | None = None, **options: Any) -> Parity:
    return pairs.compare(server_at(url), "test", which, cut(url, which) if ranges is None else ranges, **options)


def counts(parity: Parity) -> tuple[int, int, int]:
    return parity.missing, parity.extra, parity.different


def two(url: str, columns: str, rows: str = "", *, key: str = "id") -> None:
    """Tables `a` and `b`, alike."""
    for name in "ab":
        sql(url, f"CREATE TABLE {name} ({columns}, PRIMARY KEY ({key}))")
        if rows:
            sql(url, f"INSERT INTO {name} {rows}")


PEOPLE = ("id bigint, name text, visits int", "SELECT n * 10, 'p' || n, n % 7 FROM generate_series(1, 1000) n")


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("statement", "expected", "keys"),
    [
        ("SELECT 1", (0, 0, 0), {}),
        ("UPDATE b SET name = 'P1' WHERE id = 10", (0, 0, 1), {"different": (("10",),)}),
        ("UPDATE b SET visits = NULL WHERE id = 10000", (0, 0, 1), {"different": (("10000",),)}),
        ("UPDATE a SET visits = visits + 1 WHERE id = 5000", (0, 0, 1), {"different": (("5000",),)}),
        ("DELETE FROM b WHERE id = 10", (1, 0, 0), {"missing": (("10",),)}),
        ("DELETE FROM b WHERE id = 10000", (1, 0, 0), {"missing": (("10000",),)}),
        ("DELETE FROM a WHERE id = 5010", (0, 1, 0), {"extra": (("5010",),)}),
        ("INSERT INTO b VALUES (-5, 'first')", (0, 1, 0), {"extra": (("-5",),)}),
        ("INSERT INTO a VALUES (99999, 'last')", (1, 0, 0), {"missing": (("99999",),)}),
        ("UPDATE b SET id = 15 WHERE id = 20", (1, 1, 0), {"missing": (("20",),), "extra": (("15",),)}),
        (
            "UPDATE b SET name = CASE id WHEN 10 THEN 'p900' ELSE 'p1' END WHERE id IN (10, 9000)",  # exchanged
            (0, 0, 2),
            {"different": (("10",), ("9000",))},
        ),
    ],
)
def test_one_row_anywhere(
    database: str, statement: str, expected: tuple[int, ...], keys: dict[str, tuple[tuple[str, ...], ...]]
) -> None:
    two(database, *PEOPLE)
    which = pair(database, "a", "b")
    ranges = cut(database, which)
    sql(database, statement)
    for wanted in (ranges, cut(database, which), [WHOLE]):
        found = verdict(database, which, wanted)
        assert counts(found) == expected
        assert found.keys == keys
        assert found.agrees == (not any(expected))
        assert found.rows == 1000 + ("INSERT" in statement) + ("SET id" in statement)
        assert len(found.partitions) <= sum(expected)
        assert bool(found.partitions) == any(expected)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(
    ("one_key", "other"),
    [(5, 5 << 32), (1 << 32 | 2, 2 << 32 | 1), (7, -8), (-1 << 40 | 9, 9 << 32 | 1)],
)
def test_rows_with_alike_keys_exchange_their_values(database: str, one_key: int, other: int) -> None:
    """To the server's hash of a bigint most of these keys are one."""
    two(database, "id bigint, name text", f"VALUES ({one_key}, 'one'), ({other}, 'other'), (3, 'third')")
    sql(database, "UPDATE b SET name = CASE name WHEN 'one' THEN 'other' ELSE 'one' END WHERE name <> 'third'")
    assert counts(verdict(database, pair(database, "a", "b"), [WHOLE])) == (0, 0, 2)


@pytest.mark.usefixtures("either_way")
def test_a_row_at_each_bound_belongs_to_one_range(database: str) -> None:
    two(database, *PEOPLE)
    which = pair(database, "a", "b")
    ranges = cut(database, which)
    assert len(ranges) > 2
    for r in ranges[1:]:
        assert r.lower is not None
        sql(database, f"UPDATE b SET name = name || ' ' WHERE id = {r.lower[0]}")
    found = verdict(database, which, ranges)
    assert counts(found) == (0, 0, len(ranges) - 1)
    assert found.partitions == tuple(r.partition for r in ranges[1:])
    assert found.keys == {"different": tuple(r.lower for r in ranges[1:6])}


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("seed", range(3))
def test_many_differences_are_counted_exactly(database: str, seed: int) -> None:
    two(database, PEOPLE[0], "SELECT n * 10, 'p' || n, n % 7 FROM generate_series(1, 3000) n")
    chance = random.Random(seed)
    changed = chance.sample(range(1, 3001), chance.choice([30, 300, 2500]))
    share = len(changed) // 3
    missing, extra, different = changed[:share], changed[share : 2 * share], changed[2 * share :]
    sql(database, "DELETE FROM b WHERE id = ANY (%s)", [n * 10 for n in missing])
    sql(database, "DELETE FROM a WHERE id = ANY (%s)", [n * 10 for n in extra])
    sql(database, "UPDATE b SET visits = -1 WHERE id = ANY (%s)", [n * 10 for n in different])
    found = verdict(database, pair(database, "a", "b"), first_keys=7)
    assert counts(found) == (len(missing), len(extra), len(different))
    assert found.rows == 3000
    for category, numbers in (("missing", missing), ("extra", extra), ("different", different)):
        assert found.keys[category] == tuple((str(n * 10),) for n in sorted(numbers)[:7])


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize(("empty", "expected"), [("a", (0, 1000, 0)), ("b", (1000, 0, 0)), ("a, b", (0, 0, 0))])
def test_empty_tables(database: str, empty: str, expected: tuple[int, ...]) -> None:
    two(database, *PEOPLE)
    sql(database, f"TRUNCATE {empty}")
    which = pair(database, "a", "b")
    found = verdict(database, which)
    assert counts(found) == expected
    assert found.rows == sum(expected)


@pytest.mark.parametrize(
    "type_name", ["email", "public.email", "citext", "varchar(9)", "character(3)", "text[]", "point"]
)
def test_what_may_have_an_equality_of_its_own_is_compared_as_text(type_name: str) -> None:
    """A domain over citext, say, or over a collation that is blind to case: neither is in the tests' server."""
    assert same("a", "b", type_name).count('::text COLLATE "C"') == 2


@pytest.mark.parametrize("type_name", ["numeric(9,2)", "DECIMAL", "timestamp(3) with time zone", "int8[]", "jsonb"])
def test_values_are_compared_by_their_own_equality(type_name: str) -> None:
    assert same("a", "b", type_name) == f"a IS NOT DISTINCT FROM b::{type_name}"


# -- values -----------------------------------------------------------------------------------------------

SAME = [
    ("numeric", "1.0", "1.00"),
    ("numeric", "'NaN'", "'NaN'"),
    ("double precision", "'NaN'", "'NaN'"),
    ("double precision", "'-0'", "'0'"),
    ("real", "'-0'", "'0'"),
    ("double precision", "'Infinity'", "'Infinity'"),
    ("jsonb", """'{"a": 1, "b": [1, 2]}'""", """'{"b":[1,2.0],  "a":1}'"""),
    ("timestamptz", "'2026-03-29 02:30+02'", "'2026-03-29 00:30+00'"),
    ("interval", "'1 month'", "'30 days'"),
    ("character(5)", "'ab'", "'ab   '"),
    ("bytea", r"'\x00ff'", r"'\x00FF'"),
    ("double precision[]", "'{0}'", "'{-0}'"),
    ("text", "NULL", "NULL"),
    ("uuid", "'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
]

UNLIKE = [
    ("numeric", "1.0", "1.01"),
    ("numeric", "0", "NULL"),
    ("numeric", "'NaN'", "NULL"),
    ("numeric", "'NaN'", "0"),
    ("numeric", "'NaN'", "'Infinity'"),  # one to the server's own hash, as 5 and 5 << 32 below
    ("numeric(12,2)", "1.001", "1.01"),
    ("double precision", "0", "NULL"),
    ("double precision", "'NaN'", "0"),
    ("double precision", "0.1", "0.10000000000000002"),
    ("boolean", "false", "NULL"),
    ("integer", "0", "NULL"),
    ("bigint", "5", str(5 << 32)),
    ("bigint", "-1", "0"),
    ("timestamptz", "'2026-01-01'", "'2026-01-01 00:00:00.000001'"),
    ("time", "'12:00'", "'12:00:00.000001'"),
    ("text", "''", "NULL"),
    ("text", "'x'", "'x '"),
    ("text", "'x'", "'X'"),
    ("citext", "'x'", "'X'"),
    ("varchar(5)", "'x'", "'x '"),
    ("character(5)", "''", "NULL"),
    ("json", """'{"a":1}'""", """'{"a": 1}'"""),
    ("jsonb", "'null'", "NULL"),
    ("jsonb", """'{"a": 1}'""", """'{"a": "1"}'"""),
    ("jsonb", "(SELECT jsonb_agg(n) FROM generate_series(1, 40) n)", "(SELECT jsonb_agg(CASE n WHEN 1 THEN 33 WHEN 33 THEN 1 ELSE n END) FROM generate_series(1, 40) n)"),
    ("point", "'(1,2)'", "'(1,2.5)'"),
    ("box", "'(0,0),(1,4)'", "'(0,0),(2,2)'"),  # = compares their areas
    ("polygon", "'((0,0),(1,1))'", "'((0,0),(1,2))'"),
    ("bytea", r"'\x00'", r"'\x0000'"),
    ("text[]", "'{a,b}'", "'{b,a}'"),
    ("integer[]", "'{1,NULL}'", "'{1}'"),
    ("bit(3)", "B'101'", "B'100'"),
    ("money", "1", "2"),
    ("inet", "'10.0.0.1/8'", "'10.0.0.1/16'"),
    ("int4range", "'[1,3]'", "'[1,3)'"),
    ("tsvector", "'a:1'", "'a:2'"),
    ("mood", "'ok'", "'sad'"),
    ("couple", "'(1,a)'", "'(1,b)'"),
]  # fmt: skip


def _types(url: str) -> None:
    sql(url, "CREATE TYPE mood AS ENUM ('sad', 'ok')")
    sql(url, "CREATE TYPE couple AS (x int, y text)")
    _citext(url)


def _citext(url: str) -> None:
    """A text that is blind to case: the extension is not among the test server's."""
    calls = {"<": "lt", "<=": "le", "=": "eq", ">=": "ge", ">": "gt"}
    made = [
        "CREATE TYPE public.citext",
        "CREATE FUNCTION citext_in(cstring) RETURNS citext IMMUTABLE STRICT LANGUAGE internal AS 'textin'",
        "CREATE FUNCTION citext_out(citext) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS 'textout'",
        "CREATE TYPE citext (INPUT = citext_in, OUTPUT = citext_out, LIKE = text, CATEGORY = 'S', COLLATABLE = true)",
        "CREATE CAST (citext AS text) WITHOUT FUNCTION AS IMPLICIT",
        "CREATE CAST (text AS citext) WITHOUT FUNCTION AS ASSIGNMENT",
        "CREATE FUNCTION ci_cmp(citext, citext) RETURNS int IMMUTABLE STRICT AS 'SELECT bttextcmp(lower($1::text), lower($2::text))' LANGUAGE sql",
        "CREATE FUNCTION ci_hash(citext) RETURNS int IMMUTABLE STRICT AS 'SELECT hashtext(lower($1::text))' LANGUAGE sql",
    ]
    for sign, name in calls.items():  # SET keeps the planner from inlining what would not be an operator then
        made += [
            f"CREATE FUNCTION ci_{name}(citext, citext) RETURNS boolean IMMUTABLE STRICT SET search_path = public AS 'SELECT ci_cmp($1, $2) {sign} 0' LANGUAGE sql",
            f"CREATE OPERATOR {sign} (LEFTARG = citext, RIGHTARG = citext, FUNCTION = ci_{name}{', COMMUTATOR = =, HASHES, MERGES' if sign == '=' else ''})",
        ]
    listed = ", ".join(f"OPERATOR {n} {sign}" for n, sign in enumerate(calls, 1))
    made += [
        f"CREATE OPERATOR CLASS ci_btree DEFAULT FOR TYPE citext USING btree AS {listed}, FUNCTION 1 ci_cmp(citext, citext)",
        "CREATE OPERATOR CLASS ci_hash DEFAULT FOR TYPE citext USING hash AS OPERATOR 1 =, FUNCTION 1 ci_hash(citext)",
    ]
    for statement in made:
        sql(url, statement)


@pytest.mark.usefixtures("either_way")
def test_values_of_every_type(database: str) -> None:
    _types(database)
    for (type_name, left, right), alike in [(v, True) for v in SAME] + [(v, False) for v in UNLIKE]:
        two(database, f"id int, v {type_name}")
        sql(database, f"INSERT INTO a VALUES (1, {left}), (2, {left}), (3, {right})")
        sql(database, f"INSERT INTO b VALUES (1, {left}), (2, {right}), (3, {left})")
        found = verdict(database, pair(database, "a", "b"), [WHOLE])
        assert counts(found) == (0, 0, 0 if alike else 2), (type_name, left, right)
        assert found.rows == 3
        sql(database, "DROP TABLE a, b")


@pytest.mark.parametrize(("type_name", "left", "right"), UNLIKE)
def test_checksums_see_what_the_join_sees(database: str, type_name: str, left: str, right: str) -> None:
    """Also where the bucket holds other rows, and the same values stand in other rows."""
    _types(database)
    two(database, f"id int, v {type_name}")
    for name, first, second in (("a", left, right), ("b", right, left)):
        sql(
            database,
            f"INSERT INTO {name} SELECT n, CASE WHEN n <= 100 THEN {first}::{type_name} ELSE {second}::{type_name} END FROM generate_series(1, 200) n",
        )
    which = pair(database, "a", "b")
    with psycopg.connect(database, cursor_factory=psycopg.RawCursor) as conn:
        assert conn.execute(which.checksums(None, None, by_bucket=False)[0].encode()).fetchall() == [(0, [0])]


# -- keys and names ---------------------------------------------------------------------------------------

KEYS = {
    "uuid": ("id uuid", "md5(n::text)::uuid", "id"),
    "text": ("id text", "(ARRAY['a', 'B', 'ä', '''', '\"', '%', ' ', '', '{x,y}'])[1 + n % 9] || n", "id"),
    "varchar": ("id varchar(20)", "'k' || n", "id"),
    "char": ("id character(9)", "'k' || n", "id"),
    "citext": ("id citext", "'k' || n", "id"),
    "numeric": ("id numeric", "n / 7.0", "id"),
    "timestamptz": ("id timestamptz", "timestamptz '1890-01-01' + n * interval '33 days 1 microsecond'", "id"),
    "composite": ("tenant int, id text", "n % 5, 'doc ' || n", "tenant, id"),
    "uuid_and_time": ("device uuid, at timestamptz", "md5((n % 3)::text)::uuid, timestamptz '2026-01-01' + n * interval '1 s'", "device, at"),
    "three": ("a int, b date, c text", "n % 3, date '2026-01-01' + n % 7, n::text", "c, a, b"),
}  # fmt: skip


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_every_kind(database: str, kind: str) -> None:
    columns, value, key = KEYS[kind]
    _citext(database)
    two(database, f"{columns}, n int", f"SELECT {value}, n FROM generate_series(1, 1000) n", key=key)
    which = pair(database, "a", "b")
    assert len(cut(database, which)) >= 3
    found = verdict(database, which)
    assert (found.rows, found.agrees) == (1000, True)
    sql(database, "DELETE FROM a WHERE n = 300")
    sql(database, "DELETE FROM b WHERE n = 400")
    sql(database, "UPDATE b SET n = -500 WHERE n = 500")
    found = verdict(database, which)
    assert counts(found) == (1, 1, 1)
    asked = ", ".join(f"{c.strip()}::text" for c in key.split(","))
    for category, table, n in (("missing", "a", 400), ("extra", "b", 300), ("different", "b", -500)):
        assert found.keys[category] == (sql(database, f"SELECT {asked} FROM {table} WHERE n = {n}")[0],)


@pytest.mark.usefixtures("either_way")
def test_keys_that_equal_but_are_not_the_same(database: str) -> None:
    _citext(database)
    two(database, "id citext, n int", "SELECT 'k' || n, n FROM generate_series(1, 50) n")
    sql(database, "UPDATE b SET id = 'K7' WHERE n = 7")
    assert counts(verdict(database, pair(database, "a", "b"))) == (0, 0, 1)


@pytest.mark.usefixtures("either_way")
def test_odd_names_wider_types_and_expressions(database: str) -> None:
    sql(database, 'CREATE SCHEMA "My Shop"')
    sql(
        database,
        'CREATE TABLE "My Shop"."Order Items" ("Item ID" int PRIMARY KEY, "Total %s" numeric(12,2), "say ""hi"" " text)',
    )
    sql(database, "CREATE TABLE items (number bigint PRIMARY KEY, cents bigint, greeting varchar(40) NOT NULL)")
    sql(
        database,
        """INSERT INTO "My Shop"."Order Items" SELECT n, n / 8.0, nullif('hi ' || n, 'hi 5') FROM generate_series(1, 1000) n""",
    )
    sql(
        database,
        "INSERT INTO items SELECT n, round(n / 8.0, 2) * 100, CASE n WHEN 5 THEN '' ELSE 'hi ' || n END FROM generate_series(1, 1000) n",
    )
    compared = [
        Compared(old='"Order Items"."Total %s" * 100 -- in cents', new="cents", type="bigint"),
        Compared(old='coalesce("say ""hi"" ", \'\')', new="greeting", type="text"),
    ]
    which = pair(database, '"My Shop"."Order Items"', "items", compared)
    assert verdict(database, which).agrees
    sql(
        database,
        "INSERT INTO items VALUES (5000000000, 0, 'beyond integer'); UPDATE items SET cents = 1 WHERE number = 9",
    )
    found = verdict(database, which)
    assert counts(found) == (0, 1, 1)
    assert found.keys == {"extra": (("5000000000",),), "different": (("9",),)}


@pytest.mark.usefixtures("either_way")
def test_types_that_differ_are_cast(database: str) -> None:
    sql(database, "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v numeric)")
    sql(database, "INSERT INTO a VALUES (1, '1.50'), (2, '2.5'); INSERT INTO b VALUES (1, 1.5), (2, 2.6)")
    assert counts(verdict(database, pair(database, "a", "b"))) == (0, 0, 1)
    as_text = pair(database, "a", "b", [Compared(old="v", new="v", type="text")])
    assert counts(verdict(database, as_text)) == (0, 0, 2)
    by_key_alone = pair(database, "a", "b", [])
    assert verdict(database, by_key_alone).agrees
    sql(database, "UPDATE b SET id = 3 WHERE id = 2")
    assert counts(verdict(database, by_key_alone)) == (1, 1, 0)


# -- which way --------------------------------------------------------------------------------------------


def test_the_order_of_a_table_is_told_by_walking(database: str) -> None:
    rows = "FROM generate_series(1, 30000) n"
    two(database, "id bigint, v text", f"SELECT n, 'v' || n {rows}")
    sql(database, "CREATE TABLE c (id bigint PRIMARY KEY, v text)")
    sql(database, f"INSERT INTO c SELECT n, 'v' || n {rows} ORDER BY md5(n::text)")
    sql(database, "CREATE TABLE wide (id bigint PRIMARY KEY, v text)")
    sql(database, f"INSERT INTO wide SELECT n, repeat(md5(n::text), 60) {rows} WHERE n <= 3000")

    def is_scattered(old: str, new: str) -> bool:
        with connected(database, purpose="test") as conn:
            return pairs.scattered(conn, pair(database, old, new), [("10000",), ("20000",)])

    assert not is_scattered("a", "b")
    assert not is_scattered("a", "wide")
    assert is_scattered("a", "c")
    assert is_scattered("c", "b")
    sql(database, "ANALYZE")
    assert not is_scattered("a", "wide")
    assert is_scattered("c", "b")
    sql(database, "TRUNCATE a, c")
    assert not is_scattered("a", "c")


def test_a_scattered_table_is_cut_into_few_ranges(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    two(database, "id uuid, v int", "SELECT md5(n::text)::uuid, n FROM generate_series(1, 30000) n")
    which = pair(database, "a", "b")
    assert len(cut(database, which, 1000)) == 1
    monkeypatch.setattr(pairs, "_SCATTERED_ROWS", 10_000)
    assert 2 <= len(cut(database, which, 1000)) <= 4
    monkeypatch.setattr(pairs, "_SCATTERED_ROWS", 100)
    assert 7 <= len(cut(database, which, 100)) <= 9
    sql(database, "UPDATE b SET v = 0 WHERE v IN (7, 29999)")
    found = verdict(database, which, cut(database, which, 1000))
    assert (found.rows, counts(found)) == (30_000, (0, 0, 2))


def test_one_range_reads_both_tables_along_their_keys(database: str) -> None:
    two(database, "id bigint, v text", "SELECT n, 'v' || n FROM generate_series(1, 30000) n")
    statement, params = pair(database, "a", "b").compare(("5000",), ("15000",))
    with connected(database, purpose="test") as conn:
        for setting, value in settings(along=True, processes=1).items():
            conn.execute("SELECT set_config($1, $2, false)", [setting, value])
        plan = "\n".join(line for (line,) in conn.execute(f"EXPLAIN {statement}".encode(), params))
    assert "Merge Full Join" in plan
    assert plan.count("Index Scan using") == 2
    assert "Sort" not in plan


# -- beside writers, and interrupted ----------------------------------------------------------------------


@pytest.mark.usefixtures("either_way")
def test_writes_to_both_sides_at_once_are_no_difference(database: str) -> None:
    two(database, *PEOPLE)
    which = pair(database, "a", "b")
    ranges = cut(database, which)
    stop = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        chance = random.Random(1)
        with psycopg.connect(database, autocommit=True) as conn:
            while not stop.is_set():
                key = chance.randrange(-100, 11_000)
                with conn.transaction():
                    for table in chance.sample("ab", 2):
                        if written % 3:
                            conn.execute(
                                f"INSERT INTO {table} VALUES (%s, 'x', %s) ON CONFLICT (id) DO UPDATE SET visits = excluded.visits".encode(),
                                [key, written],
                            )
                        else:
                            conn.execute(f"DELETE FROM {table} WHERE id = %s".encode(), [key])
                written += 1

    writing = Background(write)
    try:
        for _ in range(30):
            assert verdict(database, which, ranges).agrees
    finally:
        stop.set()
    writing.result()
    assert written > 30


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_progress_is_told_from_several_processes(database: str, processes: int) -> None:
    two(database, *PEOPLE)
    which = pair(database, "a", "b")
    told: list[int] = []
    found = verdict(database, which, cut(database, which), processes=processes, tell=told.append)
    assert sum(told) == found.rows == 1000
    assert len(told) > 5
    eventually(lambda: one(database, NOBODY) == 0)  # a session ends a moment after its client has gone


SLOW = [Compared(old="pg_sleep(0.02)::text || visits", new="visits", type="text")]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_it_and_leaves_no_session(database: str) -> None:
    two(database, *PEOPLE)
    which = pair(database, "a", "b", SLOW)

    def interrupt() -> None:
        eventually(lambda: one(database, NOBODY + " AND state = 'active'") == 2)
        os.kill(os.getpid(), signal.SIGINT)

    ranges = cut(database, which)
    interrupting = Background(interrupt)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        verdict(database, which, ranges)
    interrupting.result()
    assert time.monotonic() - begun < 5
    eventually(lambda: one(database, NOBODY) == 0, timeout=2)


def test_a_row_that_an_expression_fails_for(database: str) -> None:
    two(database, *PEOPLE)
    which = pair(database, "a", "b", [Compared(old="1 / (id - 5000)", new="0", type="int"), *SLOW])
    begun = time.monotonic()
    with pytest.raises(MappingFailed, match="range 00000"):
        verdict(database, which)
    assert time.monotonic() - begun < 15
    eventually(lambda: one(database, NOBODY) == 0, timeout=2)


def test_a_lost_session_is_told(database: str) -> None:
    two(database, *PEOPLE)
    which = pair(database, "a", "b", SLOW)

    def kill() -> None:
        eventually(lambda: one(database, NOBODY + " AND state = 'active'") == 2)
        sql(
            database,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'zdm %%compare' LIMIT 1",
        )

    killing = Background(kill)
    with pytest.raises(psycopg.OperationalError):
        verdict(database, which)
    killing.result()
    eventually(lambda: one(database, NOBODY) == 0, timeout=2)
