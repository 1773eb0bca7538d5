"""The functions that keep both shapes of an extracted table in sync; `sync` says why they are as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zdm_pipelines.dialects.postgres import environment, literals
from zdm_pipelines.dialects.postgres.expressions import BATCH, RAISE_ON, expression
from zdm_pipelines.dialects.postgres.kinds.extract_table.sql import ExtractSql
from zdm_pipelines.dialects.postgres.literals import text
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Column

_DEPTH = "pg_catalog.pg_trigger_depth()"
_DEEPEST = 16  # triggers of the application that answer each write of the sync with another go round in circles


def _row(row: str, names: Sequence[str]) -> str:
    """Columns of a row as one value."""
    return f"ROW({', '.join(f'{row}.{quote(name)}' for name in names)})"


def _images_differ(one: str, other: str) -> str:
    return f"pg_catalog.record_image_ne({one}, {other})"


def differ(names: Sequence[str]) -> str:
    """Predicate of a trigger: one of these columns changes."""
    return _images_differ(_row("OLD", names), _row("NEW", names))


def _is_at(alias: str, key: Sequence[Column]) -> str:
    """Predicate: a row is at the key in `zdm_at`."""
    return " AND ".join(f"{alias}.{quote(c.name)} = zdm_at.zdm_{i}" for i, c in enumerate(key, 1))


@dataclass(frozen=True)
class ExtractFunctions:
    """Each function as SQL."""

    sql: ExtractSql

    @property
    def unguarded(self) -> str:
        """Predicate of a trigger: neither a batch nor the sync itself is what writes.

        It holds for what triggers of the application write while one of the two is writing.
        """
        return (
            f"({_DEPTH} > 0 OR {BATCH} = '') "
            f"AND coalesce(current_setting('{self._guard}', true), '') <> {_DEPTH}::text AND {_DEPTH} < {_DEEPEST}"
        )

    @property
    def _guard(self) -> str:
        return f"zdm.syncing_{self.sql.migration_id}"

    def _function(self, what: str, declared: str, body: str) -> str:
        """A trigger function, which sees the declared expressions as they were meant, whoever writes."""
        settings = environment.clauses(self.sql.catalog.environment, plain=self.sql.catalog.plain)
        header = (
            f"CREATE OR REPLACE FUNCTION {self.sql.named(what)}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        )
        source = f"""
#variable_conflict use_column
DECLARE
  zdm_at record;
{declared}
BEGIN
{body}
END """
        return f"{header}\n  {settings} AS {literals.body(source, 'zdm_sync')}"

    def _mirroring(self, what: str, declared: str, body: str) -> str:
        """A trigger function whose own writes are not mirrored back.

        The setting holds how many triggers are running where the function writes. What it writes itself is seen at that
        depth; what triggers of the application write in turn is seen deeper, and is mirrored as any other write.
        """
        outer = f"  zdm_outer CONSTANT text := coalesce(current_setting('{self._guard}', true), '');"
        guarded = f"""\
  PERFORM set_config('{self._guard}', {_DEPTH}::text, true);
{body}
  PERFORM set_config('{self._guard}', zdm_outer, true);
  RETURN NULL;"""
        return self._function(what, f"{outer}\n  zdm_kept boolean;\n  zdm_failed text;{declared}", guarded)

    def _at(self, row: str, key: Sequence[Column]) -> str:
        """The key of a row, as what `zdm_at` holds."""
        return ", ".join(f"{row}.{quote(c.name)} AS zdm_{i}" for i, c in enumerate(key, 1))

    def _each_key(self, key: Sequence[Column]) -> str:
        """The keys that an event on a row names; the old one first: what was unique in it is free then for the new."""
        names = [c.name for c in key]
        return f"""\
SELECT {self._at("OLD", key)} WHERE TG_OP IN ('UPDATE', 'DELETE') UNION ALL
      SELECT {self._at("NEW", key)} WHERE TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND {differ(names)}"""

    @property
    def _at_source(self) -> str:
        return _is_at(self.sql.source_alias, self.sql.catalog.key)

    @property
    def _at_target(self) -> str:
        return _is_at("zdm_target", self.sql.key)

    @property
    def _lock_source(self) -> str:
        """Locks the source row at the key in `zdm_at`, if there is one."""
        source = f"ONLY {self.sql.source} AS {self.sql.source_alias}"
        return f"PERFORM FROM {source} WHERE {self._at_source} FOR NO KEY UPDATE;"

    def _noted(self, wrote: str) -> str:
        """Tells of the key in `zdm_at`."""
        key = ", ".join(f"zdm_at.zdm_{i}::text" for i, _ in enumerate(self.sql.key, 1))
        return f"PERFORM {self.sql.named('note')}(ARRAY[{key}], {wrote}, zdm_failed);"

    @property
    def _insert_said(self) -> str:
        """INSERT of every row that the source row at `zdm_at` says, without what is done on conflict."""
        sql = self.sql
        return f"""\
{sql.insert} SELECT {sql.mapped}
          FROM {sql.rows}{sql.given} WHERE {self._at_source} AND {expression(sql.when)}
          {sql.on_conflict}"""

    def note(self, *, track_until: str | None = None) -> str:
        """Who writes which shape, once a minute and session; until the given time also the key of each row."""
        number, noted = self.sql.migration_id, f"'zdm.noted_{self.sql.migration_id}_' || zdm_wrote"
        track = ""
        if track_until is not None:
            # It ends by itself: a contract that died leaves no growing table behind.
            track = (
                f"  IF clock_timestamp() < '{track_until}'::timestamptz THEN\n"
                f"    INSERT INTO zdm.touched (migration_id, key) VALUES ({number}, zdm_key);\n  END IF;\n"
            )
        return f"""\
CREATE OR REPLACE FUNCTION {self.sql.named("note")}(zdm_key text[], zdm_wrote text, zdm_failed text) RETURNS void
  LANGUAGE plpgsql AS $zdm_note$
DECLARE
  zdm_minute CONSTANT text
    := coalesce(zdm_failed, '') || (extract(epoch FROM statement_timestamp())::bigint / 60)::text;
BEGIN
{track}\
  IF zdm_wrote IS NOT NULL AND current_setting({noted}, true) IS DISTINCT FROM zdm_minute THEN
    PERFORM set_config({noted}, zdm_minute, false);
    INSERT INTO zdm.writer (migration_id, wrote, failed, application_name, login)
    VALUES ({number}, zdm_wrote, zdm_failed, current_setting('application_name'), session_user);
  END IF;
END $zdm_note$"""

    def first(self, arguments: str) -> str:
        """Locks the source row of a key, as far as `lockable` shows it to whoever writes."""
        at = " AND ".join(f"zdm_{i} = ${i}" for i, _ in enumerate(self.sql.key, 1))
        return f"""\
CREATE OR REPLACE FUNCTION {self.sql.named("first")}({arguments}) RETURNS boolean LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $zdm_first$
BEGIN
  IF {self.unguarded} THEN
    PERFORM FROM {self.sql.named("source")} WHERE {at} FOR NO KEY UPDATE;
  END IF;
  RETURN true;
END $zdm_first$"""

    def lockable(self) -> str:
        """A view by which whoever may write the new table locks source rows; others see and lock none.

        The rights that are asked for are those of the role that writes, be it a function's owner; a trigger or function
        of ours with its owner's rights would not know that role. Two FROM items: a view of one could be updated.
        """
        sql = self.sql
        key = ", ".join(f"zdm_source.{quote(c.name)} AS zdm_{i}" for i, c in enumerate(sql.catalog.key, 1))
        may = f"pg_catalog.has_any_column_privilege(current_user, {text(sql.table)}::regclass, 'INSERT, UPDATE')"
        return (
            f"CREATE VIEW {sql.named('source')} AS SELECT {key} FROM ONLY {sql.source} AS zdm_source "
            f"CROSS JOIN (VALUES (1)) AS zdm_one WHERE {may}"
        )

    def fill(self) -> str:
        """Locks the source row, and fills in what an insert leaves out: from a row not copied yet, or by default."""
        sql, taken = self.sql, ""
        if not sql.many:
            ups = ", ".join(f"{expression(up)} AS zdm_{i}" for i, up in enumerate(sql.columns.values(), 1))
            given = "\n".join(
                f"          NEW.{quote(c)} := coalesce(NEW.{quote(c)}, zdm_given.zdm_{i});"
                for i, c in enumerate(sql.columns, 1)
            )
            taken = f"""
    IF NOT EXISTS (SELECT FROM ONLY {sql.table} AS zdm_target WHERE {self._at_target}) THEN
      BEGIN
        FOR zdm_given IN SELECT {ups} FROM {sql.rows} WHERE {self._at_source} AND {expression(sql.when)} LOOP
{given}
        END LOOP;
      EXCEPTION WHEN others THEN
        {RAISE_ON}  -- what cannot be mapped gives nothing
      END;
    END IF;"""
        defaults = "".join(
            f"\n  NEW.{quote(name)} := coalesce(NEW.{quote(name)}, {expression(c.default)});"
            for name, c in sql.change.new.columns.items()
            if c.default is not None
        )
        body = f"""\
  FOR zdm_at IN SELECT {self._at("NEW", sql.key)} LOOP
    {self._lock_source}{taken}
  END LOOP;{defaults}
  RETURN NEW;"""
        return self._function("fill", "  zdm_given record;", body)

    # -- old code writes ----------------------------------------------------------------------------------

    def copy(self) -> str:
        """Makes the new table's rows what the source's row says, at each key that an event names."""
        sql = self.sql
        body = f"""\
  IF TG_OP = 'TRUNCATE' THEN
    -- One statement may have emptied both tables, and still uses them.
    IF pg_catalog.pg_relation_size({text(sql.table)}) > 0 THEN
      TRUNCATE ONLY {sql.table};
    END IF;
  ELSE
    IF TG_OP <> 'INSERT' AND current_setting('transaction_isolation') NOT LIKE 'read %' THEN
      -- A row copied since the transaction began is not seen, but its key is met: a serialization failure.
      BEGIN
        {sql.insert} SELECT {sql.mapped}
        FROM (SELECT OLD.*{sql.declared("OLD")}) AS {sql.source_alias}{sql.given}
        WHERE {expression(sql.when)} {sql.on_conflict} NOTHING;
      EXCEPTION WHEN data_exception OR integrity_constraint_violation OR raise_exception THEN
        NULL;  -- what cannot be copied was not
      END;
    END IF;
    FOR zdm_at IN
      {self._each_key(sql.catalog.key)}
    LOOP
{self._copy_at()}
      {self._noted(self._wrote_old)}
    END LOOP;
  END IF;"""
        return self._mirroring("copy", "", body)

    @property
    def _wrote_old(self) -> str:
        """Which shape a write to the source is one of. New code inserts source rows, too, and deletes them."""
        kept, changed = [], []
        for old in self.sql.change.olds:
            new, absent = _row("NEW", [self.sql.present(old)]), self.sql.absent(old)
            kept.append(_images_differ(new, f"ROW({absent}::{self.sql.catalog.column(old).type})"))
            changed.append(_images_differ(new, _row("OLD", [self.sql.present(old)])))
        return (
            f"CASE WHEN TG_OP = 'INSERT' AND ({' OR '.join(kept)}) "
            f"OR TG_OP = 'UPDATE' AND ({' OR '.join(changed)}) THEN 'old' END"
        )

    def _copy_at(self) -> str:
        """The block that makes the new table's rows at the key in `zdm_at` what the source row says."""
        sql, too_many = self.sql, ""
        delete = f"DELETE FROM ONLY {sql.table} AS zdm_target WHERE {self._at_target}"
        if sql.many:
            said = f"{sql.rows}{sql.given} WHERE {self._at_source} AND {expression(sql.when)}"
            too_many = f"""
        {delete}
          AND NOT EXISTS (SELECT FROM {said}
                          AND {sql.element_key} = zdm_target.{quote(sql.target.key[-1].name)});"""
        return f"""\
      zdm_failed := NULL;
      BEGIN{too_many}
        {self._insert_said} {sql.taken_over};
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

    # -- new code writes ----------------------------------------------------------------------------------

    def back(self) -> str:
        """Makes the old columns what `down` gives of the rows that are there, at each key that an event names."""
        sql = self.sql
        olds = "".join(f"\n  zdm_old_{i} {sql.catalog.column(o).type};" for i, o in enumerate(sql.change.olds, 1))
        body = f"""\
  FOR zdm_at IN
      {self._each_key(sql.key)}
      UNION ALL SELECT {self._at(sql.source_alias, sql.catalog.key)} FROM {sql.rows} WHERE TG_OP = 'TRUNCATE'
  LOOP
{self._back_at()}
  END LOOP;"""
        return self._mirroring("back", f"\n  zdm_agrees boolean;{olds}", body)

    def _back_at(self) -> str:
        """The block that makes the old columns of the source row at the key in `zdm_at` what the new table says."""
        sql, others = self.sql, ""
        if sql.many:
            others = f"""
      IF TG_OP = 'INSERT' AND current_setting('zdm.unmoved_{sql.migration_id}', true) = 'on' THEN
        BEGIN
          {self._insert_said} NOTHING;
        EXCEPTION WHEN others THEN
          {RAISE_ON}  -- what cannot be mapped is not taken along
        END;
      END IF;"""
        presents = [sql.present(old) for old in sql.change.olds]
        given = [f"zdm_old_{i}" for i, _ in enumerate(presents, 1)]
        assigned = ", ".join(f"{quote(name)} = {value}" for name, value in zip(presents, given, strict=True))
        source = f"ONLY {sql.source} AS {sql.source_alias}"
        return f"""\
      zdm_failed := NULL;
      {self._lock_source}
      IF NOT FOUND THEN
        CONTINUE WHEN TG_OP = 'DELETE';  -- with its source row, most likely
        {self._noted("'new'")}
        CONTINUE;
      END IF;{others}
      BEGIN
        SELECT {sql.said}
             = {sql.held(self._at_target)}
          INTO zdm_agrees FROM {sql.rows} WHERE {self._at_source};
      EXCEPTION WHEN others THEN
        {RAISE_ON}
        zdm_agrees := false;  -- what the old columns hold cannot be mapped, and is replaced now
      END;
      IF NOT zdm_agrees THEN
        BEGIN
{self._downs(given)}
          UPDATE {source} SET {assigned} WHERE {self._at_source};
          SELECT pg_catalog.record_image_eq({_row(sql.source_alias, presents)}, ROW({", ".join(given)}))
            INTO zdm_agrees FROM {source} WHERE {self._at_source};
        EXCEPTION WHEN others THEN
          {RAISE_ON}
          -- The application's write goes through; validate finds the row, for people to mend.
          zdm_agrees := true;
          zdm_failed := SQLSTATE;
        END;
        IF NOT zdm_agrees THEN
          -- A trigger of the application's on the source made something else of it: the new table follows.
{self._copy_at()}
        END IF;
      END IF;
      {self._noted("'new'")}"""

    def _downs(self, given: Sequence[str]) -> str:
        """Gives the variables of the old columns their values."""
        sql = self.sql
        downs = []
        for old in sql.change.olds:
            # As parity compares it: text that is too long for the old column is cut off, not refused.
            down = f"{expression(sql.change.downs[old])}::{sql.catalog.column(old).type}"
            whole = sql.many and sql.catalog.column(old).default is not None
            downs.append(f"coalesce({down}, {sql.absent(old)})" if whole else down)
        rows = f"FROM ONLY {sql.table} AS {sql.alias} WHERE {_is_at(sql.alias, sql.key)}"
        taken = f"          SELECT {', '.join(downs)} INTO {', '.join(given)} {rows};"
        if sql.many:
            return taken
        absent = "\n".join(
            f"            {value} := {sql.absent(old)};" for value, old in zip(given, sql.change.olds, strict=True)
        )
        return f"{taken}\n          IF NOT FOUND THEN\n{absent}\n          END IF;"

    def mark(self) -> str:
        at = " AND ".join(f"zdm_target.{quote(c.name)} = NEW.{quote(c.name)}" for c in self.sql.key)
        header = f"CREATE OR REPLACE FUNCTION {self.sql.named('mark')}() RETURNS trigger LANGUAGE plpgsql STABLE"
        source = f"""
BEGIN
  -- A stable function: it looks at what was there as the statement began. An array is taken along only then; rows that
  -- the same statement deletes, and inserts anew, were copied.
  PERFORM set_config('zdm.unmoved_{self.sql.migration_id}', CASE WHEN EXISTS (
    SELECT FROM ONLY {self.sql.table} AS zdm_target WHERE {at}) THEN '' ELSE 'on' END, true);
  RETURN NULL;
END """
        path = environment.path(self.sql.catalog.environment)
        return f"{header} SECURITY DEFINER\n  SET {path} AS {literals.body(source, 'zdm_mark')}"
