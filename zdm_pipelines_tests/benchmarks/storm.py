"""Storm: what a backfill does to the application's latency, with and without the governor."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from zdm_pipelines.engine import signals
from zdm_pipelines.engine.signals import Surroundings
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.throttle import Limit
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests.benchmarks.case import Figure, Setting, Target, milliseconds, per_second, percent, times
from zdm_pipelines_tests.benchmarks.foreground import Foreground, percentile
from zdm_pipelines_tests.benchmarks.worker import BackfillWorker
from zdm_pipelines_tests.helpers import expanded, replaced, sql, surveyed

_ROUNDS = 3
_SCALE = 40  # 4,000,000 rows, 530 MB: in memory, and more than an ungoverned backfill moves in a round
_SETTINGS = {"shared_buffers": "1GB", "max_wal_size": "8GB"}  # what is measured is load, not a checkpoint's luck
_CLIENTS = 8
_IDLE = 2.0  # seconds in which the signal is read before the storm
_WARM_UP = 1.0  # seconds of foreground before the backfill begins
_SECONDS = 10.0  # measured, from the moment the backfill begins
_WORKERS = 8
_BATCH_ROWS = 50_000  # as a script has it that nobody watches
_NO_TARGET = "60s"  # and that takes no smaller batches when they are slow

# A user's limits: some times of what `zdm doctor` shows of an idle database.
_PAUSE, _RESUME = 3.0, 1.5
_LEAST_PAUSE = 0.001  # seconds: below it the limit would be about the scheduler

_TEMPLATE = "storm_template"
_DATABASE = "storm"

Limits = dict[str, str]
NONE, OFF, ON = "no backfill", "governor off", "governor on"


@dataclass
class _Variant:
    """What was seen of a variant, a sample each round."""

    latencies: list[list[float]] = field(default_factory=list)
    speeds: list[float] = field(default_factory=list)  # rows per second
    held: list[float] = field(default_factory=list)  # share of the time, of all workers

    def percentiles(self, percent: float) -> list[float]:
        return [percentile(each, percent) for each in self.latencies]


def run(setting: Setting) -> Sequence[Figure]:
    """The application alone, beside a backfill that nothing holds, and beside one that the governor holds, in turns."""
    seen = {NONE: _Variant(), OFF: _Variant(), ON: _Variant()}
    quiet: list[float] = []
    with Cluster(setting.folder / "storm", replica=False, settings=_SETTINGS) as cluster:
        server = cluster.primary
        setting.tell(f"storm: loading {_SCALE * 100_000:,} accounts")
        url = server.create_database(_TEMPLATE)
        server.run("pgbench", "-i", "-q", "-I", "dtGvp", "-s", str(_SCALE), database=_TEMPLATE)
        expanded(_migration(None), url)
        rounds = setting.rounds or _ROUNDS
        for number in range(1, rounds + 1):
            for name in _order(number):
                variant = seen[name]
                setting.tell(f"storm: round {number} of {rounds}, {name}")
                with _fresh(server) as url:
                    if name == NONE:
                        variant.latencies.append(_alone(server, url, quiet))
                    else:
                        limit = _limit(median(quiet)) if name == ON else None
                        _beside(server, url, _migration(limit), variant)
    return list(_figures(seen, quiet))


def _order(number: int) -> Sequence[str]:
    """Each round begins with another of the two backfills; without one comes first, because it says what is quiet."""
    return (NONE, OFF, ON) if number % 2 else (NONE, ON, OFF)


def _migration(limit: Limits | None) -> Migration:
    backfill = {"batch_rows": _BATCH_ROWS, "max_parallel": _WORKERS}
    return replaced(
        name="balance_in_cents",
        table="public.pgbench_accounts",
        old="abalance",
        new={"name": "balance_cents", "type": "bigint"},
        up="abalance * 100",
        down="balance_cents / 100",
        backfill=backfill if limit else backfill | {"batch_target": _NO_TARGET},
        throttle={"latency_p95": limit},
    )


def _pause(quiet: float) -> float:
    return max(_LEAST_PAUSE, quiet * _PAUSE)


def _limit(quiet: float) -> Limits:
    pause = _pause(quiet) * 1000
    return {"pause_above": f"{pause:.1f}ms", "resume_below": f"{pause * _RESUME / _PAUSE:.1f}ms"}


@contextmanager
def _fresh(server: Server) -> Iterator[str]:
    """A database as it is when the backfill begins; what was written to make it is on the disk."""
    sql(server.url(), f"CREATE DATABASE {_DATABASE} TEMPLATE {_TEMPLATE} STRATEGY file_copy")
    url = server.url(_DATABASE)
    try:
        sql(url, "SELECT count(aid) FROM pgbench_accounts WHERE aid % 10 = 0")
        sql(url, "CHECKPOINT")
        os.sync()
        yield url
    finally:
        server.drop_database(_DATABASE)


def _foreground(server: Server) -> Foreground:
    foreground = Foreground(server, _DATABASE, clients=_CLIENTS, seconds=_WARM_UP + _SECONDS + 1)
    time.sleep(_WARM_UP)
    return foreground


def _alone(server: Server, url: str, quiet: list[float]) -> list[float]:
    """Latencies of the foreground; and what the signal says before it begins, as `zdm doctor` would show."""
    catalog = surveyed(_migration(None), url)
    canary = signals.signal_named("latency_p95", Limit(pause_above=1), Surroundings(url=url, catalog=catalog))
    said: list[float] = []
    until = time.monotonic() + _IDLE
    while time.monotonic() < until:
        said.append(float(canary.read().value))
        time.sleep(canary.every)
    canary.close()
    quiet.append(said[-1])
    foreground = _foreground(server)
    begun = time.monotonic()
    return foreground.latencies(begun, begun + _SECONDS)


def _beside(server: Server, url: str, migration: Migration, variant: _Variant) -> None:
    with BackfillWorker(migration, url, places=_WORKERS) as worker:
        foreground = _foreground(server)
        begun = worker.begin()
        variant.latencies.append(foreground.latencies(begun, begun + _SECONDS))
        if worker.ended and worker.batches and worker.batches[-1].at < begun + _SECONDS:
            raise RuntimeError(f"the backfill was done in less than {_SECONDS:g} s: raise _SCALE")
    variant.speeds.append(worker.rows(begun, begun + _SECONDS) / _SECONDS)
    variant.held.append(worker.held(begun, begun + _SECONDS) / (_SECONDS * _WORKERS))


def _figures(seen: dict[str, _Variant], quiet: list[float]) -> Iterator[Figure]:
    alone = median(seen[NONE].percentiles(99))
    yield Figure(name="latency_p95 without backfill", samples=quiet, show=milliseconds)
    yield Figure(
        name="pause_above declared",
        samples=[_pause(median(quiet[: n + 1])) for n in range(len(quiet))],
        show=milliseconds,
    )
    for name, variant in seen.items():
        for share in (50, 95, 99):
            yield Figure(name=f"{name}: p{share}", samples=variant.percentiles(share), show=milliseconds)
        if name != NONE:
            target = Target(at_least=3.0) if name == OFF else Target(at_most=1.5)
            ratio = [each / alone for each in variant.percentiles(99)]
            yield Figure(name=f"{name}: p99 against no backfill", samples=ratio, show=times, target=target)
            yield Figure(name=f"{name}: rows moved", samples=variant.speeds, show=per_second)
            yield Figure(name=f"{name}: time held", samples=variant.held, show=percent)
