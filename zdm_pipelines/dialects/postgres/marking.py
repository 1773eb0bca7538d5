"""Marking: let the sync function note, once a range, that a range was written."""

from __future__ import annotations

from zdm_pipelines.model.capabilities import Marking
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Column


def block(marking: Marking, migration_id: int, key: Column) -> str:
    """The part of the sync function's body that notes a row's range."""
    listed = ",".join(f'"{bound}"' for bound in marking.bounds).replace("'", "''")
    bucket = f"pg_catalog.width_bucket(NEW.{quote(key.name)}, '{{{listed}}}'::{key.type}[])"
    setting = f"zdm.written_{migration_id}_"
    # A session's setting goes with the transaction that set it, line and all, but for one that was prepared: there the
    # line is still open, or gone, while the setting stays. So the setting names the transaction until that is known to
    # be committed.
    return f"""
  DECLARE
    zdm_bucket CONSTANT integer := coalesce({bucket}, 0);
    zdm_seen CONSTANT text := current_setting('{setting}' || zdm_bucket, true);
  BEGIN
    IF zdm_seen IS DISTINCT FROM '{marking.epoch}'
       AND zdm_seen IS DISTINCT FROM '{marking.epoch}:' || pg_catalog.pg_current_xact_id()::text THEN
      IF zdm_seen LIKE '{marking.epoch}:%'
         AND pg_catalog.pg_xact_status(split_part(zdm_seen, ':', 2)::pg_catalog.xid8) = 'committed' THEN
        PERFORM set_config('{setting}' || zdm_bucket, '{marking.epoch}', false);
      ELSE
        -- Sessions may be as many as transactions: lines are not.
        IF NOT EXISTS (SELECT FROM zdm.written
                       WHERE migration_id = {migration_id} AND epoch = {marking.epoch} AND bucket = zdm_bucket) THEN
          INSERT INTO zdm.written (migration_id, epoch, bucket) VALUES ({migration_id}, {marking.epoch}, zdm_bucket);
        END IF;
        PERFORM set_config(
          '{setting}' || zdm_bucket, '{marking.epoch}:' || pg_catalog.pg_current_xact_id()::text, false);
      END IF;
    END IF;
  END;"""
