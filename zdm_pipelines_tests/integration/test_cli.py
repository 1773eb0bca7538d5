"""The zdm command against a real database: what it says, what it changes, and its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from zdm_pipelines import ledger
from zdm_pipelines.cli.app import Last
from zdm_pipelines.dialects import server_at
from zdm_pipelines_tests.helpers import replaced

NAME = "users_display_name"
ROOT = Path(__file__).resolve().parents[2]

Say = Callable[..., Any]


def one(url: str, statement: str) -> Any:
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
        return row[0] if row else None


def columns(url: str) -> list[str]:
    return list(one(url, "SELECT array_agg(attname::text) FROM pg_attribute WHERE attrelid = 'public.users'::regclass "
                         "AND attnum > 0 AND NOT attisdropped"))  # fmt: skip


def state(zdm: Say) -> str:
    return str(json.loads(zdm("status", NAME, "--json").stdout)["state"])


def test_typed_choices_are_those_of_the_phases():
    assert [str(p) for p in Last] == [str(p) for p in replaced().lifecycle.unattended]


# -- looking ----------------------------------------------------------------------------------------------------------


def test_list_touches_no_database(zdm, monkeypatch):
    monkeypatch.delenv("ZDM_APP_URL", raising=False)
    assert "replace_column full_name → display_name" in zdm("list").stdout
    assert json.loads(zdm("list", "--json").stdout)["databases"] == [{"name": "app", "variable": "ZDM_APP_URL"}]


def test_bad_yaml_is_told_by_file_and_line(zdm, defs):
    defs.write_text(defs.read_text().replace("batch_rows: 100", "batch_row: 100"))
    said = zdm("list", status=2).stderr
    assert "defs/users/defs.yaml:16 users_display_name backfill.batch_row: 100: is no key here" in said
    assert "did you mean batch_rows" in said
    assert "defs.yaml:16" in zdm("plan", NAME, status=2).stderr
    assert "✘ defs/users/defs.yaml:16" in zdm("doctor", status=1).stdout


def test_an_unknown_migration_is_a_wrong_call(zdm):
    assert "did you mean users_display_name?" in zdm("plan", "users_displayname", status=2).stderr


def test_plan_is_complete_and_changes_nothing(zdm, database_of):
    before = columns(database_of)
    said = zdm("plan", NAME).stdout
    for expected in (
        "ACCESS EXCLUSIVE, for milliseconds",
        "nullable and without default: no row is rewritten",
        'ALTER TABLE "public"."users" ADD COLUMN "display_name" text',
        "about 2,000 rows",
        "about 4, which are 4 Dagster partitions",
        "CREATE INDEX CONCURRENTLY",
        "DROP COLUMN",
        "Nothing was changed",
    ):
        assert expected in said
    assert not re.search(r" +$", said, re.MULTILINE)
    document = json.loads(zdm("plan", NAME, "--json").stdout)
    assert list(document["phases"]) == ["expand", "backfill", "validate", "switch_reads", "contract"]
    assert columns(database_of) == before
    assert one(database_of, "SELECT to_regnamespace('zdm')") is None


def test_plan_prints_sql_that_runs(zdm, database_of):
    said = zdm("plan", NAME, "--sql").stdout
    expand = said.split("-- backfill:")[0]
    ledger.ensure(server_at(database_of))
    with psycopg.connect(database_of) as connection:
        connection.execute(expand.encode())
        connection.rollback()


def test_plan_tells_every_problem(zdm, database_of, defs):
    defs.write_text(defs.read_text().replace("old: full_name", "old: full_nam"))
    assert "did you mean full_name" in zdm("plan", NAME, status=1).stderr


def test_doctor_finds_nothing_wrong(zdm, database_of):
    said = zdm("doctor").stdout
    assert "✘" not in said
    assert "ZDM_APP_URL is set" in said
    assert "fits public.users: about 2,000 rows, key id, about 4 ranges" in said
    assert {f["verdict"] for f in json.loads(zdm("doctor", NAME, "--json").stdout)} <= {"ok", "warning"}


def test_doctor_without_the_variable(zdm, monkeypatch):
    monkeypatch.delenv("ZDM_APP_URL", raising=False)
    assert "export ZDM_APP_URL=" in zdm("doctor", status=1).stdout
    assert "export ZDM_APP_URL=" in zdm("run", NAME, status=2).stderr


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://someone:hunter2@127.0.0.1:1/db", "Connection refused"),
        ("postgresql+psycopg2://someone:hunter2@127.0.0.1/db", "names a SQLAlchemy driver"),
        ("postgresql://someone:hun@ter2@127.0.0.1/db", "is not meant as one"),
        ("someone:hunter2@127.0.0.1/db", "cannot be read"),
    ],
)
def test_a_database_that_cannot_be_reached_is_told_without_its_password(zdm, monkeypatch, url, expected):
    monkeypatch.setenv("ZDM_APP_URL", url)
    for result in (zdm("doctor", status=1), zdm("status", NAME, status=1), zdm("run", NAME, status=1)):
        assert expected in result.output
        assert "ter2" not in result.output


@pytest.fixture
def stranger(server: Any, database_of: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A role that owns nothing, and the environment variable pointing at it."""
    with psycopg.connect(database_of, autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = 'stranger'").fetchone():
            connection.execute("CREATE ROLE stranger LOGIN")
    url = database_of.replace("postgres@", "stranger@")
    monkeypatch.setenv("ZDM_APP_URL", url)
    return url


def test_doctor_names_what_a_role_lacks(zdm, stranger):
    said = zdm("doctor", status=1).stdout
    assert "belongs to role postgres, which we are not a member of" in said
    assert "GRANT pg_monitor" in said
    assert "belongs to role" in zdm("run", NAME, status=1).stderr


def test_lag_that_a_role_may_not_see_counts_as_bad(zdm, server, database_of, defs, stranger):
    with psycopg.connect(database_of, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA zdm AUTHORIZATION stranger")
        connection.execute("ALTER TABLE users OWNER TO stranger")
        connection.execute("GRANT CREATE ON SCHEMA public TO stranger")
    declared = defs.read_text()
    lag = "{replication_lag: {pause_above: 5s, resume_below: 1s}, latency_p95: null, max_wait: 500ms}"
    defs.write_text(declared.replace("{replication_lag: null, latency_p95: null}", lag))
    said = zdm("run", NAME, status=1).stderr
    assert "replication_lag cannot be read" in said
    assert "GRANT pg_monitor" in said
    defs.write_text(declared)
    zdm("run", NAME)


def test_status_of_all(zdm, database_of, monkeypatch):
    assert "planned" in zdm("status").stdout
    monkeypatch.setenv("ZDM_APP_URL", "postgresql://x@127.0.0.1:1/db")
    assert "Connection refused" in zdm("status", status=1).stdout


# -- doing ------------------------------------------------------------------------------------------------------------


def test_a_whole_migration(zdm, database_of):
    zdm("run", NAME, "--to", "expand")
    assert state(zdm) == "expanded"
    said = zdm("run", NAME).output
    assert "4 of 4 are done" in said
    assert "✔ 2,000 rows agree" in said
    assert "zdm run users_display_name --phase switch-reads" in said
    document = json.loads(zdm("status", NAME, "--json").stdout)
    assert (document["state"], document["ranges_done"], document["rows_moved"]) == ("validated", 4, 2000)
    assert document["flag"]["percent"] == 0
    assert any("switch_reads" in reason for reason in document["against_contract"])
    assert "contract begins from switched" in zdm("status", NAME).stdout

    assert "1 %" in zdm("run", NAME, "--phase", "switch-reads").stdout
    zdm("flag", NAME, "30")
    assert json.loads(zdm("flag", NAME, "--json").stdout)["percent"] == 30
    refused = zdm("run", NAME, "--phase", "contract", status=1).stderr
    assert "reads are at 30 % of the new shape" in refused
    zdm("run", NAME, "--phase", "switch-reads", "--percent", "100")
    reports = json.loads(zdm("run", NAME, "--phase", "contract", "--json").stdout)
    assert [r["state"] for r in reports] == ["tombstoned"]
    assert "zdm_tombstone_full_name" in columns(database_of)

    # The drop alone cannot be undone: it is asked for, and a script has to say so.
    assert "say --yes" in zdm("run", NAME, "--phase", "contract", status=2).stderr
    zdm("run", NAME, "--phase", "contract", "--yes")
    assert state(zdm) == "contracted"
    assert not any("full_name" in c for c in columns(database_of))
    assert "is contracted" in zdm("plan", NAME, status=1).stderr
    assert "is contracted" in zdm("rollback", NAME, "--to", "validated", "--yes", status=1).stderr
    zdm("doctor")


def test_a_run_without_phase_never_switches_reads(zdm, database_of):
    zdm("run", NAME)
    zdm("run", NAME)
    assert state(zdm) == "validated"


def test_rollback_says_what_is_undone_and_needs_a_yes(zdm, database_of):
    before = columns(database_of)
    zdm("run", NAME, "--json")
    refused = zdm("rollback", NAME, "--to", "rolled_back", status=2).stderr
    assert "constraints and indexes on display_name are removed" in refused
    assert "column display_name is dropped" in refused
    assert state(zdm) == "validated"
    assert json.loads(zdm("rollback", NAME, "--to", "expanded", "--yes", "--json").stdout)["state"] == "expanded"
    zdm("rollback", NAME, "--to", "rolled_back", "-y")
    assert columns(database_of) == before
    assert "has no flag" in zdm("flag", NAME, status=1).stderr
    assert "never" not in zdm("run", NAME).output


def test_one_range_and_repair(zdm, database_of):
    zdm("run", NAME, "--to", "expand")
    partition = one(database_of, "SELECT partition FROM zdm.range ORDER BY ordinal OFFSET 1")
    (report,) = json.loads(zdm("run", NAME, "--phase", "backfill", "--partition", partition, "--json").stdout)
    assert report["facts"]["ranges"] == [partition]
    assert state(zdm) == "backfilling"
    zdm("run", NAME)
    with psycopg.connect(database_of, autocommit=True) as connection:
        connection.execute("SET zdm.backfill = 'on'")  # behind the sync trigger's back
        connection.execute("UPDATE users SET display_name = 'x' WHERE id = 7")
    # Who goes around the trigger leaves no trace for a validate that reads only what was written.
    assert "0 compared now" in zdm("run", NAME, "--phase", "validate").output
    assert "1 different (first keys: 7)" in zdm("run", NAME, "--phase", "validate", "--full", status=1).output
    zdm("run", NAME, "--phase", "backfill", "--repair")
    zdm("run", NAME, "--phase", "validate")
    assert "is not in the ledger" in zdm("run", NAME, "--phase", "backfill", "--partition", "x", status=2).stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--percent", "5"),
        ("--repair",),
        ("--full",),
        ("--phase", "validate", "--to", "expand"),
        ("--to", "switch-reads"),
        ("--phase", "switch-reads", "--percent", "101"),
    ],
)
def test_options_that_do_not_fit_are_refused(zdm, words):
    zdm("run", NAME, *words, status=2)


def test_a_broken_sync_is_found_by_doctor(zdm, database_of):
    zdm("run", NAME)
    with psycopg.connect(database_of, autocommit=True) as connection:
        connection.execute("ALTER TABLE users DISABLE TRIGGER zzz_zdm_users_display_name_insert")
    assert "is disabled: old and new drift apart" in zdm("doctor", NAME, status=1).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_every_batch_and_says_how_to_go_on(zdm, database_of, defs, number):
    defs.write_text(defs.read_text().replace("range_rows: 500, batch_rows: 100", "range_rows: 2000, batch_rows: 5"))
    zdm("run", NAME, "--to", "expand")
    command = [sys.executable, "-m", "zdm_pipelines.cli", "run", NAME]
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not one(database_of, "SELECT sum(batches) FROM zdm.range"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "backfill was stopped" in said
    assert f"zdm run {NAME}" in said
    assert "Traceback" not in said
    moved = one(database_of, "SELECT sum(rows) FROM zdm.range")
    assert 0 < moved < 2000
    assert one(database_of, "SELECT count(*) FROM users WHERE display_name IS NOT NULL") == moved
    zdm("run", NAME)
    assert state(zdm) == "validated"
