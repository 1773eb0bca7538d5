"""The protocol of a change: what each phase asks of a kind."""

from __future__ import annotations

from typing import Protocol

from zdm_pipelines.dialects.postgres.marking import Marking
from zdm_pipelines.dialects.postgres.strides import Among
from zdm_pipelines.model.values import Key, Step


class Change(Protocol):
    """One kind of change, bound to its migration and to the table as it was before."""

    def expand(self) -> list[Step]:
        """Steps of one short transaction that add the new shape and keep both in sync."""
        ...

    def constrain(self) -> list[Step]:
        """Steps that give the new shape the constraints and indexes of the old; each may be run again."""
        ...

    def tombstone(self) -> list[Step]:
        """Steps of one short transaction that rename the old shape out of sight."""
        ...

    def drop(self) -> list[Step]:
        """Steps of one short transaction that remove the old shape and the sync."""
        ...

    def track(self, until: str) -> Step:
        """Make the sync record every key it sees until a time (ISO with zone); its undo stops that."""
        ...

    def mark(self, marking: Marking) -> Step:
        """Make the sync note which ranges are written, from now on."""
        ...

    def sync_function(self) -> str:
        """The function that keeps both shapes in sync, quoted; empty: it cannot note which ranges are written."""
        ...

    def old_relation(self) -> str:
        """Present name of the column that contract renames and drops."""
        ...

    def new_relation(self) -> str:
        """Name of the column that the backfill writes."""
        ...

    def sync_triggers(self) -> tuple[str, ...]:
        """Names of the triggers that keep both shapes in sync."""
        ...

    def move(
        self,
        lower: Key | None,
        upper: Key | None,
        *,
        repair: bool = False,
        among: Among | None = None,
        limit: int | None = None,
        whole: bool = False,
    ) -> tuple[str, list[list[str]]]:
        """One batch of the backfill: all rows that wait in an interval, or at most `limit` of those that `among` picks.

        With `repair`, rows that disagree are taken from the old shape.
        """
        ...

    def unmoved_keys(
        self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False
    ) -> tuple[str, list[list[str]]]:
        """First keys of an interval that wait to be moved."""
        ...

    def move_one(self, key: Key, *, repair: bool = False) -> tuple[str, list[list[str]]]:
        """The same for one row."""
        ...

    def count_unmoved(
        self, lower: Key | None, upper: Key | None, *, repair: bool = False
    ) -> tuple[str, list[list[str]]]:
        """Rows of an interval that wait to be moved."""
        ...

    def compare(self, lower: Key | None, upper: Key | None) -> tuple[str, list[list[str]]]:
        """Parity counts of an interval."""
        ...

    def mismatched_keys(
        self, category: str, lower: Key | None, upper: Key | None, *, limit: int
    ) -> tuple[str, list[list[str]]]:
        """First keys of a category."""
        ...

    def touched_disagreeing(self) -> str:
        """Take the tracked keys ($1: migration id); how many there were, how many rows of them disagree."""
        ...

    def nulls(self) -> str:
        """How many rows hold NULL where the new shape must not; empty: it may."""
        ...
