"""Way back: the rows that row work has taken away come back, batch by batch, while the application reads and writes."""

from __future__ import annotations

import random
import time

from zdm_pipelines import ledger
from zdm_pipelines.dialects import DatabaseError, fault, safe
from zdm_pipelines.dialects.server import Fault, Session
from zdm_pipelines.engine.context import Context
from zdm_pipelines.ledger import ranges as known_ranges
from zdm_pipelines.model.capabilities import ALL, RowWork
from zdm_pipelines.model.errors import LockNotAcquired, StateConflict
from zdm_pipelines.model.values import Key


def bring_back(context: Context, session: Session, entry: ledger.Entry, work: RowWork) -> None:
    """Run the row work that takes other row work back, over every row; then no range counts as done any more.

    Run again, it goes on with what is left. Where nothing brings rows back, what is gone stays gone.

    Raises:
        LockNotAcquired: `locks.give_up_after` passed while somebody kept one batch waiting.
        StateConflict: the database refuses a row.
    """
    if (back := work.back()) is not None:
        _walk(context, session, back)
    with session.transaction():
        known_ranges.reset(session, entry.id)


def _walk(context: Context, session: Session, back: RowWork) -> None:
    session.rows.prepare(back.over)
    lower: Key | None = None
    while True:
        upper = session.rows.key_after(
            back.over, lower, None, rows=context.migration.backfill.batch_rows, wait=context.migration.locks.timeout
        )
        _bring(context, session, back, lower, upper)
        if upper is None:
            return
        lower = upper


def _bring(context: Context, session: Session, back: RowWork, lower: Key | None, upper: Key | None) -> None:
    """One batch, tried until nobody keeps it waiting."""
    locks, begun = context.migration.locks, time.monotonic()
    while True:
        try:
            session.rows.write(back.batch(lower, upper, pick=ALL), wait=locks.timeout)
        except DatabaseError as error:
            kind = fault(error)
            if kind in (Fault.OF_DATA, Fault.TAKEN, Fault.OTHER):
                raise StateConflict(
                    context.name,
                    f"rows cannot come back: {safe(error)}",
                    "look at what they refer to and at the table's columns and constraints, then roll back again; "
                    "it goes on there",
                ) from None
            if kind not in (Fault.LOCK_BUSY, Fault.CANCELLED, Fault.CONFLICT):
                raise
            if time.monotonic() - begun > locks.give_up_after:
                raise LockNotAcquired(
                    f"{context.name} rollback",
                    f"rows could not be written for {locks.give_up_after:g} s ({safe(error)})",
                    "end the transactions that hold them, then roll back again; it goes on there",
                ) from None
            time.sleep(random.uniform(0.05, 0.2))
        else:
            return
