"""Postgres's part of purge_rows: survey, batches, the archive and the way back from it."""

from zdm_pipelines.dialects.postgres.archive import Archive
from zdm_pipelines.dialects.postgres.children import Fate
from zdm_pipelines.dialects.postgres.kinds.purge_rows.declared import Facts
from zdm_pipelines.dialects.postgres.kinds.purge_rows.retire import Purged
from zdm_pipelines.dialects.postgres.kinds.purge_rows.rows import Purge
from zdm_pipelines.dialects.postgres.kinds.purge_rows.survey import survey

__all__ = ["Archive", "Facts", "Fate", "Purge", "Purged", "survey"]
