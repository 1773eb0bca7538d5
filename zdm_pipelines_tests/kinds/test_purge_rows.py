"""purge_rows on a real server: which rows go, what refers to them, what the archive keeps and gives back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from zdm_pipelines.changes import Change
from zdm_pipelines.dialects import server_at
from zdm_pipelines.model.capabilities import RowWork
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.lifecycle import Lifecycle
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines_tests import walking
from zdm_pipelines_tests.walking import one, sql

EVENTS = """
CREATE SCHEMA archive;
CREATE TABLE events (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, day date NOT NULL, note text DEFAULT 'x', size numeric,
  twice numeric GENERATED ALWAYS AS (size * 2) STORED);
INSERT INTO events (day, note, size) SELECT date '2025-01-01' + n % 100, 'note ' || n, n FROM generate_series(1, 1000) n;
CREATE VIEW everything AS SELECT id, day, note, size, twice FROM events;
"""
SHOP = """
CREATE SCHEMA archive;
CREATE TABLE orders (id int PRIMARY KEY, state text);
CREATE TABLE lines (id int PRIMARY KEY, order_id int REFERENCES orders ON DELETE CASCADE, what text);
CREATE TABLE parts (id int PRIMARY KEY, line_id int NOT NULL REFERENCES lines, serial int GENERATED ALWAYS AS IDENTITY);
CREATE TABLE bills (order_id int PRIMARY KEY REFERENCES orders ON DELETE RESTRICT);
CREATE INDEX ON lines (order_id); CREATE INDEX ON parts (line_id);
INSERT INTO orders SELECT n, CASE WHEN n % 2 = 0 THEN 'old' ELSE 'new' END FROM generate_series(1, 100) n;
INSERT INTO lines SELECT n, 1 + n % 100, 'w' || n FROM generate_series(1, 300) n;
INSERT INTO parts (id, line_id) SELECT n, 1 + n % 300 FROM generate_series(1, 600) n;
INSERT INTO bills SELECT n FROM generate_series(1, 50) n;
"""
TABLES = ("orders", "lines", "parts", "bills")
OLD: dict[str, Any] = {"where": "state = 'old'"}
ARCHIVE: dict[str, Any] = {"archive": {"table": "archive.gone"}}


def declare(table: str = "public.events", **change: Any) -> Migration:
    return walking.migration(table, {"kind": "purge_rows", "where": "day < '2025-02-01'"} | change)


def expanded(url: str, declared: Migration) -> tuple[Change, RowWork]:
    bound = walking.change(url, declared)
    walking.run(url, bound.expand)
    assert bound.rows is not None
    return bound, bound.rows


def back(rows: RowWork) -> RowWork:
    found = rows.back()
    assert found is not None
    return found


def content(url: str, *tables: str) -> dict[str, list[tuple[Any, ...]]]:
    return {table: sql(url, f"SELECT * FROM {table} ORDER BY 1") for table in tables}


def reasons(url: str, bound: Change) -> list[str]:
    assert bound.retire is not None
    with server_at(url).connect(purpose="test") as session:
        return bound.retire.dependents(session)


# -- the rows ---------------------------------------------------------------------------------------------------------


def test_matching_rows_go_and_no_others(database: str) -> None:
    sql(database, EVENTS)
    bound, rows = expanded(database, declare())
    assert bound.expand == ()
    before = one(database, "SELECT count(*) FROM events WHERE day < '2025-02-01'")
    assert walking.waiting(database, rows) == before == 310
    assert walking.work(database, rows, bounds=(None, ("200",), ("201",), ("900",), None)) == before
    assert walking.waiting(database, rows) == 0
    assert one(database, "SELECT count(*) FROM events") == 690
    assert rows.back() is None


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_rows(database: str, count: int) -> None:
    sql(database, EVENTS + f"DELETE FROM events WHERE id > {count}")
    bound, rows = expanded(database, declare(where="true", **ARCHIVE))
    assert walking.work(database, rows) == count
    assert one(database, "SELECT count(*) FROM archive.gone") == count
    assert walking.work(database, back(rows)) == count
    assert walking.undo(database, bound.expand)


def test_keys_of_several_columns(database: str) -> None:
    sql(
        database,
        'CREATE TABLE "Odd ""t" ("A b" text, n int, old boolean, PRIMARY KEY ("A b", n)); '
        'INSERT INTO "Odd ""t" SELECT \'k\' || n % 3, n, n % 2 = 0 FROM generate_series(1, 30) n; CREATE SCHEMA archive',
    )
    declared = declare('public."Odd ""t"', where="old", **ARCHIVE)
    _, rows = expanded(database, declared)
    assert walking.work(database, rows, bounds=(None, ("k1", "7"), ("k2", "3"), None)) == 15
    assert walking.work(database, back(rows), bounds=(None, ("k1", "8", "3"), None)) == 15
    with server_at(database).connect(purpose="test") as session:
        found = session.run(rows.waiting_keys(("k1", "0"), None, limit=2))
        assert [key for (key,) in found] == [["k1", "4"], ["k1", "10"]]
        assert walking.batch(session, rows.one(("k1", "4"))) == 1
        assert walking.batch(session, rows.one(("k1", "4"))) == 0


def test_values_of_once_are_computed_when_the_migration_begins(database: str) -> None:
    sql(database, EVENTS + "CREATE TABLE clock (at date); INSERT INTO clock VALUES ('2025-01-11')")
    declared = declare(
        where="day < cutoff AND size > least", once={"cutoff": "(SELECT at FROM clock)", "least": "10 + 5"}
    )
    found = walking.survey(database, declared)
    assert found.facts["once"] == {"cutoff": "'2025-01-11'::date", "least": "'15'::integer"}
    padded = walking.survey(database, declare(where="note = padded", once={"padded": "'note 7'::character(9)"}))
    assert padded.facts["once"] == {"padded": "'note 7   '::bpchar"}
    sql(database, "UPDATE clock SET at = '2025-12-31'")
    bound = walking.change(database, declared, found)
    assert bound.rows is not None
    assert walking.work(database, bound.rows) == 91  # of 100 rows in ten days, without the first nine
    assert one(database, "SELECT count(*) FROM events WHERE day < '2025-01-11' AND size > 15") == 0


REFUSED = [
    ({"where": "day < now() - interval '90 days'"}, "may give another answer at another time"),
    ({"where": "day::timestamptz < '2025-01-01'"}, "may give another answer at another time or in another session"),
    ({"where": "random() < 0.5"}, "may give another answer"),
    ({"where": "id IN (SELECT 1)"}, "is no predicate over one row (cannot use subquery in where)"),
    ({"where": "size"}, "is no predicate over one row"),
    ({"where": "day < '2025-01-01'); DROP TABLE events; SELECT (1"}, "is no predicate over one row"),
    ({"where": "no_such"}, 'is no predicate over one row (column "no_such" does not exist)'),
    ({"where": "day < x", "once": {"x": "(SELECT NULL::date)"}}, "is NULL, which no row compares with"),
    ({"where": "day < x", "once": {"x": "no_such"}}, "cannot be computed"),
    ({"where": "day < x", "once": {"x": "now(); DROP TABLE events"}}, "cannot be computed"),
    ({"where": "day < note", "once": {"note": "now()"}}, "is the name of a column of public.events"),
]


@pytest.mark.parametrize(("change", "said"), REFUSED)
def test_predicate_that_is_none_for_good_is_refused(database: str, change: dict[str, Any], said: str) -> None:
    sql(database, EVENTS)
    with pytest.raises(Problem) as refused:
        walking.survey(database, declare(**change))
    assert said in str(refused.value)
    assert one(database, "SELECT count(*) FROM events") == 1000


def test_tables_that_are_refused(database: str) -> None:
    sql(
        database,
        "CREATE TABLE events (id int, day date) PARTITION BY LIST (id); CREATE TABLE old (day date); "
        "CREATE TABLE parent (id int PRIMARY KEY, day date); CREATE TABLE child () INHERITS (parent);"
        "CREATE TABLE ruled (id int PRIMARY KEY, day date); CREATE RULE r AS ON DELETE TO ruled DO INSTEAD NOTHING",
    )
    for table, said in (("events", "is partitioned"), ("old", "has no primary key"), ("parent", "by inheritance")):
        with pytest.raises(Problem, match=said):
            walking.survey(database, declare(table))
    assert [p.fact for p in walking.survey(database, declare("ruled")).problems] == [
        "rewrites each DELETE, our own too"
    ]


# -- the archive ------------------------------------------------------------------------------------------------------


def test_archive_keeps_what_goes_and_gives_it_back(database: str) -> None:
    sql(database, EVENTS)
    before = content(database, "events")
    bound, rows = expanded(database, declare(**ARCHIVE))
    gone = sql(database, "SELECT * FROM events WHERE day < '2025-02-01' ORDER BY 1")
    assert walking.work(database, rows, bounds=(None, ("500",), None)) == 310
    kept = sql(database, "SELECT id, day, note, size, twice FROM archive.gone ORDER BY 1")
    assert kept == gone
    assert one(database, "SELECT count(DISTINCT zdm_transaction) FROM archive.gone") == 2
    assert walking.waiting(database, back(rows)) == 310
    assert walking.work(database, back(rows), bounds=(None, ("500", "0"), None)) == 310
    assert content(database, "events") == before
    assert one(database, "SELECT count(*) FROM archive.gone") == 0
    walking.undo(database, bound.expand)
    assert one(database, "SELECT to_regclass('archive.gone')") is None


def test_row_whose_key_is_used_anew_stays_the_applications(database: str) -> None:
    sql(database, EVENTS)
    bound, rows = expanded(database, declare(**ARCHIVE))
    walking.work(database, rows)
    sql(database, "INSERT INTO events (id, day, note) OVERRIDING SYSTEM VALUE VALUES (2, '2025-05-05', 'anew')")
    assert walking.waiting(database, back(rows)) == 309
    assert walking.work(database, back(rows)) == 309
    assert one(database, "SELECT note FROM events WHERE id = 2") == "anew"
    assert sql(database, "SELECT id, note FROM archive.gone") == [(2, "note 2")]
    with pytest.raises(psycopg.errors.ObjectInUse, match="still keeps rows whose keys are in use again"):
        walking.undo(database, bound.expand)
    sql(database, "DELETE FROM archive.gone")
    walking.undo(database, bound.expand)


def test_of_several_rows_of_a_key_the_last_comes_back(database: str) -> None:
    sql(database, EVENTS)
    _, rows = expanded(database, declare(**ARCHIVE))
    walking.work(database, rows)
    sql(database, "INSERT INTO events (id, day, note) OVERRIDING SYSTEM VALUE VALUES (2, '2025-01-01', 'second')")
    assert walking.work(database, rows) == 1
    sql(database, "INSERT INTO events (id, day, note) OVERRIDING SYSTEM VALUE VALUES (2, '2025-01-01', 'third')")
    assert walking.work(database, rows) == 1
    assert walking.work(database, back(rows)) == 310
    assert one(database, "SELECT note FROM events WHERE id = 2") == "third"
    assert [note for (note,) in sql(database, "SELECT note FROM archive.gone ORDER BY 1")] == ["note 2", "second"]
    assert walking.work(database, back(rows)) == 0


def test_row_that_something_else_unique_refuses_stays_in_the_archive(database: str) -> None:
    sql(database, EVENTS + "CREATE UNIQUE INDEX ON events (note)")
    _, rows = expanded(database, declare(**ARCHIVE))
    walking.work(database, rows)
    sql(database, "INSERT INTO events (day, note) VALUES ('2025-05-05', 'note 2')")
    assert walking.work(database, back(rows)) == 309
    assert sql(database, "SELECT id FROM archive.gone") == [(2,)]


def test_archive_belongs_to_the_owner_alone(database: str) -> None:
    sql(
        database,
        EVENTS + "DROP ROLE IF EXISTS zdm_test_owner; DROP ROLE IF EXISTS zdm_test_reader; "
        "CREATE ROLE zdm_test_owner; CREATE ROLE zdm_test_reader; ALTER TABLE events OWNER TO zdm_test_owner; "
        "GRANT ALL ON SCHEMA archive TO zdm_test_owner; GRANT SELECT ON events TO zdm_test_reader; "
        "ALTER DEFAULT PRIVILEGES IN SCHEMA archive GRANT SELECT ON TABLES TO zdm_test_reader, PUBLIC",
    )
    try:
        _, _ = expanded(database, declare(**ARCHIVE))
        may = "SELECT has_table_privilege(%s, 'archive.gone', 'SELECT')"
        assert [one(database, may, role) for role in ("zdm_test_owner", "zdm_test_reader")] == [True, False]
        assert one(database, "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'archive.gone'::regclass") == (
            "zdm_test_owner"
        )
    finally:
        sql(
            database,
            "DROP OWNED BY zdm_test_owner, zdm_test_reader CASCADE; DROP ROLE zdm_test_owner; DROP ROLE zdm_test_reader",
        )


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("DROP SCHEMA archive", 'schema "archive": does not exist; CREATE SCHEMA "archive"'),
        ("CREATE TABLE archive.gone ()", "archive archive.gone: exists already; choose another name"),
        ("ALTER TABLE events ADD zdm_transaction int", "has a column zdm_transaction of its own"),
        (
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; "
            "CREATE TRIGGER soft BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION f()",
            "runs before a row is deleted, and may keep one that was archived",
        ),
        (
            "CREATE TABLE looks (id int PRIMARY KEY, event bigint REFERENCES events ON DELETE SET NULL)",
            "is set to NULL or a default, which no archive keeps; declare no archive",
        ),
        ("CREATE TABLE looks (event bigint REFERENCES events)", "has no primary key, so its rows cannot come back"),
        (
            "CREATE TABLE looks (id int PRIMARY KEY, a bigint REFERENCES events, b bigint REFERENCES events)",
            "is one of several along which rows go",
        ),
    ],
)
def test_archive_that_could_not_keep_everything_is_refused(database: str, before: str, said: str) -> None:
    sql(database, EVENTS + before)
    found = walking.survey(database, declare(children="delete", **ARCHIVE))
    assert found.problems
    assert all(said in str(problem) for problem in found.problems)


def test_triggers_are_told(database: str) -> None:
    sql(
        database,
        EVENTS + "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
        "CREATE TRIGGER audit AFTER INSERT OR DELETE ON events FOR EACH ROW EXECUTE FUNCTION f()",
    )
    assert walking.survey(database, declare()).warnings == (
        'trigger "audit" of public.events fires for each row that goes',
    )
    assert walking.survey(database, declare(**ARCHIVE)).warnings[1:] == (
        'trigger "audit" of public.events fires for each row that comes back from the archive, and may alter it',
    )


# -- children ---------------------------------------------------------------------------------------------------------


def test_children_that_refuse_keep_their_parents(database: str) -> None:
    sql(database, SHOP)
    bound, rows = expanded(database, declare("orders", **OLD))
    counts = {check.failed.split(" ")[3]: one(database, check.count) for check in bound.checks}
    assert counts == {"public.bills": 25, "public.lines": 150}
    assert [key for (key,) in sql(database, bound.checks[0].keys)][:2] == [["2"], ["4"]]
    assert bound.checks[0].failed.format(count=25) == (
        "25 rows of public.bills refer to rows that would go (foreign key bills_order_id_fkey), which stay therefore: "
        "declare children: delete, or delete them first"
    )
    assert walking.work(database, rows) == 0
    sql(database, "DELETE FROM parts; DELETE FROM lines WHERE order_id = 60; DELETE FROM bills")
    assert walking.waiting(database, rows) == 1
    assert walking.work(database, rows) == 1
    assert one(database, "SELECT count(*) FROM lines") == 297  # no delete cascaded


@pytest.mark.parametrize("archive", [{}, ARCHIVE])
def test_children_go_first_and_come_back_last(database: str, archive: dict[str, Any]) -> None:
    sql(database, SHOP)
    before = content(database, *TABLES)
    bound, rows = expanded(database, declare("orders", children="delete", **OLD, **archive))
    assert [str(relation.name) for relation in bound.relations][:4] == [
        "public.orders", "public.bills", "public.lines", "public.parts",
    ]  # fmt: skip
    assert walking.work(database, rows, bounds=(None, ("31",), None)) == 50
    left = {table: one(database, f"SELECT count(*) FROM {table}") for table in TABLES}
    assert left == {"orders": 50, "lines": 150, "parts": 300, "bills": 25}
    if not archive:
        return
    assert walking.work(database, back(rows), bounds=(None, ("51", "0"), None)) == 50
    assert content(database, *TABLES) == before
    for table in ("gone", "gone_lines", "gone_parts", "gone_bills"):
        assert one(database, f"SELECT count(*) FROM archive.{table}") == 0
    walking.undo(database, bound.expand)
    assert one(database, "SELECT count(*) FROM pg_class WHERE relnamespace = 'archive'::regnamespace") == 0


def test_children_of_a_row_that_stays_away_stay_with_it(database: str) -> None:
    sql(database, SHOP)
    _, rows = expanded(database, declare("orders", children="delete", **OLD, **ARCHIVE))
    walking.work(database, rows)
    sql(database, "INSERT INTO orders VALUES (2, 'anew'); INSERT INTO lines VALUES (3, 1, 'anew')")
    assert walking.work(database, back(rows)) == 49
    assert one(database, "SELECT count(*) FROM archive.gone_lines") == 3 + 1  # of order 2, and line 3 itself
    assert one(database, "SELECT what FROM lines WHERE id = 3") == "anew"
    assert one(database, "SELECT count(*) FROM parts p LEFT JOIN lines l ON l.id = p.line_id WHERE l.id IS NULL") == 0


def test_references_that_are_cleared_are_left_to_the_server(database: str) -> None:
    sql(database, SHOP)
    sql(
        database,
        "ALTER TABLE lines DROP CONSTRAINT lines_order_id_fkey, ADD CONSTRAINT lines_order_id_fkey "
        "FOREIGN KEY (order_id) REFERENCES orders ON DELETE SET NULL; DROP TABLE bills",
    )
    for children in ("refuse", "delete"):
        _, rows = expanded(database, declare("orders", children=children, where="state = 'old' AND id < 50"))
        walking.work(database, rows)
    assert one(database, "SELECT count(*) FROM lines WHERE order_id IS NULL") == 72
    assert one(database, "SELECT count(*) FROM parts") == 600


def test_foreign_keys_that_lead_back_are_refused(database: str) -> None:
    sql(
        database,
        "CREATE TABLE events (id int PRIMARY KEY, day date, up int REFERENCES events); "
        "CREATE TABLE a (id int PRIMARY KEY, e int REFERENCES events, b int); "
        "CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a); ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b",
    )
    facts = [p.fact for p in walking.survey(database, declare(children="delete")).problems]
    assert facts == ["leads back to public.a", "leads back to public.events"]


def test_missing_index_of_a_child_is_told(database: str) -> None:
    sql(database, SHOP + "DROP INDEX lines_order_id_idx")
    assert walking.survey(database, declare("orders", **OLD)).warnings == (
        'foreign key "lines_order_id_fkey" of public.lines has no index: each batch reads the whole table public.lines',
    )


# -- the application meanwhile ----------------------------------------------------------------------------------------


def while_held(url: str, held: str, run: Callable[[], int]) -> int:
    """Run while a transaction of the application holds what its statement has locked."""
    with psycopg.connect(url) as application:
        application.execute(held.encode())
        done = run()
        application.rollback()
    return done


@pytest.mark.parametrize(
    ("held", "order"),
    [
        ("UPDATE orders SET state = 'new' WHERE id = 2", 2),
        ("SELECT FROM orders WHERE id = 4 FOR KEY SHARE", 4),
        ("INSERT INTO lines VALUES (1000, 6, 'new')", 6),
        ("UPDATE lines SET what = 'new' WHERE id = 7", 8),
        ("UPDATE parts SET line_id = line_id WHERE id = 8", 10),  # line 9
        ("DELETE FROM bills WHERE order_id = 12", 12),
    ],
)
def test_row_that_is_locked_or_has_a_locked_child_is_passed_over(database: str, held: str, order: int) -> None:
    sql(database, SHOP)
    before = content(database, *TABLES)
    _, rows = expanded(database, declare("orders", children="delete", **OLD, **ARCHIVE))
    assert while_held(database, held, lambda: walking.work(database, rows)) == 49
    assert sql(database, "SELECT id FROM orders WHERE state = 'old'") == [(order,)]
    assert one(database, "SELECT count(*) FROM lines WHERE order_id = %s", order) == 3
    assert walking.work(database, rows) == 1
    assert walking.work(database, back(rows)) == 50
    assert content(database, *TABLES) == before


def test_row_that_does_not_match_any_more_when_its_lock_is_had_stays(database: str) -> None:
    sql(database, EVENTS)
    bound, rows = expanded(database, declare(where="note = 'note 500'", **ARCHIVE))
    with psycopg.connect(database) as application:
        application.execute("UPDATE events SET note = 'kept' WHERE id = 500")
        threading.Timer(0.5, application.commit).start()
        with server_at(database).connect(purpose="test") as session:
            assert walking.batch(session, rows.one(("500",))) == 0  # waited for it
    assert one(database, "SELECT note FROM events WHERE id = 500") == "kept"
    assert one(database, "SELECT count(*) FROM archive.gone") == 0
    assert bound.rows is rows


def test_newest_version_is_what_is_archived(database: str) -> None:
    sql(database, EVENTS)
    _, rows = expanded(database, declare(where="day < '2025-02-01'", **ARCHIVE))
    with psycopg.connect(database) as application:
        application.execute("UPDATE events SET note = 'newest' WHERE id = 2")
        threading.Timer(0.5, application.commit).start()
        with server_at(database).connect(purpose="test") as session:
            assert walking.batch(session, rows.one(("2",))) == 1
    assert sql(database, "SELECT note FROM archive.gone") == [("newest",)]
    assert one(database, "SELECT count(*) FROM events WHERE id = 2") == 0


def test_versions_that_are_newer_than_the_snapshot(database: str) -> None:
    """Rows are written and committed while the statement that locks them runs already."""
    sql(database, EVENTS)
    _, rows = expanded(database, declare(where="day < '2025-02-01'", **ARCHIVE))
    slow = replace(rows, facts=replace(rows.facts, where="day < '2025-02-01' AND pg_sleep(0.005) IS NOT NULL"))  # type: ignore[type-var, attr-defined]
    found: list[int] = []
    worker = threading.Thread(target=lambda: found.append(walking.work(database, slow)))
    worker.start()
    time.sleep(0.5)
    sql(
        database,
        "UPDATE events SET note = 'newest' WHERE id BETWEEN 800 AND 899; UPDATE events SET day = '2026-01-01' WHERE id >= 900",
    )
    worker.join()
    written = one(database, "SELECT count(*) FROM archive.gone WHERE note = 'newest'")
    assert written == 31, "rows of 800 to 899 were read before they were written: the test did not test it"
    assert found == [310 - 32]
    assert one(database, "SELECT count(*) FROM archive.gone WHERE id >= 900") == 0
    assert one(database, "SELECT count(*) FROM events WHERE day < '2025-02-01'") == 0
    assert one(database, "SELECT count(*) FROM events") + found[0] == 1000


def test_what_is_archived_is_what_is_deleted_under_writers(database: str) -> None:
    """Each row has a number that only grows: what the archive holds is the last that was committed."""
    sql(database, SHOP + "ALTER TABLE orders ADD n bigint DEFAULT 0; ALTER TABLE lines ADD n bigint DEFAULT 0")
    sql(database, "INSERT INTO orders SELECT n, 'old', 0 FROM generate_series(101, 2000) n")
    _, rows = expanded(database, declare("orders", children="delete", where="state = 'old'", **ARCHIVE))
    written: dict[int, dict[tuple[str, int], int]] = {}
    failed: list[BaseException] = []
    stop = threading.Event()

    def write(number: int) -> None:
        mine = written[number] = {}
        try:
            with psycopg.connect(database, autocommit=True) as application:
                step = 0
                while not stop.is_set():
                    step += 1
                    key = 1 + (number * 7919 + step * 104729) % 2000
                    table, row = ("orders", key) if step % 3 else ("lines", 1 + key % 300)
                    done = application.execute(f"UPDATE {table} SET n = n + 1 WHERE id = %s RETURNING n", [row])
                    if (found := done.fetchone()) is not None:
                        mine[table, row] = found[0]
                    if step % 5 == 0:
                        try:
                            application.execute(
                                "INSERT INTO lines VALUES (%s, %s, 'w', 0)", [10_000 + number * 100_000 + step, key]
                            )
                        except psycopg.errors.ForeignKeyViolation:
                            continue
        except BaseException as error:
            failed.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for writer in writers:
        writer.start()
    time.sleep(0.3)
    bounds = [None, *((str(n),) for n in range(50, 2000, 50)), None]
    gone = 0
    for _ in range(20):
        gone += walking.work(database, rows, bounds=bounds)
        if not walking.waiting(database, rows):
            break
    stop.set()
    for writer in writers:
        writer.join()
    assert not failed, failed
    assert gone == one(database, "SELECT count(*) FROM archive.gone") == 1950
    last: dict[tuple[str, int], int] = {}
    for mine in written.values():
        for row, n in mine.items():
            last[row] = max(n, last.get(row, 0))
    for table in ("orders", "lines"):
        now = dict(
            sql(
                database,
                f"SELECT id, n FROM {table} UNION ALL SELECT id, n FROM archive.gone{'_lines' if table == 'lines' else ''}",
            )
        )
        assert all(now[key] == n for (of, key), n in last.items() if of == table)
    both = "SELECT count(*) FROM lines l JOIN archive.gone_lines g USING (id)"
    assert one(database, both) == 0
    assert walking.work(database, back(rows)) == 1950
    assert one(database, "SELECT count(*) FROM archive.gone_lines") == 0
    assert one(database, "SELECT count(*) FROM orders") == 2000


# -- the gate and the end ---------------------------------------------------------------------------------------------


def test_gate_looks_at_what_refers_to_the_table_today(database: str) -> None:
    sql(database, SHOP)
    bound, _ = expanded(database, declare("orders", children="delete", **OLD, **ARCHIVE))
    assert reasons(database, bound) == []
    sql(database, "CREATE TABLE notes (id int PRIMARY KEY, order_id int REFERENCES orders ON DELETE CASCADE)")
    assert reasons(database, bound) == [
        "other foreign keys refer to public.orders than when the migration began: roll back and begin anew"
    ]
    sql(database, "DROP TABLE notes; ALTER TABLE orders ADD note text")
    assert reasons(database, bound) == ["public.orders has other columns than its archive: roll back and begin anew"]
    sql(database, "ALTER TABLE orders DROP note; ALTER TABLE lines ADD note text")
    assert len(reasons(database, bound)) == 1
    sql(database, "ALTER TABLE lines DROP note; DROP TABLE archive.gone_parts")
    assert reasons(database, bound) == [
        "archive archive.gone_parts is gone: somebody dropped it by hand; roll back and begin anew"
    ]


def test_archive_is_dropped_when_its_window_has_ended(database: str) -> None:
    sql(database, SHOP)
    declared = declare("orders", children="delete", **OLD, **ARCHIVE)
    found = walking.survey(database, declared)
    walking.run(database, walking.change(database, declared, found).expand)
    bound = walking.change(database, declared, found, tombstoned=True)
    assert bound.retire is not None
    sql(database, "CREATE VIEW peek AS SELECT * FROM archive.gone_lines")
    assert reasons(database, bound) == [
        "rule _RETURN on view peek reads archive archive.gone_lines: drop it, or make it anew without that"
    ]
    sql(database, "DROP VIEW peek")
    assert reasons(database, bound) == []
    walking.run(database, bound.retire.drop())
    assert one(database, "SELECT count(*) FROM pg_class WHERE relnamespace = 'archive'::regnamespace") == 0
    kept = walking.change(database, declare("orders", **OLD, archive={"table": "archive.gone", "keep": True}))
    assert kept.retire is not None
    assert kept.retire.drop() == []


def test_way_of_a_purge() -> None:
    gone, kept = (Lifecycle.of(d.change.needs) for d in (declare(), declare(**ARCHIVE)))
    assert gone.phases == kept.phases == (Phase.EXPAND, Phase.VALIDATE, Phase.CONTRACT)
    assert gone.states == (State.EXPANDED, State.VALIDATED, State.CONTRACTING, State.CONTRACTED)
    assert kept.states == (State.EXPANDED, State.VALIDATED, State.CONTRACTING, State.TOMBSTONED, State.CONTRACTED)
    assert gone.can_go_back(State.CONTRACTING)
    assert kept.can_go_back(State.CONTRACTING)
