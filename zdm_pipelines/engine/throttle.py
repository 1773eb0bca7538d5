"""Throttle: read how the database fares between batches, and say when to wait.

A signal that cannot be read counts as bad. Between `resume_below` and `pause_above` the last verdict stays.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import psycopg
from psycopg import errors

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.connection import Connection, connect, query, safe, scalar
from zdm_pipelines.model.errors import DatabaseUnreachable, Throttled
from zdm_pipelines.model.migration import Limit, Throttle
from zdm_pipelines.model.values import Catalog

_READ_EVERY = 0.5  # seconds; signals move slower than batches
_READ_DEADLINE = 2.0  # a signal that takes longer is bad news already
_SAMPLES = 20  # latencies kept: the last ten seconds or so

# Slowest connected replica. replay_lag is the delay of the last commit that was confirmed: once everything is
# replayed it must count as none, though the view keeps its last figure while the primary idles. A role without
# pg_monitor sees that there are replicas and nothing about them.
_LAG = """
SELECT coalesce(max(CASE WHEN replay_lsn >= pg_current_wal_lsn() THEN 0
  ELSE coalesce(extract(epoch FROM replay_lag), 0) END) FILTER (WHERE state IN ('streaming', 'catchup')), 0)::float8,
  count(*) FILTER (WHERE state IS NULL)
FROM pg_stat_replication"""


class _Signal:
    """One number with its two limits."""

    def __init__(self, name: str, limit: Limit, read: Callable[[Connection], float]) -> None:
        self.name = name
        self.limit = limit
        self.read = read
        self.paused = False
        self.value: float | None = None

    def judge(self, conn: Connection) -> str | None:
        """None when writing may go on, else the reason why not."""
        try:
            self.value = self.read(conn)
        except psycopg.Error as error:
            self.paused, self.value = True, None
            return f"{self.name} cannot be read ({safe(error)})"
        if self.value > self.limit.pause_above:
            self.paused = True
        elif self.value < self.limit.resume_below:
            self.paused = False
        return (
            f"{self.name} is {self.value:.3f} s, above {self.limit.pause_above:g} s; "
            f"goes on below {self.limit.resume_below:g} s"
            if self.paused
            else None
        )


class Governor:
    """Watches the declared signals of one database; shared by the workers of a run."""

    def __init__(self, url: str, throttle: Throttle, catalog: Catalog, *, tell: Callable[[str], None]) -> None:
        self._url = url
        self._max_wait = throttle.max_wait
        self._tell = tell
        self._lock = threading.Lock()
        self._conn: Connection | None = None
        self._read_at = 0.0
        self._reason: str | None = None
        self._latencies: deque[float] = deque(maxlen=_SAMPLES)
        # By the key's index: at the front of the heap a backfill leaves pages full of dead rows.
        self._canary = f"SELECT 1 FROM {catalog.table.sql} ORDER BY {keys.columns(catalog.key)} LIMIT 1"
        self.waited = 0.0
        self._signals = [
            _Signal(name, limit, read)
            for name, limit, read in (
                ("replication_lag", throttle.replication_lag, self._lag),
                ("latency_p95", throttle.latency_p95, self._latency),
            )
            if limit is not None
        ]

    def _lag(self, conn: Connection) -> float:
        lag, hidden = query(conn, _LAG)[0]
        if hidden:
            raise errors.InsufficientPrivilege(f"{hidden} replicas are hidden from the role: GRANT pg_monitor to it")
        return float(lag)

    def _latency(self, conn: Connection) -> float:
        begun = time.perf_counter()
        scalar(conn, self._canary)
        self._latencies.append(time.perf_counter() - begun)
        ordered = sorted(self._latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]

    def _connected(self) -> Connection:
        if self._conn is None or self._conn.closed:
            self._conn = connect(self._url, purpose="throttle")
            query(
                self._conn,
                "SELECT set_config('statement_timeout', $1, false)",
                [f"{_READ_DEADLINE * 1000:.0f}ms"],
            )
        return self._conn

    def reason(self) -> str | None:
        """Why to wait now, None when nothing stands against writing; read twice a second at most."""
        with self._lock:
            if time.monotonic() - self._read_at < _READ_EVERY:
                return self._reason
            try:
                conn = self._connected()
                verdicts = [s.judge(conn) for s in self._signals]
                self._reason = "; ".join(v for v in verdicts if v) or None
            except DatabaseUnreachable as error:
                self._reason = f"signals cannot be read: {error.fact}"
            self._read_at = time.monotonic()
            return self._reason

    def wait(self, stop: threading.Event | None = None) -> float:
        """Wait until writing may go on, or `stop` is set; returns the seconds waited.

        Raises:
            Throttled: `max_wait` passed.
        """
        begun = time.monotonic()
        told = ""
        while (reason := self.reason()) is not None:
            if told != reason.split(" is ")[0]:
                told = reason.split(" is ")[0]
                self._tell(f"waiting: {reason}")
            if time.monotonic() - begun > self._max_wait:
                raise Throttled(
                    "backfill",
                    f"waited {self._max_wait:g} s: {reason}",
                    "materialize these ranges again later: they go on from their checkpoints",
                )
            if stop is not None and stop.is_set():
                break
            time.sleep(0.1)
        waited = time.monotonic() - begun
        if told:
            self._tell(f"going on after {waited:.1f} s")
            self.waited += waited
        return waited

    def close(self) -> None:
        """Close the connection that reads the signals."""
        if self._conn is not None:
            self._conn.close()
