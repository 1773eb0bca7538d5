"""Vacuum: whether one is at work on the table, where a backfill would make it slower and its work longer."""

from __future__ import annotations

from zdm_pipelines.dialects.postgres.signals.session import THIS_DATABASE, OnPrimary, hidden
from zdm_pipelines.model.signals import Measured

# Autovacuum's workers belong to no role: nobody but pg_read_all_stats sees what they work on.
_AT_WORK = f"""
SELECT (SELECT pg_has_role('pg_read_all_stats', 'USAGE')), count(*), coalesce(string_agg(phase, ', '), '')
FROM pg_stat_progress_vacuum
WHERE datid = {THIS_DATABASE} AND relid IN ($1::oid, (SELECT reltoastrelid FROM pg_class WHERE oid = $1::oid))"""


class Autovacuum(OnPrimary):
    """Vacuums at work on the table or its TOAST table, autovacuum's and anybody's; VACUUM FULL is none."""

    def read(self) -> Measured:
        """Count them, and say what they do."""
        allowed, count, phases = self.session.query(_AT_WORK, [self.catalog.oid])[0]
        if not allowed:
            raise hidden("vacuums are")
        return Measured(value=count, source=phases)
