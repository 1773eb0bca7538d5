-- triggers: Which of the sync triggers stand on a table, in which sessions they fire, and the statement that lets them fire in all.
SELECT t.tgname, t.tgenabled, format('ALTER TABLE %I.%I ENABLE ALWAYS TRIGGER %I', n.nspname, c.relname, t.tgname)
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE t.tgrelid = $1 AND t.tgname = ANY ($2);

-- behind: The application's BEFORE triggers that run behind one of a name ($2), each with the statement that lets it run before.
SELECT t.tgname, format('ALTER TRIGGER %I ON %I.%I RENAME TO %I', t.tgname, n.nspname, c.relname, left('a_' || t.tgname, 63))
FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND (t.tgtype & 3) = 3 AND t.tgenabled <> 'D'
  AND t.tgname NOT LIKE 'zzz\_zdm\_%' AND t.tgname > $2 ORDER BY 1;

-- marks: What differs after a sync trigger was switched off, on or made anew, or a key column renamed, however briefly.
SELECT tgname, oid || '/' || xmin::text FROM pg_trigger WHERE tgrelid = $1 AND tgname = ANY ($2)
UNION ALL SELECT a.attname, a.attnum || '/' || a.xmin::text FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid
WHERE i.indrelid = $1 AND i.indisprimary AND a.attnum = ANY (i.indkey::int2[]) ORDER BY 1, 2;

-- writers: Transactions that have written a table and are open; a prepared one holds its locks without a pid.
SELECT DISTINCT l.virtualtransaction FROM pg_locks l
WHERE l.relation = $1 AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid() AND l.locktype = 'relation'
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock');

-- can_mark: Whether a key column ($2) of a table is of one of the types ($3), and no generated one.
SELECT atttypid = ANY ($3::regtype[]) FROM pg_attribute
WHERE attrelid = $1 AND attname = $2 AND attgenerated = '' AND NOT attisdropped;

-- body: The body of a trigger function.
SELECT prosrc FROM pg_proc WHERE oid = to_regprocedure($1 || '()');

-- surroundings: The columns behind the names, the application's functions, the search path, the server's version.
SELECT coalesce(string_agg(attnum || ' ' || atttypid || ' ' || attname, ',' ORDER BY attnum), '')
FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped
UNION ALL SELECT md5(coalesce(string_agg(p.oid || '/' || p.xmin, ',' ORDER BY p.oid), ''))
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE p.oid >= 16384 AND n.nspname <> 'zdm' AND n.nspname NOT LIKE 'pg\_temp\_%'
UNION ALL SELECT current_setting('search_path')
UNION ALL SELECT current_setting('server_version_num');

-- written: The latest epoch in which each range was written.
SELECT bucket, max(epoch) FROM zdm.written WHERE migration_id = $1 GROUP BY 1;

-- cascades: Whether a write to a table may cause others, by a trigger of the application's or a rule.
SELECT c.relhasrules OR EXISTS (SELECT 1 FROM pg_trigger WHERE tgrelid = $1 AND NOT tgisinternal
  AND tgname NOT LIKE 'zzz\_zdm\_%') FROM pg_class c WHERE c.oid = $1;

-- seconds_since: How long ago a time was.
SELECT extract(epoch FROM clock_timestamp() - $1::timestamptz);

-- end_of_tracking: Until when keys are recorded, when that goes on for a while ($1) from now.
SELECT clock_timestamp() + $1;

-- is_past: Whether a time is over.
SELECT clock_timestamp() > $1;
