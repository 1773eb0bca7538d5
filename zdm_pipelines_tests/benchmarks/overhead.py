"""Dagster: what its book-keeping costs, a backfill of many small ranges launched as its UI does."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil

from zdm_pipelines.sandbox import processes
from zdm_pipelines.sandbox.dagster_services import DagsterServices
from zdm_pipelines_tests.acceptance.watched import Watched, watched
from zdm_pipelines_tests.benchmarks import memory
from zdm_pipelines_tests.benchmarks.case import Figure, Setting, Target, megabytes, number, seconds, times
from zdm_pipelines_tests.benchmarks.observer import observing

_ROUNDS = 3
_RANGES = (10, 100)
_ROWS = 20_000  # in both: only the number of ranges differs
_EVERY = 0.05  # seconds between two looks at the run's process
_SECONDS = Target(at_most=40.0)
_MEMORY = Target(at_most=250e6, of="worst")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One backfill."""

    wall: float  # seconds from the launch to COMPLETED_SUCCESS
    waited: float  # seconds of these until the first run began
    worked: float  # seconds of these in which runs were under way
    database: float  # seconds of these in which ranges were moved, at least
    runs: int
    memory: float  # bytes, of a run's process at its most


def run(setting: Setting) -> Sequence[Figure]:
    """Backfills of few and of many ranges in turns, each with a Dagster of its own."""
    seen: dict[int, list[Seen]] = {count: [] for count in _RANGES}
    rounds = setting.rounds or _ROUNDS
    for turn in range(1, rounds + 1):
        for count in _RANGES if turn % 2 else reversed(_RANGES):
            setting.tell(f"dagster: round {turn} of {rounds}, {count} ranges")
            seen[count].append(_backfill(setting, turn, count))
    return list(figures(seen))


def _backfill(setting: Setting, turn: int, count: int) -> Seen:
    section = {"range_rows": _ROWS // count, "batch_rows": 1_000}
    folder = setting.folder / f"{turn}-{count}"
    with watched(folder, rows=_ROWS, migration={"backfill": section}) as dagster:
        dagster.expand()
        with observing(lambda: _run_memory(dagster.services), every=_EVERY) as observed:
            begun, day = time.monotonic(), time.time()
            backfill = dagster.launch()
            status = dagster.client.wait_backfill(backfill, timeout=300)
            wall = time.monotonic() - begun
        if status != "COMPLETED_SUCCESS":
            raise RuntimeError(f"the backfill of {count} ranges ended as {status}")
        return _seen(dagster, backfill, day, wall, observed.most, count)


def _seen(dagster: Watched, backfill: str, day: float, wall: float, most: float, count: int) -> Seen:
    ranges, took = dagster.sql("SELECT count(*), sum(seconds) FROM zdm.range")[0]
    if ranges != count:
        raise RuntimeError(f"{ranges} ranges were cut, not {count}")
    runs = dagster.of_backfill(backfill)
    began, ended = min(run["startTime"] for run in runs), max(run["endTime"] for run in runs)
    # Two ranges are moved at once: the database is at work for half the sum at least.
    return Seen(
        wall=wall, waited=began - day, worked=ended - began, database=float(took) / 2, runs=len(runs), memory=most
    )


def _run_memory(services: DagsterServices) -> float:
    """Bytes of the largest process of a run, at its most."""
    runs = (
        process
        for name in ("webserver", "daemon")
        for process in processes.descendants(services.pid(name))
        if _is_run(process)
    )
    return max((memory.peak(process.pid) for process in runs), default=0)


def _is_run(process: psutil.Process) -> bool:
    """Whether a code server started it for a run; its sensors and schedules work in its own process."""
    with contextlib.suppress(psutil.Error):
        return any("multiprocessing.spawn" in word for word in process.cmdline())
    return False


def figures(seen: Mapping[int, Sequence[Seen]]) -> Iterator[Figure]:
    """A line for each number of ranges, and the memory of many against that of few."""
    for count, rounds in seen.items():
        subject = f"{count} ranges"
        columns = {
            "launch to success": [each.wall for each in rounds],
            "until a run began": [each.waited for each in rounds],
            "runs": [each.worked for each in rounds],
            "database": [each.database for each in rounds],
            "runs without the database": [each.worked - each.database for each in rounds],
        }
        for name, samples in columns.items():
            yield Figure(name=name, samples=samples, show=seconds, subject=subject)
        beside = [each.wall - each.database for each in rounds]
        target = _SECONDS if count == max(seen) else None
        yield Figure(name="without the database", samples=beside, show=seconds, subject=subject, target=target)
        yield Figure(name="number of runs", samples=[each.runs for each in rounds], show=number, subject=subject)
        used = [each.memory for each in rounds]
        yield Figure(name="memory of a run", samples=used, show=megabytes, subject=subject, target=_MEMORY)
    few, many = min(seen), max(seen)
    ratio = [large.memory / small.memory for large, small in zip(seen[many], seen[few], strict=True)]
    yield Figure(name=f"memory, {many} ranges against {few}", samples=ratio, show=times)
