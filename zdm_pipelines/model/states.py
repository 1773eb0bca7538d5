"""States and phases of a migration; how it may move between them says its lifecycle."""

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
    BUILDING = "building"  # a migration that begins with validate has begun: indexes or constraints are under way
    VALIDATED = "validated"  # parity proven, constraints and indexes stand on the new shape
    SWITCHING = "switching"  # some reads go to the new shape
    SWITCHED = "switched"  # all reads go to the new shape
    CONTRACTING = "contracting"  # behind the gate: some of what is to go is gone
    TOMBSTONED = "tombstoned"  # the old shape is renamed out of sight, still in sync
    CONTRACTED = "contracted"  # the old shape is gone; the end
    ROLLED_BACK = "rolled_back"  # undone: the application's schema is as before
