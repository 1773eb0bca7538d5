"""Words: what a column replacement calls things."""

from __future__ import annotations

from zdm_pipelines.changes.protocol import Words
from zdm_pipelines.changes.replace_column.spec import ReplaceColumn
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase

NULLS = "{count:,} rows are NULL in the new column, which is declared nullable: false"


def words(migration: Migration, change: ReplaceColumn) -> Words:
    """Every text of the kind."""
    old, new = change.old, change.new.name
    not_null = "" if change.new.nullable else ", `NOT NULL` included"
    return Words(
        summary=f"{old} → {new}",
        old="the old column",
        new=f"column {new}",
        phases={
            Phase.EXPAND: f"Adds `{new}` to `{migration.table_name}` and a trigger that keeps it and `{old}` in sync "
            "whichever the application writes, in one short transaction.",
            Phase.BACKFILL: f"Fills `{new}` for the rows that were there before. What the application wrote is never "
            "overwritten. Run configuration `repair: true` takes rows that disagree from the old column.",
            Phase.VALIDATE: f"Proves for every row that `{old}` and `{new}` agree, then gives the new column the "
            f"constraints and indexes of the old{not_null}.",
            Phase.CONTRACT: f"Takes `{old}` away.",
        },
        undone={
            Phase.EXPAND: f"column {new} is dropped with its values, and the sync triggers and the flag with it",
            Phase.BACKFILL: "the progress of the backfill is forgotten; the values stay, and stay in sync",
            Phase.VALIDATE: f"constraints and indexes on {new} are removed",
            Phase.CONTRACT: f"the old column {old} comes back under its name",
        },
        checks={
            "parity": "Old and new agree for every row.",
            "backfill_complete": "Every range is done and no row is left to be moved.",
            "constraints_valid": "The constraints and indexes of the old column stand on the new one and are valid.",
        },
        last=f"Column {old} of {migration.table_name} is dropped now, for good",
    )
