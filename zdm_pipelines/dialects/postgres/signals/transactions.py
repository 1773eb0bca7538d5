"""Transactions: how old the oldest is that keeps dead rows of this database from being cleaned up."""

from __future__ import annotations

from zdm_pipelines.dialects.postgres.signals.session import NOT_OURS, THIS_DATABASE, OnPrimary, hidden
from zdm_pipelines.dialects.postgres.signals.sessions import HIDDEN, untracked
from zdm_pipelines.model.signals import Measured

# Only transactions of this database count: a snapshot keeps the rows of its own database. Those of replicas and slots
# reach further, and are no transactions. A vacuum's own transaction is ignored by every other vacuum. Of a prepared
# transaction the server knows when it was prepared, not when it began.
_OLDEST = f"""
WITH zdm_open AS (
  SELECT coalesce(nullif(application_name, ''), 'unnamed application') || ', pid ' || pid AS who, xact_start AS since,
    {HIDDEN} AS hidden, coalesce(state = 'disabled', false) AS untracked
  FROM pg_stat_activity
  WHERE {NOT_OURS} AND datid = {THIS_DATABASE} AND (backend_type <> 'autovacuum worker' OR {HIDDEN})
  UNION ALL
  SELECT 'prepared transaction ' || gid, prepared, false, false FROM pg_prepared_xacts
  WHERE database = current_database()
)
SELECT who, greatest(0, extract(epoch FROM clock_timestamp() - since))::float8, hidden, untracked
FROM zdm_open WHERE since IS NOT NULL OR hidden OR untracked ORDER BY hidden DESC, untracked DESC, since LIMIT 1"""


class OldestTransaction(OnPrimary):
    """Seconds since the oldest open transaction of others began; 0 without any."""

    def read(self) -> Measured:
        """The age of the oldest transaction, and whose it is."""
        found = self.session.query(_OLDEST)
        if not found:
            return Measured(value=0.0)
        who, age, unseen, untold = found[0]
        if unseen:
            raise hidden("sessions of this database are")
        if untold:
            raise untracked()
        return Measured(value=age, source=who)
