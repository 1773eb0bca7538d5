-- heap: How the rows of a table ($1) with a first key column ($2) lie for writes of a column ($3): pages, rows on each,
-- bytes of a page, bytes of a row, correlation of the key, whether an index or a unique one reads the column.
-- 24 bytes of a page are its header; a row costs 4 bytes of line pointer, 24 of header and up to 7 of alignment.
SELECT CASE WHEN c.relpages > 0 THEN c.relpages  -- the size is told only when nobody has the table to himself
    ELSE pg_relation_size(c.oid) / current_setting('block_size')::bigint END, c.reltuples / nullif(c.relpages, 0),
  current_setting('block_size')::float8 - 24,
  (SELECT sum(s.avg_width * (1 - s.null_frac)) + 32 FROM pg_stats s
   WHERE s.schemaname = n.nspname AND s.tablename = c.relname AND NOT s.inherited),
  (SELECT abs(s.correlation) FROM pg_stats s WHERE s.schemaname = n.nspname AND s.tablename = c.relname
   AND NOT s.inherited AND s.attname = $2),
  EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = $3 AND NOT a.attisdropped
    WHERE i.indrelid = $1 AND (a.attnum = ANY (i.indkey::int2[]) OR EXISTS (
      SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.refobjsubid = a.attnum))),
  EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = $1 AND a.attname = $3 AND NOT a.attisdropped
    WHERE i.indrelid = $1 AND i.indisunique AND a.attnum = ANY (i.indkey::int2[]))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1;

-- pinned: Whatever keeps dead rows from being removed: a snapshot, a prepared transaction, feedback of a replica or slot.
SELECT who FROM (
  SELECT backend_xmin AS xmin, format('the transaction of %s (pid %s), open for %s',
    coalesce(nullif(application_name, ''), usename::text, backend_type), pid,
    date_trunc('second', clock_timestamp() - xact_start)) AS who
  FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_xmin IS NOT NULL
  UNION ALL SELECT backend_xmin, 'feedback of replica ' || application_name FROM pg_stat_replication
  UNION ALL SELECT transaction, 'prepared transaction ' || gid FROM pg_prepared_xacts
    WHERE database = current_database()
  UNION ALL SELECT xmin, 'replication slot ' || slot_name FROM pg_replication_slots
) AS pins WHERE xmin IS NOT NULL ORDER BY age(xmin) DESC LIMIT 1;

-- next_transaction: The number of the next transaction.
SELECT pg_snapshot_xmax(pg_current_snapshot())::text;

-- kept: Whether a row that was dead before a transaction ($1) began may still be seen by somebody. A running VACUUM
-- keeps no rows of others, although it has a snapshot.
SELECT EXISTS (
  SELECT FROM (
    SELECT backend_xmin FROM pg_stat_activity a WHERE datname = current_database() AND pid <> pg_backend_pid()
      AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
    UNION ALL SELECT backend_xmin FROM pg_stat_replication
    UNION ALL SELECT transaction FROM pg_prepared_xacts WHERE database = current_database()
    UNION ALL SELECT xmin FROM pg_replication_slots
  ) AS pins (xmin)
  WHERE xmin IS NOT NULL AND age(xmin) > age($1::text::xid8::xid));

-- counted: Whether the server counts the rows that move in place.
SELECT current_setting('track_counts')::boolean;
