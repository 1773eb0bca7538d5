"""Replication: how far the slowest replica is behind, by the primary's view of it.

The view's own lag columns keep their last value while a receiver hangs or the primary idles. What it says of
positions is believed, and the beats say when the WAL had come that far.
"""

from __future__ import annotations

from psycopg import errors

from zdm_pipelines.dialects.postgres.signals.heartbeat import beat
from zdm_pipelines.dialects.postgres.signals.session import OnPrimary
from zdm_pipelines.model.signals import Measured

# Physical replicas that are connected, and those that a slot waits for though they are away. A logical subscriber
# confirms when it pleases: its slot is watched by slot_retention. A role without pg_monitor sees that there are
# replicas and nothing about them.
_REPLICAS = """
WITH zdm_replica AS (
  SELECT coalesce(nullif(r.application_name, ''), 'unnamed') AS name, r.replay_lsn AS lsn, r.state IS NULL AS hidden
  FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
  WHERE s.slot_type IS DISTINCT FROM 'logical' AND (r.state IS NULL OR r.state IN ('streaming', 'catchup'))
  UNION ALL
  SELECT 'slot ' || slot_name || ', nobody connected', restart_lsn, false FROM pg_replication_slots
  WHERE slot_type = 'physical' AND NOT active AND restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost'
)
SELECT name, hidden, {lag} AS lag FROM zdm_replica ORDER BY hidden DESC, lag DESC NULLS FIRST LIMIT 1"""

_SECONDS = """(SELECT coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8
  FROM zdm.heartbeat h WHERE h.lsn > zdm_replica.lsn)"""
_BYTES = "greatest(0, pg_current_wal_lsn() - zdm_replica.lsn)::float8"


class _Lag(OnPrimary):
    lag: str

    def read(self) -> Measured:
        """The slowest replica's; 0 without any."""
        beat(self.session)
        found = self.session.query(_REPLICAS.format(lag=self.lag))
        if not found:
            return Measured(value=0.0)
        name, hidden, lag = found[0]
        if hidden:
            raise errors.InsufficientPrivilege("replicas are hidden from the role: GRANT pg_monitor to it")
        return Measured(value=lag, source=name)


class ReplicationLag(_Lag):
    """Seconds since the oldest WAL was written that the slowest replica has not replayed."""

    every = 0.25
    lag = _SECONDS


class ReplicationLagBytes(_Lag):
    """Bytes of WAL that the slowest replica has not replayed."""

    lag = _BYTES
