"""One story a kind, through its phases: start, look, undo, look, start, finish, look; while clients read and write."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import psycopg
import pytest

from zdm_pipelines import ledger
from zdm_pipelines.cli.run import Walk
from zdm_pipelines.model.errors import (
    GateRefused,
    LockNotAcquired,
    MappingFailed,
    PreflightError,
    RolledBack,
    StateConflict,
    Throttled,
)
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Moved
from zdm_pipelines.phases import backfill, contract, expand, validate
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import plan, rollback, status
from zdm_pipelines_tests.helpers import Probe, Worker, contracted, dump, eventually, one, sql, state, validated, work

SHOP = """
CREATE SCHEMA archive;
CREATE TABLE orders (id bigint PRIMARY KEY, customer int, state text, n bigint DEFAULT 0);
CREATE TABLE lines (id bigint PRIMARY KEY, order_id bigint NOT NULL REFERENCES orders, what text);
CREATE INDEX lines_order ON lines (order_id);
CREATE INDEX orders_state ON orders (state, customer);
INSERT INTO orders SELECT n, n % 50, CASE WHEN n % 2 = 0 THEN 'old' ELSE 'new' END FROM generate_series(1, 4000) n;
INSERT INTO lines SELECT n, 1 + n % 4000, 'w' || n FROM generate_series(1, 8000) n;
ANALYZE;
"""
CLIENTS = (
    "SELECT n FROM orders WHERE id = 77",
    "UPDATE orders SET n = n + 1 WHERE id = 1 + (random() * 3999)::int",
    "INSERT INTO orders (id, state) VALUES ((SELECT max(id) + 1 FROM orders), 'new')",
    "UPDATE lines SET what = what WHERE id = 1 + (random() * 7999)::int",
)


def declare(change: dict[str, Any], **sections: Any) -> Migration:
    return Migration.model_validate(
        {
            "name": "story", "database": "app", "table": "public.orders", "change": change,
            "backfill": {"range_rows": 500, "batch_rows": 100},
            "throttle": {"replication_lag": None, "latency_p95": None},
            "locks": {"timeout": "200ms", "give_up_after": "60s"},
            "contract": {"confidence_window": "0s", "tombstone_window": "0s", "straggler_window": "0s"},
        }
        | sections
    )  # fmt: skip


def expanded(m: Migration, url: str) -> None:
    expand.run(work(m, url))


Run = Callable[[Migration, str], Any]


def start(m: Migration, url: str, *runs: Run) -> list[State]:
    """Run phases; the states that were reached."""
    reached = []
    for run in runs:
        run(m, url)
        reached.append(state(m, url))
    return reached


def undo(m: Migration, url: str, to: State = State.ROLLED_BACK) -> State:
    return rollback.run(work(m, url), to=to)


@contextmanager
def clients(url: str) -> Iterator[None]:
    """Clients that read and write all the time; none of their statements may fail."""
    with Probe(url, CLIENTS) as probe:
        yield
    assert probe.errors == []
    assert probe.count > 0


def content(url: str) -> tuple[Any, ...]:
    """What purges take and give back."""
    old = sql(url, "SELECT id, customer FROM orders WHERE state = 'old' ORDER BY id")
    lines = sql(
        url, "SELECT l.id, order_id FROM lines l JOIN orders o ON o.id = order_id WHERE state = 'old' ORDER BY 1"
    )
    return old, lines, one(url, "SELECT count(*) FROM lines")


def names(m: Migration, url: str) -> dict[Phase, list[str]]:
    """The plan, step by step."""
    return {phase: [step.name for step in steps] for phase, steps in plan.read(work(m, url)).phases.items()}


# -- indexes ----------------------------------------------------------------------------------------------------------

ADD = {"kind": "add_index", "name": "orders_customer", "columns": ["customer", "n"]}


def test_story_of_add_index(database: str, server: Server) -> None:
    sql(database, SHOP)
    before, m = dump(server, database), declare(ADD)
    assert names(m, database) == {
        Phase.VALIDATE: [
            'remove an unfinished index "orders_customer"', 'build index "orders_customer"', "gather statistics",
        ]
    }  # fmt: skip
    with clients(database):
        assert start(m, database, validated) == [State.VALIDATED]
        assert "orders_customer" in dump(server, database)
        assert undo(m, database) == State.ROLLED_BACK
        assert dump(server, database) == before
        assert start(m, database, validated, validated) == [State.VALIDATED, State.VALIDATED]
    assert "CREATE INDEX orders_customer ON public.orders USING btree (customer, n);" in dump(server, database)


def test_finished_migration_claims_its_table_before_it_builds_again(database: str) -> None:
    sql(database, SHOP)
    m, other = declare(ADD), declare(ADD | {"name": "orders_n", "columns": ["n"]}, name="other")
    start(m, database, validated)
    sql(database, "DROP INDEX orders_customer")
    refused: list[str] = []

    def meanwhile(said: str) -> None:
        if said.startswith("CREATE INDEX"):
            with pytest.raises(StateConflict) as error:
                validated(m, database)
            refused.append(str(error.value))

    validate.run(work(other, database, tell=meanwhile))
    assert "table public.orders is under migration other (building)" in refused[0]
    assert one(database, "SELECT to_regclass('orders_customer')") is None
    seen: list[State] = []
    validate.run(work(m, database, tell=lambda _: seen.append(state(m, database))))
    assert (seen, state(m, database)) == ([State.BUILDING], State.VALIDATED)


def test_unique_index_over_duplicates_is_refused_with_their_keys(database: str, server: Server) -> None:
    sql(database, SHOP + "UPDATE lines SET what = 'same' WHERE id IN (5, 7)")
    before = dump(server, database)
    unique = {"kind": "add_index", "name": "lines_what", "columns": ["what"], "unique": True}
    m = declare(unique, table="public.lines")
    with pytest.raises(PreflightError, match=r"2 rows share .* unique \(first keys: 5, 7\)"):
        validated(m, database)
    assert state(m, database) == State.BUILDING
    assert dump(server, database) == before
    sql(database, "UPDATE lines SET what = 'other' WHERE id = 7")
    assert start(m, database, validated) == [State.VALIDATED]


def test_killed_build_is_finished_by_running_it_again(database: str, server: Server) -> None:
    sql(database, SHOP)
    m = declare(ADD)
    with psycopg.connect(database) as old:
        old.execute("UPDATE orders SET n = n WHERE id = 1")
        worker = Worker("validate", m, database)
        building = "SELECT count(*) FROM pg_index WHERE indexrelid = to_regclass('orders_customer') AND NOT indisvalid"
        eventually(lambda: one(database, building))
        worker.kill()
        eventually(lambda: not one(database, "SELECT count(*) FROM pg_stat_progress_create_index"))
    assert state(m, database) == State.BUILDING
    assert start(m, database, validated) == [State.VALIDATED]
    assert one(database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'orders_customer'::regclass")


def test_partition_that_is_attached_meanwhile_has_its_index(database: str, server: Server) -> None:
    sql(
        database,
        "CREATE TABLE orders (id bigint, region text) PARTITION BY LIST (region); "
        "CREATE TABLE orders_eu PARTITION OF orders FOR VALUES IN ('eu'); CREATE TABLE asia (LIKE orders); "
        "INSERT INTO orders SELECT n, 'eu' FROM generate_series(1, 1000) n",
    )
    before, m = dump(server, database), declare({"kind": "add_index", "name": "by_id", "columns": ["id"]})
    assert start(m, database, validated) == [State.VALIDATED]
    assert one(database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_id'::regclass")
    assert undo(m, database) == State.ROLLED_BACK
    assert dump(server, database) == before
    with psycopg.connect(database) as old:
        old.execute("UPDATE orders_eu SET id = id WHERE id = 1")  # the build on this partition waits for it
        thread = threading.Thread(target=lambda: validated(m, database))
        thread.start()
        eventually(lambda: one(database, "SELECT count(*) FROM pg_stat_progress_create_index"))
        sql(database, "ALTER TABLE orders ATTACH PARTITION asia FOR VALUES IN ('asia')")
    thread.join()
    assert state(m, database) == State.VALIDATED
    assert one(database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 'by_id'::regclass")
    assert one(database, "SELECT count(*) FROM pg_index WHERE indrelid = 'asia'::regclass AND indisvalid") == 1


def test_killed_validate_leaves_no_index_of_a_partition_behind(database: str, server: Server) -> None:
    sql(
        database,
        "CREATE TABLE orders (id bigint, region text) PARTITION BY LIST (region); "
        "CREATE TABLE orders_eu PARTITION OF orders FOR VALUES IN ('eu'); CREATE TABLE asia (LIKE orders)",
    )
    m = declare({"kind": "add_index", "name": "by_id", "columns": ["id"]})

    def attach_then_die(said: str) -> None:
        if said.startswith('CREATE INDEX CONCURRENTLY "orders_eu_by_id"'):
            sql(database, "ALTER TABLE orders ATTACH PARTITION asia FOR VALUES IN ('asia')")
        if 'ATTACH PARTITION "public"."asia_by_id"' in said:
            raise KeyboardInterrupt

    def built(table: str) -> int:
        return int(one(database, f"SELECT count(*) FROM pg_index WHERE indrelid = '{table}'::regclass"))

    with pytest.raises(KeyboardInterrupt):
        validate.run(work(m, database, tell=attach_then_die))
    assert built("asia") == 1
    assert undo(m, database) == State.ROLLED_BACK
    assert built("orders") == built("orders_eu") == built("asia") == 0


def test_story_of_drop_index(database: str, server: Server) -> None:
    sql(database, SHOP)
    before, m = dump(server, database), declare({"kind": "drop_index", "name": "orders_state", "unused_for": None})
    assert names(m, database) == {Phase.CONTRACT: ['drop index "orders_state"']}
    with clients(database):
        with holding_up(database):
            worker = Worker("contract", m, database)
            eventually(lambda: state(m, database) == State.CONTRACTING)
            worker.kill()
        assert undo(m, database) == State.ROLLED_BACK
        eventually(lambda: dump(server, database) == before)
        assert start(m, database, contracted) == [State.CONTRACTED]
    assert "orders_state" not in dump(server, database)
    with pytest.raises(StateConflict, match="is contracted"):
        undo(m, database)


@contextmanager
def holding_up(url: str) -> Iterator[None]:
    """A transaction that every concurrent drop of an index of the table waits for."""
    with psycopg.connect(url) as old:
        old.execute("UPDATE orders SET n = n WHERE id = 3")
        yield
        old.rollback()


def test_index_that_is_used_is_not_dropped(database: str) -> None:
    sql(database, SHOP)
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        session.execute("SELECT count(*) FROM orders WHERE state = 'x'")
    eventually(lambda: one(database, "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'orders_state'"))
    with pytest.raises(GateRefused, match='index "orders_state" was scanned 1 times, last at'):
        contracted(declare({"kind": "drop_index", "name": "orders_state"}), database)
    assert state(declare({"kind": "drop_index", "name": "orders_state", "unused_for": None}), database) == State.PLANNED


def test_index_that_is_renamed_while_it_goes_is_neither_dropped_nor_said_to_be(database: str) -> None:
    sql(database, SHOP)
    m = declare({"kind": "drop_index", "name": "orders_state", "unused_for": None})

    def rename(said: str) -> None:
        if said.startswith("DROP INDEX"):
            sql(database, "ALTER INDEX orders_state RENAME TO orders_kept")

    with pytest.raises(
        StateConflict, match=r'drop index "orders_state": the statement ran, and what it is for is still'
    ):
        contract.run(work(m, database, tell=rename))
    assert state(m, database) == State.CONTRACTING
    with pytest.raises(GateRefused, match=r'was renamed to "public"."orders_kept"'):
        contracted(m, database)
    assert undo(m, database) == State.ROLLED_BACK
    assert one(database, "SELECT count(*) FROM pg_index WHERE indrelid = 'orders'::regclass") == 2


def test_replicas_are_asked_before_an_index_is_dropped(
    database: str, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql(database, SHOP)
    cluster.wait_caught_up()
    there = cluster.replica.url(database.rsplit("/", 1)[1])
    m, declared = (
        declare({"kind": "drop_index", "name": "orders_state", "unused_for": "100ms"}),
        Database(name="app", replicas=("READS_URL",)),
    )
    with pytest.raises(GateRefused, match="1 follow this server and 0 are declared"):
        contracted(m, database)
    with pytest.raises(GateRefused, match=r"what is read on replicas is not known: .* READS_URL is not set"):
        contract.run(work(m, database, database=declared))
    monkeypatch.setenv("READS_URL", there)
    assert contract.run(work(m, database, database=declared)).state == State.CONTRACTED


def test_story_of_replace_index(database: str, server: Server) -> None:
    sql(database, SHOP)
    before = dump(server, database)
    m = declare(
        {"kind": "replace_index", "old": "orders_state", "new": {"name": "orders_new", "columns": ["state", "n"]}}
    )
    with clients(database):
        assert start(m, database, validated) == [State.VALIDATED]
        sql(database, "DROP INDEX orders_new")
        with pytest.raises(GateRefused, match='"orders_new" does not stand as declared: run validate'):
            contracted(m, database)
        assert start(m, database, validated) == [State.VALIDATED]
        with holding_up(database):
            worker = Worker("contract", m, database)
            eventually(lambda: state(m, database) == State.CONTRACTING)
            worker.kill()
        assert undo(m, database, State.VALIDATED) == State.VALIDATED
        eventually(lambda: "orders_state" in dump(server, database))
        assert undo(m, database) == State.ROLLED_BACK
        assert dump(server, database) == before
        assert start(m, database, validated, contracted) == [State.VALIDATED, State.CONTRACTED]
    assert "orders_state" not in dump(server, database)
    assert "orders_new" in dump(server, database)


# -- purge_rows -------------------------------------------------------------------------------------------------------

PURGE = {"kind": "purge_rows", "where": "state = 'old'", "children": "delete"}
ARCHIVED = PURGE | {"archive": {"table": "archive.gone"}}


def test_story_of_purge_rows_with_an_archive(database: str, server: Server) -> None:
    sql(database, SHOP)
    before, schema, m = content(database), dump(server, database), declare(ARCHIVED)
    with clients(database):
        assert start(m, database, expanded) == [State.EXPANDED]
        assert undo(m, database) == State.ROLLED_BACK
        assert dump(server, database) == schema
        assert start(m, database, expanded, validated, contracted) == [
            State.EXPANDED, State.VALIDATED, State.TOMBSTONED,
        ]  # fmt: skip
        assert content(database) == ([], [], 4000)
        assert one(database, "SELECT count(*) FROM archive.gone") == 2000
        assert undo(m, database, State.VALIDATED) == State.VALIDATED
        assert content(database) == before
        assert undo(m, database) == State.ROLLED_BACK
        assert dump(server, database) == schema
        assert start(m, database, expanded, validated, contracted, contracted) == [
            State.EXPANDED, State.VALIDATED, State.TOMBSTONED, State.CONTRACTED,
        ]  # fmt: skip
    assert content(database) == ([], [], 4000)
    assert dump(server, database) == schema


def test_story_of_purge_rows_for_good(database: str) -> None:
    sql(database, SHOP)
    m = declare(PURGE | {"where": "state = state_that_goes", "once": {"state_that_goes": "'old'"}})
    with clients(database):
        start(m, database, expanded)
        report = validate.run(work(m, database))
        dry = next(check for check in report.checks if check.name == "dry_run")
        assert dry.facts["rows"] == 2000
        with pytest.raises(GateRefused, match="rows of 8 ranges are not taken away yet"):
            contract.run(work(m, database))
        moving = contract.destroy(work(m, database))
        next(moving)
        moving.close()
        assert state(m, database) == State.CONTRACTING
        assert start(m, database, contracted) == [State.CONTRACTED]
        with pytest.raises(StateConflict, match=r"is contracted: what matches .* is gone"):
            undo(m, database)
    assert content(database) == ([], [], 4000)


def test_purge_for_good_can_be_stopped_where_it_stands(database: str, server: Server) -> None:
    sql(database, SHOP)
    m = declare(PURGE)
    start(m, database, expanded, validated)
    with closing(contract.destroy(work(m, database))) as moving:
        next(moving)
    sql(database, NOTES)
    schema = dump(server, database)
    with pytest.raises(GateRefused, match="roll back and begin anew"):
        contracted(m, database)
    left = one(database, "SELECT count(*) FROM orders WHERE state = 'old'")
    assert undo(m, database) == State.ROLLED_BACK
    assert dump(server, database) == schema
    assert one(database, "SELECT count(*) FROM zdm.claim") == 0
    assert left == one(database, "SELECT count(*) FROM orders WHERE state = 'old'")
    assert start(m, database, expanded, validated, contracted) == [State.EXPANDED, State.VALIDATED, State.CONTRACTED]
    assert content(database) == ([], [], 4000)
    assert one(database, "SELECT count(*) FROM notes") == 0


def test_gate_stands_before_the_first_row(database: str) -> None:
    sql(database, SHOP)
    m = declare(PURGE | {"children": "refuse"})
    start(m, database, expanded)
    with pytest.raises(
        PreflightError, match=r"4,000 rows of public.lines refer to rows that would go .* \(first keys: 2,"
    ):
        validated(m, database)
    with pytest.raises(GateRefused, match="story is expanded, contract begins from validated"):
        contracted(m, database)
    sql(database, "DELETE FROM lines")
    start(m, database, validated)
    sql(database, "CREATE TABLE notes (order_id bigint PRIMARY KEY REFERENCES orders ON DELETE CASCADE)")
    with pytest.raises(GateRefused, match=r"other foreign keys refer to public\.orders"):
        contracted(m, database)
    assert one(database, "SELECT count(*) FROM orders WHERE state = 'old'") == 2000


def test_rows_that_come_without_end_keep_nothing_from_ending(database: str) -> None:
    sql(database, SHOP)
    m = declare(ARCHIVED)
    stop = threading.Event()

    def feed() -> None:
        with psycopg.connect(database, autocommit=True) as application:
            number = 10_000
            while not stop.is_set():
                number += 1
                application.execute("INSERT INTO orders VALUES (%s, 1, 'old', 0)", [number])

    feeder = threading.Thread(target=feed)
    start(m, database, expanded, validated)
    feeder.start()
    try:
        assert start(m, database, contracted) == [State.TOMBSTONED]
    finally:
        stop.set()
        feeder.join()
    assert one(database, "SELECT count(*) FROM orders WHERE state = 'old' AND id <= 4000") == 0


@pytest.mark.parametrize("kill_at", [400, 600, 850])
def test_killed_purge_goes_on_where_it_stopped(database: str, kill_at: int) -> None:
    sql(database, SHOP)
    before, m = content(database), declare(ARCHIVED)
    start(m, database, expanded, validated)
    killed, count = Worker("contract", m, database, kill_at=kill_at).end()
    assert killed, f"it took {count} statements only"
    gone, kept = (one(database, f"SELECT count(*) FROM {table}") for table in ("orders", "archive.gone"))
    assert gone + kept == 4000
    assert state(m, database) == State.CONTRACTING
    assert kept > 0
    assert undo(m, database, State.VALIDATED) == State.VALIDATED
    assert content(database) == before
    assert start(m, database, validated, contracted) == [State.VALIDATED, State.TOMBSTONED]
    assert content(database) == ([], [], 4000)


def test_rows_whose_keys_are_used_anew_are_told_before_their_archive_goes(database: str) -> None:
    sql(database, SHOP)
    m = declare(ARCHIVED)
    start(m, database, expanded, validated, contracted)
    sql(database, "INSERT INTO orders VALUES (2, 9, 'anew', 0)")
    assert undo(m, database, State.VALIDATED) == State.VALIDATED
    assert one(database, "SELECT state FROM orders WHERE id = 2") == "anew"
    with pytest.raises(
        StateConflict, match=r"archive archive\.gone_lines still keeps rows whose keys are in use again"
    ):
        undo(m, database)
    assert state(m, database) == State.EXPANDED
    sql(database, "DELETE FROM archive.gone_lines; DELETE FROM archive.gone")
    assert undo(m, database) == State.ROLLED_BACK


def test_rollback_ends_what_waits_and_the_gate_asks_anew(database: str) -> None:
    sql(database, SHOP)
    before, m = content(database), declare(ARCHIVED)
    start(m, database, expanded, validated)
    waits = backfill.attempt_of(work(m, database))
    with closing(contract.destroy(work(m, database), attempt=waits)) as moving:
        next(moving)
        moving.close()
    assert undo(m, database, State.VALIDATED) == State.VALIDATED
    with pytest.raises(RolledBack, match="was rolled back since this run of contract was launched"):
        list(contract.destroy(work(m, database), attempt=waits))
    with pytest.raises(GateRefused, match="check dry_run never ran on this data: run validate"):
        contracted(m, database)
    assert content(database) == before
    assert start(m, database, validated, contracted) == [State.VALIDATED, State.TOMBSTONED]
    assert undo(m, database, State.VALIDATED) == State.VALIDATED
    with pytest.raises(GateRefused, match="check dry_run never ran on this data: run validate"):
        contracted(m, database)
    assert content(database) == before


NOTES = (
    "CREATE TABLE notes (order_id bigint REFERENCES orders ON DELETE CASCADE); "
    "INSERT INTO notes SELECT id FROM orders WHERE state = 'old'"
)


def test_a_purge_goes_on_with_a_table_that_was_renamed(database: str) -> None:
    sql(database, SHOP)
    m = declare(ARCHIVED, backfill={"range_rows": 1000, "batch_rows": 100})
    start(m, database, expanded, validated)
    renamed: list[object] = []

    def rename(_: Moved) -> None:
        if not renamed:
            renamed.append(sql(database, "ALTER TABLE orders RENAME TO orders_then"))

    with pytest.raises(StateConflict, match=r"public\.orders is called public\.orders_then since a moment ago"):
        list(contract.destroy(work(m, database), batch=rename))
    list(contract.destroy(work(m, database)))
    assert one(database, "SELECT count(*) FROM orders_then WHERE state = 'old'") == 0


def test_a_gate_whose_table_is_renamed_while_it_looks_says_so(database: str) -> None:
    sql(database, SHOP)
    m = declare(ARCHIVED)
    start(m, database, expanded, validated)
    context = work(m, database)
    with context.session("test") as session:
        entry = ledger.require(session, m, {State.VALIDATED}, to_do="be tested")
        sql(database, "ALTER TABLE orders RENAME TO orders_then")
        with pytest.raises(StateConflict, match=r"public\.orders is called public\.orders_then since a moment ago"):
            contract.reasons(context, session, entry, contract.present(context, session, entry))


@pytest.mark.parametrize("range_rows", [100, 100_000], ids=["next range", "next batch"])
@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        (NOTES, r"other foreign keys refer to public\.orders"),
        ("ALTER TABLE orders ADD remark text DEFAULT 'kept'", r"public\.orders has other columns than its archive"),
        (
            "ALTER TABLE orders RENAME TO orders_then; CREATE TABLE orders AS TABLE orders_then; "
            "ALTER TABLE orders ADD PRIMARY KEY (id)",
            r"public\.orders is another table than when the migration began",
        ),
    ],
    ids=["foreign key", "column", "table"],
)
def test_what_comes_to_stand_against_it_meanwhile_stops_it(
    database: str, range_rows: int, meanwhile: str, said: str
) -> None:
    sql(database, SHOP)
    m = declare(ARCHIVED, backfill={"range_rows": range_rows, "batch_rows": 100})
    start(m, database, expanded, validated)
    lock = threading.Lock()
    left: list[int] = []

    def batch(_: Moved) -> None:
        with lock:
            if not left:
                sql(database, meanwhile)
                left.append(one(database, "SELECT count(*) FROM orders WHERE state = 'old'"))

    with pytest.raises(GateRefused, match=said):
        list(contract.destroy(work(m, database), batch=batch))
    assert left == [one(database, "SELECT count(*) FROM orders WHERE state = 'old'")]
    assert left[0] > 0
    assert one(database, "SELECT count(*) FROM zdm.event WHERE what = 'contract refused'") == 1


def test_run_of_a_purge_that_another_run_has_ended_has_nothing_to_do(database: str) -> None:
    sql(database, SHOP)
    for change in (PURGE, ARCHIVED):
        m = declare(change)
        start(m, database, expanded, validated, contracted)
        ended, ranges = state(m, database), [r.range.partition for r in status.read_ranges(work(m, database))]
        assert ended in (State.CONTRACTED, State.TOMBSTONED)
        attempt = backfill.attempt_of(work(m, database))
        moved = list(contract.destroy(work(m, database), partitions=ranges, attempt=attempt))
        assert {m.partition for m in moved} == set(ranges)
        assert sum(m.rows for m in moved) == 0
        assert state(m, database) == ended
        sql(database, "DROP SCHEMA zdm CASCADE")


@pytest.mark.parametrize("held", ["archive.gone WHERE id = 2", "archive.gone_lines WHERE id = 1"])
def test_way_back_waits_for_archived_rows_that_are_locked(database: str, held: str) -> None:
    sql(database, SHOP)
    before, m = content(database), declare(ARCHIVED)
    start(m, database, expanded, validated, contracted)
    with psycopg.connect(database) as somebody:
        somebody.execute(f"SELECT FROM {held} FOR UPDATE".encode())
        threading.Timer(0.5, somebody.commit).start()
        assert undo(m, database, State.VALIDATED) == State.VALIDATED
    assert content(database) == before
    hasty = declare(ARCHIVED, locks={"timeout": "50ms", "give_up_after": "200ms"})
    start(m, database, validated, contracted)
    with psycopg.connect(database) as somebody:
        somebody.execute(f"SELECT FROM {held} FOR UPDATE".encode())
        with pytest.raises(LockNotAcquired, match="end the transactions that hold them, then roll back again"):
            undo(hasty, database, State.VALIDATED)
    assert state(m, database) == State.TOMBSTONED
    with pytest.raises(GateRefused, match="check dry_run never ran on this data"):
        contracted(m, database)
    assert undo(m, database, State.VALIDATED) == State.VALIDATED
    assert content(database) == before


def test_way_back_tries_again_what_the_server_ended_for_others_sake(database: str) -> None:
    sql(database, SHOP)
    before, m = content(database), declare(ARCHIVED)
    start(m, database, expanded, validated, contracted)
    sql(
        database,
        "CREATE SEQUENCE tries; CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        # What a function raises is its own; the server's word is tried again.
        "IF nextval('tries') = 7 THEN PERFORM pg_cancel_backend(pg_backend_pid()); PERFORM pg_sleep(5); END IF; "
        "RETURN NEW; END $$; "
        "CREATE TRIGGER f BEFORE INSERT ON lines FOR EACH ROW EXECUTE FUNCTION f()",
    )
    assert undo(m, database, State.VALIDATED) == State.VALIDATED
    assert content(database) == before


def test_where_means_the_same_in_every_session(database: str) -> None:
    sql(
        database,
        SHOP + "ALTER TABLE orders ADD at timestamptz DEFAULT '2025-01-01 23:00+00'; CREATE SCHEMA other; "
        "CREATE TYPE public.mood AS ENUM ('bad', 'good'); CREATE TYPE other.mood AS ENUM ('fine'); "
        # Both say that they are immutable, and are not.
        "CREATE FUNCTION public.day_of(timestamptz) RETURNS date IMMUTABLE LANGUAGE sql AS 'SELECT $1::date'; "
        "CREATE FUNCTION public.past(text) RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN old($1); END'; "
        "CREATE FUNCTION public.old(text) RETURNS boolean LANGUAGE sql AS $$ SELECT $1 = 'old' $$; "
        "CREATE FUNCTION other.old(text) RETURNS boolean LANGUAGE sql AS 'SELECT true'; "
        "CREATE FUNCTION other.past(text) RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true'",
    )
    where = "past(state) AND day_of(at) = date '2025-01-01' AND sad < 'good'"
    m = declare(PURGE | {"where": where, "once": {"sad": "'bad'::mood"}, "archive": {"table": "archive.gone"}})
    start(m, database, expanded)
    before, name = content(database), database.rsplit("/", 1)[-1]
    sql(
        database, f"ALTER DATABASE {name} SET search_path = other, public; ALTER DATABASE {name} SET timezone = 'Japan'"
    )
    report = validate.run(work(m, database))
    assert next(check for check in report.checks if check.name == "dry_run").facts["rows"] == 2000
    assert start(m, database, contracted) == [State.TOMBSTONED]
    assert content(database) == ([], [], 4000)
    assert undo(m, database, State.VALIDATED) == State.VALIDATED
    assert content(database) == before


def test_what_contract_and_its_undoing_do_not_touch_is_not_locked(database: str) -> None:
    sql(database, SHOP)
    m = declare(ARCHIVED, locks={"timeout": "100ms", "give_up_after": "500ms"})
    start(m, database, expanded, validated)
    with psycopg.connect(database) as reader:
        reader.execute("SELECT FROM orders, lines LIMIT 1")
        assert start(m, database, contracted) == [State.TOMBSTONED]
        assert undo(m, database, State.VALIDATED) == State.VALIDATED
        assert start(m, database, validated, contracted, contracted)[-1] == State.CONTRACTED


def test_table_that_nothing_refers_to_is_purged(database: str) -> None:
    sql(database, SHOP)
    sql(database, "DROP TABLE lines")
    m = declare({"kind": "purge_rows", "where": "state = 'old'"})
    assert start(m, database, expanded, validated, contracted)[-1] == State.CONTRACTED
    assert one(database, "SELECT count(*) FROM orders") == 2000


def test_row_that_cannot_be_deleted_is_told(database: str) -> None:
    sql(database, SHOP)
    m = declare(PURGE)
    start(m, database, expanded, validated)
    sql(
        database,
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$; "
        "CREATE TRIGGER f BEFORE DELETE ON orders FOR EACH ROW WHEN (OLD.id = 2222) EXECUTE FUNCTION f()",
    )
    with pytest.raises(
        MappingFailed, match=r"the row with key 2222 cannot be deleted: trigger \w+ of orders raises RaiseException"
    ):
        contracted(m, database)


def test_command_that_goes_on_names_the_phase_that_runs_only_when_named(database: str) -> None:
    walk = Walk(work(declare(PURGE), database))
    said = str(walk._throttled(Phase.CONTRACT, Throttled("story", "was held", "wait", ())))
    assert "zdm run story --phase contract goes on" in said
