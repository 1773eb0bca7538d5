"""drop_index and replace_index on a real server: what keeps an index, how it goes, and how it comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any

import psycopg
import pytest

from zdm_pipelines.changes import Change
from zdm_pipelines.dialects import server_at
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests import walking
from zdm_pipelines_tests.helpers import eventually
from zdm_pipelines_tests.walking import one, sql

ORDERS = """
CREATE TABLE customers (id int PRIMARY KEY);
INSERT INTO customers SELECT n FROM generate_series(0, 9) n;
CREATE TABLE orders (id bigint PRIMARY KEY, customer int, code text, total numeric);
INSERT INTO orders SELECT n, n % 10, 'c' || n, n FROM generate_series(1, 500) n;
CREATE INDEX orders_x ON orders USING btree (customer, lower(code)) WITH (fillfactor='60') WHERE (total > 1);
COMMENT ON INDEX orders_x IS 'it''s for the nightly job';
ALTER INDEX orders_x ALTER COLUMN 2 SET STATISTICS 500;
CREATE UNIQUE INDEX orders_code ON orders (code);
ALTER TABLE orders CLUSTER ON orders_code;
ANALYZE orders;
"""


def drop(**change: Any) -> Migration:
    return walking.migration("public.orders", {"kind": "drop_index", "name": "orders_x"} | change)


def replaced(**new: Any) -> Migration:
    new = {"name": "orders_new", "columns": ["customer", "total"]} | new
    return walking.migration("public.orders", {"kind": "replace_index", "old": "orders_x", "new": new})


def reasons(url: str, bound: Change) -> list[str]:
    assert bound.retire is not None
    with server_at(url).connect(purpose="test") as session:
        return bound.retire.dependents(session)


def uses(url: str, bound: Change, **replicas: str) -> list[str]:
    """Why the index counts as used, asked of this server and of replicas by their URLs."""
    assert bound.in_use is not None
    with contextlib.ExitStack() as stack:
        there = {n: stack.enter_context(server_at(u).connect(purpose="test")) for n, u in replicas.items()}
        return bound.in_use(stack.enter_context(server_at(url).connect(purpose="test")), there)


def settings(url: str) -> list[tuple[Any, ...]]:
    """Everything about the indexes of the table that a dump would say."""
    return sql(
        url,
        "SELECT c.relname, pg_get_indexdef(c.oid), obj_description(c.oid), i.indisclustered, i.indisvalid, "
        "ARRAY(SELECT attstattarget FROM pg_attribute a WHERE a.attrelid = c.oid ORDER BY attnum) "
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'orders'::regclass ORDER BY 1",
    )


@pytest.mark.parametrize("name", ["orders_x", "orders_code"])
def test_unused_index_goes_and_comes_back_as_it_was(database: str, name: str) -> None:
    sql(database, ORDERS)
    before = settings(database)
    bound = walking.change(database, drop(name=name))
    assert bound.retire is not None
    assert reasons(database, bound) == []
    assert walking.run(database, bound.retire.drop()) == [f'drop index "{name}"']
    assert name not in walking.indexes(database, "orders")
    assert walking.run(database, bound.retire.drop()) == []
    assert reasons(database, bound) == uses(database, bound) == []  # so that a run that was killed behind the drop ends
    walking.run(database, bound.retire.restore())
    assert settings(database) == before


def test_restore_that_was_interrupted_is_built_again(database: str) -> None:
    sql(database, ORDERS)
    before = settings(database)
    bound = walking.change(database, drop())
    assert bound.retire is not None
    walking.run(database, bound.retire.drop())
    build = bound.retire.restore()[1].sql
    with psycopg.connect(database) as old, psycopg.connect(database, autocommit=True) as building:
        old.execute("DELETE FROM orders WHERE id < 0")
        building.execute("SET statement_timeout = '500ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            building.execute(build.encode())
    assert walking.indexes(database, "orders")["orders_x"][0] is False
    walking.run(database, bound.retire.restore())
    assert settings(database) == before


HELD = [
    ("ALTER TABLE orders ADD CONSTRAINT orders_c UNIQUE (code, id)", "orders_c", 'backs constraint orders_c'),
    ("", "orders_pkey", "backs constraint orders_pkey"),
    (
        "CREATE TABLE lines (code text REFERENCES orders (code))", "orders_code",
        "is what foreign key lines_code_fkey of lines refers to",
    ),
    (
        "ALTER TABLE orders ALTER code SET NOT NULL, REPLICA IDENTITY USING INDEX orders_code", "orders_code",
        "is the replica identity of its table",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("before", "name", "fact"), HELD)
def test_index_on_which_something_stands_is_kept(database: str, before: str, name: str, fact: str) -> None:
    sql(database, ORDERS)
    if not before:
        assert [problem.fact for problem in walking.survey(database, drop(name=name)).problems] == [fact]
        return
    found = None
    if "ADD CONSTRAINT" not in before:
        found = walking.survey(database, drop(name=name))
        sql(database, before)
        (reason,) = reasons(database, walking.change(database, drop(name=name), found))
        assert reason.startswith(f'index "{name}" {fact}: ALTER TABLE public.')
    else:
        sql(database, before)
    assert [problem.fact for problem in walking.survey(database, drop(name=name)).problems] == [fact]


def scan(url: str) -> None:
    """Use the index, and wait until the server has counted it."""
    with psycopg.connect(url, autocommit=True) as session:
        session.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        session.execute("SELECT count(*) FROM orders WHERE customer = 3 AND lower(code) = 'c3' AND total > 1")
    deadline = time.monotonic() + 10
    while not walking.one(url, "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'orders_x'"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def followed(cluster: Cluster, url: str) -> str:
    """The URL of the database on the replica, which has replayed what was written."""
    cluster.wait_caught_up()
    return cluster.replica.url(url.rsplit("/", 1)[1])


def test_index_that_is_used_is_kept_until_nobody_uses_it(database: str, cluster: Cluster) -> None:
    sql(database, ORDERS)
    there = followed(cluster, database)
    found = walking.survey(database, drop())
    scan(database)
    (reason,) = uses(database, walking.change(database, drop(), found), REPLICA=there)[:1]
    assert 'index "orders_x" was scanned 1 times, last at ' in reason
    assert reason.endswith(", less than 7 d ago; wait, or declare unused_for: null")
    time.sleep(0.2)
    assert uses(database, walking.change(database, drop(unused_for="100ms"), found), REPLICA=there) == []
    assert walking.change(database, drop(unused_for=None), found).in_use is None  # asks nobody


def test_index_that_is_read_on_a_replica_is_kept(database: str, cluster: Cluster) -> None:
    sql(database, ORDERS)
    there = followed(cluster, database)
    bound = walking.change(database, drop(unused_for="1s"))
    time.sleep(1)
    (reason,) = uses(database, bound)
    assert reason.startswith('index "orders_x" may be in use on replicas: 1 follow this server and 0 are declared')
    assert uses(database, bound, REPLICA=there) == []
    scan(there)
    (reason,) = uses(database, bound, REPLICA=there)
    assert reason.startswith('index "orders_x" on REPLICA was scanned 1 times, last at ')
    assert "is it a replica of this database?" in uses(database, bound, REPLICA=database)[0]


def test_counts_that_began_a_moment_ago_say_nothing(own_server: Server) -> None:
    url = own_server.create_database("app")
    sql(url, ORDERS)
    assert walking.one(url, "SELECT stats_reset FROM pg_stat_database WHERE datname = 'app'") is None
    bound, short = (walking.change(url, drop(unused_for=window)) for window in ("1h", "1s"))
    (reason,) = uses(url, bound)
    assert reason.startswith('index "orders_x" may be in use: scans are counted since ')
    time.sleep(1)
    assert uses(url, short) == []
    own_server.restart()
    assert uses(url, short) == []  # a clean restart keeps the counts
    victim = psycopg.connect(url)
    os.kill(victim.info.backend_pid, signal.SIGKILL)  # the server starts anew inside, and counts from zero
    eventually(lambda: answers(url))
    (reason,) = uses(url, short)
    assert reason.startswith('index "orders_x" may be in use: scans are counted since ')


def answers(url: str) -> bool:
    try:
        return bool(walking.one(url, "SELECT true"))
    except psycopg.OperationalError:
        return False


def test_index_that_was_made_anew_is_another_one(database: str) -> None:
    sql(database, ORDERS)
    bound = walking.change(database, drop())
    sql(database, "DROP INDEX orders_x; CREATE INDEX orders_x ON orders (total)")
    assert reasons(database, bound) == [
        'index "orders_x" is another one than when the migration began: roll back and begin anew'
    ]


def test_index_that_was_renamed_is_not_taken_for_dropped(database: str) -> None:
    sql(database, ORDERS)
    bound = walking.change(database, drop())
    assert bound.retire is not None
    sql(database, "ALTER INDEX orders_x RENAME TO orders_y; CREATE INDEX orders_x ON orders (total)")
    (reason,) = reasons(database, bound)
    assert reason.startswith('index "orders_x" was renamed to "public"."orders_y": give it its name back')
    (step,) = bound.retire.drop()
    assert one(database, step.done_when) is False
    sql(database, "DROP INDEX orders_y")
    assert "is another one than when the migration began" in reasons(database, bound)[0]


def test_warnings_say_what_goes_with_the_index(database: str) -> None:
    sql(database, ORDERS)
    sql(
        database,
        "ALTER TABLE orders ADD FOREIGN KEY (customer) REFERENCES customers; CREATE INDEX fk ON orders (customer)",
    )
    served = (
        'only this index serves foreign key "orders_customer_fkey": a delete in customers will read the whole table'
    )
    assert served in walking.survey(database, drop(name="fk")).warnings
    sql(database, "CREATE INDEX fk_2 ON orders (customer, id)")
    assert served not in walking.survey(database, drop(name="fk")).warnings
    assert any("keeps duplicates out" in w for w in walking.survey(database, drop(name="orders_code")).warnings)


@pytest.mark.parametrize("name", ["nothing", "customers_pkey"])
def test_index_that_the_table_has_not_is_told(database: str, name: str) -> None:
    sql(database, ORDERS)
    with pytest.raises(Problem, match=f'index "{name}": (does not exist|is on another table); write the exact name'):
        walking.survey(database, drop(name=name))


def test_index_of_a_partitioned_table_is_refused_with_a_way_out(database: str) -> None:
    sql(
        database,
        "CREATE TABLE orders (id int) PARTITION BY LIST (id); CREATE TABLE one PARTITION OF orders FOR VALUES IN (1); "
        "CREATE INDEX orders_x ON orders (id)",
    )
    (problem,) = walking.survey(database, drop()).problems
    assert "cannot be dropped concurrently; DROP INDEX locks the table and every partition" in str(problem)
    part = walking.migration("one", {"kind": "drop_index", "name": "one_id_idx"})
    assert ["belongs to index orders_x" in p.fact for p in walking.survey(database, part).problems] == [True]


def test_names_that_look_like_sql(database: str) -> None:
    name = 'a "b" ON c USING d'
    sql(database, "CREATE TABLE orders (id int)")
    with psycopg.connect(database, autocommit=True) as session:
        session.execute('CREATE INDEX "a ""b"" ON c USING d" ON orders (id)')
    bound = walking.change(database, drop(name=name))
    assert bound.retire is not None
    before = walking.indexes(database, "orders")
    walking.run(database, bound.retire.drop())
    assert walking.indexes(database, "orders") == {}
    walking.run(database, bound.retire.restore())
    assert walking.indexes(database, "orders") == before


# -- replace_index ----------------------------------------------------------------------------------------------------


def test_new_index_stands_before_the_old_one_goes(database: str) -> None:
    sql(database, ORDERS)
    before = settings(database)
    bound = walking.change(database, replaced())
    assert bound.retire is not None
    assert reasons(database, bound) == ['index "orders_new" does not stand as declared: run validate']
    walking.validate(database, bound)
    assert {"orders_x", "orders_new"} <= set(walking.indexes(database, "orders"))
    assert reasons(database, bound) == []
    walking.run(database, bound.retire.drop())
    assert "orders_x" not in walking.indexes(database, "orders")
    walking.run(database, bound.retire.restore())
    walking.undo(database, bound.enforce)
    assert settings(database) == before


def test_what_the_old_index_kept_apart_is_told(database: str) -> None:
    sql(database, ORDERS)
    declared = walking.migration(
        "orders", {"kind": "replace_index", "old": "orders_code", "new": {"name": "n", "columns": ["code"]}}
    )
    assert walking.survey(database, declared).warnings[-1] == (
        '"orders_code" is unique and "n" is not: nothing will keep duplicates out'
    )
    primary = walking.migration(
        "orders",
        {"kind": "replace_index", "old": "orders_pkey", "new": {"name": "n", "columns": ["id"], "unique": True}},
    )
    assert [p.fact for p in walking.survey(database, primary).problems] == ["backs constraint orders_pkey"]


def test_way_of_each_kind() -> None:
    gone, other = drop().lifecycle, replaced().lifecycle
    assert gone.phases == (Phase.CONTRACT,)
    assert gone.states == (State.CONTRACTING, State.CONTRACTED)
    assert gone.undo_path(State.CONTRACTING, State.ROLLED_BACK) == (Phase.CONTRACT,)
    assert other.states == (State.BUILDING, State.VALIDATED, State.CONTRACTING, State.CONTRACTED)
    assert other.undo_path(State.CONTRACTING, State.ROLLED_BACK) == (Phase.CONTRACT, Phase.VALIDATE)
    assert other.undo_path(State.CONTRACTING, State.VALIDATED) == (Phase.CONTRACT,)
