"""Decision: which shape an UPDATE wrote, and hence which side of the row is computed from the other.

The old and the new column tell by themselves who wrote. Two things need more than that:

- NULL (or the old column's default) is a value, and also what a mapper that saves every field writes back when it
  loaded or made the row before the sync filled the column. Beside a value that the same statement writes it counts as
  left out, as in an INSERT. Alone it is decided for the shape that the application reads: in the new column it was
  meant once any reads are on the new shape, in the old column until all are, and whenever a trigger or a foreign key
  writes it.
- Kept columns, which are neither the old column nor the new one, belong to no shape. When only they change, what was
  computed from them is computed anew, and what the application wrote stays. Where either side could have been computed
  from the other, the side that is read stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zdm_pipelines.dialects.postgres.expressions import RAISE_ON, expression
from zdm_pipelines.model.names import quote

if TYPE_CHECKING:
    from zdm_pipelines.dialects.postgres.kinds.replace_column.sql import ReplaceColumnSql

VARIABLES = """
  wrote text;  -- for the note of who writes: old, new, both, or else
  gives text;  -- which expression is evaluated: up, down, or none
  zdm_old boolean;
  zdm_new boolean;
  zdm_reads integer;  -- per cent of reads on the new shape
  zdm_before record;
  zdm_by_up boolean := false;
  zdm_by_down boolean := false;"""


def on_insert(sql: ReplaceColumnSql, old_unset: str) -> str:
    """What an INSERT leaves out comes from the other side."""
    new = f"NEW.{quote(sql.new)}"
    return f"""\
    wrote := CASE WHEN {new} IS NOT NULL THEN CASE WHEN {old_unset} THEN 'new' ELSE 'both' END
                  WHEN {old_unset} THEN 'neither' ELSE 'old' END;
    gives := CASE wrote WHEN 'new' THEN 'down' WHEN 'both' THEN NULL ELSE 'up' END;"""


def on_update(sql: ReplaceColumnSql, old_unset: str) -> str:
    """See above."""
    new = f"NEW.{quote(sql.new)}"
    if sql.change.new.nullable:
        empty = f"zdm_new AND {new} IS NULL"
        alone = f"""\
        {_reads(sql)}
        wrote := CASE WHEN zdm_reads > 0 THEN 'new' ELSE 'neither' END;
        gives := CASE WHEN zdm_reads > 0 THEN 'down' ELSE 'up' END;"""
    else:
        empty, alone = f"{new} IS NULL", "        wrote := 'neither'; gives := 'up';"  # it may not be, so is not meant
    return f"""\
    zdm_old := {sql.changed((sql.change.old,))};
    zdm_new := {sql.changed((sql.new,))};
    IF NOT zdm_old AND NOT zdm_new THEN
{_kept(sql)}
    ELSIF {empty} THEN
      IF zdm_old THEN
        wrote := 'old'; gives := 'up';
      ELSE
{alone}
      END IF;
    ELSIF zdm_old AND ({old_unset}) THEN
      wrote := CASE WHEN zdm_new THEN 'both' ELSE 'old' END;
      IF NOT zdm_new THEN
        {_reads(sql)}
      END IF;
      -- A statement inside of a trigger is no mapper's: a foreign key's SET DEFAULT means the value.
      gives := CASE WHEN zdm_new OR zdm_reads = 100 AND pg_catalog.pg_trigger_depth() = 1 THEN 'down' ELSE 'up' END;
    ELSIF zdm_old AND zdm_new THEN
      wrote := 'both';
    ELSIF zdm_old THEN
      wrote := 'old'; gives := 'up';
    ELSE
      wrote := 'new'; gives := 'down';
    END IF;"""


def _reads(sql: ReplaceColumnSql) -> str:
    return f"zdm_reads := coalesce((SELECT percent FROM zdm.flag WHERE migration_id = {sql.migration_id}), 0);"


def _kept(sql: ReplaceColumnSql) -> str:
    """Neither column changed: kept columns did, or the key."""
    new = quote(sql.new)
    # A row that was never moved is moved before it slips into a range that is done.
    moved = f"      gives := CASE WHEN NEW.{new} IS NULL THEN 'up' END;"
    of_up = tuple(c for c in sql.facts.up_inputs if c != sql.change.old)
    of_down = tuple(c for c in sql.facts.down_inputs if c != sql.new)
    if not of_up and not of_down:
        return moved
    up_inputs, down_inputs = sql.facts.up_inputs, sql.facts.down_inputs
    agrees = {
        "zdm_by_up": (sql.same_up, (*up_inputs, sql.new)),
        "zdm_by_down": (sql.same_down, (*down_inputs, sql.change.old)),
    }
    looks = "\n".join(
        f"        SELECT {same} INTO {into} FROM {sql.row_source(inputs, record='zdm_before')};"
        for into, (same, inputs) in agrees.items()
    )
    changed = {"zdm_old": of_up, "zdm_new": of_down}
    tells = "\n".join(f"      {into} := {sql.changed(c) if c else 'false'};" for into, c in changed.items())
    return f"""\
{tells}
      IF zdm_old OR zdm_new THEN
        zdm_before := OLD;
        BEGIN
        IF NEW.{new} IS NULL THEN  -- as if it had been moved before
          SELECT {expression(sql.change.up)} INTO zdm_before.{new}
            FROM {sql.row_source(up_inputs, record="OLD")};
          NEW.{new} := zdm_before.{new};
        END IF;
{looks}
        EXCEPTION WHEN others THEN
        {RAISE_ON}  -- what cannot be computed was not
        END;
        {_reads(sql)}
        gives := CASE
          WHEN NEW.{new} IS NULL THEN 'up'
          WHEN NOT zdm_new THEN CASE WHEN zdm_by_up OR zdm_reads = 0 THEN 'up' END
          WHEN NOT zdm_old THEN CASE WHEN zdm_by_down OR zdm_reads > 0 THEN 'down' END
          WHEN zdm_by_up AND NOT (zdm_by_down AND zdm_reads > 0) THEN 'up'
          WHEN zdm_by_down THEN 'down' END;
        wrote := CASE WHEN gives IS NULL OR zdm_old AND zdm_new THEN 'neither' WHEN zdm_old THEN 'old' ELSE 'new' END;
      ELSE
  {moved}
      END IF;"""
