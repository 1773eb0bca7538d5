"""Backfill: move the old rows range by range, while the application reads and writes them."""

from __future__ import annotations

from zdm_pipelines import ledger
from zdm_pipelines.engine.context import Context, outlasting
from zdm_pipelines.ledger import ranges as known_ranges
from zdm_pipelines.model.states import Phase
from zdm_pipelines.phases import row_work

plan = row_work.plan
run = row_work.run
reported = row_work.reported
attempt_of = row_work.attempt_of


@outlasting
def undo(context: Context) -> None:
    """Forget the progress. The values stay in the new shape, which the sync keeps up to date."""
    with context.session("rollback", brake=True) as session:
        if not known_ranges.has_proofs(session):  # the ledger is of an earlier version
            ledger.ensure(context.server)
        entry = ledger.require(
            session, context.migration, context.lifecycle.allowed(Phase.BACKFILL), to_do="undo backfill"
        )
        before = context.lifecycle.undo_target(Phase.BACKFILL)
        if entry.state == before:
            return
        with session.transaction():
            known_ranges.reset(session, entry.id)
            ledger.forget_checks(session, entry.id)
            ledger.move(session, entry, before, what="backfill undone")
