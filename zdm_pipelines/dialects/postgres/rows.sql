-- begin_batch: Settings of a batch's transaction.
-- Time-outs in ms for locks ($1) and statements ($2; 0: none), our mark, and how many rows of the table ($3) moved in
-- place so far. Not to wait for the disk is safe: a crash loses rows and checkpoint together. A batch goes by the key's
-- index, whatever the statistics say of a table that changes under them.
-- Where the application's triggers write elsewhere for the rows of the tables ($4) that a batch writes, the batch may
-- wait for somebody who waits for its rows. It gives way, or has ended, before either of them looks for a deadlock: the
-- one who fails is never the application.
WITH application AS (
  SELECT count(*) > 0 AS acts, coalesce(bool_or(tgtype & 19 = 19), false) AS alters FROM pg_trigger
  WHERE tgrelid = ANY ($4::regclass[]) AND NOT tgisinternal AND tgenabled <> 'D' AND tgname NOT LIKE 'zzz\_zdm\_%'
), deadlock AS (
  SELECT greatest(1, extract(epoch FROM current_setting('deadlock_timeout')::interval) * 500)::int AS half
)
SELECT set_config('synchronous_commit', 'off', true),
  set_config('zdm.backfill', CASE WHEN alters THEN 'watched' ELSE 'on' END, true),
  set_config('lock_timeout', least($1::int, half)::text, true),
  set_config('statement_timeout', CASE WHEN acts AND $2::int > 0 THEN least($2::int, half) ELSE $2::int END::text, true),
  set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
  set_config('enable_mergejoin', 'off', true),
  set_config('zdm.hot', pg_stat_get_xact_tuples_hot_updated($3)::text, true)
FROM application, deadlock;

-- triggers: The application's triggers that fire for what is done to tables ($1; what: $2): each with its table, its
-- function, and whether it fires before a row is written.
SELECT format('trigger %I of %s', t.tgname, t.tgrelid::regclass), p.proname, t.tgtype & 3 = 3
FROM unnest($1::text[], $2::text[]) AS w (written, event)
JOIN pg_trigger t ON t.tgrelid = to_regclass(w.written)
  AND t.tgtype & CASE w.event WHEN 'INSERT' THEN 4 WHEN 'DELETE' THEN 8 ELSE 16 END <> 0
JOIN pg_proc p ON p.oid = t.tgfoid
WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' AND t.tgname NOT LIKE 'zzz\_zdm\_%' ORDER BY 1;

-- begin_trial: Settings of a batch that is taken back.
SELECT set_config('zdm.backfill', 'watched', true), set_config('lock_timeout', $1, true);

-- dead_tuples: How many dead rows a table has, by whomever.
SELECT pg_stat_get_dead_tuples($1);

-- pages: How many pages a table has.
SELECT pg_relation_size($1::oid) / current_setting('block_size')::bigint;

-- planned_per_page: Rows on a page as the planner has them, none where the table was never analyzed.
SELECT reltuples::float8 / nullif(relpages, 0) FROM pg_class WHERE oid = $1;

-- flush_statistics: Bring this session's own figures up to date.
SELECT pg_stat_force_next_flush();

-- own_wal: Bytes of WAL that this session wrote.
SELECT wal_bytes FROM pg_stat_get_backend_wal(pg_backend_pid());

-- server_wal: Bytes of WAL that the server wrote.
SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn;
