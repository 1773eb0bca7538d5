"""Postgres's part of replace_index: one index is built, and the one that it replaces goes when it stands."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres.connection import Connection, scalar
from zdm_pipelines.dialects.postgres.facts import StoredFacts
from zdm_pipelines.dialects.postgres.kinds import add_index
from zdm_pipelines.dialects.postgres.new_indexes import Declared, NewIndex
from zdm_pipelines.dialects.postgres.old_indexes import Going, OldIndex, find
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.values import Catalog


@dataclass(frozen=True, kw_only=True)
class Facts(StoredFacts):
    """What the server said of both indexes before anything was changed."""

    old: OldIndex
    new: NewIndex


def survey(conn: Connection, table: TableName, old: str, new: Declared) -> tuple[Catalog, Facts, list[Problem]]:
    """Read the catalog, the old index, and what the server makes of the new one; changes nothing.

    Raises:
        Problem: one of both indexes cannot be had, so that nothing more can be looked at.
    """
    going, problems = find(conn, catalogs.read(conn, table, partitioned=True, keyless=True), old)
    catalog, facts, more = add_index.survey(conn, table, new)
    warnings = list(catalog.warnings)
    if going.index.unique and not new.unique:
        warnings.append(f"{quote(old)} is unique and {quote(new.name)} is not: nothing will keep duplicates out")
    return replace(catalog, warnings=tuple(warnings)), Facts(old=going, new=facts.new), [*problems, *more]


@dataclass(frozen=True, kw_only=True)
class Replaced(Going):
    """The old index; it goes only while the new one stands."""

    new: NewIndex

    def dependents(self, session: Connection) -> list[str]:
        """What stands on the old index, and whether the new one stands."""
        index = self.new.index
        stands = scalar(session, f"SELECT {index.stands(more=' AND i.indisvalid')}")
        missing = [] if stands else [f"index {quote(index.name)} does not stand as declared: run validate"]
        return [*missing, *super().dependents(session)]
