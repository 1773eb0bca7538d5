"""The zdm command steers what runs: pause, resume and tune, and what status and doctor say meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zdm_pipelines import project
from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.engine import tuning
from zdm_pipelines_tests.helpers import eventually, one, sql

NAME = "users_display_name"
ROOT = Path(__file__).resolve().parents[2]
Say = Callable[..., Any]
Start = Callable[[], subprocess.Popen[str]]

# Batches of five rows, about a tenth of a second apart: long enough to steer, short enough to wait for.
SLOW = "range_rows: 2000, batch_rows: 5, max_parallel: 1"
NICE = "{replication_lag: null, latency_p95: null, nice: 5}"


@pytest.fixture
def slow(zdm: Say, defs: Path, database_of: str) -> str:
    """An expanded migration whose backfill takes a while; the URL of its database."""
    declared = defs.read_text()
    declared = declared.replace("range_rows: 500, batch_rows: 100", SLOW)
    defs.write_text(declared.replace("{replication_lag: null, latency_p95: null}", NICE))
    zdm("run", NAME, "--to", "expand")
    return database_of


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `zdm run` in a process of its own."""
    started: list[subprocess.Popen[str]] = []

    def run() -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "zdm_pipelines.cli", "run", NAME, "--phase", "backfill"],
                env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "60"},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def moved(url: str) -> int:
    return int(one(url, "SELECT coalesce(sum(rows), 0) FROM zdm.range"))


def goes_on(url: str) -> None:
    """Wait until more is moved."""
    before = moved(url)
    eventually(lambda: moved(url) > before, timeout=60)


def stands_still(url: str, seconds: float = 1.5) -> None:
    """Nothing is moved for a while, at the latest after the batch under way."""
    seen: list[tuple[int, float]] = []

    def still() -> bool:
        now, at = one(url, "SELECT sum(rows) FROM zdm.range"), one(url, "SELECT extract(epoch FROM clock_timestamp())")
        if not seen or seen[-1][0] != now:
            seen.append((now, float(at)))
        return float(at) - seen[-1][1] > seconds

    eventually(still, timeout=60)


def held(zdm: Say) -> list[str]:
    return [h["owner"] for h in json.loads(zdm("status", NAME, "--json").stdout)["holds"]]


# -- pause and resume -------------------------------------------------------------------------------------------------


def test_pause_stops_a_run_at_a_batch_and_resume_lets_it_go_on(zdm, slow, start):
    process = start()
    goes_on(slow)
    said = zdm("pause", NAME, "--reason", "a long reason, which a narrow terminal or a log must not cut off").stdout
    assert "operator: a long reason" in said
    assert f"zdm resume {NAME}" in said
    stands_still(slow)
    rows = moved(slow)
    assert 0 < rows < 2000
    assert one(slow, "SELECT count(display_name) FROM users") == rows  # whole batches
    assert process.poll() is None
    assert f"nothing holds {NAME}" in zdm("resume", NAME).stdout
    goes_on(slow)
    zdm("tune", NAME, "backfill.batch_rows=1000", "throttle.nice=0")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "waiting: a long reason, which a narrow terminal or a log must not cut off (hold of operator)" in said
    assert "going on after" in said
    assert moved(slow) == 2000
    events = [e for e in json.loads(zdm("status", NAME, "--json").stdout)["events"] if "operator" in e]
    assert len(events) == 2


def test_interrupted_while_it_waits_it_ends_at_once(zdm, slow, start):
    zdm("pause", NAME)
    process = start()
    eventually(lambda: one(slow, "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'zdm % throttle'"))
    time.sleep(0.5)  # longer than what is no news
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "backfill was stopped" in said
    assert "going on after" not in said
    assert moved(slow) == 0


def test_each_owner_lifts_their_own_hold(zdm, slow):
    zdm("pause", NAME, "--reason", "the night shift")
    zdm("pause", NAME, "--owner", "an na", "--reason", "an import")
    still = zdm("resume", NAME).stdout
    assert "an import" in still
    assert f"zdm resume {NAME} --owner 'an na'" in still
    assert "the night shift" not in still
    assert held(zdm) == ["an na"]
    again = zdm("resume", NAME)
    assert f"operator had placed no hold on {NAME}" in again.stderr
    assert held(zdm) == ["an na"]
    assert json.loads(zdm("resume", NAME, "--owner", "an na", "--json").stdout)["holds"] == []


def test_a_pause_says_who_when_it_says_nothing_else(zdm, slow, monkeypatch):
    monkeypatch.setenv("LOGNAME", "anna")
    assert "paused by anna" in zdm("pause", NAME).stdout


def test_a_signals_hold_is_nobodys_to_place_or_lift(zdm, slow):
    for verb in ("pause", "resume"):
        assert "by what it speaks of" in zdm(verb, NAME, "--owner", "signal:latency_p95", status=2).stderr


def test_the_whole_database_is_held(zdm, slow, defs):
    other = defs.read_text().partition("---\n")[2].replace(NAME, "users_other").replace("display_name", "other")
    defs.write_text(f"{defs.read_text()}---\n{other}")
    said = zdm("pause", NAME, "--database", "--reason", "a failover").stdout
    assert "holds every migration of the database" in said
    assert f"zdm resume {NAME} --database" in said
    both = {one["migration"]: [h["reason"] for h in one["holds"]] for one in json.loads(zdm("status", "--json").stdout)}
    assert both == {NAME: ["a failover"], "users_other": ["a failover"]}
    assert zdm("status").stdout.count("held: operator") == 2
    # Another hold, of one migration: it is another one's to lift.
    assert "a failover" in zdm("resume", NAME).stdout
    assert "nothing holds users_other" in zdm("resume", "users_other", "--database").stdout


def test_a_hold_that_stands_too_long_ends_the_run_as_failed(zdm, slow):
    zdm("pause", NAME, "--reason", "a deployment")
    zdm("tune", NAME, "throttle.max_wait=1s")
    result = zdm("run", NAME, status=1)
    assert "a deployment (hold of operator)" in result.stderr
    assert f"zdm run {NAME} goes on" in result.stderr
    assert moved(slow) == 0


def test_without_a_ledger_there_is_nothing_to_hold(zdm, database_of):
    assert "has no ledger yet" in zdm("pause", NAME, status=1).stderr
    assert "has no ledger yet" in zdm("tune", NAME, "throttle.nice=1", status=1).stderr
    assert f"nothing holds {NAME}" in zdm("resume", NAME).stdout
    assert "backfill.batch_rows" in zdm("tune", NAME).stdout
    zdm("tune", NAME, "--reset")


def test_a_run_knows_what_its_database_declares(zdm, slow, defs):
    defs.write_text(defs.read_text().replace("name: app\n---", "name: app\n  replicas: [ZDM_NOWHERE_URL]\n---"))
    assert "export ZDM_NOWHERE_URL=" in zdm("run", NAME, status=2).stderr


# -- status -----------------------------------------------------------------------------------------------------------


def test_status_shows_a_closed_window_and_no_run_writes_in_it(zdm, slow, defs):
    hour = one(slow, "SELECT extract(hour FROM clock_timestamp() AT TIME ZONE 'UTC')::int")
    window = f"{(hour + 2) % 24:02}:00-{(hour + 3) % 24:02}:00 UTC"
    defs.write_text(defs.read_text().replace("  contract:", f"  allowed: {window}\n  contract:"))
    # What is declared holds from the next run on, which publishes it.
    defs.write_text(defs.read_text().replace("nice: 5", "max_wait: 500ms"))
    assert f"outside {window}; opens at" in zdm("run", NAME, status=1).stderr
    said = zdm("status", NAME).stdout
    assert f"window: outside {window}" in said
    assert "zdm resume" not in said
    assert "held: window" in zdm("status").stdout
    assert held(zdm) == ["window"]
    assert "paused by" in zdm("pause", NAME).stdout  # no more is asked, for a pause waits for nothing
    assert "outside" in zdm("resume", NAME).stdout
    assert moved(slow) == 0


def test_status_says_how_long_a_hold_stands(zdm, slow):
    zdm("pause", NAME, "--reason", "an incident")
    sql(slow, "UPDATE zdm.hold SET since = since - interval '2 hours'")
    assert re.search(r"held +operator: an incident \(for 2 h\)", zdm("status", NAME).stdout)
    assert "an incident" in zdm("doctor", NAME).stdout


# -- tune -------------------------------------------------------------------------------------------------------------


def test_tune_takes_effect_in_a_running_backfill(zdm, slow, start):
    start()
    goes_on(slow)
    zdm("tune", NAME, "backfill.batch_rows=60", "backfill.batch_target=10s", "throttle.nice=1")
    largest = (
        "SELECT max(rows) FROM (SELECT count(*) AS rows FROM users WHERE display_name IS NOT NULL GROUP BY xmin) x"
    )
    eventually(lambda: one(slow, largest) >= 60)
    assert one(slow, largest) == 60


def test_tune_shows_what_was_tuned_and_what_is_declared(zdm, slow, defs):
    said = zdm(
        "tune", NAME, "backfill.batch_rows=7", "throttle.wal_rate.pause_above=64MB", "throttle.max_wait=1m"
    ).stdout
    assert re.search(r"backfill\.batch_rows +7 +tuned; declared: 5\n", said)
    assert re.search(r"throttle\.wal_rate +\{pause_above: 64MB\} +tuned; declared: null\n", said)
    assert re.search(r"throttle\.max_wait +1m +tuned; declared: 10m\n", said)
    assert re.search(r"backfill\.batch_target +250ms\n", said)
    assert "range_rows" not in said
    document = json.loads(zdm("tune", NAME, "--json").stdout)
    assert document["tuned"]["backfill"] == {"batch_rows": 7}
    assert document["settings"]["throttle"]["wal_rate"]["pause_above"] == "64MB"
    # New code that no run has published yet; what was tuned goes before it.
    with connected(slow, purpose="test") as conn:
        tuning.publish(conn, project.read(defs.parent).migration(NAME))
    defs.write_text(defs.read_text().replace("batch_rows: 5", "batch_rows: 6, batch_target: 1s"))
    said = zdm("tune", NAME).stdout
    assert re.search(r"backfill\.batch_rows +7 +tuned; declared: 6\n", said)
    assert re.search(r"backfill\.batch_target +250ms +declared: 1s, which holds once Dagster has loaded it\n", said)
    assert "tuned;" not in zdm("tune", NAME, "--reset").stdout
    assert any("tuning reset" in e for e in json.loads(zdm("status", NAME, "--json").stdout)["events"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["backfill.batch_row=5"], "did you mean backfill.batch_rows"),
        (["batch_rows=5"], "did you mean backfill.batch_rows?"),
        (["latency_p95=null"], "did you mean throttle.latency_p95?"),
        (["colour=red"], "keys: backfill.batch_rows, "),
        (["backfill.range_rows=5"], "expand cut the ranges with it; change it in defs.yaml and run expand again"),
        (["backfill.max_runs=5"], "it is the limit of Dagster's pool"),
        (["locks.timeout=1s"], "is no setting of a running backfill; change it in defs.yaml"),
        (["backfill.batch_rows"], "has no value; write backfill.batch_rows=VALUE"),
        (["throttle.latency_p95="], "null stops watching a signal"),
        (["backfill.batch_rows=0"], f"{NAME} backfill.batch_rows: Input should be greater than 0"),
        (["backfill.batch_rows=ten"], f"{NAME} backfill.batch_rows: "),
        (["backfill.batch_target=100"], "100 is not a duration"),
        (["throttle.nice=1", "throttle.nice=2"], "is given twice"),
        (["throttle.latency_p95=null", "throttle.latency_p95.pause_above=1s"], "is given twice"),
        (["throttle.latency_p95.pause_above=[1"], "is no YAML"),
        (["throttle.latency_p95={pause_above: 1s, resume_below: 2s}"], "resume_below is above pause_above"),
        (["throttle.wal_rate.resume_below=1MB"], f"{NAME} throttle.wal_rate.pause_above: Field required"),
        (["throttle.sql.query=SELECT 1"], "give the list as a whole"),
        (["throttle.sql=[{name: x, query: SELECT 1, pause_above: 1, colour: red}]"], "throttle.sql.0.colour"),
        (["allowed=at night"], "is not a window"),
        (["allowed=[22:00-06:00 Mars/Olympus]"], "is no time zone"),
        (["backfill.batch_rows=5", "--reset"], "--reset goes without KEY=VALUE"),
    ],
)
def test_tune_refuses_what_cannot_be_meant(zdm, slow, words, expected):
    result = zdm("tune", NAME, *words, status=2)
    assert expected in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())
    assert json.loads(zdm("tune", NAME, "--json").stdout)["tuned"] == {}


def test_windows_are_tuned_too_and_what_is_asked_is_not(zdm, slow):
    zdm("tune", NAME, "allowed=22:00-06:00 Europe/Berlin")
    settings = json.loads(zdm("tune", NAME, "--json").stdout)["settings"]
    assert settings["allowed"] == ["22:00-06:00 Europe/Berlin"]
    zdm("tune", NAME, "allowed=[]")
    said = zdm("tune", NAME, "throttle.sql=[{name: x, query: SELECT 1, pause_above: 5}]", status=2).stderr
    assert "asks something that is not declared" in said


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_reads_every_signal(zdm, database_of, defs):
    throttle = """{latency_p95: {pause_above: 10s}, replication_lag: {pause_above: 5m}, disk_used: {pause_above: 1B},
    sql: [{name: good, query: SELECT 3, pause_above: 5}, {name: nothing, query: 'SELECT NULL::int', pause_above: 5}]}"""
    defs.write_text(defs.read_text().replace("{replication_lag: null, latency_p95: null}", throttle))
    zdm("doctor", NAME, status=1)
    found = {f["fact"].split()[1]: f for f in facts(zdm, status=1) if f["fact"].startswith("signal ")}
    assert found["good"]["fact"] == "signal good is 3"
    assert found["good"]["verdict"] == "ok"
    assert found["disk_used"]["verdict"] == "warning"
    assert "above 1 B" in found["disk_used"]["fact"]
    assert found["nothing"]["verdict"] == "problem"
    assert "it gave NULL that is no finite number" in found["nothing"]["fact"]
    assert "throttle.sql" in found["nothing"]["way_out"]
    assert found["replication_lag"]["fact"] == "signal replication_lag is read once the migration has begun"
    assert found["replication_lag"]["verdict"] == "ok"
    zdm("run", NAME, "--to", "expand")
    found = {f["fact"].split()[1]: f for f in facts(zdm, status=1) if f["fact"].startswith("signal ")}
    assert re.search(r"replication_lag is \d", found["replication_lag"]["fact"])


def facts(zdm: Say, *, status: int = 0) -> list[dict[str, str]]:
    return list(json.loads(re.sub(r"^zdm: .*", "", zdm("doctor", NAME, "--json", status=status).stdout)))


def test_doctor_looks_at_declared_replicas(zdm, database_of, defs, cluster, monkeypatch):
    replicas = "  replicas: [ZDM_ONE_URL, ZDM_TWO_URL, ZDM_THREE_URL, ZDM_FOUR_URL]\n"
    defs.write_text(defs.read_text().replace("name: app\n---", f"name: app\n{replicas}---"))
    monkeypatch.setenv("ZDM_ONE_URL", cluster.replica.url(database_of.rsplit("/", 1)[1]))
    monkeypatch.setenv("ZDM_TWO_URL", database_of)
    monkeypatch.setenv("ZDM_THREE_URL", "postgresql://someone:hunter2@127.0.0.1:1/db")
    monkeypatch.delenv("ZDM_FOUR_URL", raising=False)
    zdm("run", NAME, "--to", "expand", status=0)
    cluster.wait_caught_up()
    found = {f["thing"]: f for f in facts(zdm, status=1) if f["thing"].startswith("replica ")}
    assert {thing.split("_")[1]: f["verdict"] for thing, f in found.items()} == {
        "ONE": "ok",
        "TWO": "warning",
        "THREE": "problem",
        "FOUR": "problem",
    }
    assert "hunter2" not in str(found)
