"""WAL: how fast it grows, how much of it waits to be archived, and how much a replication slot keeps."""

from __future__ import annotations

from zdm_pipelines.dialects.postgres.signals.heartbeat import beat
from zdm_pipelines.dialects.postgres.signals.session import OnPrimary
from zdm_pipelines.model.signals import Measured

_SHORTEST = 0.5  # seconds; over less than this the rate is mostly noise

# From the oldest beat of the last five seconds; none of the future, which a clock that was set back leaves behind.
_RATE = """
SELECT extract(epoch FROM clock_timestamp() - at)::float8,
  greatest(0, pg_current_wal_insert_lsn() - lsn)::float8  -- after a failover the new primary may stand further back
FROM zdm.heartbeat WHERE at BETWEEN clock_timestamp() - interval '5 s' AND clock_timestamp() ORDER BY at LIMIT 1"""

# A lost slot: the server has given the slot up and keeps nothing for it.
_SLOTS = """
SELECT slot_name::text, greatest(0, pg_current_wal_lsn() - restart_lsn)::float8 AS kept FROM pg_replication_slots
WHERE restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost' ORDER BY kept DESC LIMIT 1"""


class WalRate(OnPrimary):
    """Bytes of WAL per second, by everybody, over about the last five seconds."""

    def read(self) -> Measured:
        """The rate since a beat of a while ago; the first to look has none and waits half a second for it."""
        beat(self.session)
        found = self.session.query(_RATE)
        if not found or found[0][0] < _SHORTEST:
            self.clock.sleep(_SHORTEST - (found[0][0] if found else 0.0))
            found = self.session.query(_RATE)
        if not found or found[0][0] < _SHORTEST / 2:
            raise ValueError("there is no heartbeat of the last five seconds; was the server's clock set?")
        seconds, written = found[0]
        return Measured(value=written / seconds)


class ArchiveBacklog(OnPrimary):
    """WAL files that wait to be archived; 0 where nothing is archived."""

    every = 2.0  # lists a folder, which is long just when archiving fails

    def read(self) -> Measured:
        """Count the files that wait for the archive."""
        # Two statements: in one, a role without pg_monitor would be refused where nothing is archived.
        if self.session.query("SELECT current_setting('archive_mode')")[0][0] == "off":
            return Measured(value=0)
        return Measured(
            value=self.session.query("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'")[0][0]
        )


class SlotRetention(OnPrimary):
    """Bytes of WAL kept for the replication slot that is furthest behind, physical or logical; 0 without slots."""

    def read(self) -> Measured:
        """How much is kept, and for which slot."""
        for name, kept in self.session.query(_SLOTS):
            return Measured(value=kept, source=f"slot {name}")
        return Measured(value=0.0)
