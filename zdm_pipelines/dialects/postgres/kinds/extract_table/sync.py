"""The functions that mirror the new table, beside the copy's own: what new code writes appears in the old columns.

Locks. A row of the source and the rows of the new table that belong to it are written by both directions, so that both
must lock them in one order: the source row first, always.

- Old code has locked the source row when the copy's trigger writes the new table.
- An INSERT of new code locks the source row in a BEFORE trigger, when there is nothing else yet to lock; with ON
  CONFLICT too, for that trigger runs before the conflict is looked for.
- An UPDATE of new code would have its row locked before any row trigger runs. But the server evaluates a table's checks
  before it locks the row that is updated: so a check of the new table locks the source row. Who waited there updates
  the row as the one before has left it, by READ COMMITTED's rules, and no column is lost. In REPEATABLE READ it is a
  serialization failure. (A BEFORE UPDATE trigger of the application's on the new table has the row locked first, and
  undoes this.)
- A DELETE of new code, and an UPDATE of the key, have no such place: the new row is locked first. When old code writes
  the same source row at that very moment, the server ends one of the two transactions as a deadlock, as it does for
  code that locks rows of the new table on its own (FOR UPDATE) before it writes. Code that locks the source row before
  it deletes is safe from that.

So whoever writes the new table waits for the source row that its row belongs to, and for nobody else's.

Who wins. The shape that was written last, in one transaction too. One statement that writes both (by WITH) ends with
what it wrote first. Old columns are written only where the shapes do not agree already, so that a write of new code
that changes nothing of what `up` reads costs the old columns none of what `down` loses.

A row that was not copied yet. The new table has no row then, and new code that inserts one would, with the columns that
it leaves out, erase what the old columns say: an INSERT takes them from there. Therefore the new table has neither
defaults nor NOT NULL before contract; the BEFORE trigger fills defaults in. An element that is inserted beside an array
that was not copied yet brings the others of that array along, those that it does not replace.
"""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.postgres.builds import text
from zdm_pipelines.dialects.postgres.expressions import RAISE_ON, TRIGGER_PREFIX, expression
from zdm_pipelines.dialects.postgres.kinds.extract_table.sql import ExtractSql
from zdm_pipelines.model.names import fitted, quote

_FIXED = "SET search_path = pg_catalog, pg_temp"
# The role that writes: a function that runs with its owner's rights still sees what SET ROLE said.
_WRITER = "coalesce(nullif(current_setting('role'), 'none'), session_user)"


@dataclass(frozen=True)
class ExtractSync:
    """The functions, and the triggers of the new table."""

    sql: ExtractSql

    @property
    def functions(self) -> dict[str, str]:
        """Every function by its name with its arguments, in the order of creation."""
        sql, key = self.sql, ", ".join(c.type for c in self.sql.key)
        made = {
            f"{sql.named('note')}(text[], text, text)": self.note(),
            f"{sql.named('first')}({key})": self._first(key),
            f"{sql.named('fill')}()": self.fill(),
            f"{sql.copy.function}()": sql.copy.create_function(),
            f"{sql.named('back')}()": self.back(),
        }
        if sql.many:
            made[f"{sql.named('unmoved')}({key})"] = self._unmoved(key)
            made[f"{sql.named('mark')}()"] = self._mark()
        return made

    @property
    def renaming(self) -> dict[str, str]:
        """The functions that name the old columns, and the one that may still record keys for contract's proof."""
        sql = self.sql
        return {
            sql.copy.function: sql.copy.create_function(),
            sql.named("fill"): self.fill(),
            sql.named("back"): self.back(),
            sql.named("note"): self.note(),
        }

    @property
    def check(self) -> str:
        """Name of the check that locks the source row; checks are evaluated in the order of their names."""
        return fitted(f"{TRIGGER_PREFIX}{self.sql.name}_first")

    def create_check(self) -> str:
        """The check that locks the source row before a row of the new table is locked."""
        key = ", ".join(quote(c.name) for c in self.sql.key)
        return (
            f"ALTER TABLE {self.sql.table} ADD CONSTRAINT {quote(self.check)} CHECK ({self.sql.named('first')}({key}))"
        )

    @property
    def triggers(self) -> dict[str, str]:
        """The triggers of the new table by name, each as SQL."""
        sql, condition = self.sql, self.sql.copy.unguarded
        was, now = (f"ROW({', '.join(f'{r}.{quote(c.name)}' for c in sql.target.columns)})" for r in ("OLD", "NEW"))
        made = {
            "fill": ("BEFORE INSERT", "ROW", condition, "fill"),
            "back_0": ("AFTER INSERT", "ROW", condition, "mark"),  # sorts before the next one
            "back_insert": ("AFTER INSERT", "ROW", condition, "back"),
            "back_update": ("AFTER UPDATE", "ROW", f"pg_catalog.record_image_ne({was}, {now}) AND {condition}", "back"),
            "back_delete": ("AFTER DELETE", "ROW", condition, "back"),
            "back_truncate": ("AFTER TRUNCATE", "STATEMENT", condition, "back"),
        }
        if not sql.many:
            del made["back_0"]
        triggers = {}
        for what, (event, each, when, function) in made.items():
            name = fitted(f"{TRIGGER_PREFIX}{sql.name}_{what}")
            triggers[name] = (
                f"CREATE TRIGGER {quote(name)} {event} ON {sql.table} "
                f"FOR EACH {each} WHEN ({when}) EXECUTE FUNCTION {sql.named(function)}()"
            )
        return triggers

    # -- functions ----------------------------------------------------------------------------------------

    def _at(self, record: str) -> str:
        return ", ".join(f"{record}.{quote(c.name)} AS zdm_{i}" for i, c in enumerate(self.sql.key, 1))

    def _lock_source(self) -> str:
        """Locks the source row at the key in `zdm_at`, if there is one."""
        copy = self.sql.copy
        return f"PERFORM FROM ONLY {self.sql.source} AS {copy.alias} WHERE {copy.at_source} FOR NO KEY UPDATE;"

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

    def _first(self, arguments: str) -> str:
        at = " AND ".join(f"{quote(c.name)} = ${i}" for i, c in enumerate(self.sql.catalog.key, 1))
        return f"""\
CREATE OR REPLACE FUNCTION {self.sql.named("first")}({arguments}) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = {self.sql.catalog.search_path}, pg_temp AS $zdm_first$
BEGIN
  -- Whoever may not write the new table locks no row by calling this.
  IF {self.sql.copy.unguarded}
     AND pg_catalog.has_table_privilege({_WRITER}, {text(self.sql.table)}, 'INSERT, UPDATE') THEN
    PERFORM FROM ONLY {self.sql.source} WHERE {at} FOR NO KEY UPDATE;
  END IF;
  RETURN true;
END $zdm_first$"""

    def fill(self) -> str:
        """Locks the source row, and fills in what an insert leaves out: from a row not copied yet, or by default."""
        sql, copy = self.sql, self.sql.copy
        taken = ""
        if not sql.many:
            ups = ", ".join(f"{expression(up)} AS zdm_{i}" for i, up in enumerate(sql.columns.values(), 1))
            given = "\n".join(
                f"          NEW.{quote(c)} := coalesce(NEW.{quote(c)}, zdm_given.zdm_{i});"
                for i, c in enumerate(sql.columns, 1)
            )
            taken = f"""
    IF NOT EXISTS (SELECT FROM ONLY {sql.table} AS zdm_target WHERE {copy.at_target("zdm_target")}) THEN
      BEGIN
        FOR zdm_given IN SELECT {ups} FROM {copy.rows} WHERE {copy.at_source} AND {expression(copy.when)} LOOP
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
        return f"""\
CREATE OR REPLACE FUNCTION {sql.named("fill")}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  {copy.settings} AS $zdm_fill$
#variable_conflict use_column
DECLARE
  zdm_at record;
  zdm_given record;
BEGIN
  FOR zdm_at IN SELECT {self._at("NEW")} LOOP
    {self._lock_source()}{taken}
  END LOOP;{defaults}
  RETURN NEW;
END $zdm_fill$"""

    def back(self) -> str:
        """The sync function of the new table: makes the old columns what `down` gives of the rows that are there."""
        sql, copy = self.sql, self.sql.copy
        olds = list(enumerate(sql.change.olds, 1))
        declared = "\n".join(f"  zdm_old_{i} {sql.catalog.column(old).type};" for i, old in olds)
        keys = ", ".join(f"{copy.alias}.{quote(c.name)} AS zdm_{i}" for i, c in enumerate(sql.catalog.key, 1))
        old, new = (f"ROW({', '.join(f'{row}.{quote(c.name)}' for c in sql.key)})" for row in ("OLD", "NEW"))
        body = f"""\
  FOR zdm_at IN
    SELECT {self._at("OLD")} WHERE TG_OP IN ('UPDATE', 'DELETE') UNION ALL
    SELECT {self._at("NEW")} WHERE TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND pg_catalog.record_image_ne({old}, {new})
    UNION ALL SELECT {keys} FROM {copy.rows} WHERE TG_OP = 'TRUNCATE'
  LOOP
{self._back_at()}
  END LOOP;"""
        return f"""\
CREATE OR REPLACE FUNCTION {sql.named("back")}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  {copy.settings} AS $zdm_sync$
#variable_conflict use_column
DECLARE
  {copy.declared_guard}
  zdm_at record;
  zdm_agrees boolean;
  zdm_kept boolean;
  zdm_failed text;
{declared}
BEGIN
{copy.guarded(body)}
  RETURN NULL;
END $zdm_sync$"""

    def _back_at(self) -> str:
        """The block that makes the old columns of the source row at the key in `zdm_at` what the new table says."""
        sql, copy = self.sql, self.sql.copy
        others = ""
        if sql.many:
            others = f"""
      IF TG_OP = 'INSERT' AND current_setting('zdm.unmoved_{sql.migration_id}', true) = 'on' THEN
        BEGIN
          {copy.insert_given} NOTHING;
        EXCEPTION WHEN others THEN
          {RAISE_ON}  -- what cannot be mapped is not taken along
        END;
      END IF;"""
        now, into = (
            ", ".join(f"{copy.alias}.{quote(sql.present(old))}" for old in sql.change.olds),
            ", ".join(f"zdm_old_{i}" for i, _ in enumerate(sql.change.olds, 1)),
        )
        unowned = copy.noted("'new'").replace("\n", "\n  ")
        assigned = ", ".join(f"{quote(sql.present(old))} = zdm_old_{i}" for i, old in enumerate(sql.change.olds, 1))
        return f"""\
      {self._lock_source()}
      IF NOT FOUND THEN
        zdm_failed := NULL;
        CONTINUE WHEN TG_OP = 'DELETE';  -- with its source row, most likely{unowned}
        CONTINUE;
      END IF;{others}
      zdm_failed := NULL;
      BEGIN
        SELECT {sql.said(copy.elements)}
             = {sql.held(copy.at_target("zdm_target"))}
          INTO zdm_agrees FROM {copy.rows} WHERE {copy.at_source};
      EXCEPTION WHEN others THEN
        {RAISE_ON}
        zdm_agrees := false;  -- what the old columns hold cannot be mapped, and is replaced now
      END;
      IF NOT zdm_agrees THEN
        BEGIN
{self._downs()}
          UPDATE ONLY {sql.source} AS {copy.alias} SET {assigned} WHERE {copy.at_source};
          SELECT pg_catalog.record_image_eq(ROW({now}), ROW({into})) INTO zdm_agrees
            FROM ONLY {sql.source} AS {copy.alias} WHERE {copy.at_source};
        EXCEPTION WHEN others THEN
          {RAISE_ON}
          -- The application's write goes through; validate finds the row, for people to mend.
          zdm_agrees := true;
          zdm_failed := SQLSTATE;
        END;
        IF NOT zdm_agrees THEN
          -- A trigger of the application's on the source made something else of it: the new table follows.
{copy.write_at()}
        END IF;
      END IF;{copy.noted("'new'")}"""

    def _downs(self) -> str:
        """Gives the variables of the old columns their values."""
        sql, copy = self.sql, self.sql.copy
        into = ", ".join(f"zdm_old_{i}" for i, _ in enumerate(sql.change.olds, 1))
        downs = []
        for old in sql.change.olds:
            down = expression(sql.change.downs[old])
            whole = sql.many and sql.catalog.column(old).default is not None
            downs.append(f"coalesce({down}, {sql.absent(old)})" if whole else down)
        rows = f"FROM ONLY {sql.table} AS {sql.alias} WHERE {copy.at_target(sql.alias)}"
        taken = f"          SELECT {', '.join(downs)} INTO {into} {rows};"
        if sql.many:
            return taken
        absent = "\n".join(f"            zdm_old_{i} := {sql.absent(o)};" for i, o in enumerate(sql.change.olds, 1))
        return f"{taken}\n          IF NOT FOUND THEN\n{absent}\n          END IF;"

    # -- several rows of one source row ------------------------------------------------------------------------

    def _unmoved(self, arguments: str) -> str:
        at = " AND ".join(f"{quote(c.name)} = ${i}" for i, c in enumerate(self.sql.key, 1))
        return f"""\
CREATE OR REPLACE FUNCTION {self.sql.named("unmoved")}({arguments}) RETURNS boolean LANGUAGE plpgsql
  SET search_path = {self.sql.catalog.search_path}, pg_temp AS $zdm_unmoved$
BEGIN
  -- A volatile function: each call looks at what is committed now.
  RETURN NOT EXISTS (SELECT FROM ONLY {self.sql.table} WHERE {at});
END $zdm_unmoved$"""

    def _mark(self) -> str:
        at = " AND ".join(f"zdm_target.{quote(c.name)} = NEW.{quote(c.name)}" for c in self.sql.key)
        return f"""\
CREATE OR REPLACE FUNCTION {self.sql.named("mark")}() RETURNS trigger LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = {self.sql.catalog.search_path}, pg_temp AS $zdm_mark$
BEGIN
  -- A stable function: it looks at what was there as the statement began. An array is taken along only then; rows that
  -- the same statement deletes, and inserts anew, were copied.
  PERFORM set_config('zdm.unmoved_{self.sql.migration_id}', CASE WHEN EXISTS (
    SELECT FROM ONLY {self.sql.table} AS zdm_target WHERE {at}) THEN '' ELSE 'on' END, true);
  RETURN NULL;
END $zdm_mark$"""
