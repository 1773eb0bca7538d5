"""Batches: move one range in short transactions, each committed together with its checkpoint."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import psycopg
from psycopg import errors

from zdm_pipelines.dialects.postgres import keys, strides
from zdm_pipelines.dialects.postgres.connection import Connection, of_data, query, safe, scalar
from zdm_pipelines.dialects.postgres.strides import ALL, Pick
from zdm_pipelines.engine.locks import holders
from zdm_pipelines.engine.pace import Pace
from zdm_pipelines.engine.strides import Strides
from zdm_pipelines.model.errors import LockNotAcquired, MappingFailed, MigrationBusy, StateConflict
from zdm_pipelines.model.values import Catalog, Key, KeyRange

_REVISIT_SECONDS = 0.2  # first pause before rows that the application held are tried again
_LONGEST_REVISIT = 5.0
_FEW = 50  # rows that are worth queueing for one by one
_QUEUE_SECONDS = 0.5  # how long for each; below deadlock_timeout, and others may have more luck
# Windows that are moved in turns, pass by pass: a statement of others that began before a pass was committed keeps its
# dead rows, and has mostly ended when the next pass comes.
_SIDE_BY_SIDE = 2
_FILLED = 0.9  # of a batch's size: what a pass of a window finds on average
_LOCK_SECONDS = 2.0  # how long a schema change of others is waited for; rows are not
_TRIES = 5  # of one batch, when the server cancels it (deadlock, serialization, recovery conflict)


# The server's ways to end a batch that may well succeed when it is tried again.
_CANCELLED = (errors.DeadlockDetected, errors.SerializationFailure, errors.TransactionRollback, errors.QueryCanceled)

# The statement that moves rows, and in the same statement what the ledger says of it.
_TOGETHER = """\
WITH zdm_moved AS (
{move}
RETURNING 1
), zdm_did AS (SELECT count(*) AS zdm_rows FROM zdm_moved)
UPDATE zdm.range SET rows = rows + zdm_rows, batches = batches + 1,
  hot = hot + pg_stat_get_xact_tuples_hot_updated(${oid}) - current_setting('zdm.hot')::bigint,
  checkpoint = CASE WHEN zdm_rows = ${unless} THEN checkpoint ELSE coalesce(${upper}::text[], checkpoint) END
FROM zdm_did WHERE migration_id = ${migration} AND ordinal = ${ordinal}
RETURNING zdm_rows, pg_stat_get_xact_tuples_hot_updated(${oid}) - current_setting('zdm.hot')::bigint"""


class BatchSql(Protocol):
    """The statements of one kind of change, over the parameters that they return."""

    def move(
        self, lower: Key | None, upper: Key | None, *, repair: bool = False, pick: Pick = ALL
    ) -> tuple[str, list[list[str]]]:
        """One batch: the rows of an interval that wait to be moved, as picked.

        With `repair`, here and below: rows that disagree, taken from the old shape.
        """
        ...

    def count_unmoved(
        self, lower: Key | None, upper: Key | None, *, repair: bool = False
    ) -> tuple[str, list[list[str]]]:
        """How many rows of an interval wait to be moved."""
        ...

    def unmoved_keys(
        self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False
    ) -> tuple[str, list[list[str]]]:
        """The first keys of them."""
        ...

    def move_one(self, key: Key, *, repair: bool = False) -> tuple[str, list[list[str]]]:
        """Move the row at a key."""
        ...


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


Tell = Callable[[Moved], None]


class Control(Protocol):
    """What stands above the workers of a run: when, how much, and with what rest."""

    pace: Pace

    def turn(self, conn: Connection) -> AbstractContextManager[object]:
        """Wait until a batch may be written; it is written inside."""
        ...

    def rest(self, seconds: float) -> None:
        """Rest after a batch that took so long."""
        ...

    def statement_timeout(self) -> float:
        """Seconds after which a batch is split."""
        ...


@dataclass(kw_only=True)
class _Window:
    """An interval of keys whose rows are moved in so many passes."""

    lower: Key | None
    passes: int
    upper: Key | None = None  # None: to the range's end
    span: int = 0  # rows, when it was measured; 0: it was not

    def rows(self, size: int) -> int:
        """How many rows it spans, for batches of a size. A pass stays below it, though rows spread unevenly."""
        return size if self.passes == 1 else max(1, int(size * self.passes * _FILLED))

    def end(self, wanted: KeyRange) -> Key | None:
        """Where it ends."""
        return self.upper if self.upper is not None else wanted.upper


@dataclass(frozen=True, kw_only=True)
class _Done:
    """What a transaction did."""

    rows: int
    hot: int


class RangeWorker:
    """Moves one range on one connection, which holds the range's lock."""

    def __init__(
        self,
        conn: Connection,
        *,
        migration_id: int,
        name: str,
        catalog: Catalog,
        sql: BatchSql,
        control: Control,
        strides: Strides,
        patience: float,
        tell: Tell,
        repair: bool = False,
        whole: bool = False,
    ) -> None:
        self.conn = conn
        self.migration_id = migration_id
        self.name = name
        self.catalog = catalog
        self.sql = sql
        self.control = control
        self.strides = strides
        self.patience = patience
        self.tell = tell
        self.repair = repair
        self.whole = whole  # rows are locked as for a change of their key
        self.rows = self.hot = self.batches = self.retries = 0
        self._waited = 0.0  # seconds for a turn

    def run(self, wanted: KeyRange) -> Moved:
        """Move what is left of a range, from its checkpoint, and prove that nothing is left.

        Raises:
            LockNotAcquired: the application held rows longer than `patience` seconds.
            MappingFailed: `up` raises for a row; names its key.
        """
        begun, wal, dead = time.monotonic(), self._wal(), self._dead()
        found = query(
            self.conn,
            "SELECT checkpoint, done_at IS NOT NULL, rows FROM zdm.range WHERE migration_id = $1 AND ordinal = $2",
            [self.migration_id, wanted.ordinal],
        )
        if not found:
            raise self._gone(wanted)
        row = found[0]
        checkpoint, done, already = (row[0] and tuple(row[0])), row[1], row[2]
        if not done:
            self._pass(wanted, checkpoint if checkpoint is not None else wanted.lower, first=True)
        self._revisit(wanted)
        moved = Moved(
            partition=wanted.partition, rows=self.rows, batches=self.batches, retries=self.retries,
            seconds=time.monotonic() - begun, wal_bytes=max(0, self._wal() - wal), done=True,
            batch_rows=self.control.pace.rows, already=already, hot=self.hot,
            dead=max(0, self._dead() - dead),
        )  # fmt: skip
        query(
            self.conn,
            "UPDATE zdm.range SET done_at = coalesce(done_at, clock_timestamp()), seconds = seconds + $3, "
            "wal_bytes = wal_bytes + $4, retries = retries + $5 WHERE migration_id = $1 AND ordinal = $2",
            [self.migration_id, wanted.ordinal, moved.seconds, moved.wal_bytes, moved.retries],
        )
        return moved

    def _wal(self) -> int:
        """Bytes of WAL so far: this session's own where the server tells (18 and later), else the whole server's."""
        if self.conn.info.server_version >= 180000:
            query(self.conn, "SELECT pg_stat_force_next_flush()")
            own = scalar(self.conn, "SELECT wal_bytes FROM pg_stat_get_backend_wal(pg_backend_pid())")
            if own is not None:
                return int(own)
        return int(scalar(self.conn, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def _dead(self) -> int:
        return int(scalar(self.conn, "SELECT pg_stat_get_dead_tuples($1)", [self.catalog.oid]))

    def _pass(self, wanted: KeyRange, start: Key | None, *, first: bool) -> None:
        """Move what waits, window by window, from a key to the range's end."""
        at = start
        while True:
            # What is left of an earlier pass lies far apart: there is nothing to spread.
            passes = self.strides.passes if first else 1
            windows: list[_Window] = []
            while len(windows) < (_SIDE_BY_SIDE if passes > 1 else 1):
                windows.append(_Window(lower=at, passes=passes))
                self._batches(wanted, windows[-1], 0, first=first)
                at = windows[-1].upper
                if at is None:
                    break
            for number in range(1, passes):
                for window in windows:
                    self._batches(wanted, window, number, first=first)
            if at is None:
                return

    def _batches(self, wanted: KeyRange, window: _Window, number: int, *, first: bool) -> None:
        """A pass of a window: one transaction, and more where rows spread unevenly."""
        rows = 0
        # It ends, also where a trigger of the application's makes every row that is moved wait anew.
        while self._batch(wanted, window, number, first=first) and rows < window.span:
            rows += self.control.pace.next_rows

    def _next(self, lower: Key | None, end: Key | None, rows: int) -> Key | None:
        """The key so many rows on, None when the range ends before; one index probe."""
        predicate, params = keys.between(self.catalog.key, lower, end)
        sql = (
            f"SELECT {keys.as_text(self.catalog.key)} FROM ONLY {self.catalog.table.sql} WHERE {predicate} "
            f"ORDER BY {keys.columns(self.catalog.key)} OFFSET {rows} LIMIT 1"
        )
        with self.conn.pipeline(), self.conn.transaction():
            # It holds one of the database's places: whoever rewrites the table must not keep that.
            self.conn.execute("SELECT set_config('lock_timeout', $1, true)", [f"{round(_LOCK_SECONDS * 1000)}ms"])
            probe = self.conn.execute(sql.encode(), params)
        found = probe.fetchone()
        return tuple(found[0]) if found else None

    def _batch(self, wanted: KeyRange, window: _Window, number: int, *, first: bool) -> bool:
        """One transaction of a window's pass; true when the pass may have more rows."""
        size, attempt, blocked_since = self.control.pace.next_rows, 1, 0.0
        done, begun = _Done(rows=0, hot=0), time.monotonic()
        while True:
            try:
                with self._turn():
                    begun = time.monotonic()
                    if not window.span or window.passes == 1:
                        rows = window.rows(size)
                        window.upper = self._next(window.lower, wanted.upper, rows)
                        window.span = rows  # not before: the probe may be cancelled
                    done = self._commit(wanted, window, number, size, first=first)
                break
            except errors.LockNotAvailable:
                # Somebody rewrites the table or builds an index on it: that is waited for like a held row.
                self.retries += 1
                time.sleep(random.uniform(0.05, 0.2))
                blocked_since = blocked_since or self._tried()
                if self._tried() - blocked_since > self.patience:
                    raise LockNotAcquired(
                        f"{self.name} range {wanted.partition}",
                        f"the table is locked for {self.patience:g} s; held by {holders(self.conn, self.catalog.oid)}",
                        "end those transactions and materialize the range again; it goes on where it stopped",
                    ) from None
            except _CANCELLED as error:
                self.retries += 1
                if isinstance(error, errors.QueryCanceled) and size > 1:
                    size = self.control.pace.too_long(size)
                    continue
                if attempt == _TRIES:
                    raise MigrationBusy(
                        f"{self.name} range {wanted.partition}",
                        f"a batch was cancelled {_TRIES} times ({safe(error)})",
                        "run it again",
                    ) from None
                time.sleep(random.uniform(0.05, 0.2) * attempt)
                attempt += 1
            except psycopg.Error as error:
                if not of_data(error):
                    raise
                raise self._failing_row(window.lower, window.end(wanted), error) from None
        took = time.monotonic() - begun
        self._count(wanted, done, took, size)
        self.strides.moved(self.conn, number, done.rows, done.hot)
        self.control.rest(took)
        return window.passes > 1 and done.rows == size

    def _count(self, wanted: KeyRange, done: _Done, took: float, size: int) -> None:
        self.control.pace.took(took, size)
        self.rows += done.rows
        self.hot += done.hot
        self.batches += 1
        self.tell(
            Moved(
                partition=wanted.partition, rows=done.rows, batches=1, retries=0, seconds=took, wal_bytes=0, done=False,
                batch_rows=self.control.pace.rows, hot=done.hot,
            )
        )  # fmt: skip

    @contextmanager
    def _turn(self) -> Iterator[None]:
        asked = time.monotonic()
        with self.control.turn(self.conn):
            self._waited += time.monotonic() - asked
            yield

    def _tried(self) -> float:
        """A clock that stands still while this range waits for its turn: patience is for trying."""
        return time.monotonic() - self._waited

    def _commit(self, wanted: KeyRange, window: _Window, number: int, size: int, *, first: bool) -> _Done:
        end = window.end(wanted)
        if window.passes == 1:
            pick = Pick(whole=self.whole)
        else:
            among = strides.among(self.catalog.key, window.passes, number, window.lower, end, rows=window.span)
            pick = Pick(among=among, limit=size, whole=self.whole)
        return self._transact(
            wanted,
            self.sql.move(window.lower, end, repair=self.repair, pick=pick),
            upper=end if first and number == window.passes - 1 else None,
            unless=size if window.passes > 1 else None,
            lock_timeout=_LOCK_SECONDS,
            alone=size == 1,
        )

    def _transact(
        self,
        wanted: KeyRange,
        statement: tuple[str, list[list[str]]],
        *,
        upper: Key | None = None,
        unless: int | None = None,
        lock_timeout: float,
        alone: bool,
    ) -> _Done:
        """Rows and checkpoint in one transaction, sent at once: its locks do not wait for our next word.

        Args:
            upper: the new checkpoint.
            unless: so many rows were moved: then there may be more, and the checkpoint stays.
            alone: it is one row, which cannot be split: it may take what it takes.
        """
        sql, params = statement
        n = len(params)
        with self.conn.pipeline(), self.conn.transaction():
            # Off is safe: a crash loses rows and checkpoint together.
            self.conn.execute(
                "SELECT set_config('synchronous_commit', 'off', true), set_config('zdm.backfill', 'on', true), "
                "set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true), "
                # A batch goes by the key's index, whatever the statistics say of a table that changes under them.
                "set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), "
                "set_config('enable_mergejoin', 'off', true), "
                "set_config('zdm.hot', pg_stat_get_xact_tuples_hot_updated($3)::text, true)",
                [
                    f"{round(lock_timeout * 1000)}ms",
                    f"{0 if alone else round(self.control.statement_timeout() * 1000)}ms",
                    self.catalog.oid,
                ],
            )
            moved = self.conn.execute(
                _TOGETHER.format(
                    move=sql, migration=n + 1, ordinal=n + 2, upper=n + 3, unless=n + 4, oid=n + 5
                ).encode(),
                [
                    *params, self.migration_id, wanted.ordinal, list(upper) if upper is not None else None,
                    -1 if unless is None else unless, self.catalog.oid,
                ],
            )  # fmt: skip
        found = moved.fetchone()
        if found is None:
            raise self._gone(wanted)
        return _Done(rows=found[0], hot=found[1])

    def _gone(self, wanted: KeyRange) -> StateConflict:
        return StateConflict(
            f"{self.name} range {wanted.partition}",
            "is not in the ledger any more: the ranges were cut anew meanwhile",
            "materialize the ranges that are missing now",
        )

    def _revisit(self, wanted: KeyRange) -> None:
        """Come back for rows that the application held, until none is left."""
        pause, begun, rows = _REVISIT_SECONDS, self._tried(), self.rows
        least: int | None = None
        sql, params = self.sql.count_unmoved(wanted.lower, wanted.upper, repair=self.repair)
        while left := self._counted(wanted, sql, params):
            if least is None or left < least:
                least, begun, rows = left, self._tried(), self.rows
            elif self._tried() - begun > self.patience:
                raise self._left(wanted, left, moved=self.rows > rows)
            if self.batches:
                self.retries += 1
                time.sleep(pause)
                pause = min(_LONGEST_REVISIT, pause * 2)
            self._pass(wanted, wanted.lower, first=False)
            self._queue_for_few(wanted)

    def _left(self, wanted: KeyRange, left: int, *, moved: bool) -> LockNotAcquired:
        thing = f"{self.name} range {wanted.partition}"
        if moved:
            return LockNotAcquired(
                thing,
                f"{left} rows wait anew after they were moved: something alters them as they are written",
                "look at the table's triggers, and materialize the range again",
            )
        return LockNotAcquired(
            thing,
            f"{left} rows are held by the application for {self.patience:g} s",
            "end those transactions and materialize the range again; all other rows are moved",
        )

    def _queue_for_few(self, wanted: KeyRange) -> None:
        """Queue for rows that are never free when we look, one by one: holding no other lock, we cannot deadlock."""
        sql, params = self.sql.unmoved_keys(wanted.lower, wanted.upper, limit=_FEW + 1, repair=self.repair)
        try:
            left = query(self.conn, sql, params)
            if len(left) > _FEW:
                return
            for (key,) in left:
                # Who is refused or cancelled has another turn when what is left is counted again.
                with self._turn(), contextlib.suppress(errors.LockNotAvailable, *_CANCELLED):
                    statement = self.sql.move_one(tuple(key), repair=self.repair)
                    self.rows += self._transact(wanted, statement, lock_timeout=_QUEUE_SECONDS, alone=True).rows
        except psycopg.Error as error:
            if not of_data(error):
                raise
            raise self._failing_row(*self._failing_batch(wanted), error) from None

    def _counted(self, wanted: KeyRange, sql: str, params: list[list[str]]) -> int:
        try:
            return int(self.conn.execute(sql.encode(), params).fetchall()[0][0])
        except psycopg.Error as error:
            if not of_data(error):
                raise
            raise self._failing_row(*self._failing_batch(wanted), error) from None

    def _failing_batch(self, wanted: KeyRange) -> tuple[Key | None, Key | None]:
        """The first batch of a range for which `up` raises."""
        at = wanted.lower
        while True:
            upper = self._next(at, wanted.upper, self.control.pace.rows)
            end = upper if upper is not None else wanted.upper
            sql, params = self.sql.count_unmoved(at, end, repair=self.repair)
            try:
                self.conn.execute(sql.encode(), params)
            except psycopg.Error:
                return at, end
            if upper is None:
                return wanted.lower, wanted.upper
            at = upper

    def _failing_row(self, lower: Key | None, upper: Key | None, error: psycopg.Error) -> MappingFailed:
        """Find the first row of a batch for which `up` raises."""
        predicate, params = keys.between(self.catalog.key, lower, upper)
        found = query(
            self.conn,
            f"SELECT {keys.as_text(self.catalog.key)} FROM ONLY {self.catalog.table.sql} WHERE {predicate} "
            f"ORDER BY {keys.columns(self.catalog.key)}",
            params,
        )
        key = next((tuple(k) for (k,) in found if self._raises(tuple(k))), None)
        where = f"the row with key {'/'.join(key)}" if key else "a row of a batch"
        return MappingFailed(
            self.name,
            f"up fails for {where}: {safe(error)}",
            "correct that row or up and materialize the range again; what is moved stays moved",
        )

    def _raises(self, key: Key) -> bool:
        sql, params = self.sql.move_one(key, repair=self.repair)
        try:
            with self.conn.transaction(force_rollback=True):
                query(
                    self.conn,
                    "SELECT set_config('zdm.backfill', 'on', true), set_config('lock_timeout', '100ms', true)",
                )
                query(self.conn, sql, params)
        except errors.LockNotAvailable:
            return False
        except psycopg.Error as error:
            if not of_data(error):
                raise
            return True
        return False
