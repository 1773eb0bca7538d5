"""purge_rows: rows that match a predicate are deleted, batch by batch, behind the gate."""

from zdm_pipelines.changes.purge_rows.change import PurgeRowsKind

KIND = PurgeRowsKind()
