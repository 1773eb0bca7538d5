"""The frozen values that phases, engine and dialects hand to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from zdm_pipelines.model.lifecycle import Lifecycle
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.states import Phase, State

Key = tuple[str, ...]  # one primary-key value, each column in the server's own text form


class Statement(NamedTuple):
    """SQL and the values that are bound to its $1, $2, …: printable before it runs."""

    sql: str
    values: Sequence[Any] = ()


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A table that a change claims: no second migration touches it, and locks are taken in the order of claims."""

    name: TableName
    oid: int  # 0: expand creates it, and it is found by its name in the transaction that did


@dataclass(frozen=True, kw_only=True)
class Named:
    """Columns that a change names in its statements, so that a column which others rename or drop is told."""

    table: int  # oid
    columns: Mapping[str, int]  # by name, the number; 0: expand makes it


@dataclass(frozen=True, kw_only=True)
class KeyRange:
    """A primary-key interval: one Dagster partition."""

    ordinal: int  # unique for ever within the migration
    partition: str  # the key a person reads: ordinal and where it starts
    lower: Key | None  # inclusive; None: from the first key
    upper: Key | None  # exclusive; None: everything after, rows not yet inserted included


@dataclass(frozen=True, kw_only=True)
class RangeProgress:
    """What the ledger knows of one range."""

    range: KeyRange
    done: bool
    checkpoint: Key | None  # every row below it is moved
    rows: int  # rows moved, over all runs of this range
    batches: int
    retries: int
    seconds: float
    wal_bytes: int
    hot: int  # rows moved in place (heap-only): no index was touched


@dataclass(frozen=True, kw_only=True)
class Moved:
    """What one batch did, or what a range came to."""

    partition: str
    rows: int
    batches: int
    retries: int
    seconds: float
    wal_bytes: int
    done: bool
    batch_rows: int  # present size of a batch
    already: int = 0  # rows moved by earlier runs of this range
    hot: int = 0  # rows moved in place (heap-only): no index was touched
    dead: int = 0  # dead rows that the table has more than before, by whomever


@dataclass(frozen=True, kw_only=True)
class Step:
    """One statement of a phase, printable before it runs."""

    name: str
    sql: str
    reason: str
    lock: str  # the strongest lock it takes on the application's table
    undo: str = ""  # SQL that takes it back; empty: nothing to take back
    done_when: str = ""  # SQL giving true once it is done; empty: it commits with the state, or may simply be run again
    undone_when: str = ""  # SQL giving true when there is nothing to take back; empty: the undo says so by itself
    in_transaction: bool = True  # CONCURRENTLY must stand alone
    broken_by: str = ""  # query for the first keys of the rows that the step may fail for, each as text[]

    def undoing(self) -> Step:
        """The step that takes this one back; only for steps that have an undo."""
        reason = f"takes back: {self.name}"
        return Step(
            name=f"undo {self.name}",
            sql=self.undo,
            reason=reason,
            lock=self.lock,
            done_when=self.undone_when,
            in_transaction=self.in_transaction,
        )


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column as the catalog has it."""

    name: str
    type: str  # as format_type prints it
    not_null: bool
    default: str | None
    generated: bool
    identity: bool
    number: int


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """An index or constraint of the old column, as it will stand on the new one."""

    kind: str  # index, unique_index, unique (a constraint backed by an index), check, foreign_key
    original: str
    name: str
    definition: str  # index: everything from USING on; constraint: its definition
    deferrable: str = ""  # of a unique constraint, as SQL
    where: str = ""  # of an index: the end of its definition that says which rows, with its WHERE
    tablespace: str = ""  # of an index, quoted
    columns: tuple[int | str, ...] = ()  # of an index: numbers of its columns, 0 for an expression; the new one's name
    # Of what a row can break, a unique index: what it orders by; a check or foreign key: its condition, over zdm_row.
    elements: tuple[str, ...] = ()
    nulls_distinct: bool = True
    validated: bool = True  # a constraint: rows that are there must keep it, too; else it is NOT VALID or NOT ENFORCED

    def alike(self, other: Rebuild) -> bool:
        """Whether both say the same, whatever they are called."""
        return (self.kind, self.definition, self.deferrable) == (other.kind, other.definition, other.deferrable)


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """One relation as the server described it before anything was changed; kept in the ledger from expand on."""

    table: TableName
    oid: int
    rows: int  # planner's estimate, 0 when never analyzed
    bytes: int  # heap, without indexes
    columns: tuple[Column, ...]
    key: tuple[Column, ...]  # primary key, in index order
    immutable: bool = True  # whether the server takes `up` and `down` to depend on the row alone
    plain: bool = False  # immutable, and no setting but those of printing says what they mean
    environment: Mapping[str, str] = field(default_factory=dict)  # settings under which they are evaluated, by name
    warnings: tuple[str, ...] = ()

    def column(self, name: str) -> Column:
        """The column of that exact name.

        Raises:
            KeyError: there is none.
        """
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(name)


@dataclass(frozen=True, kw_only=True)
class Flag:
    """Which share of keys reads the new shape."""

    name: str
    percent: int  # 0 to 100
    retired: bool  # the old shape is gone; stays at 100 for clients that still ask
    full_since: datetime | None = None  # since when all reads are on the new shape, whoever moved the flag


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Rows that disagree, by category, with the first few keys of each. No values."""

    rows: int  # rows that the verdict speaks of
    seconds: float
    earlier: int = 0  # of them, rows of ranges that nobody wrote since they were compared
    missing: int = 0  # old has a value, new has none
    extra: int = 0  # new has a value, old has none
    different: int = 0  # both have one
    through_down: int = 0  # agree as old = down(new) only: written by the new shape, and `down` loses information
    unmoved: int = 0  # old has a value to move, new has none; also where `down` of none is the old value
    beyond: int = 0  # new has a value for which `down` raises: it was written by the new shape
    new_is_read: bool = False  # all reads are on the new shape: rows that are beyond `down` are right
    keys: Mapping[str, Sequence[Key]] = field(default_factory=dict)
    partitions: tuple[str, ...] = ()  # the ranges they lie in

    @property
    def agrees(self) -> bool:
        """Whether no row disagrees."""
        return not (self.missing or self.extra or self.different or (self.beyond and not self.new_is_read))

    def describe(self) -> str:
        """One line for people."""
        beyond = [self._named("beyond", "whose new value `down` cannot give back")] if self.beyond else []
        if self.agrees:
            down = f", {self.through_down:,} of them through down only" if self.through_down else ""
            now = f" ({self.rows - self.earlier:,} compared now, the rest unwritten since it was compared)"
            agreeing = f"{self.rows:,} rows agree{down}" + (now if self.earlier else "")
            return "; among them ".join([agreeing, *beyond])
        named = [self._named(c, c) for c in ("missing", "extra", "different") if getattr(self, c)]
        return "; ".join(named + beyond)

    def _named(self, category: str, called: str) -> str:
        first = ", ".join("/".join(k) for k in self.keys.get(category, ()))
        return f"{getattr(self, category):,} {called} (first keys: {first})"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One verdict of validate."""

    name: str
    passed: bool
    summary: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a phase did: the one value behind Dagster's metadata and the CLI's tables."""

    migration: str
    phase: Phase
    state: State  # after the phase
    summary: str
    sql: tuple[str, ...] = ()  # what was executed, in order; repeated batches once
    rows: int = 0
    seconds: float = 0.0
    batches: int = 0
    retries: int = 0
    wal_bytes: int = 0
    checks: tuple[Check, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows_per_second(self) -> float:
        """Rows per second of this phase, 0 when nothing moved."""
        return self.rows / self.seconds if self.rows and self.seconds else 0.0


@dataclass(frozen=True, kw_only=True)
class Hold:
    """One reason not to write now."""

    migration: str  # * stands for every migration of the database
    owner: str
    reason: str
    since: datetime


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One signal, read once."""

    signal: str
    value: float | None  # none: it could not be read
    problem: str = ""  # why not
    source: str = ""  # what exactly the value is of, such as the slowest replica's name


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a reading means."""

    reading: Reading
    bad: bool
    critical: bool
    reason: str  # the value with its limits, for people; also when it is good


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a migration stands."""

    migration: str
    state: State
    lifecycle: Lifecycle  # as the migration began, whatever a file declares today
    ranges: int
    ranges_done: int
    rows_moved: int
    flag: Flag | None
    switched_at: datetime | None
    tombstoned_at: datetime | None
    stragglers: tuple[str, ...]
    holds: tuple[Hold, ...]  # what stands against writing
    events: tuple[str, ...]  # the latest, newest first
    called: str = ""  # what the table is called by now, if that is not as the declaration says
    conflict: str = ""  # how a file contradicts what the migration was begun with; empty: the two agree
