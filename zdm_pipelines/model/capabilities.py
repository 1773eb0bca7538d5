"""Capabilities: what the engine asks of a change: row work over ranges, a comparison of rows, a sync that notes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from zdm_pipelines.model.values import Catalog, Key, Statement, Step


@dataclass(frozen=True, kw_only=True)
class Pick:
    """Which of an interval's waiting rows a batch takes, and how it locks them."""

    among: Callable[[str], str] | None = None  # from a predicate over a row to the same over a pass; default: all rows
    limit: int | None = None  # at most so many; default: all
    whole: bool = False  # the column is in a unique index, so that rows change for foreign keys, too


ALL = Pick()


@dataclass(frozen=True, kw_only=True)
class Marking:
    """What the sync function needs to know in order to note which range a row is written to."""

    epoch: int  # since when; never given twice
    bounds: tuple[str, ...]  # where the ranges begin, in key order and without the first: a range's bucket is its place


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What the sync notes in the ledger besides who writes, in the application's own transactions."""

    marking: Marking | None = None  # which ranges are written
    track_until: str | None = None  # the key of each row, until a time (ISO with zone)


class Until(StrEnum):
    """When the row work of a range is done."""

    NONE_WAITS = "none_waits"  # no row of the range waits any more
    SEEN = "seen"  # each key below the range's bound was visited once: new rows that wait keep nothing from ending


class RowWork(Protocol):
    """Row work: what is done to rows, range by range, batch by batch."""

    @property
    def over(self) -> Catalog:
        """The table whose key is cut into ranges."""
        ...

    @property
    def destroys(self) -> bool:
        """Whether rows are gone afterwards: then everything that contract asks is asked before the first batch."""
        ...

    @property
    def until(self) -> Until:
        """When a range is done."""
        ...

    @property
    def written(self) -> str | None:
        """The column of `over` that batches write, for batches in passes; None: plain batches."""
        ...

    @property
    def writes(self) -> Mapping[str, str]:
        """The tables that batches write, quoted, each with what fires its triggers: INSERT, UPDATE or DELETE."""
        ...

    def batch(self, lower: Key | None, upper: Key | None, *, pick: Pick, repair: bool = False) -> list[Statement]:
        """The statements of one transaction over an interval of keys; the last one counts the rows.

        The last one becomes part of a statement that also writes the checkpoint: an INSERT, UPDATE or DELETE without
        RETURNING, and without another of these in a WITH of its own.

        Args:
            pick: which of the waiting rows, and how they are locked.
            repair: rows that disagree, taken from the old shape.
        """
        ...

    def one(self, key: Key, *, repair: bool = False) -> list[Statement]:
        """The same for the one row at a key, which is waited for."""
        ...

    def waiting(
        self, lower: Key | None, upper: Key | None, *, last: Key | None = None, repair: bool = False
    ) -> Statement:
        """How many rows of an interval wait.

        Args:
            last: the last key of it, where `upper` leaves it open.
        """
        ...

    def waiting_keys(self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False) -> Statement:
        """The first keys of them in order, each as text[]."""
        ...

    def back(self) -> RowWork | None:
        """The row work that takes this one back; None: nothing brings the rows back."""
        ...


class Comparison(Protocol):
    """Parity: whether old and new shape agree, over an interval of keys."""

    @property
    def over(self) -> Catalog:
        """The table whose key it is."""
        ...

    @property
    def guard(self) -> Statement | None:
        """What a session runs before anything `guarded`, a repair or `touched_disagreeing`; None: nothing."""
        ...

    @property
    def guarded(self) -> Comparison:
        """The same, slower, with a last count: rows for which `down` raises, which are of no other category then."""
        ...

    def compare(self, lower: Key | None, upper: Key | None) -> Statement:
        """Counts: rows, missing, extra, different, agreeing through `down` only, not moved."""
        ...

    def mismatched_keys(self, category: str, lower: Key | None, upper: Key | None, *, limit: int) -> Statement:
        """The first keys of one category, each as text[]."""
        ...

    def touched_disagreeing(self) -> str:
        """Take the tracked keys ($1: migration id); how many there were, how many rows of them disagree.

        A row for which `down` raises is right by then: all reads are on the new shape.
        """
        ...


class Sync(Protocol):
    """What mirrors the shapes while both live; installed by the expand steps."""

    function: str  # the quoted name of the function that notes; empty: it cannot note
    triggers: Mapping[int, tuple[str, ...]]  # by the oid of their table

    def note(self, notes: Notes) -> Step:
        """Make the sync note from now on; the undo goes back to what the change is bound with."""
        ...
