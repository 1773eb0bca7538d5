"""Words: what an index that is dropped calls things."""

from __future__ import annotations

from zdm_pipelines.changes.drop_index.spec import DropIndex
from zdm_pipelines.changes.protocol import Words
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase


def words(migration: Migration, change: DropIndex) -> Words:
    """Every text of the kind."""
    return Words(
        summary=f"- index {change.name}",
        old=f"index {change.name}",
        new="nothing",
        phases={
            Phase.CONTRACT: f"Drops `{change.name}` of `{migration.table_name}` while the table is read and written, "
            "when nothing stands on the index and nobody scans it.",
        },
        undone={Phase.CONTRACT: f"index {change.name} is built again as it was, while the table is read and written"},
        last=f"Index {change.name} of {migration.table_name} is dropped now; queries go without until it is built anew",
    )
