"""Worker, daemon and web server are killed in turn, while a backfill is held and while it resumes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from zdm_pipelines.verbs import pause
from zdm_pipelines_tests.acceptance.watched import BACKFILL, Watched, materializations, watched
from zdm_pipelines_tests.helpers import replaced, work
from zdm_pipelines_tests.integration.dagster_migration import NAME

ROWS = 12_000
SLOW = {
    "backfill": {"range_rows": 2_000, "batch_rows": 50},
    "throttle": {"replication_lag": {"pause_above": "1s", "resume_below": "500ms"}, "latency_p95": None, "nice": 20},
}


@pytest.fixture
def slow(tmp_path) -> Iterator[Watched]:
    with watched(tmp_path, rows=ROWS, migration=SLOW) as found:
        yield found


def kill_worker(slow: Watched) -> None:
    """SIGKILL the process that moves rows, found by the port of its session."""
    ports = {
        row[0] for row in slow.sql("SELECT client_port FROM pg_stat_activity WHERE application_name LIKE '% throttle'")
    }
    for connection in psutil.net_connections("tcp"):
        if connection.laddr and connection.laddr.port in ports and connection.pid:
            psutil.Process(connection.pid).kill()
            return
    raise AssertionError("no worker is connected")


def statuses(slow: Watched, backfill: str) -> Counter[str]:
    return Counter(run["status"] for run in slow.of_backfill(backfill))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_in_turn(slow: Watched) -> None:
    slow.expand()
    backfill = slow.launch()
    slow.until(lambda: slow.moved() > 500, "rows are moved")

    # Held by an operator: the worker waits, and is killed.
    assert slow.client.wait(slow.client.launch_job(f"pause_{NAME}")).status == "SUCCESS"
    assert slow.holds() == {"operator": "paused in the UI"}
    slow.until(lambda: slow.still(1.5), "writing stops")
    held_at = slow.moved()
    kill_worker(slow)
    slow.until(lambda: statuses(slow, backfill) == {"FAILURE": 1, "QUEUED": 1}, "Dagster queues it again")
    assert slow.backfill_page(backfill)["status"] == "REQUESTED"

    # The web server and the daemon are killed while it is held; nobody lifts an operator's hold.
    slow.services.kill("webserver")
    slow.services.kill("daemon")
    slow.services.restart("webserver")
    slow.services.restart("daemon")
    slow.services.wait_ready()
    time.sleep(12)  # more than a tick of each sensor
    assert slow.holds() == {"operator": "paused in the UI"}
    assert slow.moved() == held_at
    assert statuses(slow, backfill) == {"FAILURE": 1, "QUEUED": 1}

    # Killed while it resumes: daemon and web server at once, then the worker.
    assert slow.client.wait(slow.client.launch_job(f"resume_{NAME}")).status == "SUCCESS"
    for service in ("daemon", "webserver"):
        slow.services.kill(service)
        slow.services.restart(service)
    slow.services.wait_ready()
    # A daemon that dies between taking a run from the queue and launching it leaves a run that never starts: Dagster
    # fails such a run after start_timeout_seconds, at its monitor's next look.
    slow.until(lambda: slow.moved() > held_at + 500, "rows are moved again", timeout=240)
    never_started = statuses(slow, backfill)["FAILURE"] - 1
    assert never_started in (0, 1)
    kill_worker(slow)
    killed_at = slow.moved()
    slow.until(lambda: slow.moved() > killed_at + 500, "rows are moved once more", timeout=120)
    slow.tune("throttle: {nice: 0}")

    assert slow.client.wait_backfill(backfill, timeout=200) == "COMPLETED_SUCCESS"
    assert statuses(slow, backfill) == {"FAILURE": 2 + never_started, "SUCCESS": 1}
    page = slow.backfill_page(backfill)
    assert (page["numPartitionsMaterialized"], page["numPartitionsFailed"]) == (6, 0)
    assert slow.moved() == ROWS  # counted with each batch: none was repeated
    assert slow.one("SELECT count(*) FROM users WHERE display_name IS DISTINCT FROM full_name") == 0
    assert set(materializations(slow)) == set(slow.client.partitions(BACKFILL))
    assert max(materializations(slow).values()) == 1


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_governors_alone_protect_the_database(slow: Watched) -> None:
    """The daemon is dead: no sensor, no schedule. Holds of signals expire, and the run still stops and goes on."""
    slow.expand()
    backfill = slow.launch()
    slow.until(lambda: slow.moved() > 500, "rows are moved")
    slow.services.kill("daemon")
    slow.replay("pause")
    slow.until(lambda: slow.still(1.5), "writing stops")
    held_at = slow.moved()
    time.sleep(50)  # longer than a signal's hold stands unless somebody renews it
    assert slow.moved() == held_at
    assert "replication_lag is" in slow.holds()["signal:replication_lag"]
    slow.replay("resume")
    slow.until(lambda: slow.moved() > held_at, "writing goes on")
    assert [run["status"] for run in slow.of_backfill(backfill)] == ["STARTED"]
    # Tuned while it runs, by the ledger alone.
    pause.tune(work(replaced(name=NAME), slow.url), {"throttle": {"nice": 0}})
    slow.until(lambda: slow.moved() == ROWS, "every row is moved", timeout=20)
    slow.services.restart("daemon")
    slow.services.wait_ready()
    assert slow.client.wait_backfill(backfill, timeout=100) == "COMPLETED_SUCCESS"
