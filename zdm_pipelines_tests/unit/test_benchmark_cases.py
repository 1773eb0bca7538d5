"""The benchmarks' cases: what they make of what they saw; no time is measured here."""

from __future__ import annotations

import pytest

from zdm_pipelines_tests.benchmarks import backfill, contenders, latency
from zdm_pipelines_tests.benchmarks.backfill import Seen, Variant


def seen(took: float) -> Seen:
    return Seen(seconds=took, speed=1000 / took, wal=100.0, table=50.0, indexes=10.0, hot=0.5, dead=0.2, memory=80e6)


def runs(*took: float) -> dict[str, list[Seen]]:
    names = (backfill.PLAIN, backfill.TOUCH, backfill.OURS, "ours strided, 2 at once")
    return {name: [seen(each), seen(each * 2)] for name, each in zip(names, took, strict=True)}


def test_ratios_are_of_the_same_round() -> None:
    variant = Variant(rows=1_000, key="bigint", indexes=2)
    found = {(f.subject, f.name): f for f in backfill.figures(variant, runs(1.0, 3.0, 0.9, 0.8))}
    ratio = found[backfill.OURS, "time ratio"]
    assert ratio.samples == [0.9, 0.9]
    assert ratio.met
    assert found[backfill.OURS, "times as fast as touch-update"].median == pytest.approx(10 / 3)
    assert found[backfill.PLAIN, "time ratio"].target is None
    assert found[backfill.OURS, "WAL ratio"].met is False


def test_the_speed_of_two_sizes_is_compared() -> None:
    small, large = (Variant(rows=rows, key="uuid", indexes=2) for rows in (1_000, 5_000))
    assert list(backfill.linearity({small: runs(1, 1, 1, 1)})) == []
    found = list(backfill.linearity({small: runs(1, 1, 1, 1), large: runs(1, 1, 1.25, 1)}))
    assert [figure.met for figure in found] == [False, True]
    assert found[0].median == pytest.approx(0.8)


def test_only_the_application_s_waits_for_rows_count() -> None:
    log = (
        "pgbench|LOG:  process 12 still waiting for ShareLock on transaction 800 after 1.052 ms\n"
        "pgbench|DETAIL:  Process holding the lock: 11. Wait queue: 12.\n"
        "pgbench|LOG:  process 12 acquired ShareLock on transaction 800 after 12.500 ms\n"
        "pgbench|LOG:  process 13 acquired ExclusiveLock on tuple (3,7) of relation 16390 of database 5 after 2.000 ms\n"
        "pgbench|LOG:  process 13 acquired ExclusiveLock on extension of relation 16390 of database 5 after 9.000 ms\n"
        "zdm users|LOG:  process 14 acquired ShareLock on transaction 801 after 99.000 ms\n"
    )
    assert latency.waits(log) == [0.0125, 0.002]


def test_our_contenders_are_declared_as_migrations() -> None:
    assert contenders.migration({"passes": 1, "max_parallel": 1}).backfill.passes == 1
    assert contenders.migration({}).backfill.passes is None
