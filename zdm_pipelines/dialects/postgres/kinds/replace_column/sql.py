"""The SQL of replacing a column: sync trigger, batches, parity.

Agreement of a row is defined once, here: the new value is what `up` gives, or the old value is what `down`
gives. The second half holds for rows that new code wrote where `down` loses information.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres import environment, keys, literals, marking
from zdm_pipelines.dialects.postgres.expressions import BATCH, RAISE_ON, TRIGGER_PREFIX, expression, same
from zdm_pipelines.dialects.postgres.kinds.replace_column import decision, upserts
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
    called: str = ""  # what expressions call the table, whatever others call it by now; default: its name
    marking: Marking | None = None  # what the sync function notes of the ranges it writes to; none: nothing
    tolerant: bool = False  # rows for which `down` raises are beyond it, instead of an error

    @property
    def table(self) -> str:
        return self.catalog.table.sql

    @property
    def alias(self) -> str:
        """The bare table name, so that expressions may say users.full_name."""
        return quote(self.called or self.catalog.table.name)

    @property
    def columns(self) -> dict[str, int]:
        """The columns that statements name, as they are called now, with their numbers; 0: expand makes it."""
        names = (self.change.old, *(c.name for c in self.catalog.key), *self.facts.up_inputs, *self.facts.down_inputs)
        numbers = {c.name: c.number for c in self.catalog.columns}
        return {self._present(name): numbers.get(name, 0) for name in (*names, self.new)}

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

    def changed(self, columns: tuple[str, ...]) -> str:
        """Predicate of a trigger for UPDATE: one of these columns changes."""
        # Compares the stored images: works for every type, and an application's BEFORE trigger that altered a
        # column not named in SET is seen, which `UPDATE OF` would miss.
        new = ", ".join(f"NEW.{quote(self._present(c))}" for c in columns)
        old = ", ".join(f"OLD.{quote(self._present(c))}" for c in columns)
        return f"pg_catalog.record_image_ne(ROW({new}), ROW({old}))"

    def create_function(self, *, track_until: str | None = None) -> str:
        """The sync function; until the given time (ISO, with zone) it also records the key of every row it sees."""
        default = self.catalog.column(self.change.old).default
        old_unset = f"NEW.{quote(self.old)} IS NULL"
        if default is not None:
            old_unset += (
                f" OR pg_catalog.record_image_eq(ROW(NEW.{quote(self.old)}), ROW(({default})::{self.old_type}))"
            )
        mark = "" if self.marking is None else marking.block(self.marking, self.migration_id, self.catalog.key[0])
        noted = f"'zdm.noted_{self.migration_id}_' || wrote"
        refused = ""
        if self.catalog.column(self.change.old).not_null:
            # The server would refuse the row for its NULL, which says nothing of the reason.
            refused = f"\n    ELSIF NEW.{quote(self.old)} IS NULL THEN\n      RAISE;"
        unknown = "NULL"
        if not self.change.new.nullable:
            # NULL would be refused, and the write with it: what the row held is found by parity as well.
            unknown = f"CASE WHEN failed = '42703' AND TG_OP = 'UPDATE' THEN OLD.{quote(self.new)} END"
        track = ""
        if track_until is not None:
            key = keys.as_text(self.catalog.key, row="NEW")
            # It ends by itself: a contract that died leaves no growing table behind.
            track = (
                f"\n  IF clock_timestamp() < '{track_until}'::timestamptz THEN"
                f"\n    INSERT INTO zdm.touched (migration_id, key) VALUES ({self.migration_id}, {key});\n  END IF;"
            )
        # Without its key a row can be neither recorded nor marked.
        gone = " OR ".join(f"NEW.{quote(c.name)} IS NULL" for c in self.catalog.key)
        keyed = f"\n    IF {gone} THEN RETURN NEW; END IF;" if track or mark else ""
        # Keys are recorded as text: in our form, not in that of the client's session.
        settings = environment.clauses(self.catalog.environment, plain=self.catalog.plain and track_until is None)
        header = f"CREATE OR REPLACE FUNCTION {self.function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        source = f"""
#variable_conflict use_column
DECLARE{decision.VARIABLES}{upserts.VARIABLES}
  failed text;
  minute text;
BEGIN
  IF {BATCH} <> '' AND pg_catalog.pg_trigger_depth() = 1 THEN
    -- A row that our batch writes: moved as the application's triggers have left it.
    SELECT {expression(self.change.up)} INTO NEW.{quote(self.new)}
      FROM {self.row_source(self.facts.up_inputs, record="NEW")};
    RETURN NEW;
  END IF;
  BEGIN{keyed}
  wrote := 'unknown';
  IF TG_OP = 'INSERT' THEN
{decision.on_insert(self, old_unset)}
  ELSE
{decision.on_update(self, old_unset)}
  END IF;
    IF gives = 'up' THEN
      SELECT {expression(self.change.up)} INTO NEW.{quote(self.new)}
        FROM {self.row_source(self.facts.up_inputs, record="NEW")};
    ELSIF gives = 'down' THEN
      -- As parity compares it: text that is too long for the old column is cut off, not refused.
      SELECT {expression(self.change.down)}::{self.old_type} INTO NEW.{quote(self.old)}
        FROM {self.row_source(self.facts.down_inputs, record="NEW")};
    END IF;
  EXCEPTION WHEN others THEN
    {RAISE_ON}
    -- The application's write goes through; validate finds such rows, for people to mend.
    failed := SQLSTATE;
    -- Others renamed a column: this write goes through, too, and zdm says which column it is.
    IF coalesce(wrote, 'unknown') = 'unknown' AND failed <> '42703' THEN RAISE; END IF;
    IF wrote IS NULL THEN RETURN NEW; END IF;
    IF wrote <> 'unknown' AND gives = 'up' THEN
      NEW.{quote(self.new)} := {unknown};{refused}
    END IF;
  END;{upserts.block(self)}{track}{mark}
  -- Once a minute and session: exact about who, cheap, and two sessions never wait for each other.
  minute := coalesce(failed, '') || (extract(epoch FROM statement_timestamp())::bigint / 60)::text;
  IF wrote IN ('old', 'new', 'both') AND current_setting({noted}, true) IS DISTINCT FROM minute THEN
    PERFORM set_config({noted}, minute, false);
    INSERT INTO zdm.writer (migration_id, wrote, failed, application_name, login)
    VALUES ({self.migration_id}, wrote, failed, current_setting('application_name'), session_user);
  END IF;
  RETURN NEW;
END """
        return f"{header}\n  {settings} AS {literals.body(source, 'zdm_sync')}"

    def create_trigger(self, event: str) -> str:
        """The trigger for INSERT or UPDATE; unrelated updates and what our batches move never enter the function.

        Rows are told apart, not sessions: what the application's triggers write while a batch runs, deeper than the
        batch itself, is mirrored; a row that they may alter is moved as they leave it.
        """
        changed = "true"
        if event == "update":
            # The key, too: such a row is recorded while contract compares, and one that was never moved is moved before
            # it slips into a range that was.
            inputs = (*self.facts.up_inputs, *self.facts.down_inputs)
            names = (self.change.old, self.new, *(c.name for c in self.catalog.key), *inputs)
            changed = self.changed(tuple(dict.fromkeys(names)))
        condition = (
            f"CASE WHEN {BATCH} = '' OR pg_catalog.pg_trigger_depth() > 0 THEN {changed} ELSE {BATCH} <> 'on' END"
        )
        return (
            f"CREATE TRIGGER {quote(self.trigger(event))} BEFORE {event.upper()} ON {self.table} "
            f"FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {self.function}()"
        )

    @property
    def naming(self) -> Naming:
        """What notes who names the old column, though the column may not change."""
        name, alone = fitted(f"{TRIGGER_PREFIX}{self.name}_names"), f"{BATCH} = ''"
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
        """Predicate: the two shapes disagree, and the new one is not beyond `down`, which makes it the newer."""
        return f"NOT (({self.same_up}) OR coalesce({self._gives_back}, true))"

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

    @property
    def writes(self) -> dict[str, str]:
        return {self.table: "UPDATE"}

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

    def waiting(
        self, lower: Key | None, upper: Key | None, *, last: Key | None = None, repair: bool = False
    ) -> Statement:
        """How many rows of an interval wait to be moved."""
        interval, params = keys.between(self.catalog.key, lower, upper, last=last)
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

    @property
    def guard(self) -> Statement:
        """A function of the session: whether `down` gives the old value; NULL where `down` raises."""
        arguments = ", ".join(f"{self.table}.{quote(self._present(c))}%TYPE" for c in self._judged)
        listed = ", ".join(f"${n} AS {quote(c)}" for n, c in enumerate(self._judged, 1))
        return Statement(f"""\
CREATE OR REPLACE FUNCTION pg_temp.zdm_gives_back_{self.migration_id}({arguments}) RETURNS boolean
LANGUAGE plpgsql STABLE AS $zdm_guard$
BEGIN
  RETURN (SELECT {self.same_down} FROM (SELECT {listed}) AS {self.alias});
EXCEPTION WHEN others THEN
  {RAISE_ON}
  RETURN NULL;
END $zdm_guard$""")

    @property
    def _judged(self) -> tuple[str, ...]:
        """The old column and what `down` reads."""
        return (self.change.old, *self.facts.down_inputs)

    @property
    def _gives_back(self) -> str:
        return f"pg_temp.zdm_gives_back_{self.migration_id}({', '.join(map(quote, self._judged))})"

    @property
    def guarded(self) -> ReplaceColumnSql:
        return replace(self, tolerant=True)

    def _categories(self) -> dict[str, str]:
        up, new = expression(self.change.up), quote(self.new)
        # A row whose two sides are both empty under their own mapping but not alike counts as different.
        return {
            "missing": f"NOT zdm_same AND {new} IS NULL AND {up} IS NOT NULL",
            "extra": f"NOT zdm_same AND {new} IS NOT NULL AND {up} IS NULL",
            "different": f"NOT zdm_same AND ({new} IS NULL) = ({up} IS NULL)",
            "beyond": "zdm_same IS NULL",
        }

    def _compared(self, interval: str) -> str:
        up, down = self.same_up, self._gives_back if self.tolerant else self.same_down
        return (
            f"{self.table_source()} CROSS JOIN LATERAL "
            f"(SELECT ({up}) AS zdm_up, ({up}) OR ({down}) AS zdm_same) AS zdm_verdict WHERE {interval}"
        )

    def compare(self, lower: Key | None, upper: Key | None) -> Statement:
        """Counts: rows, missing, extra, different, agreeing through `down` only, not moved; tolerant, beyond it."""
        interval, params = keys.between(self.catalog.key, lower, upper)
        categories = self._categories()
        beyond = categories.pop("beyond")
        counted = [*categories.values(), "zdm_same AND NOT zdm_up", self.unmoved, *([beyond] if self.tolerant else [])]
        filters = ", ".join(f"count(*) FILTER (WHERE {c})" for c in counted)
        sql = f"SELECT count(*), {filters} FROM {self._compared(interval)}"
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
            f"(SELECT 1 FROM {self.guarded._compared(texts)} AND NOT zdm_same) AS zdm_bad)"
        )
