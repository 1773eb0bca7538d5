-- begin_batch: Settings of a batch's transaction.
-- Time-outs for locks ($1) and statements ($2), our mark, and how many rows of the table ($3) moved in place so far. Not to wait for the disk is safe: a crash loses rows and checkpoint
-- together. A batch goes by the key's index, whatever the statistics say of a table that changes under them.
SELECT set_config('synchronous_commit', 'off', true), set_config('zdm.backfill', 'on', true),
  set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
  set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
  set_config('enable_mergejoin', 'off', true),
  set_config('zdm.hot', pg_stat_get_xact_tuples_hot_updated($3)::text, true);

-- begin_trial: Settings of a batch that is taken back.
SELECT set_config('zdm.backfill', 'on', true), set_config('lock_timeout', $1, true);

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
