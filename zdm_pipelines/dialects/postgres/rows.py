"""Rows: batches with their checkpoint in one transaction, the keys between them, and samples that cut a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zdm_pipelines.dialects.postgres import environment, keys, strides
from zdm_pipelines.dialects.postgres.timeouts import milliseconds
from zdm_pipelines.dialects.server import Batch, Committed, Heap, Trigger
from zdm_pipelines.model.values import Catalog, Key, Statement

if TYPE_CHECKING:
    from zdm_pipelines.dialects.postgres.connection import Connection

_PAGES_PER_RANGE = 30  # sizes then vary by about a fifth; more evens them out little
_SEED = 1  # the same table gives the same cuts
_TRIAL_WAIT = 0.1  # seconds that a trial waits for a row: who is locked out says nothing

_EXEMPTING = (
    "let it pass what the migration writes, as by WHEN (coalesce(current_setting('zdm.backfill', true), '') = '') in "
    "its definition, or disable it meanwhile"
)

# The statement that writes rows, and in the same statement what the ledger says of the batch.
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


def counted(batch: Batch) -> Statement:
    """The last statement of a batch, together with the ledger's line of its range."""
    sql, values = batch.statements[-1]
    n = len(values)
    together = _TOGETHER.format(move=sql, migration=n + 1, ordinal=n + 2, upper=n + 3, unless=n + 4, oid=n + 5)
    checkpoint = None if batch.checkpoint is None else list(batch.checkpoint)
    unless = -1 if batch.unless is None else batch.unless
    return Statement(together, (*values, batch.migration_id, batch.ordinal, checkpoint, unless, batch.table))


def _limits(lock: float, statement: float | None) -> tuple[int, int]:
    """Time-outs in ms; 0: none."""
    return max(1, round(lock * 1000)), 0 if statement is None else max(1, round(statement * 1000))


class PostgresRows:
    """See `Rows` for what each member is."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def prepare(self, table: Catalog) -> None:
        """The environment that was recorded with the table."""
        environment.enter(self._conn, table.environment)

    def commit(self, batch: Batch) -> Committed | None:
        """Rows and checkpoint in one transaction, sent at once: its locks do not wait for our next word."""
        limits = _limits(batch.lock_timeout, batch.statement_timeout)
        with self._conn.pipeline(), self._conn.transaction():
            self._conn.send("rows.begin_batch", *limits, batch.table, list(batch.writes))
            for statement in batch.statements[:-1]:
                self._conn.execute(statement.sql.encode(), statement.values or None)
            last = counted(batch)
            done = self._conn.execute(last.sql.encode(), last.values)
        found = done.fetchone()
        return None if found is None else Committed(rows=found[0], hot=found[1])

    def write(self, statements: Sequence[Statement], *, wait: float) -> None:
        """Run the statements of one transaction that belong to no range, sent at once."""
        with self._conn.pipeline(), self._conn.transaction():
            self._conn.send("rows.begin_batch", *_limits(wait, None), 0, [])
            for statement in statements:
                self._conn.execute(statement.sql.encode(), statement.values or None)

    def try_out(self, statements: Sequence[Statement]) -> None:
        """Run the statements of a batch and take them back."""
        with self._conn.transaction(force_rollback=True):
            self._conn.named("rows.begin_trial", milliseconds(_TRIAL_WAIT))
            for statement in statements:
                self._conn.run(statement)

    def triggers(self, writes: Mapping[str, str]) -> list[Trigger]:
        """The application's triggers that fire for what batches write."""
        found = self._conn.named("rows.triggers", list(writes), list(writes.values()))
        return [Trigger(name=n, function=f, before=b, way_out=_EXEMPTING) for n, f, b in found]

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
        """The key so many rows on; one index probe."""
        predicate, values = keys.between(table.key, lower, upper, last=last)
        return self._probe(table, predicate, values, f"{keys.columns(table.key)} OFFSET {rows}", wait=wait)

    def last_key(self, table: Catalog, lower: Key | None, *, wait: float | None) -> Key | None:
        """The highest key, by the index."""
        predicate, values = keys.between(table.key, lower, None)
        order = ", ".join(f"{keys.columns([column])} DESC" for column in table.key)
        return self._probe(table, predicate, values, order, wait=wait)

    def _probe(
        self, table: Catalog, predicate: str, values: Sequence[Any], order: str, *, wait: float | None
    ) -> Key | None:
        sql = f"SELECT {keys.as_text(table.key)} FROM ONLY {table.table.sql} WHERE {predicate} ORDER BY {order} LIMIT 1"
        with self._conn.pipeline(), self._conn.transaction():
            # Whoever probes occupies a place of the database's budget. Without a time-out, somebody who rewrites the
            # table would block the probe and keep that place from other migrations.
            self._conn.send("locks.wait", milliseconds(wait))
            probe = self._conn.execute(sql.encode(), values or None)
        found = probe.fetchone()
        return tuple(found[0]) if found else None

    def keys(self, table: Catalog, lower: Key | None, upper: Key | None) -> list[Key]:
        """Every key of an interval, in order."""
        predicate, values = keys.between(table.key, lower, upper)
        sql = (
            f"SELECT {keys.as_text(table.key)} FROM ONLY {table.table.sql} WHERE {predicate} "
            f"ORDER BY {keys.columns(table.key)}"
        )
        return [tuple(key) for (key,) in self._conn.run(Statement(sql, values))]

    def among(
        self, table: Catalog, passes: int, number: int, lower: Key | None, upper: Key | None, *, rows: int
    ) -> strides.Among:
        """The rows of one pass over a window."""
        return strides.among(table.key, passes, number, lower, upper, rows=rows)

    def heap(self, table: Catalog, column: str) -> Heap:
        """How the rows of a table lie."""
        return strides.heap(self._conn, table, column)

    def estimate(self, table: Catalog) -> int:
        """About how many rows a table has."""
        pages = self._pages(table)
        planned = self._conn.value("rows.planned_per_page", table.oid)
        if planned is not None and planned > 0:
            return round(float(planned) * pages)
        percent = min(100.0, 100.0 * 100 / max(pages, 1))
        sample = f"{table.table.sql} TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({_SEED})"
        ((counted_rows,),) = self._conn.run(Statement(f"SELECT count(*) FROM {sample}"))
        return round(int(counted_rows) * 100.0 / percent)

    def _pages(self, table: Catalog) -> int:
        return int(self._conn.value("rows.pages", table.oid))

    def cuts(self, table: Catalog, lower: Key | None, upper: Key | None, *, range_rows: int, at_most: int) -> list[Key]:
        """Every n-th key of a block sample, where n rows of the sample stand for one range."""
        wanted = min(at_most, max(1, -(-self.estimate(table) // range_rows)))
        if wanted == 1:
            return []
        percent = min(100.0, 100.0 * wanted * _PAGES_PER_RANGE / max(self._pages(table), 1))
        predicate, values = keys.between(table.key, lower, upper)
        # Never more ranges than `at_most`, whatever the sample holds.
        sql = f"""
WITH zdm_sample AS (
  SELECT {keys.as_text(table.key)} AS zdm_key, row_number() OVER (ORDER BY {keys.columns(table.key)}) - 1 AS zdm_at,
         count(*) OVER () AS zdm_count
  FROM ONLY {table.table.sql} TABLESAMPLE SYSTEM ({percent}) REPEATABLE ({_SEED}) WHERE {predicate}
), zdm_stride AS (
  SELECT greatest(1, ceil(zdm_count / {at_most}.0), round({range_rows} * {percent} / 100.0))::bigint AS zdm_rows
  FROM zdm_sample LIMIT 1
)
SELECT zdm_key FROM zdm_sample, zdm_stride
WHERE zdm_at > 0 AND zdm_at % zdm_rows = 0 AND (zdm_count - zdm_at) * 2 >= zdm_rows ORDER BY zdm_at"""
        return [tuple(found) for (found,) in self._conn.run(Statement(sql, values))]

    def wal_bytes(self) -> int:
        """Bytes of WAL written so far: by this session from Postgres 18 on, else by the whole server."""
        if self._conn.info.server_version >= 180000:
            self._conn.named("rows.flush_statistics")
            own = self._conn.value("rows.own_wal")
            if own is not None:
                return int(own)
        return int(self._conn.value("rows.server_wal"))
