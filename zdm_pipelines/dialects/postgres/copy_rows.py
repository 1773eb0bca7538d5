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

A source row that cannot be mapped, or whose copy a constraint of the target refuses, is no error of the application's
write: the row is then one that was not copied, and a batch names its key and says why.

One row of the source may give several rows of the target, one for each element of an array. A batch then takes only
source rows that have no row in the target at all, and looks for such rows once more when it has the source row's lock.
By its own snapshot alone it would add elements to a set that somebody has written since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.builds import text
from zdm_pipelines.dialects.postgres.expressions import BACKFILL_SETTING, RAISE_ON, TRIGGER_PREFIX, expression, same
from zdm_pipelines.model.capabilities import ALL, Pick, Until
from zdm_pipelines.model.names import fitted, quote
from zdm_pipelines.model.values import Catalog, Column, Key, Statement

_DEPTH = "pg_catalog.pg_trigger_depth()"
_DEEPEST = 16  # triggers of the application that answer each write of the sync with another go round in circles
EVENTS = ("insert", "update", "delete", "truncate")  # of the source, each with a trigger


@dataclass(frozen=True, kw_only=True)
class Elements:
    """What makes several rows of the target out of one row of the source."""

    rows: str  # FROM item over the source row
    key: str  # SQL over both that tells the rows of one source row apart; the last column of the target's key
    unmoved: str  # function over the source row's key that says whether the target has no row of it, looking afresh


@dataclass(frozen=True, kw_only=True)
class CopyRowsSql:
    """SQL for one copy: the target's key columns hold the source's key, one by one, and are unique together."""

    name: str  # of the migration
    migration_id: int
    source: Catalog
    # Its `key` names the columns that hold the source's key, in that order and with types that `=` compares, and with
    # `elements` the column of their key behind them.
    target: Catalog
    columns: Mapping[str, str]  # further columns of the target, each with its SQL over the source row
    reads: tuple[str, ...] = ()  # source columns that this SQL reads; empty: any, so every update is mirrored
    when: str = "true"  # predicate over the source row: the others have no copy
    elements: Elements | None = None  # none: one row gives one row
    renamed: Mapping[str, str] = field(default_factory=dict)  # what columns of the source are called now, by their name
    disagrees: str = ""  # predicate over the source row for `repair`; default: what the columns say
    note: str = ""  # function that is told of each key: the key as text[], which shape was written, an SQLSTATE
    wrote: str = "'old'"  # SQL over a trigger's OLD and NEW: which shape was written; NULL: none

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
        told_apart = [expression(self.elements.key)] if self.elements else []
        return [*held, *told_apart, *(expression(sql) for sql in self.columns.values())]

    @property
    def _keys(self) -> list[tuple[Column, Column]]:
        """The source's key columns, each with the target's that holds it."""
        return list(zip(self.source.key, self.target.key, strict=self.elements is None))

    @property
    def _given(self) -> str:
        """What is behind the source row in a FROM clause that gives a row for each row of the target."""
        return f" CROSS JOIN LATERAL {self.elements.rows}" if self.elements else ""

    def given_by(self, record: str) -> str:
        """A FROM clause of the one source row that a record of a trigger holds, under its declared names."""
        return f"(SELECT {record}.*{self._declared(record)}) AS {self.alias}"

    def _declared(self, row: str) -> str:
        return "".join(f", {row}.{quote(now)} AS {quote(name)}" for name, now in self.renamed.items())

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
    def rows(self) -> str:
        """The source as a FROM item; renamed columns answer to their declared names, too."""
        if not self.renamed:
            return f"ONLY {self.source.table.sql} AS {self.alias}"
        row = f"SELECT zdm_row.*{self._declared('zdm_row')} FROM ONLY {self.source.table.sql} AS zdm_row"
        return f"({row}) AS {self.alias}"

    @property
    def at_source(self) -> str:
        """Predicate: a source row is the one at the key in `zdm_at`."""
        return " AND ".join(f"{self.alias}.{quote(s.name)} = zdm_at.zdm_{i}" for i, (s, _) in enumerate(self._keys, 1))

    def at_target(self, alias: str) -> str:
        """Predicate: a row of the target belongs to the key in `zdm_at`."""
        return " AND ".join(f"{alias}.{quote(t.name)} = zdm_at.zdm_{i}" for i, (_, t) in enumerate(self._keys, 1))

    def _waits(self, *, repair: bool) -> str:
        """Predicate: a source row has no copy, or (repair) none that agrees."""
        if repair and self.disagrees:
            return self.disagrees
        given = f"EXISTS (SELECT FROM {self.elements.rows})" if self.elements else "true"
        wanted = " AND ".join(part for part in (expression(self.when), given) if part not in ("true", "(true)"))
        # The copy's columns are renamed: in here too, names mean the source's columns.
        held = [f"{quote(t.name)} AS zdm_key_{i}" for i, (_, t) in enumerate(self._keys, 1)]
        held += [f"{quote(c)} AS zdm_column_{i}" for i, c in enumerate(self.columns, 1)]
        agrees = [f"zdm_key_{i} = {self.alias}.{quote(c.name)}" for i, c in enumerate(self.source.key, 1)]
        if repair:
            agrees += [
                same(f"zdm_column_{i}", expression(sql), self.target.column(c).type)
                for i, (c, sql) in enumerate(self.columns.items(), 1)
            ]
        return (
            f"{wanted + ' AND ' if wanted else ''}"
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
        rows = f"{rows} AND {expression(self.when)}" if repair and self.disagrees else rows
        source = f"SELECT {chosen}\n  FROM {self.rows}"
        copied = f"SELECT {self._listed} FROM zdm_batch"
        if self.elements:
            # The rows of a function beside a row that is locked would stay those of its earlier version.
            source = f"SELECT {self.alias}.*\n  FROM {self.rows}"
            key = ", ".join(f"{self.alias}.{quote(c.name)}" for c in self.source.key)
            copied = (
                f"SELECT {', '.join(self._mapped)} FROM zdm_batch AS {self.alias}{self._given}\n"
                f"WHERE {self.elements.unmoved}({key})"
            )
        return f"""\
WITH zdm_batch AS MATERIALIZED (
  {source}
  WHERE {rows}
  {locking}
)
INSERT INTO {self.target.table.sql} AS zdm_target ({self._listed}) OVERRIDING SYSTEM VALUE
{copied}
{self._conflict} {then}"""

    @property
    def over(self) -> Catalog:
        return self.source

    @property
    def destroys(self) -> bool:
        return False

    @property
    def until(self) -> Until:
        return Until.NONE_WAITS

    @property
    def written(self) -> None:
        """Nothing: rows of the source are only read."""

    def back(self) -> None:
        """Nothing: the target is dropped with what it holds."""

    def batch(self, lower: Key | None, upper: Key | None, *, repair: bool = False, pick: Pick = ALL) -> list[Statement]:
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
        locking = f"{limited}FOR SHARE OF {self.alias} SKIP LOCKED"
        return [Statement(self._copy(rows, repair=repair, locking=locking), params)]

    def one(self, key: Key, *, repair: bool = False) -> list[Statement]:
        """Copy the one row at a key, if it still waits when its lock is had."""
        row = f"{keys.row(self.source.key)} = {keys.bound(self.source.key, 1)} AND {self._waits(repair=repair)}"
        return [Statement(self._copy(row, repair=repair, locking=f"FOR SHARE OF {self.alias}"), [list(key)])]

    def waiting(self, lower: Key | None, upper: Key | None, *, repair: bool = False) -> Statement:
        """How many rows of an interval wait to be copied."""
        interval, params = keys.between(self.source.key, lower, upper)
        return Statement(f"SELECT count(*) FROM {self.rows} WHERE {interval} AND {self._waits(repair=repair)}", params)

    def waiting_keys(self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False) -> Statement:
        """The first keys of an interval that wait to be copied."""
        interval, params = keys.between(self.source.key, lower, upper)
        return Statement(
            f"SELECT {keys.as_text(self.source.key)} FROM {self.rows} WHERE {interval} "
            f"AND {self._waits(repair=repair)} ORDER BY {keys.columns(self.source.key)} LIMIT {limit}",
            params,
        )

    # -- rows that are too many ---------------------------------------------------------------------------

    def remove_extra(self, lower: Key | None, upper: Key | None) -> Statement:
        """Delete the rows of the target without a source row; for targets that hold nothing but this copy.

        A source row inserted meanwhile is not in the statement's snapshot, but its trigger has written the target's row
        anew: only versions that the snapshot shows are deleted. The bounds are of the target's key.
        """
        interval, params = keys.between(self.target.key[: len(self.source.key)], lower, upper)
        matched = " AND ".join(f"zdm_source.{quote(s.name)} = zdm_target.{quote(t.name)}" for s, t in self._keys)
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
        return Statement(sql, params)

    # -- sync ---------------------------------------------------------------------------------------------

    @property
    def _guard(self) -> str:
        return f"zdm.syncing_{self.migration_id}"

    @property
    def declared_guard(self) -> str:
        """The declaration that `guarded` needs: how deep the sync wrote before, empty when it did not."""
        return f"zdm_outer CONSTANT text := coalesce(current_setting('{self._guard}', true), '');"

    def guarded(self, body: str) -> str:
        """Statements of a sync function whose own writes are not mirrored back.

        The setting holds how many triggers are running where the function writes. What it writes itself is seen at that
        depth; what triggers of the application write in turn is seen deeper, and is mirrored as any other write.
        """
        return f"""\
  PERFORM set_config('{self._guard}', {_DEPTH}::text, true);
{body}
  PERFORM set_config('{self._guard}', zdm_outer, true);"""

    @property
    def settings(self) -> str:
        """Settings under which functions of the sync run, whoever writes."""
        settings = [f"search_path = {self.source.search_path}, pg_temp"]
        if not self.source.immutable:
            settings.append("timezone FROM CURRENT")
        if self.note or not self.source.immutable:
            # Keys are noted as text: in our form, not in that of the client's session.
            settings += ["datestyle FROM CURRENT", "intervalstyle FROM CURRENT", "extra_float_digits FROM CURRENT"]
        return " ".join(f"SET {s}" for s in settings)

    def noted(self, wrote: str) -> str:
        """The statement that tells of the key in `zdm_at`."""
        if not self.note:
            return ""
        key = ", ".join(f"zdm_at.zdm_{i}::text" for i in range(1, len(self.source.key) + 1))
        return f"\n      PERFORM {self.note}(ARRAY[{key}], {wrote}, zdm_failed);"

    @property
    def insert_given(self) -> str:
        """INSERT of every row that the source row at `zdm_at` gives, without what is done on conflict."""
        return (
            f"{self._insert} SELECT {', '.join(self._mapped)}\n          FROM {self.rows}{self._given} "
            f"WHERE {self.at_source} AND {expression(self.when)}\n          {self._conflict}"
        )

    @property
    def _insert(self) -> str:
        return f"INSERT INTO {self.target.table.sql} AS zdm_target ({self._listed}) OVERRIDING SYSTEM VALUE"

    def _met(self) -> str:
        """The block that meets rows which were copied since a transaction's snapshot."""
        return f"""\
    IF TG_OP <> 'INSERT' AND current_setting('transaction_isolation') NOT LIKE 'read %' THEN
      -- A row copied since the transaction began is not seen, but its key is met: a serialization failure.
      BEGIN
        {self._insert} SELECT {", ".join(self._mapped)}
        FROM {self.given_by("OLD")}{self._given} WHERE {expression(self.when)} {self._conflict} NOTHING;
      EXCEPTION WHEN data_exception OR integrity_constraint_violation OR raise_exception THEN
        NULL;  -- what cannot be copied was not
      END;
    END IF;"""

    def write_at(self) -> str:
        """The block that makes the target's rows at the key in `zdm_at` what the source row gives.

        It uses the variables `zdm_kept boolean` and `zdm_failed text`.
        """
        delete = f"DELETE FROM ONLY {self.target.table.sql} AS zdm_target WHERE {self.at_target('zdm_target')}"
        too_many = ""
        if self.elements:
            last = f"zdm_target.{quote(self.target.key[-1].name)}"
            too_many = f"""
        {delete}
          AND NOT EXISTS (SELECT FROM {self.rows}{self._given} WHERE {self.at_source} AND {expression(self.when)}
                          AND {expression(self.elements.key)} = {last});"""
        return f"""\
      zdm_failed := NULL;
      BEGIN{too_many}
        {self.insert_given} {self._taken_over};
        zdm_kept := FOUND;
      EXCEPTION WHEN others THEN
        {RAISE_ON}
        -- The application's write goes through. Its row is then one that was not copied: batches say why it cannot be.
        zdm_kept := false;
        zdm_failed := SQLSTATE;
      END;
      IF NOT zdm_kept THEN
        {delete};
      END IF;"""

    def create_function(self) -> str:
        """The sync function: makes the target's rows what the source's row gives, at each key that an event names."""
        before, after = (
            ", ".join(f"{row}.{quote(s.name)} AS zdm_{i}" for i, (s, _) in enumerate(self._keys, 1))
            for row in ("OLD", "NEW")
        )
        old, new = (f"ROW({', '.join(f'{row}.{quote(s.name)}' for s, _ in self._keys)})" for row in ("OLD", "NEW"))
        body = f"""\
  IF TG_OP = 'TRUNCATE' THEN
    -- One statement may have emptied both tables, and still uses them.
    IF pg_catalog.pg_relation_size({text(self.target.table.sql)}) > 0 THEN
      TRUNCATE ONLY {self.target.table.sql};
    END IF;
  ELSE
{self._met()}
    -- The old key first: what was unique in the row that left it is free then for the row that comes.
    FOR zdm_at IN
      SELECT {before} WHERE TG_OP <> 'INSERT' UNION ALL
      SELECT {after} WHERE TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND pg_catalog.record_image_ne({old}, {new})
    LOOP
{self.write_at()}{self.noted(self.wrote)}
    END LOOP;
  END IF;"""
        return f"""\
CREATE OR REPLACE FUNCTION {self.function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  {self.settings} AS $zdm_sync$
#variable_conflict use_column
DECLARE
  {self.declared_guard}
  zdm_at record;
  zdm_kept boolean;
  zdm_failed text;
BEGIN
{self.guarded(body)}
  RETURN NULL;
END $zdm_sync$"""

    @property
    def unguarded(self) -> str:
        """Predicate of a trigger: neither a batch nor the sync itself is what writes.

        It holds for what triggers of the application write while one of the two is writing.
        """
        return (
            f"({_DEPTH} > 0 OR coalesce(current_setting('{BACKFILL_SETTING}', true), '') = '') "
            f"AND coalesce(current_setting('{self._guard}', true), '') <> {_DEPTH}::text AND {_DEPTH} < {_DEEPEST}"
        )

    def create_trigger(self, event: str) -> str:
        """The trigger for one of EVENTS; batches, the sync itself and unrelated updates never enter the function."""
        condition = self.unguarded
        if event == "update":
            watched = tuple(dict.fromkeys((*(c.name for c in self.source.key), *self.reads))) if self.reads else ()
            old, new = (
                f"ROW({', '.join(f'{row}.{quote(self.renamed.get(c, c))}' for c in watched) or f'{row}.*'})"
                for row in ("OLD", "NEW")
            )
            condition = f"pg_catalog.record_image_ne({old}, {new}) AND {condition}"
        each = "STATEMENT" if event == "truncate" else "ROW"
        return (
            f"CREATE TRIGGER {quote(self.trigger(event))} AFTER {event.upper()} ON {self.source.table.sql} "
            f"FOR EACH {each} WHEN ({condition}) EXECUTE FUNCTION {self.function}()"
        )
