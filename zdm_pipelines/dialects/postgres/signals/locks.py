"""Locks: how many of the application's sessions wait for a lock on the table, or for one of ours."""

from __future__ import annotations

from zdm_pipelines.dialects.postgres.signals.session import THIS_DATABASE, OnPrimary
from zdm_pipelines.model.signals import Measured

# pg_locks, application names and pg_blocking_pids are shown to every role. Who waits for a row waits for the
# transaction that changed it, and the first in the row's queue holds the row's tuple lock meanwhile; tuple locks are
# held by those who wait, and by nobody else. pg_blocking_pids stops all locking for a moment, so the function is asked
# only of sessions that wait. Its answer has also who stands in front in a queue, such as our DDL that waits itself.
_WAITS = f"""
WITH zdm_waiter AS MATERIALIZED (
  SELECT pid, bool_or(relation = $1::oid AND database = {THIS_DATABASE} AND (NOT granted OR locktype = 'tuple')) AS here
  FROM pg_locks GROUP BY pid HAVING bool_or(NOT granted)
), zdm_session AS MATERIALIZED (
  SELECT pid, usesysid, coalesce(application_name, '') LIKE 'zdm %' AS ours FROM pg_stat_activity
)
SELECT count(*) FROM zdm_waiter JOIN zdm_session USING (pid)
WHERE NOT ours AND usesysid IS NOT NULL  -- without a user: the server's own
  AND CASE WHEN here THEN true
      ELSE pg_blocking_pids(pid) && (SELECT array_agg(pid) FROM zdm_session WHERE ours) END"""


class LockWaits(OnPrimary):
    """Sessions of others that wait for a lock on the table or one of its rows, or that a session of ours blocks."""

    def read(self) -> Measured:
        """Count the sessions that wait for a lock."""
        return Measured(value=self.session.query(_WAITS, [self.catalog.oid])[0][0])
