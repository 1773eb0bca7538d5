"""Upserts: inserts of the same key, one after another while two unique indexes stand on it.

`INSERT … ON CONFLICT (column)` looks for a conflict in the index of that column alone, then inserts into every index. A
session that inserts the same new key between the two is met in the other index, by a unique violation. BEFORE triggers
run in front of the look, so the sync function takes an advisory lock on the key: whoever comes second looks when the
first has inserted. Nobody waits long, and nobody deadlocks: the lock is tried for a moment, then the insert goes on
without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from zdm_pipelines.dialects.postgres.expressions import RAISE_ON
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Rebuild

if TYPE_CHECKING:
    from zdm_pipelines.dialects.postgres.kinds.replace_column.sql import ReplaceColumnSql

TRIES = 20  # a millisecond apart
LOCKS = 16  # of one transaction: a bulk load leaves the server's lock table to others

VARIABLES = """
  zdm_key bigint;
  zdm_locked integer;  -- how many keys this transaction has locked"""

_COUNT = "zdm.locked_keys"


def block(sql: ReplaceColumnSql) -> str:
    """What an INSERT does before the server looks for conflicts; empty where no upsert meets a second index."""
    locks = "".join(_lock(sql, rebuild) for rebuild in _arbiters(sql.facts.rebuilds) if rebuild.elements)
    if not locks:
        return ""
    # A transaction that keeps its snapshot would fail after the wait, too.
    return f"""
  IF TG_OP = 'INSERT' AND current_setting('transaction_isolation') = 'read committed' THEN
    zdm_locked := coalesce(nullif(current_setting('{_COUNT}', true), ''), '0')::integer;{locks}
  END IF;"""


def warnings(rebuilds: Sequence[Rebuild], new: str) -> list[str]:
    """What is left of the race: transactions of many keys."""
    return [
        f"unique {quote(rebuild.original)} has a twin on {quote(new)} from validate until the drop: an upsert (ON "
        "CONFLICT) by one column may fail with a unique violation of the other where a transaction inserts more than "
        f"{LOCKS} new keys and another session the same ones at once; let such code repeat its transaction, or write "
        "ON CONFLICT DO NOTHING without columns"
        for rebuild in _arbiters(rebuilds)
    ]


def _arbiters(rebuilds: Sequence[Rebuild]) -> list[Rebuild]:
    """Those by which an upsert may look for conflicts: a deferrable constraint is none."""
    return [r for r in rebuilds if r.kind.startswith("unique") and not r.deferrable]


def _lock(sql: ReplaceColumnSql, rebuild: Rebuild) -> str:
    """Lock the key that the new row has in one index, or go on without."""
    key = f"ROW({', '.join(rebuild.elements)})"
    alike = "true" if not rebuild.nulls_distinct else f"{key} IS NOT NULL"
    condition = f"{alike} AND {rebuild.where.removeprefix(' WHERE ')}" if rebuild.where else alike
    # What raises here, an expression of the index or a column that others renamed, stops no write by our hand.
    return f"""
    IF zdm_locked < {LOCKS} THEN
      BEGIN
        zdm_key := NULL;
        SELECT pg_catalog.hashtextextended({key}::text, {sql.migration_id}) INTO zdm_key
          FROM (SELECT NEW.*) AS {sql.alias} WHERE {condition};
      EXCEPTION WHEN others THEN
        {RAISE_ON}
      END;
      IF zdm_key IS NOT NULL THEN
        zdm_locked := zdm_locked + 1;
        FOR zdm_try IN 1 .. {TRIES} LOOP
          EXIT WHEN pg_catalog.pg_try_advisory_xact_lock(zdm_key);
          IF zdm_try = {TRIES} THEN
            zdm_locked := {LOCKS};  -- this transaction waits no more
          ELSE
            PERFORM pg_catalog.pg_sleep(0.001);
          END IF;
        END LOOP;
        PERFORM set_config('{_COUNT}', zdm_locked::text, true);
      END IF;
    END IF;"""
