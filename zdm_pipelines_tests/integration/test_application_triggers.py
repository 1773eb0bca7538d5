"""The application's triggers fire for rows that we write: what they make of them is synced, and who stands in the way is named."""

from __future__ import annotations

import threading
import time
from typing import Any

import psycopg
import pytest

from zdm_pipelines.model.errors import LockNotAcquired, MappingFailed, ParityMismatch, ZdmError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines_tests import walking
from zdm_pipelines_tests.helpers import (
    Background,
    backfilled,
    contracted,
    eventually,
    expanded,
    holding,
    one,
    people,
    replaced,
    sql,
    state,
    validated,
)

DISAGREE = "SELECT count(*) FROM people WHERE display_name IS DISTINCT FROM 'n:' || full_name"
FUNCTION = (
    "CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$; CREATE TRIGGER act {} ON people "
)


def trigger(url: str, body: str, event: str = "BEFORE UPDATE", each: str = "FOR EACH ROW") -> None:
    sql(url, FUNCTION.format(body, event) + f"{each} EXECUTE FUNCTION act()")


@pytest.fixture
def url(database: str) -> str:
    people(database, 60)
    return database


# -- what triggers make of rows -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "event"),
    [
        ("NEW.full_name := upper(NEW.full_name); RETURN NEW;", "BEFORE UPDATE"),
                ("NEW.full_name := NULL; RETURN NEW;", "BEFORE UPDATE"),
        ("NEW.display_name := upper(NEW.display_name); RETURN NEW;", "BEFORE UPDATE"),
        ("NEW.display_name := NULL; RETURN NEW;", "BEFORE UPDATE"),
        ("NEW.full_name := 'both'; NEW.display_name := 'unlike'; RETURN NEW;", "BEFORE UPDATE"),
        ("UPDATE people SET full_name = 'after ' || NEW.id WHERE id = 61 - NEW.id AND pg_trigger_depth() = 1; RETURN NULL;", "AFTER UPDATE"),
        ("UPDATE people SET full_name = 'own' WHERE id = NEW.id AND full_name <> 'own'; RETURN NULL;", "AFTER UPDATE"),
        ("UPDATE people SET display_name = 'n:new' WHERE id = NEW.id AND full_name <> 'new'; RETURN NULL;", "AFTER UPDATE"),
        ("INSERT INTO people (full_name) SELECT 'copy ' || NEW.id WHERE NEW.id <= 60; RETURN NULL;", "AFTER UPDATE"),
    ],
)  # fmt: skip
def test_what_triggers_make_of_moved_rows_is_synced(url: str, body: str, event: str) -> None:
    m = replaced()
    if "full_name" in body:
        trigger(url, body, event)
    expanded(m, url)
    if "full_name" not in body:
        trigger(url, body, event)  # whenever it was made
    backfilled(m, url)
    assert one(url, DISAGREE) == 0
    validated(m, url)


def test_a_trigger_of_each_statement_that_writes_the_table_is_mirrored(url: str) -> None:
    m = replaced()
    expanded(m, url)
    body = "IF pg_trigger_depth() = 1 THEN UPDATE people SET full_name = 'all' WHERE id > 50; END IF; RETURN NULL;"
    trigger(url, body, "AFTER UPDATE", "FOR EACH STATEMENT")
    backfilled(m, url)
    assert one(url, "SELECT count(*) FROM people WHERE full_name = 'all' AND display_name = 'n:all'") == 10
    validated(m, url)


def test_what_up_reads_besides_and_a_trigger_alters(url: str) -> None:
    m = replaced(up="full_name || '/' || note", down="split_part(display_name, '/', 1)",
                 new={"name": "display_name", "type": "text", "nullable": False})  # fmt: skip
    sql(url, "ALTER TABLE people ALTER full_name SET NOT NULL, ALTER note SET NOT NULL")
    trigger(url, "NEW.note := upper(NEW.note); RETURN NEW;")
    expanded(m, url)
    backfilled(m, url)
    assert one(url, "SELECT count(*) FROM people WHERE display_name = full_name || '/NOTE ' || id") == 60
    validated(m, url)


def test_repair_moves_a_row_as_triggers_leave_it(url: str) -> None:
    m = replaced()
    expanded(m, url)
    backfilled(m, url)
    sql(url, "SET zdm.backfill = 'on'; UPDATE people SET display_name = 'wrong'")  # behind the sync trigger's back
    trigger(url, "NEW.full_name := upper(NEW.full_name); RETURN NEW;")
    backfilled(m, url, repair=True)
    assert one(url, DISAGREE) == 0
    assert one(url, "SELECT count(*) FROM people WHERE full_name = 'V' || id") == 60


def test_plain_rows_of_a_batch_do_not_enter_the_sync_function(url: str) -> None:
    """A table whose rows no trigger alters is moved as fast as without a sync."""
    m = replaced()
    trigger(url, "RETURN NULL;", "AFTER UPDATE")
    expanded(m, url)
    sql(url, "ALTER DATABASE " + url.rsplit("/", 1)[1] + " SET track_functions = 'all'")
    backfilled(m, url)
    calls = "SELECT coalesce(sum(calls), 0) FROM pg_stat_user_functions WHERE funcname LIKE 'sync%%'"
    time.sleep(0.2)  # statistics of an ended session
    assert one(url, calls) == 0
    assert one(url, DISAGREE) == 0


def test_who_writes_is_not_the_batch_itself(url: str) -> None:
    m = replaced()
    trigger(url, "NEW.full_name := upper(NEW.full_name); RETURN NEW;")
    expanded(m, url)
    backfilled(m, url)
    assert one(url, "SELECT count(*) FROM zdm.writer") == 0


# -- triggers that stand in the way -----------------------------------------------------------------------------

EXEMPT = "DROP TRIGGER act ON people; CREATE TRIGGER act {} ON people FOR EACH ROW WHEN (coalesce(current_setting('zdm.backfill', true), '') = '') EXECUTE FUNCTION act()"  # fmt: skip


@pytest.mark.parametrize(
    ("body", "event", "fact"),
    [
        ("IF OLD.id <= 5 THEN RETURN NULL; END IF; RETURN NEW;", "BEFORE UPDATE",
         "the row with key [1-5] is not moved: trigger act of people keeps it as it was"),
        ("RETURN NULL;", "BEFORE UPDATE", "the row with key [0-9]+ is not moved: trigger act of people"),
        ("RETURN OLD;", "BEFORE UPDATE", None),
        ("IF OLD.id = 7 THEN RAISE EXCEPTION 'secret %', NEW.full_name; END IF; RETURN NEW;", "BEFORE UPDATE",
         r"the row with key 7 cannot be written: trigger act of people raises RaiseException \(SQLSTATE P0001\)"),
        ("IF OLD.id = 7 THEN PERFORM 1 / 0; END IF; RETURN NULL;", "AFTER UPDATE",
         "the row with key 7 cannot be written: trigger act of people raises DivisionByZero"),
    ],
)  # fmt: skip
def test_a_trigger_that_keeps_rows_is_named_at_once(url: str, body: str, event: str, fact: str | None) -> None:
    m = replaced()
    trigger(url, body, event)
    expanded(m, url)
    begun = time.monotonic()
    if fact is not None:
        with pytest.raises(MappingFailed, match=fact) as told:
            backfilled(m, url)
        assert "secret" not in str(told.value)
        assert "materialize the range again" in told.value.way_out
        assert time.monotonic() - begun < 10  # give_up_after is a minute
        sql(url, EXEMPT.format(event))  # the way out
    backfilled(m, url)
    validated(m, url)


def test_up_that_fails_is_not_blamed_on_triggers(url: str) -> None:
    trigger(url, "RETURN NEW;")
    m = replaced(up="CASE WHEN full_name = 'v7' THEN (1 / (length(full_name) - 2))::text ELSE full_name END", down="display_name")  # fmt: skip
    expanded(m, url)
    with pytest.raises(MappingFailed, match="up fails for the row with key 7: DivisionByZero"):
        backfilled(m, url)


def purge(**change: Any) -> Migration:
    return walking.migration("public.people", {"kind": "purge_rows", "where": "id <= 5", **change})


@pytest.mark.parametrize(
    ("body", "event", "fact"),
    [
        ("UPDATE people SET note = 'gone' WHERE id = OLD.id; RETURN NULL;", "BEFORE DELETE",
         "the row with key 1 is not deleted: trigger act of people keeps it as it was"),
        ("INSERT INTO people SELECT OLD.*; RETURN NULL;", "AFTER DELETE",
         "the row with key 1 waits again as soon as it is deleted: trigger act of people"),
        ("RAISE EXCEPTION 'never'; RETURN OLD;", "BEFORE DELETE",
         "the row with key 1 cannot be deleted: trigger act of people raises RaiseException"),
    ],
)  # fmt: skip
def test_a_trigger_that_keeps_rows_from_a_purge(url: str, body: str, event: str, fact: str) -> None:
    m = purge()
    trigger(url, body, event)
    expanded(m, url)
    validated(m, url)
    with pytest.raises(MappingFailed, match=fact):
        contracted(m, url)
    assert state(m, url) != State.CONTRACTED
    sql(url, EXEMPT.format(event))
    contracted(m, url)
    assert one(url, "SELECT count(*) FROM people WHERE id <= 5") == 0


EXTRACT: dict[str, Any] = {
    "kind": "extract_table",
    "new": {
        "table": "public.names",
        "key": {"person_id": "id"},
        "columns": {"name": {"type": "text", "up": "full_name"}},
    },
    "old": "full_name",
    "down": "name",
}


def extract() -> Migration:
    return walking.migration("public.people", EXTRACT)


def test_a_trigger_of_the_new_table_that_keeps_rows(url: str) -> None:
    m = extract()
    expanded(m, url)
    body = "IF NEW.person_id = 7 THEN RETURN NULL; END IF; RETURN NEW;"
    sql(url, FUNCTION.format(body, "BEFORE INSERT").replace("people", "names") + "FOR EACH ROW EXECUTE FUNCTION act()")
    with pytest.raises(MappingFailed, match="the row with key 7 is not moved: trigger act of names keeps it as it was"):
        backfilled(m, url)
    sql(url, "ALTER TABLE names DISABLE TRIGGER act")
    backfilled(m, url)
    validated(m, url)


def test_what_a_trigger_of_the_new_table_writes_is_mirrored(url: str) -> None:
    m = extract()
    expanded(m, url)
    body = "DELETE FROM names WHERE person_id = 7; UPDATE names SET name = 'new' WHERE person_id = 8; RETURN NULL;"
    sql(url, FUNCTION.format(body, "AFTER INSERT").replace("people", "names") + "FOR EACH ROW EXECUTE FUNCTION act()")
    backfilled(m, url)
    assert sql(url, "SELECT full_name FROM people WHERE id IN (7, 8) ORDER BY id") == [(None,), ("new",)]
    validated(m, url)


def test_a_trigger_that_alters_what_the_new_table_gets_is_named(url: str) -> None:
    m = extract()
    expanded(m, url)
    body = "NEW.name := 'prefix ' || NEW.name; RETURN NEW;"
    sql(url, FUNCTION.format(body, "BEFORE INSERT").replace("people", "names") + "FOR EACH ROW EXECUTE FUNCTION act()")
    backfilled(m, url)
    with pytest.raises(ParityMismatch, match="trigger act of names may alter what is written"):
        validated(m, url)
    sql(url, "ALTER TABLE names DISABLE TRIGGER act")
    backfilled(m, url, repair=True)
    validated(m, url)


# -- triggers that want others' locks --------------------------------------------------------------------------

ORGS = """
CREATE TABLE orgs (id int PRIMARY KEY, touched timestamptz, name text); INSERT INTO orgs VALUES (1), (2);
ALTER TABLE people ADD org int DEFAULT 1;
"""
TOUCH = "UPDATE orgs SET touched = clock_timestamp() WHERE id = {}.org; RETURN NULL;"


def within(url: str, statement: str, begin: str) -> float:
    """Seconds that a transaction of the application takes, which has another one's rows locked."""
    with psycopg.connect(url, application_name="app") as conn:
        conn.execute(begin)
        time.sleep(0.15)  # the batch has rows by now, and waits
        begun = time.monotonic()
        conn.execute(statement)
        conn.commit()
        return time.monotonic() - begun


@pytest.mark.parametrize(("kind", "each"), [("replace", "FOR EACH ROW"), ("replace", "FOR EACH STATEMENT"), ("purge", "FOR EACH ROW")])  # fmt: skip
def test_a_batch_gives_way_before_a_deadlock_is_looked_for(url: str, kind: str, each: str) -> None:
    """The application holds what a trigger wants, and then wants the rows that the batch holds."""
    sql(url, ORGS)
    event, row = ("AFTER DELETE", "OLD") if kind == "purge" else ("AFTER UPDATE", "NEW")
    body = TOUCH.format(row) if each == "FOR EACH ROW" else "UPDATE orgs SET touched = now() WHERE id = 1; RETURN NULL;"
    trigger(url, body, event, each)
    m = purge(where="id <= 40") if kind == "purge" else replaced()
    expanded(m, url)
    if kind == "purge":
        validated(m, url)
    with holding(url, "UPDATE orgs SET name = 'x' WHERE id = 1") as application:
        job = Background(lambda: contracted(m, url) if kind == "purge" else backfilled(m, url))
        eventually(lambda: one(url, "SELECT count(*) FROM pg_locks WHERE NOT granted"))
        begun = time.monotonic()
        application.execute("UPDATE people SET note = 'y'")
        application.commit()
    assert time.monotonic() - begun < 0.9
    job.result()


def test_a_trigger_whose_lock_is_never_free_is_named_with_who_has_it(url: str) -> None:
    sql(url, ORGS)
    trigger(url, TOUCH.format("NEW"), "AFTER UPDATE")
    m = replaced(locks={"give_up_after": "1s"})
    expanded(m, url)
    told = "nothing could be written for 1 s: trigger act of people waits for what others have locked, by pid [0-9]+ the holder"
    with holding(url, "UPDATE orgs SET name = 'x' WHERE id = 1"), pytest.raises(LockNotAcquired, match=told):
        backfilled(m, url)
    backfilled(m, url)
    validated(m, url)


def test_the_application_is_never_the_one_who_fails(url: str) -> None:
    """Deadlocks are looked for every 100 ms; transactions lock what the triggers want, and then rows of the batches."""
    sql(url, ORGS + "UPDATE people SET org = 1 + id % 2")
    sql(url, "INSERT INTO people (full_name, org) SELECT 'w' || n, 1 + n % 2 FROM generate_series(1, 400) n")
    trigger(url, TOUCH.format("NEW"), "AFTER UPDATE")
    sql(url, "ALTER DATABASE " + url.rsplit("/", 1)[1] + " SET deadlock_timeout = '100ms'")
    m = replaced(backfill={"batch_rows": 100})
    expanded(m, url)
    halt, failed = threading.Event(), list[str]()

    def work() -> None:
        with psycopg.connect(url) as conn:
            while not halt.is_set():
                try:
                    conn.execute("UPDATE orgs SET name = 'p' WHERE id = 1")
                    time.sleep(0.01)
                    conn.execute(
                        "UPDATE people SET note = 'n' WHERE id IN (SELECT id FROM people WHERE display_name IS NULL ORDER BY id LIMIT 20)"
                    )
                    conn.commit()
                except psycopg.Error as error:
                    conn.rollback()
                    failed.append(str(error))
                time.sleep(0.02)

    application = threading.Thread(target=work)
    application.start()
    try:
        backfilled(m, url)
    finally:
        halt.set()
        application.join()
    assert failed == []


def test_a_before_trigger_that_writes_its_neighbours(url: str) -> None:
    """The server refuses to write a row twice in one statement: such rows are moved one by one."""
    trigger(url, "UPDATE people SET note = 'seen' WHERE id = NEW.id + 1 AND note <> 'seen'; RETURN NEW;")
    m = replaced(backfill={"batch_rows": 20})
    expanded(m, url)
    try:
        backfilled(m, url)
    except ZdmError as error:
        pytest.fail(str(error))
    validated(m, url)
