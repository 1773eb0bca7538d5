"""Signals that Postgres itself gives, one module each. To add one, write it and name it here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zdm_pipelines.dialects.postgres.signals.disk import DiskUsed
from zdm_pipelines.dialects.postgres.signals.heartbeat import HeartbeatLag
from zdm_pipelines.dialects.postgres.signals.latency import Latency
from zdm_pipelines.dialects.postgres.signals.locks import LockWaits
from zdm_pipelines.dialects.postgres.signals.replication import ReplicationLag, ReplicationLagBytes
from zdm_pipelines.dialects.postgres.signals.sessions import ActiveSessions, WaitingSessions
from zdm_pipelines.dialects.postgres.signals.sql import Sql
from zdm_pipelines.dialects.postgres.signals.statements import Statements
from zdm_pipelines.dialects.postgres.signals.transactions import OldestTransaction
from zdm_pipelines.dialects.postgres.signals.vacuum import Autovacuum
from zdm_pipelines.dialects.postgres.signals.wal import ArchiveBacklog, SlotRetention, WalRate
from zdm_pipelines.model.signals import Signal, Surroundings
from zdm_pipelines.model.throttle import Limit, SqlLimit

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


def signal_named(name: str, limit: Limit, around: Surroundings) -> Signal:
    """The signal of a declared limit: one that is built in, or the user's own SQL."""
    return Sql(limit, around) if isinstance(limit, SqlLimit) else _BUILT_IN[name](around)
