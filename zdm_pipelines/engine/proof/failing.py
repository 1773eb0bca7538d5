"""Failing: which row it is for which a comparison raises."""

from __future__ import annotations

from zdm_pipelines.dialects import DatabaseError, fault, safe
from zdm_pipelines.dialects.server import Fault, Session
from zdm_pipelines.model.capabilities import Comparison
from zdm_pipelines.model.errors import MappingFailed
from zdm_pipelines.model.values import Key, KeyRange

_STEP = 1_000  # rows that are compared at once, and one by one then


def failure(conn: Session, name: str, sql: Comparison, which: KeyRange, error: DatabaseError) -> MappingFailed:
    """What to tell of a range whose comparison raised."""
    key = _first(conn, sql, which)
    where = f"the row with key {'/'.join(key)}" if key else "a row"
    # Guarded, `down` raises no more.
    expression = "up or down" if sql.guard is None else "up"
    return MappingFailed(
        f"{name} range {which.partition}",
        f"{expression} fails for {where}: {safe(error)}",
        f"correct that row, or {expression} after a rollback",
    )


def _first(conn: Session, sql: Comparison, which: KeyRange) -> Key | None:
    """The first key of a range for which the comparison raises; None when none does any more."""
    lower = which.lower
    while True:
        upper = conn.rows.key_after(sql.over, lower, which.upper, rows=_STEP, wait=None)
        end = upper if upper is not None else which.upper
        if _raises(conn, sql, lower, end):
            keys = conn.rows.keys(sql.over, lower, end)  # none, if the row was deleted meanwhile
            after = [*keys[1:], end]
            return next((k for k, then in zip(keys, after, strict=False) if _raises(conn, sql, k, then)), None)
        if upper is None:
            return None
        lower = upper


def _raises(conn: Session, sql: Comparison, lower: Key | None, upper: Key | None) -> bool:
    try:
        conn.run(sql.compare(lower, upper))
    except DatabaseError as error:
        if fault(error) is not Fault.OF_DATA:
            raise
        return True
    return False
