"""Words: what an index that takes over from another one calls things."""

from __future__ import annotations

from zdm_pipelines.changes.add_index.words import checks, describe_columns
from zdm_pipelines.changes.protocol import Words
from zdm_pipelines.changes.replace_index.spec import ReplaceIndex
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase


def words(migration: Migration, change: ReplaceIndex) -> Words:
    """Every text of the kind."""
    old, new, table = change.old, change.new.name, migration.table_name
    return Words(
        summary=f"index {old} → {new}",
        old=f"index {old}",
        new=f"index {new}",
        phases={
            Phase.VALIDATE: f"Builds `{new}` on `{table}` {describe_columns(change.new)} while the table is read and "
            "written. What an interrupted build left is removed and built again.",
            Phase.CONTRACT: f"Drops `{old}` of `{table}` while the table is read and written.",
        },
        undone={
            Phase.VALIDATE: f"index {new} is dropped, concurrently",
            Phase.CONTRACT: f"index {old} is built again as it was, while the table is read and written",
        },
        checks=checks(change.new),
        last=f"Index {old} of {table} is dropped now; {new} takes over",
    )
