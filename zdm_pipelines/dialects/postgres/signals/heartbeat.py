"""Heartbeat: when the WAL had come how far; and the lag that each declared replica shows by the beats it has.

Works where the primary's view of its replicas lies: after idle time, with a receiver that hangs, behind a cascade.
"""

from __future__ import annotations

from zdm_pipelines.dialects.postgres.signals.session import OnPrimary, Session
from zdm_pipelines.model.signals import Measured, Surroundings

# A beat is written to the WAL at once, so that replicas get the beat, but no synchronous replica is waited for: that
# replica may be the one that hangs. Several watchers share the beats. Beats of the future are a clock's or a failover's
# leftovers: with them, nothing would look late.
_BEAT = """
WITH zdm_set AS MATERIALIZED (SELECT set_config('synchronous_commit', 'local', true)),
zdm_forgotten AS (DELETE FROM zdm.heartbeat WHERE at < clock_timestamp() - interval '1 hour' AND random() < 0.01
  OR at > clock_timestamp() + interval '1 second' OR lsn > pg_current_wal_insert_lsn())
INSERT INTO zdm.heartbeat (at, lsn) SELECT clock_timestamp(), pg_current_wal_insert_lsn() FROM zdm_set
WHERE NOT EXISTS (
  SELECT 1 FROM zdm.heartbeat WHERE at BETWEEN clock_timestamp() - interval '200 ms' AND clock_timestamp()
)
ON CONFLICT DO NOTHING"""


def beat(session: Session) -> None:
    """Note how far the WAL has come, unless somebody just did."""
    session.query(_BEAT)


class HeartbeatLag(OnPrimary):
    """Age in seconds of the oldest beat that some declared replica does not show yet."""

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self.replicas = {
            name: Session(url, purpose=f"throttle at {name}", read_only=True) for name, url in around.replicas.items()
        }

    def read(self) -> Measured:
        """The lag of the slowest replica."""
        beat(self.session)
        worst = Measured(value=0.0)
        for name, replica in self.replicas.items():
            # -infinity: the replica has no beat at all, so every beat is missing there.
            seen = replica.query("SELECT coalesce(max(at), '-infinity')::text FROM zdm.heartbeat")[0][0]
            lag = self.session.query(
                "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8 FROM zdm.heartbeat "
                "WHERE at > $1::timestamptz",
                [seen],
            )[0][0]
            if lag >= worst.value:
                worst = Measured(value=lag, source=name)
        return worst

    def close(self) -> None:
        """Close the connection to every replica."""
        super().close()
        for replica in self.replicas.values():
            replica.close()
