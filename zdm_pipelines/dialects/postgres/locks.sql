-- wait: How long statements of the present transaction wait for a lock.
SELECT set_config('lock_timeout', $1, true);

-- wait_in_session: How long statements of this session wait for a lock; 0: without limit.
SELECT set_config('lock_timeout', $1, false);

-- limit: Time-outs of the present transaction: for a lock, for a statement, and between two statements.
SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', $2, true),
  set_config('idle_in_transaction_session_timeout', $3, true);

-- holders: Who holds locks on a table ($1), or on the tables with one of the names ($2), longest transaction first.
SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed application'), a.usename,
       round(extract(epoch FROM clock_timestamp() - a.xact_start))::int
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE (l.relation = $1::oid OR l.relation IN (SELECT oid FROM pg_class WHERE relname = ANY ($2) AND relkind IN ('r', 'p')))
  AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY 4 DESC NULLS LAST LIMIT 3;

-- old_holder: Whether a transaction older than $2 seconds holds a table, or one that a foreign key of it refers to.
-- Foreign keys are added and dropped under locks on the table they refer to, too. Whoever holds the table for longer
-- than a try may wait will most likely still hold it then. What other roles do is hidden from a role that
-- lacks pg_read_all_stats: then only the lock time-out tells.
SELECT EXISTS (SELECT 1 FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
  WHERE l.granted AND l.pid <> pg_backend_pid()
    AND (l.relation = $1 OR l.relation IN (SELECT confrelid FROM pg_constraint WHERE conrelid = $1 AND contype = 'f'))
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND a.xact_start < clock_timestamp() - make_interval(secs => $2));

-- take: Take a name for this session, if nobody has it.
SELECT pg_try_advisory_lock(hashtextextended($1, 0));

-- take_shared: Take a name for this session beside others that share it.
SELECT pg_try_advisory_lock_shared(hashtextextended($1, 0));

-- queue: Wait for a name, which the server hands on in the order of asking.
SELECT pg_advisory_lock(hashtextextended($1, 0));

-- leave: Give a name back.
SELECT pg_advisory_unlock(hashtextextended($1, 0));

-- owners: Which sessions of others have a name.
SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
  AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended($1, 0);

-- end_owners: End the sessions of others that have a name ($1), but for those that are called $2.
SELECT pid, application_name FROM (
  SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
  WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended($1, 0) AND a.application_name <> $2
) AS zdm_owners WHERE pg_terminate_backend(pid);
