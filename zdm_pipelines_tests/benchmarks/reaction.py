"""Reaction: how soon a backfill stops when a replica falls behind, and how soon it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import psycopg

from zdm_pipelines.model.migration import Migration
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines_tests.benchmarks.case import Figure, Setting, Target, seconds
from zdm_pipelines_tests.benchmarks.worker import BackfillWorker
from zdm_pipelines_tests.helpers import expanded, one, people, replaced

_ROUNDS = 3  # of each way to stop the replica
_ROWS = 1_500_000  # more than are moved in all rounds, at the speed that `nice` leaves
_NICE = 4.0  # the backfill works a fifth of the time, so that it lasts; between its batches it can stop at once
_FLOWING = 1.0  # seconds of undisturbed backfill before the replica stops
_PAUSE_ABOVE = 2.0  # seconds, as declared below
_SURELY_HELD = 2.5  # seconds past the limit, after which the last batch before it is known
_PATIENCE = 30.0  # seconds for whatever must happen

_STOPS = Target(at_most=1.0, of="worst")
_GOES_ON = Target(at_most=2.0, of="worst")

Stopped = Callable[[Cluster], AbstractContextManager[Callable[[], None]]]


def run(setting: Setting) -> Sequence[Figure]:
    """Stop the replica in three ways, again and again, under a backfill.

    The backfill writes WAL all the time, so the oldest WAL that a replica which stops at t0 lacks was written at t0: the
    lag passes `pause_above` at t0 + pause_above. What the signal needs to see that, and the batch under way, is the
    reaction.
    """
    rounds = setting.rounds or _ROUNDS
    ways = {"replay paused": _paused, "receiver stopped": _receiver, "startup process stopped": _startup}
    stopped: dict[str, list[float]] = {way: [] for way in ways}
    went_on: dict[str, list[float]] = {way: [] for way in ways}
    after_caught_up: dict[str, list[float]] = {way: [] for way in ways}
    with Cluster(setting.folder / "reaction") as cluster:
        url = cluster.primary.create_database("reaction")
        setting.tell(f"reaction: loading {_ROWS:,} rows")
        people(url, _ROWS)
        expanded(_migration(), url)
        cluster.wait_caught_up(_PATIENCE)
        with BackfillWorker(_migration(), url) as worker:
            worker.begin()
            for number in range(1, rounds + 1):
                for way, stop in ways.items():
                    setting.tell(f"reaction: round {number} of {rounds}, {way}")
                    _await_flow(worker)
                    to_last, to_first, from_caught_up = _one_round(cluster, worker, stop)
                    stopped[way].append(to_last)
                    went_on[way].append(to_first)
                    after_caught_up[way].append(from_caught_up)
    return [
        figure
        for way in ways
        for figure in (
            Figure(name=f"{way}: to the last batch", samples=stopped[way], show=seconds, target=_STOPS),
            Figure(name=f"{way}: from release to the first batch", samples=went_on[way], show=seconds, target=_GOES_ON),
            Figure(
                name=f"{way}: from caught up to the first batch",
                samples=after_caught_up[way], show=seconds, target=_GOES_ON,
            ),
        )
    ]  # fmt: skip


def _migration() -> Migration:
    return replaced(
        backfill={"batch_rows": 1_000},
        throttle={"replication_lag": {"pause_above": "2s", "resume_below": "1s"}, "nice": _NICE},
    )


def _await_flow(worker: BackfillWorker) -> None:
    """Wait until batches have come without a gap for a while."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        now = time.monotonic()
        recent = [batch.at for batch in list(worker.batches) if batch.at > now - _FLOWING]
        if recent and recent[0] < now - _FLOWING * 0.7 and recent[-1] > now - _FLOWING * 0.3:
            return
        _still_working(worker, deadline)
        time.sleep(0.02)


def _one_round(cluster: Cluster, worker: BackfillWorker, stop: Stopped) -> tuple[float, float, float]:
    """Seconds: from the limit to the last batch, from the release to the first, from caught up to the first."""
    with stop(cluster) as release:
        passed = time.monotonic() + _PAUSE_ABOVE
        time.sleep(_PAUSE_ABOVE + _SURELY_HELD)
        before = len(worker.batches)
        last = worker.batches[-1].at
        written = one(cluster.primary.url(), "SELECT pg_current_wal_insert_lsn()::text")
        released = time.monotonic()
        release()
        caught_up = _await_replay(cluster, written)
        deadline = time.monotonic() + _PATIENCE
        while len(worker.batches) == before:
            _still_working(worker, deadline)
            time.sleep(0.005)
        first = worker.batches[before].at
    return last - passed, first - released, first - caught_up


def _await_replay(cluster: Cluster, lsn: str) -> float:
    """Ask the replica itself, until it has replayed so much; the moment."""
    deadline = time.monotonic() + _PATIENCE
    with psycopg.connect(cluster.replica.url(), autocommit=True) as conn:
        while conn.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [lsn]).fetchone() != (True,):
            if time.monotonic() > deadline:
                raise RuntimeError("the replica does not catch up")
            time.sleep(0.01)
    return time.monotonic()


def _still_working(worker: BackfillWorker, deadline: float) -> None:
    if worker.ended:
        raise RuntimeError(worker.error or "the backfill was done too early: raise _ROWS")
    if time.monotonic() > deadline:
        raise RuntimeError(f"no batch for {_PATIENCE:g} s: {worker.said[-3:]}")


# -- ways to stop a replica -------------------------------------------------------------------------------


@contextmanager
def _paused(cluster: Cluster) -> Iterator[Callable[[], None]]:
    with psycopg.connect(cluster.replica.url(), autocommit=True) as conn:

        def release() -> None:
            conn.execute("SELECT pg_wal_replay_resume()")

        conn.execute("SELECT pg_wal_replay_pause()")
        try:
            while conn.execute("SELECT pg_get_wal_replay_pause_state()").fetchone() != ("paused",):
                time.sleep(0.005)
            yield release
        finally:
            release()


@contextmanager
def _frozen(cluster: Cluster, title: str) -> Iterator[Callable[[], None]]:
    process = cluster.replica.process(title)

    def release() -> None:
        process.resume()

    process.suspend()
    try:
        yield release
    finally:
        release()


def _receiver(cluster: Cluster) -> AbstractContextManager[Callable[[], None]]:
    return _frozen(cluster, "walreceiver")


def _startup(cluster: Cluster) -> AbstractContextManager[Callable[[], None]]:
    return _frozen(cluster, "startup")
