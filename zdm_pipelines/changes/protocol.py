"""The protocol of a change: what each phase asks of a kind."""

from __future__ import annotations

from typing import Protocol

from zdm_pipelines.engine.batches import BatchSql
from zdm_pipelines.engine.proofs import ProofSql
from zdm_pipelines.model.values import Step


class Change(BatchSql, ProofSql, Protocol):
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

    def old_relation(self) -> str:
        """Present name of the column that contract renames and drops."""
        ...

    def new_relation(self) -> str:
        """Name of the column that the backfill writes."""
        ...

    def touched_disagreeing(self) -> str:
        """Take the tracked keys ($1: migration id); how many there were, how many rows of them disagree."""
        ...

    def nulls(self) -> str:
        """How many rows hold NULL where the new shape must not; empty: it may."""
        ...
