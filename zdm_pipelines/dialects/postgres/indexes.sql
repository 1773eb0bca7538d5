-- named: What a name stands for in a schema; of an index also its table, whether it is valid and unique, its definition.
SELECT c.oid::bigint, c.relkind, i.indrelid::bigint, i.indisvalid, i.indisunique, pg_get_indexdef(i.indexrelid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_index i ON i.indexrelid = c.oid
WHERE n.nspname = $1 AND c.relname = $2;

-- called: The schema and name of an index ($1) of a table ($2), empty when it is gone.
SELECT n.nspname, c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE i.indexrelid = $1 AND i.indrelid = $2;

-- alike: Valid indexes of a table ($1) with a definition ($3, from USING on), unique or not ($2).
SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1 AND i.indisvalid AND i.indisunique = $2
  AND right(pg_get_indexdef(i.indexrelid), length($3::text)) = $3 ORDER BY 1;

-- tried: What the server made of the index that was tried on the copy; the numbers of its columns are those of table $1.
SELECT pg_get_indexdef(i.indexrelid), pg_get_expr(i.indpred, i.indrelid),
       ARRAY(SELECT pg_get_indexdef(i.indexrelid, k, false) FROM generate_series(1, i.indnkeyatts) AS k ORDER BY k),
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false),
       ARRAY(SELECT coalesce(r.attnum, 0)::int FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)
             LEFT JOIN pg_attribute c ON c.attrelid = i.indrelid AND c.attnum = k.number
             LEFT JOIN pg_attribute r ON r.attrelid = $1 AND r.attname = c.attname ORDER BY k.place)
FROM pg_index i WHERE i.indexrelid = 'pg_temp.zdm_index'::regclass;

-- partition_key: By what a table is partitioned, null when it is not.
SELECT pg_get_partkeydef($1);

-- partitions: Every partition below a table, and below its partitions.
SELECT n.nspname, c.relname, c.oid::bigint, t.parentrelid::oid::bigint, c.relkind
FROM pg_partition_tree($1::oid::regclass) t JOIN pg_class c ON c.oid = t.relid
JOIN pg_namespace n ON n.oid = c.relnamespace WHERE t.level > 0 ORDER BY t.level, c.oid;

-- standing: An index ($1: schema, $2: name) that is there, with its definition, tablespace and what hangs on it.
SELECT i.indexrelid::bigint, i.indrelid::bigint, i.indisunique,
       substr(pg_get_indexdef(i.indexrelid), length(format('CREATE %sINDEX %I ON %s%I.%I USING ',
         CASE WHEN i.indisunique THEN 'UNIQUE ' ELSE '' END, c.relname,
         CASE WHEN c.relkind = 'I' THEN 'ONLY ' ELSE '' END, n.nspname, t.relname)) + 1),
       coalesce(' WHERE ' || pg_get_expr(i.indpred, i.indrelid), ''), coalesce(quote_ident(s.spcname), ''), c.relkind,
       ARRAY(
         SELECT format('COMMENT ON INDEX %I.%I IS %L', n.nspname, c.relname, obj_description(c.oid, 'pg_class'))
         WHERE obj_description(c.oid, 'pg_class') IS NOT NULL
         UNION ALL SELECT format('ALTER TABLE %I.%I CLUSTER ON %I', n.nspname, t.relname, c.relname)
         WHERE i.indisclustered
         UNION ALL SELECT format('ALTER INDEX %I.%I ALTER COLUMN %s SET STATISTICS %s', n.nspname, c.relname, a.attnum,
                                 a.attstattarget)
         FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attstattarget >= 0)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_class t ON t.oid = i.indrelid LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
WHERE n.nspname = $1 AND c.relname = $2;

-- holders: What an index cannot be dropped for: constraints that it backs, objects that depend on it; each with its way out.
SELECT 'backs constraint ' || quote_ident(k.conname),
       format('ALTER TABLE %I.%I DROP CONSTRAINT %I takes the index along: nothing is left to be done then', n.nspname, c.relname, k.conname)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.conindid = $1::oid AND k.contype IN ('p', 'u', 'x')
UNION ALL SELECT 'is what foreign key ' || quote_ident(k.conname) || ' of ' || k.conrelid::regclass || ' refers to',
       format('ALTER TABLE %I.%I DROP CONSTRAINT %I first', n.nspname, c.relname, k.conname)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.conindid = $1::oid AND k.contype = 'f'
UNION ALL SELECT 'is the replica identity of its table', format('ALTER TABLE %I.%I REPLICA IDENTITY DEFAULT first', n.nspname, c.relname)
FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE i.indexrelid = $1::oid AND i.indisreplident
UNION ALL SELECT 'belongs to index ' || h.inhparent::regclass || ' of the partitioned table',
       format('DROP INDEX %I.%I takes both, and locks the table and every partition exclusively: run it yourself in a quiet '
              'moment, with a lock_timeout', n.nspname, c.relname)
FROM pg_inherits h JOIN pg_class c ON c.oid = h.inhparent JOIN pg_namespace n ON n.oid = c.relnamespace WHERE h.inhrelid = $1::oid
UNION ALL SELECT pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on it', 'drop it, or make it anew without the index'
FROM pg_depend d WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::oid AND d.deptype = 'n'
  AND d.classid <> 'pg_constraint'::regclass ORDER BY 1;

-- use: How often an index was scanned, when last (where the server tells), since when that is surely counted, and the time now.
-- A clean restart keeps the counts. A crash loses them and clears the database's own stats_reset; that of the background
-- writer, which is set whenever a server starts without counts, then tells when. A replica that took over has counted
-- its own scans alone until then.
SELECT s.idx_scan, (to_jsonb(s) ->> 'last_idx_scan')::timestamptz,
       greatest(d.stats_reset, b.stats_reset,
                CASE WHEN NOT pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() END),
       clock_timestamp(), current_setting('track_counts')::boolean
FROM pg_stat_user_indexes s CROSS JOIN pg_stat_database d CROSS JOIN pg_stat_bgwriter b
WHERE s.indexrelid = $1 AND d.datname = current_database();

-- served: Foreign keys of a table that only this index of the table serves.
WITH serving AS (
  SELECT i.indexrelid, k.oid FROM pg_index i JOIN pg_constraint k ON k.conrelid = i.indrelid AND k.contype = 'f'
  WHERE i.indisvalid AND i.indpred IS NULL AND i.indrelid = (SELECT indrelid FROM pg_index WHERE indexrelid = $1)
    AND (i.indkey::int2[])[0:cardinality(k.conkey) - 1] @> k.conkey)
SELECT k.conname, k.confrelid::regclass::text FROM pg_constraint k
WHERE k.oid IN (SELECT oid FROM serving WHERE indexrelid = $1)
  AND k.oid NOT IN (SELECT oid FROM serving WHERE indexrelid <> $1) ORDER BY 1;

-- replicas: How many replicas follow this server, or are waited for by a slot; their scans are not counted here.
SELECT (SELECT count(*) FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
        WHERE s.slot_type IS DISTINCT FROM 'logical' AND r.state IS DISTINCT FROM 'backup')
     + (SELECT count(*) FROM pg_replication_slots
        WHERE slot_type = 'physical' AND NOT active AND restart_lsn IS NOT NULL AND wal_status IS DISTINCT FROM 'lost');

-- is_foreign: Whether a relation is a foreign table.
SELECT relkind = 'f' FROM pg_class WHERE oid = $1;
