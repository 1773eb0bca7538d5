"""add_index on a real server: what stands after each step, what is refused, and what a killed build leaves."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from zdm_pipelines.dialects import server_at
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Statement
from zdm_pipelines_tests import walking
from zdm_pipelines_tests.walking import one, sql

ORDERS = """
CREATE TABLE orders (id bigint PRIMARY KEY, customer int, email text, state text, created_at timestamptz);
INSERT INTO orders SELECT n, n % 10, 'u' || n || '@x', CASE WHEN n % 2 = 0 THEN 'open' ELSE 'paid' END, now()
FROM generate_series(1, 200) n;
"""
TIDY = """
CREATE SCHEMA app;
CREATE FUNCTION app.tidy(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT lower($1)';
"""
TREE = """
CREATE TABLE orders (id bigint, region text, day date) PARTITION BY LIST (region);
CREATE TABLE orders_eu PARTITION OF orders FOR VALUES IN ('eu');
CREATE TABLE orders_us PARTITION OF orders FOR VALUES IN ('us') PARTITION BY RANGE (day);
CREATE TABLE orders_us_1 PARTITION OF orders_us FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE orders_us_2 PARTITION OF orders_us FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
INSERT INTO orders SELECT n, CASE WHEN n % 2 = 0 THEN 'eu' ELSE 'us' END, date '2025-01-01' + n
FROM generate_series(0, 699) n;
"""


def declared_index(**change: Any) -> Migration:
    return walking.migration("public.orders", {"kind": "add_index", "name": "orders_x"} | change)


DECLARED = [
    ({"columns": ["customer"]}, "public.orders USING btree (customer)"),
    (
        {"columns": ["customer", "created_at DESC NULLS LAST"], "include": ["state"]},
        "public.orders USING btree (customer, created_at DESC NULLS LAST) INCLUDE (state)",
    ),
    (
        {"columns": ["lower(email) text_pattern_ops"], "where": "state = 'open'", "storage": {"fillfactor": 70}},
        "public.orders USING btree (lower(email) text_pattern_ops) WITH (fillfactor='70') WHERE (state = 'open'::text)",
    ),
    ({"columns": ["id", "(customer + 1) -- next"], "unique": True}, "public.orders USING btree (id, ((customer + 1)))"),
    ({"columns": ["created_at"], "method": "brin"}, "public.orders USING brin (created_at)"),
]


@pytest.mark.parametrize(("declared", "stands"), DECLARED)
def test_index_stands_as_declared_and_goes_again(database: str, declared: dict[str, Any], stands: str) -> None:
    sql(database, ORDERS)
    before = walking.indexes(database, "orders")
    bound = walking.change(database, declared_index(**declared))
    assert walking.validate(database, bound) == ['build index "orders_x"']
    assert walking.indexes(database, "orders")["orders_x"] == (True, stands)
    assert walking.validate(database, bound) == []  # again is safe
    walking.undo(database, bound.enforce)
    assert walking.indexes(database, "orders") == before
    assert walking.undo(database, bound.enforce) == []


REFUSED = [
    ({"columns": ["no_such"]}, 'column "no_such" does not exist'),
    ({"columns": ["customer); DROP TABLE orders; SELECT (1"]}, "cannot insert multiple commands"),
    ({"columns": ["customer); --"]}, "syntax error"),
    ({"columns": ["date_part('year', created_at)"]}, "must be marked IMMUTABLE"),
    ({"columns": ["random()"]}, "must be marked IMMUTABLE"),
    ({"columns": ["customer"], "method": "nosuch"}, 'access method "nosuch" does not exist'),
    ({"columns": ["customer"], "where": "state"}, "must be type boolean"),
    ({"columns": ["customer"], "storage": {"fillfactor": 7}}, "out of bounds"),
    ({"columns": ["customer"], "include": ["lower(email)"]}, 'column "lower(email)" does not exist'),
]


@pytest.mark.parametrize(("declared", "said"), REFUSED)
def test_what_the_server_refuses_is_one_clear_error(database: str, declared: dict[str, Any], said: str) -> None:
    sql(database, ORDERS)
    with pytest.raises(Problem, match=r"index \"orders_x\" on .*cannot be built") as refused:
        walking.survey(database, declared_index(**declared))
    assert said in str(refused.value)
    assert set(walking.indexes(database, "orders")) == {"orders_pkey"}


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("CREATE INDEX orders_x ON orders (state)", "is the name of something else; choose another name"),
        ("CREATE INDEX orders_x ON orders (customer)", "exists already, as declared; nothing is left to be done"),
        ("CREATE VIEW orders_x AS SELECT 1", "is the name of something else"),
        ("CREATE TABLE other (customer int); CREATE INDEX orders_x ON other (customer)", "is the name of something"),
    ],
)
def test_name_that_is_taken_is_refused(database: str, before: str, said: str) -> None:
    sql(database, ORDERS + before)
    problems = walking.survey(database, declared_index(columns=["customer"])).problems
    assert [said in str(problem) for problem in problems] == [True]


def test_same_index_under_another_name_is_told(database: str) -> None:
    sql(database, ORDERS + "CREATE INDEX orders_y ON orders (customer)")
    found = walking.survey(database, declared_index(columns=["customer"]))
    assert found.problems == []
    assert found.warnings == ('index "orders_y" is the same but for its name: one of them is enough',)


def test_invalid_leftover_is_built_again(database: str) -> None:
    sql(database, ORDERS)
    leave_invalid(database, "CREATE INDEX CONCURRENTLY orders_x ON orders (customer)")
    assert walking.indexes(database, "orders")["orders_x"][0] is False
    bound = walking.change(database, declared_index(columns=["customer"]))
    assert walking.validate(database, bound) == ['remove an unfinished index "orders_x"', 'build index "orders_x"']
    assert walking.indexes(database, "orders")["orders_x"][0] is True


def leave_invalid(url: str, statement: str) -> None:
    """Cancel a concurrent build while it waits for an older transaction."""
    with psycopg.connect(url) as old, psycopg.connect(url, autocommit=True) as building:
        old.execute("SELECT count(*) FROM orders")
        old.execute("INSERT INTO orders SELECT * FROM orders LIMIT 0")
        timer = threading.Timer(0.5, building.cancel)
        timer.start()
        with pytest.raises(psycopg.errors.QueryCanceled):
            building.execute(statement)


def test_index_that_somebody_else_made_meanwhile_is_not_dropped(database: str) -> None:
    sql(database, ORDERS)
    bound = walking.change(database, declared_index(columns=["customer"]))
    sql(database, "CREATE INDEX orders_x ON orders (state)")
    walking.undo(database, bound.enforce)
    assert "orders_x" in walking.indexes(database, "orders")
    with pytest.raises(psycopg.errors.DuplicateTable):
        walking.validate(database, bound)


@pytest.mark.parametrize(
    ("columns", "change"),
    [
        (["id", "customer"], "ALTER TABLE orders RENAME customer TO buyer"),
        (["app.tidy(email)"], "ALTER TABLE orders RENAME email TO address"),
        (["id", "email"], "ALTER TABLE orders ALTER email TYPE varchar(50)"),
    ],
)
def test_index_goes_back_though_its_definition_reads_otherwise(database: str, columns: list[str], change: str) -> None:
    sql(database, ORDERS + TIDY)
    before = set(walking.indexes(database, "orders"))
    bound = walking.change(database, declared_index(columns=columns))
    walking.validate(database, bound)
    sql(database, change)
    walking.undo(database, bound.enforce)
    assert set(walking.indexes(database, "orders")) == before


def test_index_is_known_again_under_another_search_path(database: str) -> None:
    sql(database, ORDERS + TIDY + "ALTER TABLE orders DROP COLUMN created_at, ADD COLUMN created_at timestamptz")
    bound = walking.change(database, declared_index(columns=["app.tidy(email)", "created_at"]))
    walking.validate(database, bound)
    name = database.rsplit("/", 1)[1]
    sql(database, f"ALTER DATABASE {name} SET search_path = app, public")
    assert walking.validate(database, bound) == []
    with server_at(database).connect(purpose="test") as session, session.transaction():
        session.run(Statement(bound.enforce[-1].done_when))
        assert session.run(Statement("SHOW search_path")) == [("app, public",)]
    assert [
        problem.fact
        for problem in walking.survey(database, declared_index(columns=["tidy(email)", "created_at"])).problems
    ] == ["exists already, as declared"]
    assert walking.undo(database, bound.enforce) == ['undo build index "orders_x"']


def test_duplicates_are_counted_with_their_first_keys(database: str) -> None:
    sql(database, ORDERS)
    sql(database, "UPDATE orders SET email = 'same' WHERE id IN (7, 9); UPDATE orders SET email = NULL WHERE id > 100")
    bound = walking.change(database, declared_index(columns=["lower(email)"], unique=True))
    (check,) = bound.checks
    assert one(database, check.count) == 2
    assert sql(database, check.keys) == [(["7"],), (["9"],)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        walking.validate(database, bound)
    assert walking.undo(database, bound.enforce) == ['undo build index "orders_x"']  # the build left an invalid index
    assert set(walking.indexes(database, "orders")) == {"orders_pkey"}
    sql(database, "UPDATE orders SET email = 'other' WHERE id = 9")
    assert one(database, check.count) == 0
    walking.validate(database, bound)
    assert one(database, check.count) == 0


def test_nulls_that_count_as_the_same_are_duplicates(database: str) -> None:
    sql(database, ORDERS + "UPDATE orders SET email = NULL WHERE id IN (3, 4, 5)")
    declared = {"columns": ["email"], "unique": True}
    assert one(database, walking.change(database, declared_index(**declared)).checks[0].count) == 0
    (check,) = walking.change(database, declared_index(**declared, nulls_distinct=False)).checks
    assert one(database, check.count) == 3


def test_table_without_primary_key_has_its_index(database: str) -> None:
    sql(database, "CREATE TABLE orders (customer int); INSERT INTO orders VALUES (1), (1)")
    bound = walking.change(database, declared_index(columns=["customer"], unique=True))
    assert one(database, bound.checks[0].count) == 2
    assert bound.checks[0].keys == ""
    plain = walking.change(database, declared_index(columns=["customer"]))
    walking.validate(database, plain)
    assert walking.indexes(database, "orders")["orders_x"][0] is True


# -- partitioned tables -----------------------------------------------------------------------------------------------

TABLES = ("orders", "orders_eu", "orders_us", "orders_us_1", "orders_us_2")


def test_each_partition_has_its_index_and_the_parents_are_valid(database: str) -> None:
    sql(database, TREE)
    bound = walking.change(database, declared_index(columns=["day DESC", "id"]))
    walking.validate(database, bound)
    for table in TABLES:
        ((valid, definition),) = walking.indexes(database, table).values()
        assert valid, table
        assert definition.endswith("USING btree (day DESC, id)")
    assert walking.validate(database, bound) == []
    walking.undo(database, bound.enforce)
    assert [walking.indexes(database, table) for table in TABLES] == [{}] * 5


@pytest.mark.parametrize("steps", range(1, 16))
def test_killed_between_any_two_steps_it_goes_on_and_goes_back(database: str, steps: int) -> None:
    sql(database, TREE)
    declared = declared_index(columns=["id"])
    found = walking.survey(database, declared)
    bound = walking.change(database, declared, found)
    walking.run(database, bound.enforce[:steps])
    walking.undo(database, bound.enforce)
    assert [walking.indexes(database, table) for table in TABLES] == [{}] * 5
    walking.run(database, bound.enforce[:steps])
    walking.validate(database, bound)
    for table in TABLES:
        ((valid, _),) = walking.indexes(database, table).values()
        assert valid, table


def test_partitions_attached_meanwhile_are_found(database: str) -> None:
    sql(database, TREE)
    bound = walking.change(database, declared_index(columns=["id"]))
    sql(database, "CREATE TABLE orders_asia PARTITION OF orders FOR VALUES IN ('asia')")
    ran = walking.validate(database, bound)
    assert ran[-2:] == ['build index "orders_asia_orders_x"', 'attach index "orders_asia_orders_x"']
    assert walking.indexes(database, "orders")["orders_x"][0] is True
    sql(database, "CREATE TABLE orders_africa PARTITION OF orders FOR VALUES IN ('africa')")
    assert walking.validate(database, bound) == []  # the server saw to it
    walking.undo(database, bound.enforce)
    assert walking.indexes(database, "orders_asia") == walking.indexes(database, "orders_africa") == {}


@pytest.mark.parametrize("steps", [2, 4])
def test_what_was_built_for_a_partition_that_was_attached_meanwhile_goes_back(database: str, steps: int) -> None:
    sql(database, TREE)
    bound = walking.change(database, declared_index(columns=["id"]))
    walking.run(database, bound.enforce[:steps])
    sql(database, "CREATE TABLE orders_asia PARTITION OF orders FOR VALUES IN ('asia')")
    walking.run(database, [s for s in walking.today(database, bound) if "asia" in s.name and "build" in s.name])
    assert "orders_asia_orders_x" in walking.indexes(database, "orders_asia")
    walking.undo(database, [*bound.enforce, *walking.today(database, bound)])
    assert [walking.indexes(database, table) for table in (*TABLES, "orders_asia")] == [{}] * 6


def test_unique_index_of_a_partitioned_table_holds_its_partition_key(database: str) -> None:
    sql(database, TREE)
    with pytest.raises(Problem, match="must include all partitioning columns"):
        walking.survey(database, declared_index(columns=["id"], unique=True))


def test_index_of_one_partition(database: str) -> None:
    sql(database, TREE)
    declared = walking.migration("orders_us_1", {"kind": "add_index", "name": "only_here", "columns": ["id"]})
    bound = walking.change(database, declared)
    assert walking.validate(database, bound) == ['build index "only_here"']
    assert walking.indexes(database, "orders_us_2") == {}
