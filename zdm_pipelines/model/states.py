"""States of a migration and the one table of how it may move between them."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """The phases, in the order a migration walks them."""

    EXPAND = "expand"
    BACKFILL = "backfill"
    VALIDATE = "validate"
    SWITCH_READS = "switch_reads"
    CONTRACT = "contract"


class State(StrEnum):
    """What is true of the database now. A state is entered in the transaction that makes it true."""

    PLANNED = "planned"  # nothing of ours is in the application's schema
    EXPANDED = "expanded"  # the new shape is there and kept in sync; old rows not moved yet
    BACKFILLING = "backfilling"  # some ranges are moved
    BACKFILLED = "backfilled"  # every range is moved
    VALIDATED = "validated"  # parity proven, constraints and indexes stand on the new shape
    SWITCHING = "switching"  # some reads go to the new shape
    SWITCHED = "switched"  # all reads go to the new shape
    TOMBSTONED = "tombstoned"  # the old shape is renamed out of sight, still in sync
    CONTRACTED = "contracted"  # the old shape is gone; the end
    ROLLED_BACK = "rolled_back"  # undone: the application's schema is as before


_S = State

# Upwards one phase at a time; downwards, before contract, to any earlier point.
TRANSITIONS: dict[State, frozenset[State]] = {
    _S.PLANNED: frozenset({_S.EXPANDED}),
    _S.EXPANDED: frozenset({_S.BACKFILLING, _S.BACKFILLED, _S.ROLLED_BACK}),
    _S.BACKFILLING: frozenset({_S.BACKFILLED, _S.EXPANDED, _S.ROLLED_BACK}),
    _S.BACKFILLED: frozenset({_S.BACKFILLING, _S.VALIDATED, _S.EXPANDED, _S.ROLLED_BACK}),
    _S.VALIDATED: frozenset({_S.SWITCHING, _S.SWITCHED, _S.BACKFILLED, _S.BACKFILLING, _S.EXPANDED, _S.ROLLED_BACK}),
    _S.SWITCHING: frozenset({_S.SWITCHED, _S.VALIDATED, _S.BACKFILLED, _S.BACKFILLING, _S.EXPANDED, _S.ROLLED_BACK}),
    _S.SWITCHED: frozenset(
        {
            _S.TOMBSTONED,
            _S.SWITCHING,
            _S.VALIDATED,
            _S.BACKFILLED,
            _S.BACKFILLING,
            _S.EXPANDED,
            _S.ROLLED_BACK,
        }
    ),
    _S.TOMBSTONED: frozenset({_S.CONTRACTED, _S.SWITCHED}),
    _S.CONTRACTED: frozenset(),
    _S.ROLLED_BACK: frozenset({_S.EXPANDED}),
}

# States in which the table carries our trigger: no second migration may start on it.
ACTIVE = frozenset(State) - {_S.PLANNED, _S.CONTRACTED, _S.ROLLED_BACK}
