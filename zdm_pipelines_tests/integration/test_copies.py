"""Copies: rows go to another table by the worker that moves all rows, while the application writes both."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg import errors

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres import catalog, keys
from zdm_pipelines.dialects.postgres.connection import connected, scalar
from zdm_pipelines.dialects.postgres.copy_rows import EVENTS, CopyRowsSql
from zdm_pipelines.engine.pace import Pace
from zdm_pipelines.engine.rows import ranges
from zdm_pipelines.engine.rows.strides import Strides
from zdm_pipelines.engine.rows.worker import RangeWorker
from zdm_pipelines.ledger import ranges as ledger_ranges
from zdm_pipelines.model.capabilities import Pick
from zdm_pipelines.model.errors import LockNotAcquired, MappingFailed
from zdm_pipelines.model.migration import Backfill
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.values import Moved, Statement
from zdm_pipelines_tests.helpers import Background, Probe, eventually, holding, one, sql

DEFAULTS = {"email": "lower(email)", "full": "people.first || ' ' || people.last"}
PEOPLE = """
CREATE TABLE people (id bigint PRIMARY KEY, first text, last text, email text UNIQUE, seen int NOT NULL DEFAULT 0);
INSERT INTO people SELECT n, 'f' || n, 'l' || n, 'P' || n || '@x', 0 FROM generate_series(1, {rows}) n;
CREATE TABLE "Card s" (person bigint PRIMARY KEY, "full" text, email text UNIQUE, note text DEFAULT 'none');
"""


class Unthrottled:
    """Nothing stands above these workers."""

    def __init__(self, batch_rows: int) -> None:
        self.pace = Pace(Backfill(batch_rows=batch_rows))

    def turn(self, conn: Any) -> AbstractContextManager[object]:
        return contextlib.nullcontext()

    def rest(self, seconds: float) -> None:
        pass

    def statement_timeout(self) -> float:
        return 60.0


class Copy:
    """One copy with its ranges in the ledger."""

    _numbers = count(1)

    def __init__(
        self,
        url: str,
        *,
        source: str = "people",
        target: str = '"Card s"',
        columns: dict[str, str] | None = None,
        reads: tuple[str, ...] = (),
        range_rows: int = 200,
        batch_rows: int = 20,
    ) -> None:
        self.url = url
        self.batch_rows = batch_rows
        ledger.ensure(server_at(url))
        with connected(url, purpose="test") as conn:
            read = [catalog.read(conn, TableName.parse(name)) for name in (source, target)]
            name = f"copy_{next(self._numbers)}"
            self.id = scalar(
                conn,
                "INSERT INTO zdm.migration (name, table_oid, table_name, change, catalog, state) "
                "VALUES ($1, $2, $3, '{}', '{}', 'backfilling') RETURNING id",
                [name, read[0].oid, str(read[0].table)],
            )
            self.sql = CopyRowsSql(
                name=name,
                migration_id=self.id,
                source=read[0],
                target=read[1],
                columns=DEFAULTS if columns is None else columns,
                reads=reads,
            )
            ranges.plan(conn, self.id, read[0], range_rows=range_rows)

    def sync(self) -> None:
        """Create the sync function and its triggers."""
        with psycopg.connect(self.url) as conn:
            conn.execute(self.sql.create_function().encode())
            for event in EVENTS:
                conn.execute(self.sql.create_trigger(event).encode())

    def run(
        self, *, tell: Callable[[Moved], None] = lambda _: None, patience: float = 30.0, repair: bool = False
    ) -> int:
        """Copy every range; the rows copied by this run."""
        with connected(self.url, purpose="copy") as conn:
            worker = [
                RangeWorker(
                    conn, migration_id=self.id, name=self.sql.name, work=self.sql,
                    control=Unthrottled(self.batch_rows), strides=Strides(lambda: 1), patience=patience, tell=tell,
                    repair=repair,
                ).run(r.range)
                for r in ledger_ranges.progress(conn, self.id)
            ]  # fmt: skip
        return sum(moved.rows for moved in worker)

    def move(self, conn: psycopg.Connection[Any], **options: Any) -> int:
        """One batch over the whole table, in the caller's transaction."""
        return run(conn, *self.sql.batch(None, None, **options))

    def disagreeing(self) -> list[Any]:
        """Rows of the target that the source does not say, and the other way round; read in one snapshot."""
        expected = ", ".join((keys.columns(self.sql.source.key), *self.sql.columns.values()))
        held = ", ".join((keys.columns(self.sql.target.key), *map(quote, self.sql.columns)))
        source, target = (
            f"(SELECT {expected} FROM {self.sql.source.table.sql})",
            f"(SELECT {held} FROM {self.sql.target.table.sql})",
        )
        return sql(self.url, f"({source} EXCEPT {target}) UNION ALL ({target} EXCEPT {source})")


def run(conn: psycopg.Connection[Any], statement: Statement) -> int:
    """A statement of ours on a plain connection."""
    return psycopg.RawCursor(conn).execute(statement.sql.encode(), statement.values).rowcount


def waiting(url: str) -> int:
    """How many of the application's or our statements wait for somebody's lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(one(url, waits))


@pytest.fixture
def url(database: str) -> str:
    sql(database, PEOPLE.format(rows=1_000))
    sql(database, "ANALYZE people")
    return database


@pytest.fixture
def app(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the application; its transactions last until it commits."""
    with psycopg.connect(url, application_name="app") as conn:
        yield conn
        conn.rollback()


@pytest.fixture
def ours(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of ours, in a batch."""
    with psycopg.connect(url) as conn:
        conn.execute("SET zdm.backfill = 'on'; SET lock_timeout = '3s'")
        conn.commit()
        yield conn
        conn.rollback()


# -- a whole copy -----------------------------------------------------------------------------------------


def test_a_whole_copy(url: str) -> None:
    copy = Copy(url)
    assert copy.run() == 1_000
    assert copy.disagreeing() == []
    assert one(url, "SELECT sum(rows), count(*) FROM zdm.range WHERE done_at IS NOT NULL") == 1_000
    assert one(url, "SELECT count(*) FROM \"Card s\" WHERE note = 'none'") == 1_000
    assert copy.run() == 0


def test_interrupted_it_goes_on_from_its_checkpoint(url: str) -> None:
    copy = Copy(url)
    seen: list[int] = []

    def interrupt(moved: Moved) -> None:
        seen.append(moved.rows)
        if len(seen) == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy.run(tell=interrupt)
    assert sum(seen) == one(url, 'SELECT count(*) FROM "Card s"') == one(url, "SELECT sum(rows) FROM zdm.range") == 260
    assert copy.run() == 740
    assert copy.disagreeing() == []


def test_a_session_ended_anywhere_loses_rows_and_checkpoint_together(url: str) -> None:
    copy = Copy(url, batch_rows=10)
    dice, lost = random.Random(3), 0
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'zdm copy' AND datname = current_database()"
    for _ in range(30):
        moving = Background(copy.run)
        time.sleep(dice.uniform(0.05, 0.15))
        sql(url, end)
        try:
            moving.result()
        except psycopg.OperationalError:
            lost += 1
        rows, said = sql(url, 'SELECT (SELECT count(*) FROM "Card s"), (SELECT sum(rows) FROM zdm.range)')[0]
        assert rows == said
        if rows == 1_000:
            break
    assert lost
    copy.run()
    assert copy.disagreeing() == []


@pytest.mark.parametrize(
    ("key", "value", "target"),
    [
        ("id uuid", "md5(n::text)::uuid", "id uuid"),
        ("tenant int, id text", "n % 7, 'doc ' || n || '''\"%\\'", "tenant bigint, id text"),
        ("at timestamptz, device uuid", "timestamptz '2026-01-01' + n % 9 * interval '1 s', md5(n::text)::uuid", "at timestamptz, device uuid"),
        ('"Na""me%" numeric', "n / 7.0", '"Na""me%" numeric'),
        ("id character(12)", "'c' || n", "id character(12)"),
        ("id int GENERATED ALWAYS AS IDENTITY", "n", "id bigint GENERATED ALWAYS AS IDENTITY"),
    ],
)  # fmt: skip
def test_any_key(database: str, key: str, value: str, target: str) -> None:
    names = ", ".join(part.split(" ")[0] for part in key.split(", "))
    sql(database, f"CREATE TABLE a (v text, {key}, PRIMARY KEY ({names}))")
    sql(database, f"CREATE TABLE b ({target}, v text, PRIMARY KEY ({names}))")
    listed = "INSERT INTO a (v, {}) OVERRIDING SYSTEM VALUE SELECT 'v' || n, {} FROM generate_series(1, 500) n"
    sql(database, listed.format(names, value))
    copy = Copy(database, source="a", target="b", columns={"v": "upper(v)"}, range_rows=100)
    copy.sync()
    assert copy.run() == 500
    assert copy.disagreeing() == []
    sql(database, "UPDATE a SET v = v || ' newer' WHERE v LIKE 'v1%'")
    sql(database, "DELETE FROM a WHERE v LIKE 'v2%'")
    assert copy.disagreeing() == []
    sql(database, "UPDATE b SET v = 'wrong' WHERE v LIKE 'V3%'")
    assert copy.run(repair=True) == 111
    assert copy.disagreeing() == []
    sql(database, "TRUNCATE a")
    assert one(database, "SELECT count(*) FROM b") == 0


def test_only_what_is_asked_for(url: str, ours: psycopg.Connection[Any]) -> None:
    copy = Copy(url)
    assert copy.move(ours, pick=Pick(among=lambda wanted: f'("id" & 7) = 3 AND {wanted}', limit=50)) == 50
    assert ours.execute('SELECT bool_and(person & 7 = 3) FROM "Card s"').fetchone() == (True,)
    half = Pick(among=lambda wanted: f"CASE WHEN pg_catalog.hashtid(ctid) & 1 = 0 THEN {wanted} END", limit=10)
    assert copy.move(ours, pick=half) == 10
    assert run(ours, *copy.sql.batch(("100",), ("110",))) in range(5, 11)


def test_a_row_that_cannot_be_mapped_is_named(url: str) -> None:
    sql(url, "UPDATE people SET email = NULL, seen = 0; UPDATE people SET seen = 1 WHERE id <> 777")
    copy = Copy(url, columns={"full": "(100 / seen)::text"})
    copy.sync()
    with pytest.raises(MappingFailed, match="the row with key 777"):
        copy.run()
    sql(url, "UPDATE people SET seen = 2 WHERE id = 777")
    copy.run()
    sql(url, "UPDATE people SET seen = 0 WHERE id = 5")  # the application's write is not refused
    assert one(url, 'SELECT count(*) FROM "Card s" WHERE person = 5') == 0
    with pytest.raises(MappingFailed, match="the row with key 5"):
        copy.run()


# -- who wins ---------------------------------------------------------------------------------------------


def test_a_row_under_change_is_passed_over_at_once(
    url: str, app: psycopg.Connection[Any], ours: psycopg.Connection[Any]
) -> None:
    """Before its trigger has written the target and after: the batch waits for nobody, and copies no older value."""
    copy = Copy(url)
    copy.sync()
    # This trigger runs before ours: the row is changed, the target not yet written.
    sql(
        url,
        "CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NULL; END'",
    )
    sql(url, "CREATE TRIGGER a_stop AFTER UPDATE ON people FOR EACH ROW WHEN (NEW.id = 3) EXECUTE FUNCTION stop()")
    app.execute("UPDATE people SET first = 'newer' WHERE id = 2")
    app.execute("DELETE FROM people WHERE id = 4")
    app.execute("UPDATE people SET id = 5000 WHERE id = 5")
    app.execute("SELECT FROM people WHERE id = 6 FOR NO KEY UPDATE")
    app.execute("SELECT FROM people WHERE id = 7 FOR SHARE")
    app.execute("SELECT FROM people WHERE id = 8 FOR KEY SHARE")
    with holding(url, "SELECT pg_advisory_xact_lock(7)"):
        stopped = Background(lambda: sql(url, "UPDATE people SET first = 'stopped' WHERE id = 3"))
        eventually(lambda: waiting(url))
        begun = time.monotonic()
        assert copy.move(ours) == 995
        assert time.monotonic() - begun < 1
        ours.commit()
    stopped.result()
    app.commit()
    found = sql(url, 'SELECT person, "full" FROM "Card s" WHERE person IN (2, 3, 4, 5, 6, 5000) ORDER BY 1')
    assert found == [(2, "newer l2"), (3, "stopped l3"), (5000, "f5 l5")]
    assert copy.run() == 1
    assert copy.disagreeing() == []


def test_what_is_committed_between_the_snapshot_and_the_lock_wins(url: str, ours: psycopg.Connection[Any]) -> None:
    """The batch is held up while it computes its first row; it locks the rows behind it later."""
    sql(
        url,
        "CREATE FUNCTION held(bigint) RETURNS text LANGUAGE plpgsql AS 'BEGIN IF $1 = 1 THEN PERFORM pg_advisory_xact_lock(7); END IF; RETURN $1; END'",
    )
    copy = Copy(url, columns={"full": "held(id) || first", "email": "email"})
    copy.sync()
    with holding(url, "SELECT pg_advisory_xact_lock(7)"):
        moving = Background(lambda: copy.move(ours))
        eventually(lambda: waiting(url))
        sql(url, "UPDATE people SET first = 'newer' WHERE id = 2")
        sql(url, "DELETE FROM people WHERE id = 3")
        sql(url, "UPDATE people SET id = 4000 WHERE id = 4")
        sql(url, "DELETE FROM people WHERE id = 5; INSERT INTO people VALUES (5, 'again')")
        sql(
            url,
            "BEGIN; UPDATE people SET id = -6 WHERE id = 6; UPDATE people SET id = 6 WHERE id = 7; UPDATE people SET id = 7 WHERE id = -6; COMMIT",
        )
    assert moving.result() == 994  # the trigger has written 2, 5, 6, 7 and 4000, which was 4; 3 is gone
    ours.commit()
    assert sql(url, 'SELECT person, "full" FROM "Card s" WHERE person BETWEEN 2 AND 7 OR person = 4000 ORDER BY 1') == [
        (2, "2newer"), (5, "5again"), (6, "6f7"), (7, "7f6"), (4000, "4000f4")
    ]  # fmt: skip
    assert copy.run() == 0
    assert copy.disagreeing() == []


CHANGES = [
    "UPDATE people SET first = 'newer' WHERE id = 2",
    "DELETE FROM people WHERE id = 2",
    "UPDATE people SET id = 5000 WHERE id = 2",
    "INSERT INTO people VALUES (2, 'again') ON CONFLICT (id) DO UPDATE SET first = EXCLUDED.first",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_comes_after_the_lock_is_not_lost(url: str, ours: psycopg.Connection[Any], change: str) -> None:
    copy = Copy(url)
    copy.sync()
    assert copy.move(ours) == 1_000
    writing = Background(lambda: sql(url, change))
    eventually(lambda: waiting(url))
    ours.commit()
    writing.result()
    assert copy.disagreeing() == []


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
@pytest.mark.parametrize("change", CHANGES)
def test_a_snapshot_from_before_the_copy(
    url: str, app: psycopg.Connection[Any], level: psycopg.IsolationLevel, change: str
) -> None:
    """What it cannot see it cannot overwrite: it has to be repeated, and is right then."""
    copy = Copy(url)
    copy.sync()
    app.isolation_level = level
    app.execute(change)  # not copied yet: no trouble
    app.rollback()
    app.execute("SELECT FROM people")
    copy.run()
    with pytest.raises(errors.SerializationFailure):
        app.execute(change)
    app.rollback()
    app.execute(change)
    app.commit()
    assert copy.disagreeing() == []


def test_many_rows_exchange_their_keys(url: str) -> None:
    sql(url, "ALTER TABLE people DROP CONSTRAINT people_pkey, ADD PRIMARY KEY (id) DEFERRABLE")
    copy = Copy(url, columns={"full": "first"})
    copy.sync()
    copy.run()
    sql(url, "UPDATE people SET id = id + 1")
    assert copy.disagreeing() == []
    sql(url, "UPDATE people SET id = 1003 - id")
    assert copy.disagreeing() == []


def test_a_trigger_of_the_application_that_writes_the_row_again(url: str) -> None:
    copy = Copy(url)
    copy.sync()
    copy.run()
    sql(
        url,
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN UPDATE people SET first = first || '!' WHERE id = NEW.id; RETURN NULL; END$$",
    )
    sql(url, "CREATE TRIGGER again AFTER INSERT OR UPDATE OF last ON people FOR EACH ROW EXECUTE FUNCTION again()")
    sql(url, "UPDATE people SET last = 'l' WHERE id < 100; INSERT INTO people VALUES (3000, 'f', 'l')")
    assert one(url, 'SELECT "full" FROM "Card s" WHERE person = 3000') == "f! l"
    assert copy.disagreeing() == []


def test_what_the_mapping_does_not_read_is_not_mirrored(url: str) -> None:
    copy = Copy(url, reads=("first", "last", "email"))
    copy.sync()
    copy.run()
    versions = 'SELECT sum(xmin::text::bigint) FROM "Card s"'
    before = one(url, versions)
    sql(url, "UPDATE people SET seen = seen + 1")
    assert one(url, versions) == before
    sql(url, "UPDATE people SET last = 'newer' WHERE id = 1")
    assert one(url, versions) != before
    assert copy.disagreeing() == []


def test_both_directions(database: str) -> None:
    sql(database, "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY, v text)")
    there = Copy(database, source="a", target="b", columns={"v": "v || '!'"})
    there.sync()
    back = CopyRowsSql(
        name=there.sql.name, migration_id=there.id, source=there.sql.target, target=there.sql.source, columns={"v": "rtrim(v, '!')"}
    )  # fmt: skip
    with psycopg.connect(database) as conn:
        conn.execute(back.create_function().encode())
        for event in EVENTS:
            conn.execute(back.create_trigger(event).encode())
    sql(
        database,
        "INSERT INTO a VALUES (1, 'old'); INSERT INTO b VALUES (2, 'new!'); UPDATE b SET v = 'newer!' WHERE id = 1",
    )
    assert sql(database, "SELECT * FROM a ORDER BY id") == [(1, "newer"), (2, "new")]
    assert there.disagreeing() == []
    sql(database, "DELETE FROM b WHERE id = 1; TRUNCATE a")
    assert sql(database, "SELECT * FROM a UNION ALL SELECT * FROM b") == []


def test_rows_held_for_long_are_come_back_to(url: str) -> None:
    copy = Copy(url)
    copy.sync()
    with holding(url, "UPDATE people SET first = 'newer' WHERE id IN (5, 500)") as holder:
        with pytest.raises(LockNotAcquired, match="1 rows are held by the application for 1 s"):
            copy.run(patience=1)
        assert one(url, 'SELECT count(*) FROM "Card s"') == 199
        moving = Background(copy.run)
        time.sleep(1)
        assert moving.is_alive()
        holder.commit()
        moving.result()
    assert copy.disagreeing() == []


def test_the_application_waits_for_a_batch_at_most(url: str) -> None:
    copy = Copy(url, batch_rows=100)
    copy.sync()
    changes = [f"UPDATE people SET seen = seen + 1 WHERE id = {n}" for n in range(1, 1_000, 7)]
    with Probe(url, changes) as probe:
        copy.run()
        for _ in range(5):
            sql(url, 'DELETE FROM "Card s"; UPDATE zdm.range SET checkpoint = NULL, done_at = NULL')
            copy.run()
    assert probe.count > 100
    assert probe.errors == []
    assert probe.longest < 1
    assert copy.disagreeing() == []


# -- repair -----------------------------------------------------------------------------------------------


def test_repair_takes_the_source_and_leaves_what_is_nobodys(url: str) -> None:
    copy = Copy(url)
    copy.run()
    sql(url, "UPDATE people SET first = 'unseen' WHERE id IN (3, 999); DELETE FROM people WHERE id = 4")
    sql(
        url,
        'UPDATE "Card s" SET "full" = NULL, note = \'mine\' WHERE person = 8; DELETE FROM "Card s" WHERE person = 9',
    )
    assert copy.run() == 1
    assert copy.run(repair=True) == 3
    assert copy.run(repair=True) == 0
    assert copy.disagreeing() == [(4, "p4@x", "f4 l4")]
    assert one(url, 'SELECT note FROM "Card s" WHERE person = 8') == "mine"
    with connected(url, purpose="test") as conn:
        for lower, upper, extra in ((None, ("4",), 0), (("4",), ("5",), 1), (("5",), None, 0)):
            sql_, params = copy.sql.remove_extra(lower, upper)
            assert conn.execute(sql_.encode(), params).rowcount == extra
    assert copy.disagreeing() == []


def test_a_row_that_is_extra_no_more_is_not_removed(url: str, ours: psycopg.Connection[Any]) -> None:
    """Its source row is inserted between the statement's snapshot and its lock."""
    copy = Copy(url)
    copy.sync()
    sql(url, """INSERT INTO "Card s" SELECT n, 'f', 'e' || n FROM generate_series(2001, 2002) n""")
    remove, params = copy.sql.remove_extra(None, None)
    late = remove.replace("  FOR UPDATE", "  WHERE (SELECT pg_advisory_xact_lock(7)) IS NOT NULL\n  FOR UPDATE")
    assert late != remove
    with holding(url, "SELECT pg_advisory_xact_lock(7)"):
        ours.execute("SET enable_hashjoin = off; SET enable_mergejoin = off")  # by ctid, which is not looked at again
        removing = Background(lambda: run(ours, Statement(late, params)))
        eventually(lambda: waiting(url))
        sql(url, "INSERT INTO people VALUES (2001, 'f', '', 'E2001')")
    assert removing.result() == 1
    ours.commit()
    copy.run()
    assert copy.disagreeing() == []


# -- everything at once -----------------------------------------------------------------------------------


class Application(Background):
    """Random transactions of one client; each has keys of its own to give to rows, and takes rows in their order."""

    def __init__(self, url: str, seed: int, level: psycopg.IsolationLevel) -> None:
        self.url, self.dice, self.level = url, random.Random(seed), level
        self.fresh = count(1_000_000 * (seed + 1))
        self.transactions = self.repeated = 0
        self.ended = False
        super().__init__(self.write)

    def change(self, key: int) -> str:
        number = next(self.fresh)
        return self.dice.choice(
            [
                f"UPDATE people SET first = 'v{number}', seen = seen + 1 WHERE id = {key}",
                f"UPDATE people SET email = 'E{number}', seen = seen + 1 WHERE id = {key}",
                f"UPDATE people SET id = {number} WHERE id = {key}",
                f"DELETE FROM people WHERE id = {key}",
                f"INSERT INTO people VALUES ({number}, 'v{number}', 'l', 'E{number}')",
                f"SELECT FROM people WHERE id = {key} FOR KEY SHARE",
                f"WITH gone AS (DELETE FROM people WHERE id = {key} RETURNING *) INSERT INTO people SELECT {number}, first, last, email || '+', seen FROM gone",
            ]
        )

    def transaction(self, conn: psycopg.Connection[Any]) -> None:
        ids = "SELECT id FROM people WHERE hashint8(id) & 31 = {} ORDER BY id"
        found = [row[0] for row in conn.execute(ids.format(self.dice.randrange(32))).fetchall()]
        for key in sorted(self.dice.sample(found, k=min(len(found), self.dice.randint(1, 4)))):
            conn.execute(self.change(key).encode())
            time.sleep(self.dice.choice([0, 0, 0.002, 0.02]))
        if self.dice.random() < 0.1:
            conn.rollback()
        conn.commit()

    def write(self) -> None:
        with psycopg.connect(self.url, application_name="app") as conn:
            conn.isolation_level = self.level
            while not self.ended:
                try:
                    self.transaction(conn)
                    self.transactions += 1
                except errors.SerializationFailure:
                    if self.level == psycopg.IsolationLevel.READ_COMMITTED:
                        raise
                    self.repeated += 1
                    conn.rollback()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_interleaving(url: str, seed: int) -> None:
    """At every moment the target holds no row that the source does not say; at the end it holds all of them."""
    copy = Copy(url, batch_rows=7)
    copy.sync()
    read, repeatable = psycopg.IsolationLevel.READ_COMMITTED, psycopg.IsolationLevel.REPEATABLE_READ
    clients = [Application(url, 10 * seed + n, level) for n, level in enumerate((read, read, read, repeatable))]
    stale = """SELECT person, email, "full" FROM "Card s" EXCEPT SELECT id, lower(email), people.first || ' ' || people.last FROM people"""
    try:
        for _ in range(3):
            moving = Background(copy.run)
            while moving.is_alive():
                assert sql(url, stale) == []
            moving.result()
            # Once more; whoever writes the target has the source row locked.
            again = "SELECT id FROM people WHERE id % 3 <> 0 FOR NO KEY UPDATE SKIP LOCKED"
            sql(url, f'WITH again AS MATERIALIZED ({again}) DELETE FROM "Card s" USING again WHERE person = id')
            sql(url, "UPDATE zdm.range SET checkpoint = NULL, done_at = NULL")
    finally:
        for client in clients:
            client.ended = True
        for client in clients:
            client.result()
    copy.run()
    assert copy.disagreeing() == []
    assert all(client.transactions > 20 for client in clients)
    assert clients[-1].repeated
