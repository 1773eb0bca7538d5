"""Describe: what each asset says about itself, and about the declared change."""

from __future__ import annotations

import yaml

from zdm_pipelines.changes import kind_of
from zdm_pipelines.components.keys import DROP, PLAN
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase
from zdm_pipelines.model.units import Unit, as_declared


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
    return "Cuts the table into ranges: the partitions of the row work." if m.lifecycle.row_phase else ""


def _ranges(m: Migration) -> str:
    """What holds for all row work."""
    return (
        f"Works range by range (one partition each, about {m.backfill.range_rows:,} rows), in transactions of at most "
        f"{m.backfill.batch_rows:,} rows. Waits while the database is under strain. Cancelled or killed, it goes on "
        "from its checkpoint when materialized again."
    )


def _validate(m: Migration) -> str:
    again = " and the failure names the ranges to materialize again" if m.lifecycle.row_phase is Phase.BACKFILL else ""
    return f"When a check fails, nothing is materialized{again}."


def _switch_reads(m: Migration) -> str:
    ramp = " → ".join(f"{percent} %" for percent in m.reads.ramp)
    return (
        f"Raises flag `{m.flag}`, which the application asks where to read: one stage of {ramp} per materialization. "
        "Run configuration `percent` names another share; 0 brings all reads back at once."
    )


def _contract(m: Migration) -> str:
    asks = "asks Dagster and the database for every reason against it, and changes nothing when there is one"
    if m.lifecycle.row_phase is Phase.CONTRACT:
        return f"Each run {asks}. {_ranges(m)}"
    if Need.TOMBSTONE not in m.lifecycle.needs:
        return f"It {asks}."
    confidence, straggler, kept = (
        as_declared(window, Unit.SECONDS)
        for window in (m.contract.confidence_window, m.contract.straggler_window, m.contract.tombstone_window)
    )
    since = ""
    if Need.READS in m.lifecycle.needs:
        since = f" once all reads are switched for {confidence} and nobody wrote the old shape for {straggler}"
    return (
        f"In two runs: the first puts it out of sight{since}; the second drops it, {kept} later at the earliest. The "
        f"asset is materialized when it is dropped. Each run {asks}."
    )


def _drop(m: Migration) -> str:
    kept = as_declared(m.contract.tombstone_window, Unit.SECONDS)
    last = kind_of(m).words(m).last
    return f"Ends the migration, {kept} after the last row went at the earliest. When it is materialized: {last}."


_GENERAL = {
    PLAN: _plan,
    Phase.EXPAND: _expand,
    Phase.BACKFILL: _ranges,
    Phase.VALIDATE: _validate,
    Phase.SWITCH_READS: _switch_reads,
    Phase.CONTRACT: _contract,
    DROP: _drop,
}


def asset(migration: Migration, phase: Phase | str) -> str:
    """What an asset is: what its kind says, what holds for every kind, and the declared change."""
    own = kind_of(migration).words(migration).phases.get(phase, "") if isinstance(phase, Phase) else ""
    said = " ".join(part for part in (own, _GENERAL[phase](migration)) if part)
    return f"{said}\n\n{change(migration)}"
