"""The simulated application: every shape that comes with the sandbox is read and written, and what is wrong is found."""

from __future__ import annotations

import time
from typing import Any

import psycopg
import pytest

from zdm_pipelines.sandbox.application import EVENTS, ORDERS, SETTINGS, USERS, Application, load
from zdm_pipelines.sandbox.application.requests import Requests
from zdm_pipelines.sandbox.application.session import Failed, Session
from zdm_pipelines.sandbox.application.shapes import Fact, Shape, Tables, Write
from zdm_pipelines.sandbox.traffic import Traffic, TrafficReport
from zdm_pipelines.sandbox.traffic_report import Recorder
from zdm_pipelines_tests.helpers import Background, eventually, one, sql

ROWS = 1_000
TTL = 1.2  # seconds until a change of a flag is seen


def clean(report: TrafficReport) -> None:
    assert (report.failed_queries, report.wrong_answers) == (0, 0), (report.errors, report.wrong)


@pytest.mark.parametrize("application", [SETTINGS, EVENTS, ORDERS], ids=["settings", "events", "orders"])
def test_every_sort_of_request_is_answered_right(database: str, application: Application) -> None:
    load(database, ROWS, application=application)
    table = application.tables.create.split()[2]
    with Traffic(database, application, rate=800) as traffic:
        eventually(lambda: one(database, f"SELECT count(*) > 5 FROM {table} WHERE id < 0 OR id > {10**12}"))
        eventually(lambda: one(database, f"SELECT count(*) < 990 FROM {table} WHERE id <= {ROWS}"))
        eventually(lambda: traffic.report().queries > 500)
    clean(traffic.stop())


# -- a table is extracted ---------------------------------------------------------------------------------

# What a migration does, in its smallest form.
EXTRACT = """
CREATE SCHEMA zdm;
CREATE TABLE zdm.flag (name text PRIMARY KEY, percent smallint NOT NULL);
INSERT INTO zdm.flag VALUES ('read_user_settings', 0);
CREATE TABLE user_settings (
    user_id bigint PRIMARY KEY REFERENCES users ON DELETE CASCADE ON UPDATE CASCADE,
    theme text, notifications_enabled boolean
);
CREATE FUNCTION to_settings() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO user_settings
    VALUES (NEW.id, NEW.profile ->> 'theme', (NEW.profile ->> 'notifications_enabled')::boolean)
    ON CONFLICT (user_id) DO UPDATE
    SET theme = excluded.theme, notifications_enabled = excluded.notifications_enabled;
    RETURN NULL;
END $$;
CREATE FUNCTION to_profile() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE users SET profile = jsonb_build_object(
        'theme', NEW.theme, 'notifications_enabled', NEW.notifications_enabled) WHERE id = NEW.user_id;
    RETURN NULL;
END $$;
CREATE TRIGGER to_settings AFTER INSERT OR UPDATE OF profile ON users FOR EACH ROW
    WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION to_settings();
CREATE TRIGGER to_profile AFTER INSERT OR UPDATE OF theme, notifications_enabled ON user_settings FOR EACH ROW
    WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION to_profile();
"""

MOVE = """
WITH source AS (
    SELECT * FROM users u WHERE NOT EXISTS (SELECT FROM user_settings WHERE user_id = u.id)
    LIMIT 100 FOR UPDATE SKIP LOCKED
)
INSERT INTO user_settings SELECT id, profile ->> 'theme', (profile ->> 'notifications_enabled')::boolean FROM source
ON CONFLICT DO NOTHING RETURNING 1
"""

NOT_MOVED = "SELECT count(*) FROM users u WHERE NOT EXISTS (SELECT FROM user_settings WHERE user_id = u.id)"


def test_settings_stay_right_while_their_table_is_extracted(database: str) -> None:
    load(database, ROWS, application=SETTINGS)
    with Traffic(database, SETTINGS, rate=500) as traffic:
        time.sleep(0.3)
        sql(database, "SET lock_timeout = '5s'; " + EXTRACT)
        while sql(database, MOVE) or one(database, NOT_MOVED):
            time.sleep(0.01)
        for percent in (50, 100):
            sql(database, "UPDATE zdm.flag SET percent = %s", percent)
            time.sleep(TTL)
        traffic.mark("everywhere new")
        traffic.deploy("new")
        sql(database, "DROP TRIGGER to_profile ON user_settings")
        sql(database, "DROP TRIGGER to_settings ON users; ALTER TABLE users DROP COLUMN profile")
        time.sleep(0.5)
        report = traffic.stop()
    clean(report)
    assert report.sections[-1].queries > 50
    with Traffic(database, SETTINGS, deployment="new") as traffic:  # the old shape is not there to learn from
        time.sleep(0.3)
    clean(traffic.stop())


def test_a_setting_that_went_another_way_is_found(database: str) -> None:
    load(database, ROWS, application=SETTINGS)
    with Traffic(database, SETTINGS) as traffic:
        changed = "profile || '{\"theme\": \"dark\"}' WHERE profile ->> 'theme' <> 'dark' AND id % 3 = 0"
        sql(database, f"UPDATE users SET profile = {changed}")
        report = traffic.stop()
    assert report.wrong_answers > 10
    assert "read through profile: expected ('" in report.wrong[0]


# -- rows are purged --------------------------------------------------------------------------------------


def test_only_what_matches_may_be_purged_and_put_back(database: str) -> None:
    load(database, ROWS, application=EVENTS)
    with Traffic(database, EVENTS, rate=500) as traffic:
        time.sleep(0.2)
        sql(database, "CREATE TABLE archive AS SELECT * FROM events LIMIT 0")
        purge = (
            "WITH gone AS (DELETE FROM events WHERE kind = 'trace' RETURNING *) INSERT INTO archive SELECT * FROM gone"
        )
        for _ in range(5):
            sql(database, purge)
            time.sleep(0.2)
        sql(database, "INSERT INTO events SELECT * FROM archive")
        time.sleep(0.5)
        report = traffic.stop()
    clean(report)
    assert one(database, "SELECT count(*) FROM archive") > 300


def test_a_purge_of_too_much_is_found(database: str) -> None:
    load(database, ROWS, application=EVENTS)
    with Traffic(database, EVENTS) as traffic:
        sql(database, "DELETE FROM events WHERE kind IN ('trace', 'login')")
        report = traffic.stop()
    assert report.wrong_answers > 100
    assert any("('login', 'note" in what and "found no row" in what for what in report.wrong)


# -- an index comes or goes -------------------------------------------------------------------------------


def test_orders_are_found_while_their_index_comes_and_goes(database: str) -> None:
    load(database, ROWS, application=ORDERS)
    with Traffic(database, ORDERS, rate=500) as traffic:
        for _ in range(3):
            sql(database, "CREATE INDEX CONCURRENTLY by_reference ON orders (reference)")
            time.sleep(0.1)
            sql(database, "DROP INDEX CONCURRENTLY by_reference")
        report = traffic.stop()
    clean(report)


def test_an_order_that_is_not_found_by_its_reference_is_told(database: str) -> None:
    load(database, ROWS, application=ORDERS)
    recorder = Recorder()
    requests = Requests(ORDERS, client=0, recorder=recorder)
    with psycopg.connect(database, autocommit=True) as connection:
        requests.learn(connection, ORDERS.old, clients=1, rows=10)
    session = Session(database, version="old", recorder=recorder)
    key = requests.owned.keys[0]
    requests.find(session, ORDERS.old, key)
    assert recorder.report().wrong_answers == 0
    sql(database, "UPDATE orders SET reference = reference || '?' WHERE id = %s", key)
    requests.find(session, ORDERS.old, key)
    assert recorder.report().wrong_answers == 1
    session.close()


# -- a shape of one's own ---------------------------------------------------------------------------------

KETTLE = Application(
    entity="kettle",
    facts=(Fact(name="state", one_of=(None, "100 %", "cold")),),
    tables=Tables(
        create='CREATE TABLE "Kett le" (no bigint PRIMARY KEY, "sta""te" text)',
        fill='INSERT INTO "Kett le" SELECT n, NULL FROM generate_series(%(first)s::int, %(last)s::int) n',
    ),
    mine='SELECT no FROM "Kett le" WHERE no %% %(clients)s = %(client)s LIMIT %(rows)s',
    old=Shape(
        name="state",
        read='SELECT no, "sta""te" FROM "Kett le" WHERE no = ANY(%(keys)s)',
        insert=('INSERT INTO "Kett le" VALUES (%(key)s, %(state)s)',),
        delete=('DELETE FROM "Kett le" WHERE no = %(key)s',),
        writes=(Write(sql=('UPDATE "Kett le" SET "sta""te" = %(state)s WHERE no = %(key)s',), sets=("state",)),),
    ),
)


def test_an_application_of_a_tests_own(database: str) -> None:
    load(database, 200, application=KETTLE)
    with Traffic(database, KETTLE) as traffic:
        eventually(lambda: one(database, 'SELECT count(*) > 5 FROM "Kett le" WHERE "sta""te" = \'100 %\''))
        clean(traffic.report())
        sql(database, 'ALTER TABLE "Kett le" RENAME TO kettle')
        time.sleep(0.3)
        report = traffic.stop()
    assert report.failed_queries > 5
    assert "UndefinedTable" in report.errors[0]


# -- sessions ---------------------------------------------------------------------------------------------


@pytest.fixture
def session(app_database: str) -> Any:
    made = Session(app_database, version="old", recorder=Recorder())
    yield made
    made.close()


def sleeping(url: str) -> bool:
    return bool(
        one(url, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()")
    )


def terminate(url: str) -> None:
    eventually(lambda: sleeping(url))
    sql(url, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'app old'")


RENAME = "UPDATE users SET full_name = 'Ada' WHERE id = %(key)s"
SLEEP = "SELECT pg_sleep(60)"


def test_a_write_is_in_doubt_only_when_its_commit_was_sent(app_database: str, session: Session) -> None:
    for steps, unknown in (([(RENAME, {"key": 1}), (SLEEP, {})], False), ([(SLEEP, {})], True)):
        ending = Background(lambda: terminate(app_database))
        with pytest.raises(Failed) as failed:
            session.write(steps)
        ending.result()
        assert (failed.value.lost, failed.value.unknown) == (True, unknown)
    assert one(app_database, "SELECT full_name FROM users WHERE id = 1") != "Ada"


def test_a_failed_statement_takes_its_transaction_along(app_database: str, session: Session) -> None:
    with pytest.raises(Failed) as failed:
        session.write([(RENAME, {"key": 1}), ("SELECT 1 / 0", {})])
    assert (failed.value.lost, failed.value.unknown) == (False, False)
    assert one(app_database, "SELECT full_name FROM users WHERE id = 1") != "Ada"
    assert session.write([(RENAME, {"key": 1}), (RENAME, {"key": -1})]) == [1, 0]
    assert one(app_database, "SELECT full_name FROM users WHERE id = 1") == "Ada"


def test_a_value_that_a_statement_returns_is_known_to_the_next(app_database: str, session: Session) -> None:
    parameters: dict[str, Any] = {"name": "Bob", "unique": "x", "login_count": 0}
    (insert,) = USERS.old.insert
    assert session.write([(insert, parameters), (RENAME, parameters)]) == [1, 1]
    assert one(app_database, "SELECT full_name FROM users WHERE id = %s", parameters["key"]) == "Ada"
