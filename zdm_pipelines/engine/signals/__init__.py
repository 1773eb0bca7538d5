"""Signals: one module each, behind one small protocol. To add one, write it and name it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zdm_pipelines.engine.signals.disk import DiskUsed
from zdm_pipelines.engine.signals.heartbeat import HeartbeatLag
from zdm_pipelines.engine.signals.http import Http
from zdm_pipelines.engine.signals.latency import Latency
from zdm_pipelines.engine.signals.locks import LockWaits
from zdm_pipelines.engine.signals.protocol import DEADLINE, Measured, OnPrimary, Session, Signal, Surroundings
from zdm_pipelines.engine.signals.replication import ReplicationLag, ReplicationLagBytes
from zdm_pipelines.engine.signals.sessions import ActiveSessions, WaitingSessions
from zdm_pipelines.engine.signals.sql import Sql
from zdm_pipelines.engine.signals.statements import Statements
from zdm_pipelines.engine.signals.transactions import OldestTransaction
from zdm_pipelines.engine.signals.vacuum import Autovacuum
from zdm_pipelines.engine.signals.wal import ArchiveBacklog, SlotRetention, WalRate
from zdm_pipelines.model.throttle import HttpLimit, Limit, SqlLimit, Throttle

__all__ = ["DEADLINE", "Measured", "OnPrimary", "Session", "Signal", "Surroundings", "declared", "of"]

# By the key in `throttle`.
_BUILT_IN: Mapping[str, Callable[[Surroundings], Signal]] = {
    "replication_lag": ReplicationLag,
    "replication_lag_bytes": ReplicationLagBytes,
    "heartbeat_lag": HeartbeatLag,
    "latency_p95": Latency,
    "statements_p95": Statements,
    "active_sessions": ActiveSessions,
    "waiting_sessions": WaitingSessions,
    "lock_waits": LockWaits,
    "wal_rate": WalRate,
    "archive_backlog": ArchiveBacklog,
    "slot_retention": SlotRetention,
    "autovacuum": Autovacuum,
    "oldest_transaction": OldestTransaction,
    "disk_used": DiskUsed,
}


def declared(throttle: Throttle, *, replicas: bool) -> dict[str, Limit]:
    """What is watched, by name.

    Args:
        replicas: whether the database declares replicas; without any there is no heartbeat to see.
    """
    return {name: limit for name, limit in throttle.limits() if replicas or name != "heartbeat_lag"}


def of(name: str, limit: Limit, around: Surroundings) -> Signal:
    """The signal of a declared limit."""
    if isinstance(limit, SqlLimit):
        return Sql(limit, around)
    if isinstance(limit, HttpLimit):
        return Http(limit)
    return _BUILT_IN[name](around)
