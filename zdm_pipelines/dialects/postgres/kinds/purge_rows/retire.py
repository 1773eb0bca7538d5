"""Retire: what stands against deleting rows today, and the end of their archive."""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.postgres.archive import Archive
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.kinds.purge_rows.declared import Declared, Facts
from zdm_pipelines.dialects.postgres.kinds.purge_rows.survey import changed
from zdm_pipelines.model.values import Catalog, Step


@dataclass(frozen=True, kw_only=True)
class Purged:
    """The rows that go, and the archive that keeps them; see `Retirement` for what each member is."""

    catalog: Catalog
    change: Declared
    facts: Facts
    archive: Archive | None
    kept: bool  # the archive stays for good
    tombstoned: bool  # the rows are gone

    def dependents(self, session: Connection) -> list[str]:
        """Before rows go: what is not as it was surveyed. Afterwards: what uses the archive."""
        if self.archive is None:
            return changed(session, self.catalog, self.change, self.facts)
        users = {str(table): session.named("children.users", table.sql) for table in self.archive.tables()}
        if self.tombstoned:
            dropped = {} if self.kept else users
            return [
                f"{user} reads archive {table}: drop it, or make it anew without that"
                for table, found in dropped.items()
                for (user,) in found
            ]
        gone = [
            f"archive {table} is gone: somebody dropped it by hand; roll back and begin anew"
            for table in self.archive.tables()
            if session.value("children.relation", table.sql) is None
        ]
        return [*gone, *changed(session, self.catalog, self.change, self.facts)]

    def mentions(self, session: Connection) -> dict[str, str]:
        """None: rows have no name."""
        return {}

    def tombstone(self) -> list[Step]:
        """None: the archive is filled batch by batch."""
        return []

    def drop(self) -> list[Step]:
        """The end of the archive, unless it stays."""
        return [] if self.archive is None or self.kept else self.archive.drop()

    def restore(self) -> list[Step]:
        """None: rows come back by row work."""
        return []
