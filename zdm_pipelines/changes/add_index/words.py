"""Words: what an index that is added calls things."""

from __future__ import annotations

from zdm_pipelines.changes.add_index.spec import AddIndex, IndexSpec
from zdm_pipelines.changes.protocol import Words
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase

NO_DUPLICATES = "no_duplicates"
DUPLICATES = "{count:,} rows share with another row what is to be unique"


def describe_columns(index: IndexSpec) -> str:
    """What an index is over, for people."""
    return f"({', '.join(index.columns)})"


def checks(index: IndexSpec) -> dict[str, str]:
    """The checks of an index that is built."""
    unique = {NO_DUPLICATES: "No two rows share what is to be unique."} if index.unique else {}
    return {**unique, "constraints_valid": "The index stands on the table and on each partition, and is valid."}


def words(migration: Migration, change: AddIndex) -> Words:
    """Every text of the kind."""
    what = f"{'unique ' if change.unique else ''}index {change.name} on {describe_columns(change)}"
    first = "Counts the rows that are not unique yet, then builds" if change.unique else "Builds"
    return Words(
        summary=f"+ {what}",
        old="nothing",
        new=f"index {change.name}",
        phases={
            Phase.VALIDATE: f"{first} `{change.name}` on `{migration.table_name}` {describe_columns(change)} while the "
            "table is read and written. What an interrupted build left is removed and built again.",
        },
        undone={Phase.VALIDATE: f"index {change.name} is dropped, concurrently"},
        checks=checks(change),
    )
