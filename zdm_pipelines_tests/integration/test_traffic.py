"""Traffic: live clients of the users' application tell right from wrong, and see what every query took."""

from __future__ import annotations

import time

import psycopg
import pytest

from zdm_pipelines.client.flags import Flags
from zdm_pipelines.sandbox import application
from zdm_pipelines.sandbox.postgres import Server
from zdm_pipelines.sandbox.processes import SandboxError
from zdm_pipelines.sandbox.traffic import Traffic, TrafficReport
from zdm_pipelines_tests.helpers import eventually, one, sql

FLAG = "read_users_display_name"

# What a migration does to the table, in its smallest form.
EXPAND = """
CREATE SCHEMA zdm;
CREATE TABLE zdm.flag (name text PRIMARY KEY, percent smallint NOT NULL);
ALTER TABLE users ADD COLUMN display_name text;
CREATE FUNCTION mirror() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.display_name := coalesce(NEW.display_name, NEW.full_name);
        NEW.full_name := coalesce(NEW.full_name, NEW.display_name);
    ELSIF NEW.full_name IS DISTINCT FROM OLD.full_name THEN
        NEW.display_name := NEW.full_name;
    ELSIF NEW.display_name IS DISTINCT FROM OLD.display_name THEN
        NEW.full_name := NEW.display_name;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER mirror BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION mirror();
INSERT INTO zdm.flag VALUES ('read_users_display_name', 0);
"""

BACKFILL = """
UPDATE users SET display_name = full_name
WHERE id IN (SELECT id FROM users WHERE display_name IS NULL LIMIT 200 FOR UPDATE SKIP LOCKED)
RETURNING id
"""


def clean(report: TrafficReport) -> None:
    assert (report.failed_queries, report.wrong_answers) == (0, 0), (report.errors, report.wrong)


def test_the_sample_application_has_its_rows(database: str) -> None:
    steps: list[tuple[int, int]] = []
    application.load(database, rows=45_000, progress=lambda done, rows: steps.append((done, rows)))
    assert steps == [(20_000, 45_000), (40_000, 45_000), (45_000, 45_000)]
    assert one(database, "SELECT count(*) FROM users") == 45_000
    assert one(database, "SELECT reltuples FROM pg_class WHERE relname = 'users'") == 45_000
    assert one(database, "SELECT count(DISTINCT full_name) FROM users") == 45_000


def test_flags_read_a_real_table(app_database: str) -> None:
    def connect() -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(app_database, application_name="flags")

    flags = Flags(connect, ttl=0)
    assert flags.percent(FLAG) is None
    sql(app_database, EXPAND)
    assert flags.percent(FLAG) == 0
    sql(app_database, "UPDATE zdm.flag SET percent = 100")
    assert flags.is_on(FLAG, 7)
    sql(
        app_database,
        "SELECT pg_terminate_backend(pid, 10_000) FROM pg_stat_activity WHERE application_name = 'flags'",
    )
    sql(app_database, "UPDATE zdm.flag SET percent = 30")
    assert flags.percent(FLAG) == 100
    assert flags.percent(FLAG) == 30
    flags.close()


def test_traffic_before_any_migration_is_clean(app_database: str) -> None:
    with Traffic(app_database, rate=600) as traffic:
        time.sleep(2)
        live = traffic.report()
    final = traffic.stop()
    clean(final)
    assert 300 < live.queries < final.queries
    assert {figures.label for figures in final.versions} == {"old", "new"}
    assert 0 < final.p50_ms <= final.p95_ms <= final.p99_ms <= final.max_latency_ms * 1.02
    clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'app %'"
    eventually(lambda: one(app_database, clients) == 0)


def test_traffic_stays_right_through_a_migration(app_database: str) -> None:
    with Traffic(app_database, rate=600) as traffic:
        time.sleep(0.5)
        traffic.mark("expand")
        sql(app_database, EXPAND)
        traffic.mark("backfill")
        time.sleep(1.2)  # the flags' ttl: new code writes the new column from here
        while sql(app_database, BACKFILL) or one(app_database, "SELECT count(*) FROM users WHERE display_name IS NULL"):
            time.sleep(0.02)
        for percent in (50, 100):
            traffic.mark(f"reads {percent}")
            sql(app_database, f"UPDATE zdm.flag SET percent = {percent}")
            time.sleep(1.2)
        traffic.deploy("new")
        clients = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'app old'"
        eventually(lambda: one(app_database, clients) == 0)
        traffic.mark("contract")
        sql(app_database, "DROP TRIGGER mirror ON users; ALTER TABLE users DROP COLUMN full_name")
        time.sleep(0.5)
        report = traffic.stop()
    clean(report)
    labels = [figures.label for figures in report.sections]
    assert labels == ["start", "expand", "backfill", "reads 50", "reads 100", "contract"]
    assert report.queries == sum(figures.queries for figures in report.sections)


def test_a_lost_update_is_found(app_database: str) -> None:
    with Traffic(app_database) as traffic:
        time.sleep(0.5)
        sql(app_database, "UPDATE users SET full_name = 'somebody else' WHERE id % 3 = 0")
        report = traffic.stop()
    assert report.wrong_answers > 20
    assert report.failed_queries == 0
    assert "somebody else" in report.wrong[0]


def test_a_wrong_new_column_is_found(app_database: str) -> None:
    sql(app_database, EXPAND)
    while sql(app_database, BACKFILL):
        pass
    sql(app_database, "UPDATE zdm.flag SET percent = 100")
    with Traffic(app_database, deployment="new") as traffic:
        time.sleep(0.5)
        sql(app_database, """
            LOCK TABLE users;  -- or a client that has locked rows and this transaction wait for each other
            ALTER TABLE users DISABLE TRIGGER mirror;
            UPDATE users SET display_name = 'nobody';
            ALTER TABLE users ENABLE TRIGGER mirror
        """)  # fmt: skip
        report = traffic.stop()
    assert report.wrong_answers > 20
    assert [figures.label for figures in report.versions] == ["new"]
    assert "display_name" in report.wrong[0]


def test_a_lost_login_count_is_found(app_database: str) -> None:
    with Traffic(app_database) as traffic:
        sql(
            app_database,
            "UPDATE users SET login_count = login_count + 1 WHERE id = (SELECT min(id) FROM users)",
        )
        assert traffic.stop().wrong_answers == 1


def test_a_deleted_row_that_comes_back_is_found(app_database: str) -> None:
    sql(app_database, "CREATE TABLE removed AS SELECT id, email, full_name FROM users LIMIT 0")
    sql(app_database, """
        CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN INSERT INTO removed VALUES (OLD.id, OLD.email, OLD.full_name); RETURN OLD; END $$;
        CREATE TRIGGER remember AFTER DELETE ON users FOR EACH ROW EXECUTE FUNCTION remember()
    """)  # fmt: skip
    with Traffic(app_database) as traffic:
        eventually(lambda: one(app_database, "SELECT count(*) > 5 FROM removed"))
        sql(
            app_database,
            "INSERT INTO users (id, email, full_name) OVERRIDING SYSTEM VALUE SELECT * FROM removed",
        )
        report = traffic.stop()
    assert report.wrong_answers > 5
    assert "expected no row" in report.wrong[0]


def test_a_row_that_went_missing_is_found(app_database: str) -> None:
    with Traffic(app_database) as traffic:
        time.sleep(0.3)
        sql(app_database, "DELETE FROM users WHERE id IN (SELECT max(id) FROM users)")
        sql(app_database, "DELETE FROM users WHERE id BETWEEN 500 AND 520")
        assert traffic.stop().wrong_answers > 5


def test_a_slow_query_is_seen_where_it_was_sent(app_database: str) -> None:
    with Traffic(app_database) as traffic:
        time.sleep(0.3)
        traffic.mark("blocked")
        with psycopg.connect(app_database) as connection:
            connection.execute("LOCK TABLE users")
            time.sleep(1.3)
            traffic.mark("after")
            time.sleep(0.2)
        time.sleep(0.3)
        report = traffic.stop()
    clean(report)
    blocked = next(figures for figures in report.sections if figures.label == "blocked")
    assert blocked.slow_queries > 0
    assert blocked.max_latency_ms > 1_000
    assert report.max_latency_ms == blocked.max_latency_ms


def test_traffic_survives_a_crash_of_the_server(own_server: Server) -> None:
    url = own_server.create_database("app")
    application.load(url, rows=2_000)
    with Traffic(url, rate=600) as traffic:
        time.sleep(1)
        own_server.kill()
        time.sleep(0.3)
        own_server.start()
        time.sleep(1)
        traffic.mark("after the crash")
        time.sleep(1)
        report = traffic.stop()
    assert report.failed_queries > 0
    assert report.errors
    assert report.wrong_answers == 0, report.wrong
    assert report.sections[-1].failed_queries == 0
    assert report.sections[-1].queries > 100


def test_traffic_without_a_table_says_so(database: str) -> None:
    with pytest.raises(SandboxError, match="users"):
        Traffic(database).start()
