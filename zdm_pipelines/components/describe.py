"""Describe: what each asset says about itself, and about the declared change."""

from __future__ import annotations

import yaml

from zdm_pipelines.components.keys import PLAN
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase


def span(seconds: float) -> str:
    """Seconds as they are declared: 7d, 25h, 250ms."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds % size == 0 and (seconds >= size or unit == "s"):
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds * 1000:g}ms"


def change(migration: Migration) -> str:
    """The declared change as it stands in defs.yaml."""
    declared = {
        "table": str(migration.table_name),
        "change": migration.change.model_dump(mode="json", exclude_none=True),
    }
    return f"```yaml\n{yaml.safe_dump(declared, sort_keys=False, allow_unicode=True).strip()}\n```"


def _plan(m: Migration) -> str:
    return (
        "Shows every step of the whole migration with its lock, its reason and its SQL, or every problem that stands "
        "against it. Reads the database, changes nothing. Optional: no other phase needs it."
    )


def _expand(m: Migration) -> str:
    return (
        f"Adds `{m.change.new.name}` to `{m.table_name}` and a trigger that keeps it and `{m.change.old}` in sync "
        "whichever the application writes, in one short transaction. Then cuts the table into ranges: the partitions "
        "of backfill."
    )


def _backfill(m: Migration) -> str:
    return (
        f"Moves the rows that were there before, range by range (one partition each, about "
        f"{m.backfill.range_rows:,} rows), in transactions of at most {m.backfill.batch_rows:,} rows. Waits while the "
        "database is under strain. What the application wrote is never overwritten. Cancelled or killed, it goes on "
        "from its checkpoint when materialized again. Run configuration `repair: true` takes rows that disagree from "
        "the old column."
    )


def _validate(m: Migration) -> str:
    not_null = ", `NOT NULL` included" if not m.change.new.nullable else ""
    return (
        f"Proves for every row that `{m.change.old}` and `{m.change.new.name}` agree, then gives the new column the "
        f"constraints and indexes of the old{not_null}. When a check fails, nothing is materialized and "
        "the failure names the ranges to materialize again."
    )


def _switch_reads(m: Migration) -> str:
    ramp = " → ".join(f"{percent} %" for percent in m.reads.ramp)
    return (
        f"Raises flag `{m.flag}`, which the application asks where to read: one stage of {ramp} per materialization. "
        "Run configuration `percent` names another share; 0 brings all reads back at once."
    )


def _contract(m: Migration) -> str:
    windows = m.contract
    return (
        f"Takes `{m.change.old}` away, in two runs. The first renames it out of sight once all reads are switched for "
        f"{span(windows.confidence_window)} and nobody wrote it for {span(windows.straggler_window)}; the second drops "
        f"it, {span(windows.tombstone_window)} later at the earliest. The asset is materialized when it is dropped. "
        "Both runs ask Dagster and the database for every reason against it, and change nothing when there is one."
    )


_TEXTS = {
    PLAN: _plan,
    Phase.EXPAND: _expand,
    Phase.BACKFILL: _backfill,
    Phase.VALIDATE: _validate,
    Phase.SWITCH_READS: _switch_reads,
    Phase.CONTRACT: _contract,
}

CHECKS = {
    "parity": "Old and new agree for every row.",
    "backfill_complete": "Every range is done and no row is left to be moved.",
    "constraints_valid": "The constraints and indexes of the old column stand on the new one and are valid.",
}


def asset(migration: Migration, phase: Phase | str) -> str:
    """What an asset is, with the declared change."""
    return f"{_TEXTS[phase](migration)}\n\n{change(migration)}"
