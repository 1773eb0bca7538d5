"""Ledger: the memory of migrations, in the schema `zdm` of the database that they change."""

from zdm_pipelines.ledger.checks import forget_checks, record_checks, verdicts
from zdm_pipelines.ledger.claims import claimed, claimed_by
from zdm_pipelines.ledger.events import append, append_refusal, began, latest_events, note
from zdm_pipelines.ledger.flags import all_reads_are_new, create_flag, flag, flag_settles, keep_flag, set_flag
from zdm_pipelines.ledger.migrations import Entry, find, is_unmoved, move, register, require, state, states
from zdm_pipelines.ledger.ranges import forget_ranges
from zdm_pipelines.ledger.schema import ensure, exists, known_versions
from zdm_pipelines.ledger.writers import (
    NEW_SHAPE,
    OLD_SHAPE,
    are_touched,
    failures,
    forget_touched,
    forget_writes,
    late_writers,
    recent_writers,
    tidy_writes,
    vacuum_touched,
)

__all__ = [
    "NEW_SHAPE",
    "OLD_SHAPE",
    "Entry",
    "all_reads_are_new",
    "append",
    "append_refusal",
    "are_touched",
    "began",
    "claimed",
    "claimed_by",
    "create_flag",
    "ensure",
    "exists",
    "failures",
    "find",
    "flag",
    "flag_settles",
    "forget_checks",
    "forget_ranges",
    "forget_touched",
    "forget_writes",
    "is_unmoved",
    "keep_flag",
    "known_versions",
    "late_writers",
    "latest_events",
    "move",
    "note",
    "recent_writers",
    "record_checks",
    "register",
    "require",
    "set_flag",
    "state",
    "states",
    "tidy_writes",
    "vacuum_touched",
    "verdicts",
]
