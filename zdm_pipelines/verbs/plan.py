"""Plan: every statement of every phase before any of them runs: the dry run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change, bind
from zdm_pipelines.engine.context import Context
from zdm_pipelines.engine.rows.ranges import MAX_RANGES, estimate_rows
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Catalog, Step
from zdm_pipelines.phases import backfill, contract, expand, switch_reads, validate
from zdm_pipelines.phases.beginning import bound, look

_PLANS: Mapping[Phase, Callable[[Context, Change], list[Step]]] = {
    Phase.EXPAND: expand.plan,
    Phase.BACKFILL: backfill.plan,
    Phase.VALIDATE: validate.plan,
    Phase.SWITCH_READS: switch_reads.plan,
    Phase.CONTRACT: contract.plan,
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a migration will do, and to what."""

    state: State  # where the migration stands
    catalog: Catalog  # the table as it was before
    rows: int  # about how many the table has
    ranges: int  # into about how many ranges the table is cut; 0: there is no row work
    warnings: Sequence[str]
    told: Sequence[tuple[str, str]]  # further facts of the kind, by name
    phases: Mapping[Phase, Sequence[Step]]


def read(context: Context) -> Plan:
    """The plan, from the ledger where the migration has begun, else from the database; changes nothing.

    Raises:
        PreflightError: the database cannot take the migration.
        StateConflict: the migration began with another declaration.
        DatabaseUnreachable: no connection could be had.
    """
    with context.looking("plan") as session:
        entry = ledger.find(session, context.name)
        if entry is not None and entry.lifecycle.active(entry.state):
            if (conflict := entry.conflict(context.migration)) is not None:
                raise conflict
            catalog, change, warnings = entry.catalog, bound(context, entry), entry.catalog.warnings
            refused = session.named("catalog.refuses_writes")
            warnings = (*(f"the database {fact}: no phase runs; {way_out}" for fact, way_out in refused), *warnings)
        else:
            survey = look(session, context)
            catalog, warnings = survey.catalog, tuple(survey.warnings)
            change = bind(context.migration, context.server, catalog, survey.facts)
        rows = estimate_rows(session, catalog)
    return Plan(
        state=entry.state if entry else State.PLANNED,
        catalog=catalog,
        rows=rows,
        ranges=expected_ranges(context, rows) if change.rows is not None else 0,
        warnings=warnings,
        told=change.told,
        phases={phase: _PLANS[phase](context, change) for phase in context.lifecycle.phases},
    )


def expected_ranges(context: Context, rows: int) -> int:
    """Into about how many ranges so many rows are cut."""
    return min(MAX_RANGES, max(1, -(-rows // context.migration.backfill.range_rows)))
