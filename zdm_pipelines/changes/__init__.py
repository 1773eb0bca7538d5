"""What can change: one module per kind, all behind the protocol `Change`."""

from zdm_pipelines.changes.protocol import Change
from zdm_pipelines.changes.replace_column import ReplaceColumnChange
from zdm_pipelines.dialects.postgres.marking import Marking
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Catalog

__all__ = ["Change", "bind"]

_KINDS = {"replace_column": ReplaceColumnChange}


def bind(
    migration: Migration,
    catalog: Catalog,
    *,
    migration_id: int = 0,
    tombstoned: bool = False,
    marking: Marking | None = None,
) -> Change:
    """The declared change over a table as it was before.

    Args:
        migration_id: 0 until the ledger knows it.
        tombstoned: the old shape is renamed.
        marking: what the sync notes of the ranges that are written; default: nothing.
    """
    return _KINDS[migration.change.kind](migration, catalog, migration_id, tombstoned=tombstoned, marking=marking)
