"""Reasons: what Dagster itself knows against contract; the database adds its own."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from zdm_pipelines.changes import kind_of
from zdm_pipelines.components import books, dagster_internals, keys
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase
from zdm_pipelines.model.values import RangeProgress

_NAMED = 5  # ranges named in a reason; a person looks at the asset for the rest


def against_contract(instance: dg.DagsterInstance, migration: Migration, ranges: Sequence[RangeProgress]) -> list[str]:
    """Everything in Dagster's records that contract should not pass over.

    Args:
        ranges: as the ledger has them.
    """
    phases, row_phase = migration.lifecycle.phases, migration.lifecycle.row_phase
    latest = {phase: books.materialized(instance, keys.asset_key(migration, phase)) for phase in phases}
    reasons = [
        f"{phase} was never materialized in Dagster: materialize it, work that is done is found done"
        for phase in phases
        if phase not in (row_phase, Phase.CONTRACT) and latest[phase] is None
    ]
    # Row work that destroys rows stands behind this gate itself.
    if row_phase is Phase.BACKFILL and (missing := books.missing_ranges(instance, migration, ranges)):
        named = ", ".join(missing[:_NAMED]) + (", …" if len(missing) > _NAMED else "")
        reasons.append(f"{len(missing)} of {len(ranges)} ranges are not materialized in Dagster: {named}")
    validated, moved = latest.get(Phase.VALIDATE), latest.get(Phase.BACKFILL)
    if validated is not None and moved is not None and moved > validated:
        reasons.append("backfill was materialized after validate: materialize validate again")
    checks = kind_of(migration).words(migration).checks
    reasons += [reason for check in checks if (reason := _of_check(instance, migration, check, validated)) is not None]
    return reasons


def _of_check(instance: dg.DagsterInstance, migration: Migration, check: str, validated: int | None) -> str | None:
    record = dagster_internals.latest_check(instance, keys.check_key(migration, check))
    if record is None:
        return f"check {check} is not in Dagster's event log: materialize validate"
    evaluation = record.evaluation
    if evaluation is None:
        return f"check {check} has not come to a verdict in Dagster: materialize validate"
    if not evaluation.passed:
        return f"check {check} failed in Dagster: materialize validate"
    target = evaluation.target_materialization_data
    if validated is not None and (target is None or target.storage_id != validated):
        return f"check {check} is stale: it speaks of an earlier materialization; materialize validate"
    return None
