"""Words: what the extraction of a table calls things."""

from __future__ import annotations

from zdm_pipelines.changes.extract_table.spec import ExtractTable
from zdm_pipelines.changes.protocol import Words
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase

NULLS = "{count:,} rows of the new table are NULL in a column that is declared nullable: false"


def words(migration: Migration, change: ExtractTable) -> Words:
    """Every text of the kind."""
    several = len(change.olds) > 1
    olds, new = ", ".join(f"`{old}`" for old in change.olds), str(change.new.table_name)
    old = "the old columns" if several else "the old column"
    rows = "a row for each element" if change.each else "a row for each row"
    plain = ", ".join(change.olds)
    return Words(
        summary=f"{plain} → {new}",
        old=old,
        new=f"table {new}",
        phases={
            Phase.EXPAND: f"Creates `{new}` and triggers that keep it and {olds} of `{migration.table_name}` in sync "
            "whichever the application writes, in one short transaction.",
            Phase.BACKFILL: f"Fills `{new}`, {rows} that was there before. What the application wrote is never "
            f"overwritten. Run configuration `repair: true` takes rows that disagree from {olds}.",
            Phase.VALIDATE: f"Proves for every row that {olds} and `{new}` agree, then builds the new table's indexes, "
            "foreign key and `NOT NULL`.",
            Phase.CONTRACT: f"Takes {olds} away.",
        },
        undone={
            Phase.EXPAND: f"table {new} is dropped with its rows, and the sync triggers and the flag with it",
            Phase.BACKFILL: "the progress of the backfill is forgotten; the rows stay, and stay in sync",
            Phase.VALIDATE: f"constraints and indexes of {new} that waited for its rows are removed",
            Phase.CONTRACT: f"{old} {plain} "
            + ("come back under their names" if several else "comes back under its name"),
        },
        checks={
            "parity": "Old and new agree for every row.",
            "backfill_complete": "Every range is done and no row is left to be copied.",
            "constraints_valid": "The indexes and constraints of the new table stand and are valid.",
        },
        last=f"{'Columns' if several else 'Column'} {plain} of {migration.table_name} "
        f"{'are' if several else 'is'} dropped now, for good",
    )
