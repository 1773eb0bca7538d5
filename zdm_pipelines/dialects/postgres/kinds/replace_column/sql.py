"""The SQL of replacing a column: sync trigger, batches, parity.

Agreement of a row is defined once, here: the new value is what `up` gives, or the old value is what `down`
gives. The second half holds for rows that new code wrote where `down` loses information.
"""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.postgres import keys, marking
from zdm_pipelines.dialects.postgres.expressions import BACKFILL_SETTING, TRIGGER_PREFIX, expression, same
from zdm_pipelines.dialects.postgres.kinds.replace_column.declared import Declared, Facts
from zdm_pipelines.dialects.postgres.naming import Naming
from zdm_pipelines.model.capabilities import ALL, Marking, Pick, Until
from zdm_pipelines.model.names import fitted, quote
from zdm_pipelines.model.values import Catalog, Key, Statement


@dataclass(frozen=True, kw_only=True)
class ReplaceColumnSql:
    """SQL for one `replace_column`; `old` is the column's present name (it changes with the tombstone)."""

    name: str  # of the migration
    migration_id: int
    change: Declared
    catalog: Catalog
    facts: Facts
    tombstoned: bool = False
    marking: Marking | None = None  # what the sync function notes of the ranges it writes to; none: nothing

    @property
    def table(self) -> str:
        return self.catalog.table.sql

    @property
    def alias(self) -> str:
        """The bare table name, so that expressions may say users.full_name."""
        return quote(self.catalog.table.name)

    @property
    def tombstone(self) -> str:
        """What the old column is called once it is out of sight."""
        return fitted(f"zdm_tombstone_{self.change.old}")

    @property
    def old(self) -> str:
        return self.tombstone if self.tombstoned else self.change.old

    @property
    def new(self) -> str:
        return self.change.new.name

    @property
    def function(self) -> str:
        return f"zdm.{quote(fitted(f'sync_{self.name}'))}"

    def trigger(self, event: str) -> str:
        """Name of the sync trigger; it must sort behind the application's, which run first then."""
        return fitted(f"{TRIGGER_PREFIX}{self.name}_{event}")

    @property
    def new_type(self) -> str:
        return self.change.new.type

    @property
    def old_type(self) -> str:
        return self.catalog.column(self.change.old).type

    def _present(self, column: str) -> str:
        return self.old if column == self.change.old else column

    def row_source(self, inputs: tuple[str, ...], *, record: str) -> str:
        """A one-row FROM clause in which expressions find the columns they read, under their declared names."""
        listed = ", ".join(f"{record}.{quote(self._present(c))} AS {quote(c)}" for c in inputs) or "1 AS zdm_none"
        return f"(SELECT {listed}) AS {self.alias}"

    def table_source(self) -> str:
        """The table as FROM clause; behind the tombstone the old column answers to its declared name."""
        if not self.tombstoned:
            return f"ONLY {self.table} AS {self.alias}"
        return f"(SELECT *, {quote(self.old)} AS {quote(self.change.old)} FROM ONLY {self.table}) AS {self.alias}"

    # -- sync ---------------------------------------------------------------------------------------------

    def _changed(self, columns: tuple[str, ...]) -> str:
        # Compares the stored images: works for every type, and an application's BEFORE trigger that altered a
        # column not named in SET is seen, which `UPDATE OF` would miss.
        new = ", ".join(f"NEW.{quote(self._present(c))}" for c in columns)
        old = ", ".join(f"OLD.{quote(self._present(c))}" for c in columns)
        return f"pg_catalog.record_image_ne(ROW({new}), ROW({old}))"

    @property
    def old_shape(self) -> tuple[str, ...]:
        """Columns whose change means that the old shape was written."""
        return tuple(dict.fromkeys((self.change.old, *self.facts.up_inputs)))

    def create_function(self, *, track_until: str | None = None) -> str:
        """The sync function; until the given time (ISO, with zone) it also records the key of every row it sees."""
        default = self.catalog.column(self.change.old).default
        old_unset = f"NEW.{quote(self.old)} IS NULL"
        if default is not None:
            old_unset += (
                f" OR pg_catalog.record_image_eq(ROW(NEW.{quote(self.old)}), ROW(({default})::{self.old_type}))"
            )
        # It runs with its owner's rights: names mean what they meant when it was made, whoever calls it, and a
        # caller's temporary table never stands in for a real one.
        settings = [f"search_path = {self.catalog.search_path}, pg_temp"]
        if not self.catalog.immutable:
            settings += ["timezone FROM CURRENT", "datestyle FROM CURRENT", "intervalstyle FROM CURRENT"]
        unset = ""
        if not self.change.new.nullable:
            # A NULL that may not be is what code read before the row was moved and now writes back with all columns.
            unset = (
                f"WHEN NEW.{quote(self.new)} IS NULL THEN "
                f"CASE WHEN {self._changed(self.old_shape)} THEN 'old' ELSE 'neither' END\n                  "
            )
        mark = "" if self.marking is None else marking.block(self.marking, self.migration_id, self.catalog.key[0])
        noted = f"'zdm.noted_{self.migration_id}_' || wrote"
        track = ""
        if track_until is not None:
            # Keys are recorded as text: in our form, not in that of the client's session.
            settings += ["datestyle FROM CURRENT", "intervalstyle FROM CURRENT", "extra_float_digits FROM CURRENT"]
            key = keys.as_text(self.catalog.key, row="NEW")
            # It ends by itself: a contract that died leaves no growing table behind.
            track = (
                f"\n  IF clock_timestamp() < '{track_until}'::timestamptz THEN"
                f"\n    INSERT INTO zdm.touched (migration_id, key) VALUES ({self.migration_id}, {key});\n  END IF;"
            )
        return f"""\
CREATE OR REPLACE FUNCTION {self.function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  {" ".join(f"SET {s}" for s in dict.fromkeys(settings))} AS $zdm_sync$
#variable_conflict use_column
DECLARE
  wrote text;
  failed text;
  minute text;
BEGIN
  IF TG_OP = 'INSERT' THEN
    wrote := CASE WHEN NEW.{quote(self.new)} IS NOT NULL THEN CASE WHEN {old_unset} THEN 'new' ELSE 'both' END
                  WHEN {old_unset} THEN 'neither' ELSE 'old' END;
  ELSE
    wrote := CASE WHEN NOT ({self._changed((*self.old_shape, self.new))})
                  THEN CASE WHEN NEW.{quote(self.new)} IS NULL THEN 'neither' ELSE 'nothing' END
                  {unset}WHEN NOT ({self._changed((self.new,))}) THEN 'old'
                  WHEN NOT ({self._changed(self.old_shape)}) THEN 'new' ELSE 'both' END;
  END IF;
  BEGIN
    IF wrote IN ('old', 'neither') THEN
      SELECT {expression(self.change.up)} INTO NEW.{quote(self.new)}
        FROM {self.row_source(self.facts.up_inputs, record="NEW")};
    ELSIF wrote = 'new' THEN
      SELECT {expression(self.change.down)} INTO NEW.{quote(self.old)}
        FROM {self.row_source(self.facts.down_inputs, record="NEW")};
    END IF;
  EXCEPTION WHEN others THEN
    -- The application's write goes through, until NOT NULL is set; validate finds such rows, for people to mend.
    failed := SQLSTATE;
    IF wrote IN ('old', 'neither') THEN
      NEW.{quote(self.new)} := NULL;
    END IF;
  END;{track}{mark}
  -- Once a minute and session: exact about who, cheap, and two sessions never wait for each other.
  minute := coalesce(failed, '') || (extract(epoch FROM statement_timestamp())::bigint / 60)::text;
  IF wrote NOT IN ('neither', 'nothing') AND current_setting({noted}, true) IS DISTINCT FROM minute THEN
    PERFORM set_config({noted}, minute, false);
    INSERT INTO zdm.writer (migration_id, wrote, failed, application_name, login)
    VALUES ({self.migration_id}, wrote, failed, current_setting('application_name'), session_user);
  END IF;
  RETURN NEW;
END $zdm_sync$"""

    def create_trigger(self, event: str) -> str:
        """The trigger for INSERT or UPDATE; unrelated updates and our own backfill never enter the function."""
        condition = f"coalesce(current_setting('{BACKFILL_SETTING}', true), '') = ''"
        if event == "update":
            # The key and what `down` reads, too: such a row is recorded while contract compares, and one that was
            # never moved is moved before it slips into a range that was.
            names = (*self.old_shape, self.new, *(c.name for c in self.catalog.key), *self.facts.down_inputs)
            watched = tuple(dict.fromkeys(names))
            condition = f"{condition} AND {self._changed(watched)}"  # the cheaper first
        return (
            f"CREATE TRIGGER {quote(self.trigger(event))} BEFORE {event.upper()} ON {self.table} "
            f"FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {self.function}()"
        )

    @property
    def naming(self) -> Naming:
        """What notes who names the old column, though the column may not change."""
        alone = f"coalesce(current_setting('{BACKFILL_SETTING}', true), '') = ''"
        name = fitted(f"{TRIGGER_PREFIX}{self.name}_names")
        return Naming(
            table=self.table, name=name, migration_id=self.migration_id, columns=(self.change.old,), when=alone
        )

    # -- batches ------------------------------------------------------------------------------------------

    @property
    def unmoved(self) -> str:
        """Predicate: never written in the new shape, and the old shape has something to move."""
        return f"{quote(self.new)} IS NULL AND {expression(self.change.up)} IS NOT NULL"

    @property
    def disagreeing(self) -> str:
        """Predicate: the two shapes disagree."""
        return f"NOT (({self.same_up}) OR ({self.same_down}))"

    @property
    def over(self) -> Catalog:
        return self.catalog

    @property
    def destroys(self) -> bool:
        return False

    @property
    def until(self) -> Until:
        return Until.NONE_WAITS

    @property
    def written(self) -> str:
        return self.new

    def back(self) -> None:
        """Nothing: the new column is dropped with what it holds."""

    def batch(self, lower: Key | None, upper: Key | None, *, repair: bool = False, pick: Pick = ALL) -> list[Statement]:
        """One batch. Rows that the application has locked are passed over: we never wait for it, nor deadlock.

        Args:
            repair: take rows that disagree from the old shape, instead of those never written in the new one.
        """
        interval, params = keys.between(self.catalog.key, lower, upper)
        wanted = self.disagreeing if repair else self.unmoved
        if pick.among is not None:
            wanted = pick.among(wanted)
        limited = "" if pick.limit is None else f"LIMIT {pick.limit} "
        # The rows' places as one array: joined, each would be a scan of its own.
        sql = f"""\
UPDATE ONLY {self.table} AS {self.alias} SET {quote(self.new)} = {expression(self.change.up)}
WHERE ctid = ANY (ARRAY(
  SELECT ctid FROM ONLY {self.table} AS {self.alias}
  WHERE {interval} AND {wanted}
  {limited}FOR {"" if pick.whole else "NO KEY "}UPDATE SKIP LOCKED
))"""
        return [Statement(sql, params)]

    def waiting(self, lower: Key | None, upper: Key | None, *, repair: bool = False) -> Statement:
        """How many rows of an interval wait to be moved."""
        interval, params = keys.between(self.catalog.key, lower, upper)
        wanted = self.disagreeing if repair else self.unmoved
        return Statement(
            f"SELECT count(*) FROM ONLY {self.table} AS {self.alias} WHERE {interval} AND {wanted}", params
        )

    def waiting_keys(self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False) -> Statement:
        """The first keys of an interval that wait to be moved."""
        interval, params = keys.between(self.catalog.key, lower, upper)
        wanted = self.disagreeing if repair else self.unmoved
        return Statement(
            f"SELECT {keys.as_text(self.catalog.key)} FROM ONLY {self.table} AS {self.alias} "
            f"WHERE {interval} AND {wanted} ORDER BY {keys.columns(self.catalog.key)} LIMIT {limit}",
            params,
        )

    def one(self, key: Key, *, repair: bool = False) -> list[Statement]:
        """Move the one row at a key, if it still waits to be moved when its lock is had."""
        wanted = self.disagreeing if repair else self.unmoved
        sql = (
            f"UPDATE ONLY {self.table} AS {self.alias} SET {quote(self.new)} = {expression(self.change.up)} "
            f"WHERE {keys.row(self.catalog.key)} = {keys.bound(self.catalog.key, 1)} AND {wanted}"
        )
        return [Statement(sql, [list(key)])]

    # -- parity -------------------------------------------------------------------------------------------

    @property
    def same_up(self) -> str:
        return same(quote(self.new), expression(self.change.up), self.new_type)

    @property
    def same_down(self) -> str:
        return same(quote(self.change.old), expression(self.change.down), self.old_type)

    def _categories(self) -> dict[str, str]:
        up, new = expression(self.change.up), quote(self.new)
        # A row whose two sides are both empty under their own mapping but not alike counts as different.
        return {
            "missing": f"NOT zdm_same AND {new} IS NULL AND {up} IS NOT NULL",
            "extra": f"NOT zdm_same AND {new} IS NOT NULL AND {up} IS NULL",
            "different": f"NOT zdm_same AND ({new} IS NULL) = ({up} IS NULL)",
        }

    def _compared(self, interval: str) -> str:
        up, down = self.same_up, self.same_down
        return (
            f"{self.table_source()} CROSS JOIN LATERAL "
            f"(SELECT ({up}) AS zdm_up, ({up}) OR ({down}) AS zdm_same) AS zdm_verdict WHERE {interval}"
        )

    def compare(self, lower: Key | None, upper: Key | None) -> Statement:
        """Counts of an interval: rows, missing, extra, different, agreeing through `down` only, not moved."""
        interval, params = keys.between(self.catalog.key, lower, upper)
        filters = ", ".join(f"count(*) FILTER (WHERE {c})" for c in self._categories().values())
        only_down = "count(*) FILTER (WHERE zdm_same AND NOT zdm_up)"
        unmoved = f"count(*) FILTER (WHERE {self.unmoved})"
        sql = f"SELECT count(*), {filters}, {only_down}, {unmoved} FROM {self._compared(interval)}"
        return Statement(sql, params)

    def mismatched_keys(self, category: str, lower: Key | None, upper: Key | None, *, limit: int) -> Statement:
        """The first keys of one category in an interval."""
        interval, params = keys.between(self.catalog.key, lower, upper)
        return Statement(
            f"SELECT {keys.as_text(self.catalog.key)} FROM {self._compared(interval)} "
            f"AND {self._categories()[category]} ORDER BY {keys.columns(self.catalog.key)} LIMIT {limit}",
            params,
        )

    def touched_disagreeing(self) -> str:
        """Take the keys recorded so far ($1: migration id); how many there were, how many rows of them disagree.

        Recorded keys and rows are seen in one snapshot: what is written after it is recorded again.
        """
        texts = " AND ".join(
            f"{quote(c.name)} = (zdm_taken.key)[{i}]::{c.type}" for i, c in enumerate(self.catalog.key, 1)
        )
        return (
            "WITH zdm_touched AS (DELETE FROM zdm.touched WHERE migration_id = $1 RETURNING key), "
            "zdm_taken AS MATERIALIZED (SELECT DISTINCT key FROM zdm_touched) "
            "SELECT (SELECT count(*) FROM zdm_taken), (SELECT count(*) FROM zdm_taken CROSS JOIN LATERAL "
            f"(SELECT 1 FROM {self._compared(texts)} AND NOT zdm_same) AS zdm_bad)"
        )
