-- is_replica: Whether the server only replays another's WAL.
SELECT pg_is_in_recovery();

-- refuses_writes: Why nothing can be written here, and what to do about it; no row: it can.
SELECT 'is a read-only replica', 'point the URL at the primary, or at both with target_session_attrs=read-write'
WHERE pg_is_in_recovery()
UNION ALL
SELECT 'default_transaction_read_only is on for our role', CASE source
         WHEN 'client' THEN 'take it out of the options of the URL'
         ELSE format('ALTER ROLE %I IN DATABASE %I SET default_transaction_read_only = off', session_user, current_database()) END
FROM pg_settings WHERE name = 'default_transaction_read_only' AND setting = 'on' AND NOT pg_is_in_recovery();

-- oid: The oid of a relation, by its quoted name ($1); null when there is none.
SELECT to_regclass($1)::oid;

-- about_server: Version, our role and what the role may see, and replicas.
SELECT current_setting('server_version'), session_user, (SELECT rolsuper FROM pg_roles WHERE rolname = session_user),
       pg_has_role('pg_monitor', 'USAGE'), current_setting('wal_level'),
       (SELECT count(*) FROM pg_stat_replication);

-- long_transactions: Sessions with a transaction that is open for over $1 seconds, the oldest first.
SELECT pid, coalesce(nullif(application_name, ''), 'unnamed application'), usename,
       extract(epoch FROM clock_timestamp() - xact_start)::int
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND xact_start < clock_timestamp() - make_interval(secs => $1) ORDER BY xact_start LIMIT 5;

-- relation: A relation by schema and name: kind, rows, size, whether it is a partition or inherits, its owner.
SELECT c.oid, c.relkind, greatest(c.reltuples, 0)::bigint, pg_relation_size(c.oid), c.relispartition,
       EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhparent = c.oid OR i.inhrelid = c.oid),
       pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2;

-- columns: The columns of a table, in their order.
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
       a.attgenerated <> '', a.attidentity <> '', a.attnum
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum;

-- key: The columns of a primary key, in the order of its index.
SELECT a.attname FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, position)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = $1 AND i.indisprimary AND k.position <= i.indnkeyatts ORDER BY k.position;

-- tables: The tables of a database, to find a name that is close.
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'information_schema' LIMIT 5000;

-- row_triggers: The application's row triggers: name, fires before, fires on an update of whatever column.
SELECT tgname, (tgtype & 2) <> 0 AS before, (tgtype & 16) <> 0 AND cardinality(tgattr::int2[]) = 0 AS on_update FROM pg_trigger
WHERE tgrelid = $1 AND NOT tgisinternal AND (tgtype & 1) <> 0 AND tgenabled <> 'D'
  AND tgname NOT LIKE 'zzz\_zdm\_%' ORDER BY tgname;

-- hides_rows: Whether a table has policies that hide rows from us.
SELECT row_security_active($1::oid);

-- referenced: Foreign keys that refer to a column ($2) of a table, each with the table that has it, as people call it and in full.
SELECT k.conname, k.conrelid::regclass::text, format('%I.%I', n.nspname, c.relname)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.confrelid = $1 AND k.contype = 'f' AND $2::smallint = ANY (k.confkey) ORDER BY 1;

-- is_virtual: Whether a column ($2) of a table is computed when it is read.
SELECT attgenerated = 'v' FROM pg_attribute WHERE attrelid = $1 AND attname = $2 AND NOT attisdropped;

-- column_number: The number of a column as it is called now.
SELECT attnum FROM pg_attribute WHERE attrelid = $1 AND attname = $2 AND NOT attisdropped;

-- altered: Columns of a table ($1) that are not called as they were (by the name, in $2 as JSON, the number; 0: expand made it), and whether expand made the column and it is there under another name.
SELECT CASE WHEN now.attname IS NOT NULL
         THEN format('column %I of %s is called %I now: ALTER TABLE %s RENAME COLUMN %I TO %I, or roll back',
                     was.name, $1::oid::regclass, now.attname, $1::oid::regclass, now.attname, was.name)
         ELSE format('column %I of %s is gone, or has another name: give it back, or roll back', was.name, $1::oid::regclass) END,
       was.number = 0 AND now.attname IS NOT NULL
FROM (SELECT key AS name, value::int AS number FROM jsonb_each_text($2::jsonb)) AS was
LEFT JOIN pg_attribute now ON now.attrelid = $1::oid AND now.attnum > 0 AND NOT now.attisdropped AND now.attnum = CASE
  -- A column that expand made is known by the sync trigger that reads it.
  WHEN was.number = 0 THEN (
    SELECT min(d.refobjsubid) FROM pg_depend d JOIN pg_trigger t ON t.oid = d.objid AND t.tgrelid = $1::oid
    JOIN pg_attribute r ON r.attrelid = $1::oid AND r.attnum = d.refobjsubid
    WHERE d.classid = 'pg_trigger'::regclass AND d.refobjid = $1::oid AND d.refobjsubid > 0 AND t.tgname LIKE 'zzz\_zdm\_%'
      AND NOT $2::jsonb ? r.attname::text AND NOT EXISTS (
        SELECT FROM jsonb_each_text($2::jsonb) k WHERE k.value = d.refobjsubid::text)
    HAVING count(DISTINCT d.refobjsubid) = 1)
  ELSE was.number END
WHERE EXISTS (SELECT FROM pg_class WHERE oid = $1::oid) AND NOT EXISTS (
  SELECT FROM pg_attribute a WHERE a.attrelid = $1::oid AND a.attname = was.name AND NOT a.attisdropped) ORDER BY 1;

-- volatile: Which names are those of a function that may give another value each time.
SELECT DISTINCT proname FROM pg_proc WHERE provolatile = 'v' AND proname = ANY ($1) ORDER BY 1;

-- has_ledger: Whether the ledger's schema is there.
SELECT to_regnamespace('zdm') IS NOT NULL;

-- may_create_schemas: Whether our role may create schemas in this database.
SELECT has_database_privilege(current_database(), 'CREATE');

-- may_write_ledger: Whether our role may create objects in the ledger's schema.
SELECT has_schema_privilege('zdm', 'CREATE');

-- may_create_temporary: Whether our role may create temporary objects.
SELECT has_database_privilege(current_database(), 'TEMPORARY');

-- may_create_in: Whether our role may create objects in a schema; none: there is no such schema.
SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1;
