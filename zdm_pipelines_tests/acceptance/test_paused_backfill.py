"""A backfill launched in the UI is held, waits, is paused and resumed; every page tells the truth meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest

from zdm_pipelines_tests.acceptance.watched import BACKFILL, Watched, materializations, watched
from zdm_pipelines_tests.integration.dagster_migration import DECLARED

ROWS = 20_000
SLOW = {
    "backfill": {"range_rows": 2_000, "batch_rows": 50},
    "throttle": {
        "replication_lag": {"pause_above": "1s", "resume_below": "500ms"},
        "latency_p95": {"pause_above": "10s", "resume_below": "5s"},
        "max_wait": "8s",
        "nice": 20,
    },
}


@pytest.fixture
def slow(tmp_path) -> Iterator[Watched]:
    another = {**DECLARED, "name": "another", "table": "public.others"}  # of the same database, not begun
    with watched(tmp_path, rows=ROWS, migration=SLOW, more={"another": another}) as found:
        yield found


def told_of_lag(slow: Watched) -> bool:
    return any(
        "is held: replication_lag is" in (tick["skipReason"] or "") for tick in slow.ticks("app_replication_lag")
    )


def more_than(slow: Watched, rows: int) -> bool:
    return slow.moved() > rows


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_throttled_three_times_once_for_longer_than_a_run_waits(slow: Watched) -> None:
    slow.expand()
    backfill = slow.launch()
    for _ in range(2):
        before = slow.moved()
        slow.until(partial(more_than, slow, before + 1_000), "rows are moved")
        slow.replay("pause")
        slow.until(lambda: "signal:replication_lag" in slow.holds(), "the hold stands")
        slow.until(lambda: slow.still(1.5), "writing stops")
        assert [run["status"] for run in slow.of_backfill(backfill)] == ["STARTED"]
        slow.replay("resume")
    before = slow.moved()
    slow.until(lambda: slow.moved() > before + 1_000, "rows are moved again")
    readings = slow.until(lambda: slow.asset_page("app", "replication_lag")["assetObservations"], "readings are kept")
    slow.replay("pause")
    ended = slow.until(
        lambda: [r for r in slow.of_backfill(backfill) if r["tags"].get("zdm/ended") == "paused" and r["endTime"]],
        "the run is paused",
    )
    assert [(run["status"], run["tags"]["zdm/ended"]) for run in ended] == [("SUCCESS", "paused")]
    assert "replication_lag is" in ended[0]["tags"]["zdm/reason"]
    by_status = {run["status"]: run for run in slow.of_backfill(backfill)}
    assert set(by_status) == {"SUCCESS", "QUEUED"}  # what is left waits in the queue
    assert by_status["QUEUED"]["tags"]["zdm/continues"] == ended[0]["runId"]
    done = slow.asset_page(*BACKFILL)["partitionStats"]
    slow.until(partial(told_of_lag, slow), "the sensor's tick says why")
    for sensor in ("app_replication_lag", "app_latency_p95"):
        slow.stop_sensor(sensor)  # from here on the schedule is alone
    time.sleep(25)  # the backfill daemon looks every 30 s, and must not call it ended
    assert slow.backfill_page(backfill)["status"] == "REQUESTED"
    assert slow.backfill_page(backfill)["numPartitionsFailed"] == 0
    assert slow.asset_page(*BACKFILL)["partitionStats"] == done
    assert done["numFailed"] == 0
    assert {run["status"] for run in slow.of_backfill(backfill)} == {"SUCCESS", "QUEUED"}
    assert slow.still(2)

    slow.replay("resume")
    before = slow.moved()
    slow.until(lambda: slow.moved() > before, "the schedule resumes it", timeout=100)
    slow.tune("throttle: {nice: 0}")  # that was enough time
    assert slow.client.wait_backfill(backfill, timeout=200) == "COMPLETED_SUCCESS"
    assert {run["status"] for run in slow.of_backfill(backfill)} == {"SUCCESS"}
    assert slow.asset_page(*BACKFILL)["partitionStats"]["numMaterialized"] == 10
    assert slow.moved() == ROWS  # no range was done twice
    assert slow.one("SELECT count(*) FROM users WHERE display_name IS DISTINCT FROM full_name") == 0
    assert materializations(slow) == Counter(dict.fromkeys(slow.client.partitions(BACKFILL), 1))
    values = [entry["floatValue"] for r in readings for entry in r["metadataEntries"] if entry["label"] == "value"]
    assert values  # a plot in the UI
