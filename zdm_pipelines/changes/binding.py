"""Binding: the change of a migration, over its table as the table was before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zdm_pipelines.changes.protocol import Bound, Change
from zdm_pipelines.changes.registry import kind_of
from zdm_pipelines.dialects.server import Server
from zdm_pipelines.model.capabilities import Notes
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Catalog


def bind(
    migration: Migration,
    server: Server,
    catalog: Catalog,
    facts: Mapping[str, Any],
    *,
    migration_id: int = 0,
    tombstoned: bool = False,
    notes: Notes = Notes(),  # noqa: B008 - a frozen value
    claims: Mapping[str, int] | None = None,
) -> Change:
    """The declared change with the capabilities that its kind has.

    Args:
        catalog: the table as it was before.
        facts: what the kind's survey found out.
        migration_id: 0 until the ledger knows it.
        tombstoned: the old shape is out of sight.
        notes: what the sync notes at present.
        claims: oids of the relations that the ledger claims for the migration, by name; default: none yet.
    """
    bound = Bound(
        migration=migration, catalog=catalog, facts=facts, migration_id=migration_id, tombstoned=tombstoned,
        notes=notes, claims=claims or {},
    )  # fmt: skip
    return kind_of(migration).bind(bound, server)
