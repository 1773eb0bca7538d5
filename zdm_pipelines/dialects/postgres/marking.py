"""Marking: let the sync function note, once a range, that a range was written."""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.postgres.connection import Connection, query, scalar
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Catalog, Column

# One order each, whatever the collation or the session; a domain or a type of the application's own may have another.
_KEY_TYPES = (
    "{smallint,integer,bigint,numeric,oid,uuid,date,timestamp without time zone,timestamp with time zone,"
    "time without time zone}"
)


@dataclass(frozen=True, kw_only=True)
class Marking:
    """What the sync function needs to know in order to note which range a row is written to."""

    epoch: int  # since when; never given twice
    bounds: tuple[str, ...]  # where the ranges begin, in key order and without the first: a range's bucket is its place

    def block(self, migration_id: int, key: Column) -> str:
        """The part of the sync function's body that notes a row's range."""
        listed = ",".join(f'"{bound}"' for bound in self.bounds).replace("'", "''")
        bucket = f"pg_catalog.width_bucket(NEW.{quote(key.name)}, '{{{listed}}}'::{key.type}[])"
        setting = f"zdm.written_{migration_id}_"
        # A session's setting goes with the transaction that set it, line and all, but for one that was prepared: there
        # the line is still open, or gone, while the setting stays. So it names the transaction until that is known to
        # be committed.
        return f"""
  DECLARE
    zdm_bucket CONSTANT integer := coalesce({bucket}, 0);
    zdm_seen CONSTANT text := current_setting('{setting}' || zdm_bucket, true);
  BEGIN
    IF zdm_seen IS DISTINCT FROM '{self.epoch}'
       AND zdm_seen IS DISTINCT FROM '{self.epoch}:' || pg_catalog.pg_current_xact_id()::text THEN
      IF zdm_seen LIKE '{self.epoch}:%'
         AND pg_catalog.pg_xact_status(split_part(zdm_seen, ':', 2)::pg_catalog.xid8) = 'committed' THEN
        PERFORM set_config('{setting}' || zdm_bucket, '{self.epoch}', false);
      ELSE
        -- Sessions may be as many as transactions: lines are not.
        IF NOT EXISTS (SELECT FROM zdm.written
                       WHERE migration_id = {migration_id} AND epoch = {self.epoch} AND bucket = zdm_bucket) THEN
          INSERT INTO zdm.written (migration_id, epoch, bucket) VALUES ({migration_id}, {self.epoch}, zdm_bucket);
        END IF;
        PERFORM set_config(
          '{setting}' || zdm_bucket, '{self.epoch}:' || pg_catalog.pg_current_xact_id()::text, false);
      END IF;
    END IF;
  END;"""


def possible(conn: Connection, catalog: Catalog) -> bool:
    """Whether a key says by itself, in every session, which range it lies in."""
    if len(catalog.key) != 1:
        return False
    return bool(
        scalar(
            conn,
            "SELECT atttypid = ANY ($3::regtype[]) FROM pg_attribute "
            "WHERE attrelid = $1 AND attname = $2 AND attgenerated = '' AND NOT attisdropped",
            [catalog.oid, catalog.key[0].name, _KEY_TYPES],
        )
    )


def source(conn: Connection, function: str) -> str | None:
    """The body of a trigger function (quoted, with its schema), None when there is none."""
    found = scalar(conn, "SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure($1 || '()')", [function])
    return None if found is None else str(found)


def surroundings(conn: Connection, oid: int) -> list[str]:
    """What else the agreement of rows hangs on: the columns behind the names, functions, search path, server.

    Any function of the application's that is made anew counts, since the declared expressions may call it.
    """
    rows = query(
        conn,
        "SELECT coalesce(string_agg(attnum || ' ' || atttypid || ' ' || attname, ',' ORDER BY attnum), '') "
        "FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped "
        "UNION ALL SELECT md5(coalesce(string_agg(p.oid || '/' || p.xmin, ',' ORDER BY p.oid), '')) "
        "FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace "
        "WHERE p.oid >= 16384 AND n.nspname <> 'zdm' AND n.nspname NOT LIKE 'pg\\_temp\\_%' "
        "UNION ALL SELECT current_setting('search_path') "
        "UNION ALL SELECT current_setting('server_version_num')",
        [oid],
    )
    return [text for (text,) in rows]


def written(conn: Connection, migration_id: int) -> dict[int, int]:
    """The latest epoch in which each bucket was written."""
    return dict(
        query(conn, "SELECT bucket, max(epoch) FROM zdm.written WHERE migration_id = $1 GROUP BY 1", [migration_id])
    )


def writes_on(conn: Connection, oid: int) -> bool:
    """Whether a write to this table may cause others, by a trigger of the application's or a rule."""
    return bool(
        scalar(
            conn,
            "SELECT c.relhasrules OR EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal "
            "AND tgname NOT LIKE 'zzz\\_zdm\\_%') FROM pg_class c WHERE c.oid = $1",
            [oid],
        )
    )
