"""Disk: how much the server has stored; how large the disk is, no server tells."""

from __future__ import annotations

from zdm_pipelines.dialects.postgres.signals.session import OnPrimary
from zdm_pipelines.model.signals import Measured

_USED = """
SELECT (SELECT sum(pg_database_size(oid)) FROM pg_database)::float8, (SELECT sum(size) FROM pg_ls_waldir())::float8"""


class DiskUsed(OnPrimary):
    """Bytes of all databases, in every tablespace, and of WAL; without logs and temporary files."""

    every = 10.0  # asks the file system for the size of every file

    def read(self) -> Measured:
        """Add up the sizes of databases and WAL."""
        databases, wal = self.session.query(_USED)[0]
        return Measured(value=databases + wal)
