"""The SQL of copying rows to another table: batches, sync trigger, removal of rows that are too many.

A row of the target is written by three: a batch, the sync trigger in an application's transaction, and `repair`. All
three hold a lock on the source row that excludes the others, so the one that comes last has read what the others left:

- A change of the source row that is under way when a batch comes: `FOR SHARE SKIP LOCKED` passes it over. The row is
  locked from its change to the commit, hence also before and while the trigger writes the target. So no key that a
  batch inserts is under way in another transaction, and it waits for none. (`FOR KEY SHARE` does not exclude an update.
  It would read the old value, then wait at the target's key until the application ends, while it holds the keys before,
  which the application may want next: a deadlock.)
- One that was committed after the batch's snapshot: locking gives the row's latest version, or none when it was deleted
  or has another key. The snapshot does not show that the trigger has written the target; `ON CONFLICT DO NOTHING` sees
  it.
- One that comes after the lock: it waits until the batch is committed, one batch at most. The statements of the trigger
  see the committed copy, for in `READ COMMITTED` each has a snapshot of its own.
- In `REPEATABLE READ` and `SERIALIZABLE` they do not see what was copied since the transaction began. The trigger's
  upsert then meets it as a serialization failure, which such applications repeat. A delete would meet nothing and leave
  the copy behind: therefore the trigger makes it meet the key by an insert.

The trigger writes what the source row is when it runs, not what one event says it was: rows that exchange their keys,
and triggers of the application that write the row again, end right in any order. Where one statement may exchange what
is unique (the source's key or constraint is DEFERRABLE), the target's further unique constraints must be so, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.replace_column import BACKFILL_SETTING, TRIGGER_PREFIX, expression, same
from zdm_pipelines.dialects.postgres.strides import ALL, Pick
from zdm_pipelines.model.names import fitted, quote
from zdm_pipelines.model.values import Catalog, Key

EVENTS = ("insert", "update", "delete", "truncate")  # of the source, each with a trigger


@dataclass(frozen=True, kw_only=True)
class CopyRowsSql:
    """SQL for one copy: the target's key columns hold the source's key, one by one, and are unique together."""

    name: str  # of the migration
    migration_id: int
    source: Catalog
    target: Catalog  # its `key` names the columns that hold the source's key, in that order; types that `=` compares
    columns: Mapping[str, str]  # further columns of the target, each with its SQL over the source row
    reads: tuple[str, ...] = ()  # source columns that this SQL reads; empty: any, so every update is mirrored

    @property
    def alias(self) -> str:
        """The source's bare name, so that expressions may say users.full_name."""
        return quote(self.source.table.name)

    @property
    def function(self) -> str:
        return f"zdm.{quote(fitted(f'copy_{self.name}_{self.source.table.name}'))}"

    def trigger(self, event: str) -> str:
        """Name of the sync trigger for an event."""
        return fitted(f"{TRIGGER_PREFIX}{self.name}_{event}")

    @property
    def _written(self) -> tuple[str, ...]:
        return (*(c.name for c in self.target.key), *self.columns)

    @property
    def _listed(self) -> str:
        return ", ".join(quote(c) for c in self._written)

    @property
    def _mapped(self) -> list[str]:
        """What each written column gets, over the source row."""
        held = [f"{self.alias}.{quote(c.name)}" for c in self.source.key]
        return [*held, *(expression(sql) for sql in self.columns.values())]

    @property
    def _conflict(self) -> str:
        return f"ON CONFLICT ({keys.columns(self.target.key)}) DO"

    @property
    def _taken_over(self) -> str:
        """What an upsert does to a row that is there."""
        assigned = ", ".join(f"{quote(c)} = EXCLUDED.{quote(c)}" for c in self.columns)
        # Without further columns the row is rewritten as it is: whoever looks at it must see that it is in use.
        first = quote(self.target.key[0].name)
        return f"UPDATE SET {assigned or f'{first} = EXCLUDED.{first}'}"

    # -- batches ------------------------------------------------------------------------------------------

    @property
    def _rows(self) -> str:
        return f"ONLY {self.source.table.sql} AS {self.alias}"

    def _waits(self, *, repair: bool) -> str:
        """Predicate: a source row has no copy, or (repair) none that agrees."""
        # The copy's columns are renamed: in here too, names mean the source's columns.
        held = [f"{quote(c.name)} AS zdm_key_{i}" for i, c in enumerate(self.target.key, 1)]
        held += [f"{quote(c)} AS zdm_column_{i}" for i, c in enumerate(self.columns, 1)]
        agrees = [f"zdm_key_{i} = {self.alias}.{quote(c.name)}" for i, c in enumerate(self.source.key, 1)]
        if repair:
            agrees += [
                same(f"zdm_column_{i}", expression(sql), self.target.column(c).type)
                for i, (c, sql) in enumerate(self.columns.items(), 1)
            ]
        return (
            f"NOT EXISTS (SELECT FROM (SELECT {', '.join(held)} FROM ONLY {self.target.table.sql}) AS zdm_copy "
            f"WHERE {' AND '.join(agrees)})"
        )

    def _copy(self, rows: str, *, repair: bool, locking: str) -> str:
        chosen = ", ".join(f"{sql} AS {quote(c)}" for c, sql in zip(self._written, self._mapped, strict=True))
        then = "NOTHING"  # newer data wins: what the trigger or the application wrote stays
        if repair and self.columns:
            differs = " OR ".join(
                f"NOT ({same(f'zdm_target.{quote(c)}', f'EXCLUDED.{quote(c)}', self.target.column(c).type)})"
                for c in self.columns
            )
            then = f"{self._taken_over} WHERE {differs}"
        return f"""\
WITH zdm_batch AS MATERIALIZED (
  SELECT {chosen}
  FROM {self._rows}
  WHERE {rows}
  {locking}
)
INSERT INTO {self.target.table.sql} AS zdm_target ({self._listed}) OVERRIDING SYSTEM VALUE
SELECT {self._listed} FROM zdm_batch
{self._conflict} {then}"""

    def move(
        self, lower: Key | None, upper: Key | None, *, repair: bool = False, pick: Pick = ALL
    ) -> tuple[str, list[list[str]]]:
        """One batch. Rows that the application is changing are passed over.

        Args:
            repair: also bring copies that disagree to the source's values. Rows of the target without a source row
                stay: only the kind of change knows whether the target is its copy's alone; see `remove_extra`.
            pick: which rows of the source; they are only read, and so are never locked whole.
        """
        interval, params = keys.between(self.source.key, lower, upper)
        wanted = self._waits(repair=repair)
        rows = f"{interval} AND {wanted if pick.among is None else pick.among(wanted)}"
        limited = "" if pick.limit is None else f"LIMIT {pick.limit} "
        return self._copy(rows, repair=repair, locking=f"{limited}FOR SHARE OF {self.alias} SKIP LOCKED"), params

    def move_one(self, key: Key, *, repair: bool = False) -> tuple[str, list[list[str]]]:
        """Copy the one row at a key, if it still waits when its lock is had."""
        row = f"{keys.row(self.source.key)} = {keys.bound(self.source.key, 1)} AND {self._waits(repair=repair)}"
        return self._copy(row, repair=repair, locking=f"FOR SHARE OF {self.alias}"), [list(key)]

    def count_unmoved(
        self, lower: Key | None, upper: Key | None, *, repair: bool = False
    ) -> tuple[str, list[list[str]]]:
        """How many rows of an interval wait to be copied."""
        interval, params = keys.between(self.source.key, lower, upper)
        return f"SELECT count(*) FROM {self._rows} WHERE {interval} AND {self._waits(repair=repair)}", params

    def unmoved_keys(
        self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False
    ) -> tuple[str, list[list[str]]]:
        """The first keys of an interval that wait to be copied."""
        interval, params = keys.between(self.source.key, lower, upper)
        return (
            f"SELECT {keys.as_text(self.source.key)} FROM {self._rows} "
            f"WHERE {interval} AND {self._waits(repair=repair)} ORDER BY {keys.columns(self.source.key)} LIMIT {limit}",
            params,
        )

    # -- rows that are too many ---------------------------------------------------------------------------

    def remove_extra(self, lower: Key | None, upper: Key | None) -> tuple[str, list[list[str]]]:
        """Delete the rows of the target without a source row; for targets that hold nothing but this copy.

        A source row inserted meanwhile is not in the statement's snapshot, but its trigger has written the target's row
        anew: only versions that the snapshot shows are deleted. The bounds are of the target's key.
        """
        interval, params = keys.between(self.target.key, lower, upper)
        matched = " AND ".join(
            f"zdm_source.{quote(s.name)} = zdm_target.{quote(t.name)}"
            for s, t in zip(self.source.key, self.target.key, strict=True)
        )
        target = f"ONLY {self.target.table.sql} AS zdm_target"
        # xmin too: servers before the minor releases of November 2025 do not look at a ctid again once they waited.
        sql = f"""\
WITH zdm_seen AS MATERIALIZED (
  SELECT ctid AS zdm_ctid, xmin AS zdm_xmin FROM {target} WHERE {interval}
    AND NOT EXISTS (SELECT FROM ONLY {self.source.table.sql} AS zdm_source WHERE {matched})
), zdm_batch AS MATERIALIZED (
  SELECT zdm_target.ctid AS zdm_ctid FROM {target} JOIN zdm_seen ON ctid = zdm_ctid AND xmin = zdm_xmin
  FOR UPDATE OF zdm_target SKIP LOCKED
)
DELETE FROM {target} USING zdm_batch WHERE zdm_target.ctid = zdm_batch.zdm_ctid"""
        return sql, params

    # -- sync ---------------------------------------------------------------------------------------------

    @property
    def _guard(self) -> str:
        """Setting that is on while a sync of this migration writes: what it writes is not mirrored back."""
        return f"zdm.syncing_{self.migration_id}"

    def create_function(self) -> str:
        """The sync function: makes the target's row what the source's row is, at each key that an event names."""
        settings = [f"search_path = {self.source.search_path}, pg_temp"]
        if not self.source.immutable:
            settings += ["timezone FROM CURRENT", "datestyle FROM CURRENT", "intervalstyle FROM CURRENT"]
        target = self.target.table.sql
        key = list(enumerate(zip(self.source.key, self.target.key, strict=True), 1))
        before, after = (", ".join(f"{row}.{quote(s.name)} AS zdm_{i}" for i, (s, _) in key) for row in ("OLD", "NEW"))
        old, new = (f"ROW({', '.join(f'{row}.{quote(s.name)}' for _, (s, _) in key)})" for row in ("OLD", "NEW"))
        moved = f"pg_catalog.record_image_ne({old}, {new})"
        at_source = " AND ".join(f"{self.alias}.{quote(s.name)} = zdm_at.zdm_{i}" for i, (s, _) in key)
        at_target = " AND ".join(f"zdm_target.{quote(t.name)} = zdm_at.zdm_{i}" for i, (_, t) in key)
        into = ", ".join(f"zdm_given.{quote(c)}" for c in self._written)
        insert = f"INSERT INTO {target} AS zdm_target ({self._listed}) OVERRIDING SYSTEM VALUE"
        delete = f"DELETE FROM ONLY {target} AS zdm_target WHERE {at_target}"
        mapped = ", ".join(self._mapped)
        probe = ", ".join((*(f"zdm_at.zdm_{i}" for i, _ in key), *self._mapped[len(key) :]))
        return f"""\
CREATE OR REPLACE FUNCTION {self.function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  {" ".join(f"SET {s}" for s in settings)} AS $zdm_sync$
#variable_conflict use_column
DECLARE
  zdm_at record;
  zdm_given {target}%ROWTYPE;
  zdm_kept boolean;
BEGIN
  PERFORM set_config('{self._guard}', 'on', true);
  IF TG_OP = 'TRUNCATE' THEN
    TRUNCATE ONLY {target};
  ELSE
    -- The old key first: what was unique in the row that left it is free then for the row that comes.
    FOR zdm_at IN
      SELECT {before} WHERE TG_OP <> 'INSERT' UNION ALL
      SELECT {after} WHERE TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND {moved}
    LOOP
      BEGIN
        SELECT {mapped} INTO {into} FROM ONLY {self.source.table.sql} AS {self.alias} WHERE {at_source};
        zdm_kept := FOUND;
      EXCEPTION WHEN others THEN
        -- The application's write goes through. Its row is then one that was not copied: batches say why it cannot be.
        zdm_kept := false;
      END;
      IF zdm_kept THEN
        {insert} VALUES ({into})
        {self._conflict} {self._taken_over};
      ELSE
        {delete};
        IF NOT FOUND AND current_setting('transaction_isolation') NOT LIKE 'read %' THEN
          -- A row copied since the transaction began is not seen, but its key is met: a serialization failure.
          BEGIN
            {insert} SELECT {probe} FROM (SELECT OLD.*) AS {self.alias} {self._conflict} NOTHING;
            {delete};
          EXCEPTION WHEN data_exception OR integrity_constraint_violation OR raise_exception THEN
            NULL;  -- what cannot be copied was not
          END;
        END IF;
      END IF;
    END LOOP;
  END IF;
  PERFORM set_config('{self._guard}', '', true);
  RETURN NULL;
END $zdm_sync$"""

    def create_trigger(self, event: str) -> str:
        """The trigger for one of EVENTS; batches, the sync itself and unrelated updates never enter the function."""
        condition = " AND ".join(
            f"coalesce(current_setting('{s}', true), '') = ''" for s in (BACKFILL_SETTING, self._guard)
        )
        if event == "update":
            watched = tuple(dict.fromkeys((*(c.name for c in self.source.key), *self.reads))) if self.reads else ()
            old, new = (
                f"ROW({', '.join(f'{row}.{quote(c)}' for c in watched) or f'{row}.*'})" for row in ("OLD", "NEW")
            )
            condition = f"pg_catalog.record_image_ne({old}, {new}) AND {condition}"
        each = "STATEMENT" if event == "truncate" else "ROW"
        return (
            f"CREATE TRIGGER {quote(self.trigger(event))} AFTER {event.upper()} ON {self.source.table.sql} "
            f"FOR EACH {each} WHEN ({condition}) EXECUTE FUNCTION {self.function}()"
        )
