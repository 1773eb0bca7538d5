-- copy: The oid of the copy.
SELECT 'pg_temp.zdm_rehearsed'::regclass::oid::bigint;

-- blind: Whether the server counts nothing in our sessions, so that a scan is not seen.
SELECT current_setting('track_counts') <> 'on';

-- state: The file in which a table lies, and how often it was read in the present transaction.
SELECT pg_relation_filenode($1::oid)::bigint, coalesce(pg_stat_get_xact_numscans($1::oid), 0)::bigint;

-- locks: Tables of the application's that we have locked against writes, but for the copy ($1).
SELECT l.relation::regclass::text, l.mode FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
WHERE l.pid = pg_backend_pid() AND l.granted AND c.relkind IN ('r', 'p') AND c.oid <> $1 AND c.relpersistence <> 't'
  AND c.relnamespace <> 'pg_catalog'::regnamespace AND l.mode NOT IN ('AccessShareLock', 'RowShareLock', 'RowExclusiveLock')
ORDER BY 1, 2;

-- lands: What adding a column of a type gives the rows that are there: whether they are rewritten or get a value; its base.
SELECT pg_relation_filenode('pg_temp.zdm_rows') <> $1::oid, zdm_value IS NOT NULL,
       (WITH RECURSIVE base (type, modifier) AS (
          SELECT a.atttypid, a.atttypmod FROM pg_attribute a
          WHERE a.attrelid = 'pg_temp.zdm_rows'::regclass AND a.attname = 'zdm_value'
          UNION ALL SELECT t.typbasetype, t.typtypmod FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd')
        SELECT format_type(b.type, b.modifier) FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype <> 'd')
FROM pg_temp.zdm_rows;
