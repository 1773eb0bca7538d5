"""Server: what everything above asks of a database product; each product is a folder beside this module.

Statements are of two kinds. Statements whose text never changes are named blocks of a product's `.sql` files, run by
`Session.named` and `Session.value`. Statements that name the user's tables and columns are made by the product's
modules as values (`Statement`, `Step`), which can be printed before `Session.run` runs them; what needs several
statements or reads their answers is a method of one of the session's groups (`rows`, `locks`, `sync`, …).

Drivers raise their own errors. `DatabaseError` of the package `dialects` catches them, `fault` says which kind one is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from zdm_pipelines.model.capabilities import Marking
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.signals import Signal, Surroundings
from zdm_pipelines.model.throttle import Limit
from zdm_pipelines.model.values import Catalog, Column, Key, Statement, Step

Row = tuple[Any, ...]


class Fault(StrEnum):
    """What kind of failure an error of a driver is."""

    LOCK_BUSY = "lock_busy"  # a lock was not had in time
    CANCELLED = (
        "cancelled"  # ended because it took too long, somebody asked for that, or its rows got into their own way
    )
    CONFLICT = "conflict"  # ended for others' sake, and may well succeed when tried again: deadlock, serialization
    OF_DATA = "of_data"  # a row's values: a cast, a constraint, what a function raises
    LOST = "lost"  # the connection is gone, so that the outcome must be looked up
    TOO_LARGE = "too_large"  # a value is beyond a limit of the server: an index entry, say
    TAKEN = "taken"  # the name of what is to be made stands for something else
    PRIVILEGE = "privilege"  # the role may not do this
    READ_ONLY = "read_only"  # nothing may be written here: a replica, or a session that is read-only
    OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Heap:
    """How the rows of a table lie; what the planner's statistics say is None where it was never analyzed."""

    pages: int
    rows_per_page: float | None
    free: float | None  # share of a page that no row uses
    correlation: float | None  # of the key's first column with the order of the heap, 0 to 1
    indexed: bool  # an index reads the column that is written: its rows never move in place
    unique: bool  # a unique index does, which foreign keys may refer to: a row is locked whole when it is written


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One transaction of row work, with what the ledger says of it in the same transaction."""

    statements: Sequence[Statement]  # in this order; the last one counts the rows
    table: int  # oid of the table whose key is cut into ranges
    writes: Sequence[str]  # the tables that it writes, quoted
    migration_id: int
    ordinal: int  # of the range
    checkpoint: Key | None = None  # the new one; None: it stays
    unless: int | None = None  # so many rows were counted: then there may be more, and the checkpoint stays
    lock_timeout: float  # seconds that a lock is waited for
    statement_timeout: float | None  # seconds; None: it may take what it takes


@dataclass(frozen=True, kw_only=True)
class Committed:
    """What a batch did."""

    rows: int
    hot: int  # of the rows written, those that moved in place


@dataclass(frozen=True, kw_only=True)
class Trigger:
    """A trigger of the application's that fires for what batches write."""

    name: str  # with its table, for messages
    function: str
    before: bool  # it fires before a row is written, and may alter it or keep it away
    way_out: str  # how it lets batches pass, for messages


class Rows(Protocol):
    """Row work: batches, the keys between them, and how a table's rows lie."""

    def prepare(self, table: Catalog) -> None:
        """From now on names and times mean in this session what they meant when the table was surveyed."""
        ...

    def commit(self, batch: Batch) -> Committed | None:
        """Run a batch, rows and checkpoint in one transaction; None: its range is not in the ledger any more."""
        ...

    def write(self, statements: Sequence[Statement], *, wait: float) -> None:
        """Run the statements of one transaction that belong to no range.

        Args:
            wait: seconds that a lock is waited for.
        """
        ...

    def try_out(self, statements: Sequence[Statement]) -> None:
        """Run the statements of a batch and take them back; raises what they raise."""
        ...

    def triggers(self, writes: Mapping[str, str]) -> list[Trigger]:
        """The application's triggers that fire for the rows which batches write; see `RowWork.writes`."""
        ...

    def key_after(
        self,
        table: Catalog,
        lower: Key | None,
        upper: Key | None,
        *,
        rows: int,
        last: Key | None = None,
        wait: float | None,
    ) -> Key | None:
        """The key so many rows on from `lower`, None when the interval ends before; one index probe.

        Args:
            lower: the first key of the interval; None: the table's first.
            upper: the first key behind the interval; None: it is open.
            last: the last key of an interval that is open.
            wait: seconds that somebody's lock on the table is waited for; None: until it is free.
        """
        ...

    def last_key(self, table: Catalog, lower: Key | None, *, wait: float | None) -> Key | None:
        """The highest key from `lower` on, None without rows; see `key_after` for `wait`."""
        ...

    def keys(self, table: Catalog, lower: Key | None, upper: Key | None) -> list[Key]:
        """Every key of an interval, in order."""
        ...

    def among(
        self, table: Catalog, passes: int, number: int, lower: Key | None, upper: Key | None, *, rows: int
    ) -> Callable[[str], str]:
        """The rows of one pass over a window, spread evenly over its pages: what `Pick.among` is.

        Args:
            passes: a power of two.
            rows: that the window spans.
        """
        ...

    def heap(self, table: Catalog, column: str) -> Heap:
        """How the rows of a table lie for writes of a column."""
        ...

    def estimate(self, table: Catalog) -> int:
        """About how many rows a table has, from its present size; exact for small ones."""
        ...

    def cuts(self, table: Catalog, lower: Key | None, upper: Key | None, *, range_rows: int, at_most: int) -> list[Key]:
        """The keys at which ranges of about `range_rows` rows begin, after the first; fewer than `at_most`."""
        ...

    def wal_bytes(self) -> int:
        """Bytes of log written so far: by this session where the server tells, else by the whole server."""
        ...


class Locks(Protocol):
    """Locks on tables and on names of ours."""

    def limit(self, *, lock: float, statement: float, idle: float) -> None:
        """Time-outs of the present transaction, in seconds: for a lock, a statement, and between two statements."""
        ...

    def exclude(self, table: TableName) -> None:
        """Keep everybody else away from a table, reads too, until the present transaction ends."""
        ...

    def send_maintenance_away(self, table: TableName) -> None:
        """Take a lock on a table that only maintenance waits for, which ends maintenance of the server's own."""
        ...

    def run_queueing(self, statement: Statement, *, wait: float) -> None:
        """Run a statement outside of transactions that may queue for its locks for so many seconds."""
        ...

    def take(self, name: str, *, shared: bool = False) -> bool:
        """Take a name for this session, if nobody has it."""
        ...

    def queue(self, name: str, *, wait: float) -> bool:
        """Queue for a name, for so many seconds; names are handed on in the order of asking."""
        ...

    def leave(self, name: str) -> None:
        """Give a name back before the session ends."""
        ...


class SyncNotes(Protocol):
    """What the sync notes, and what else the agreement of rows hangs on."""

    def can_mark(self, table: Catalog) -> bool:
        """Whether a key says by itself, in every session, which range it lies in."""
        ...

    def body(self, function: str) -> str | None:
        """The body of a trigger function (quoted, with its schema), None when there is none."""
        ...

    def marks(self, body: str, marking: Marking, migration_id: int, key: Column) -> bool:
        """Whether the body of a sync function notes which ranges are written, with these bounds and epoch."""
        ...

    def surroundings(self, table: int) -> list[str]:
        """What else the agreement of rows hangs on: the columns behind the names, functions, search path, server."""
        ...

    def cascades(self, table: int) -> bool:
        """Whether a write to this table may cause others, by a trigger of the application's or a rule."""
        ...


class Session(Protocol):
    """One connection in autocommit."""

    @property
    def rows(self) -> Rows:
        """The statements of row work."""
        ...

    @property
    def locks(self) -> Locks:
        """Locks on tables and names."""
        ...

    @property
    def sync(self) -> SyncNotes:
        """What the sync notes."""
        ...

    def named(self, name: str, *values: Any) -> list[Row]:
        """Run a named block of the product's `.sql` files, as `ledger.find`; gives its rows."""
        ...

    def value(self, name: str, *values: Any) -> Any:
        """Run a named block; gives the first column of the first row, None without rows."""
        ...

    def run(self, statement: Statement) -> list[Row]:
        """Run one statement; gives its rows."""
        ...

    def transaction(self, *, force_rollback: bool = False) -> AbstractContextManager[Any]:
        """A transaction, or a savepoint inside of one."""
        ...

    def snapshot(self) -> AbstractContextManager[Any]:
        """A transaction whose statements all see one snapshot."""
        ...

    def interrupt(self, *, cut: bool) -> None:
        """Let a statement end that another thread waits for: cancelled by the server, or else with its connection.

        Args:
            cut: the server did not cancel it, so the connection is cut.
        """
        ...

    @property
    def closed(self) -> bool:
        """Whether the connection is closed, or known to be lost."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class Server(Protocol):
    """One database, reached by its URL."""

    url: str

    def connect(self, *, purpose: str, deadline: float | None = None) -> AbstractContextManager[Session]:
        """A connection for one block, always closed.

        Args:
            purpose: what the server's own lists call it.
            deadline: seconds after which the server ends a statement of it; default: never.

        Raises:
            DatabaseUnreachable: no connection could be had.
        """
        ...

    @property
    def where(self) -> str:
        """host:port/database, for messages; never user or password."""
        ...

    def text(self, name: str) -> str:
        """The text of a named block, to be printed."""
        ...

    def gather_statistics(self, table: TableName) -> Step:
        """The step after which queries on what is new are planned as well as others."""
        ...

    def kind(self, name: str) -> Any:
        """The product's own part of a kind of change: the module `<product>/kinds/<name>`.

        Raises:
            SpecError: this product cannot make that kind of change.
        """
        ...

    def open(self, *, purpose: str, deadline: float | None = None) -> Session:
        """A connection that the caller closes; see `connect`."""
        ...

    def signal(self, name: str, limit: Limit, around: Surroundings) -> Signal:
        """A signal that the server gives: one that is built in, by its key in `throttle`, or the user's own SQL."""
        ...

    def upgrade_ledger(self, upgrade: Callable[[Any], None], *, head: str) -> None:
        """Bring the ledger's tables to a version, in one transaction; does nothing when they are there.

        Args:
            upgrade: runs the scripts, on the connection of SQLAlchemy that it is handed.
            head: the version that the scripts lead to.

        Raises:
            MissingPrivilege: the role may not create the schema.
            StateConflict: the ledger is at a later version.
            LockNotAcquired: others use the ledger's tables.
        """
        ...
