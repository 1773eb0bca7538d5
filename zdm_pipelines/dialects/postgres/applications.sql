-- isolation: Roles and databases whose transactions keep one snapshot by default: who, and which level.
SELECT CASE WHEN s.setrole = 0 THEN 'database ' || quote_ident(current_database())
            WHEN s.setdatabase = 0 THEN 'role ' || quote_ident(pg_get_userbyid(s.setrole))
            ELSE format('role %I in database %I', pg_get_userbyid(s.setrole), current_database()) END,
       upper(split_part(o.setting, '=', 2))
FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) AS o (setting)
WHERE s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND lower(o.setting) IN ('default_transaction_isolation=repeatable read', 'default_transaction_isolation=serializable')
ORDER BY 1;

-- snapshots: Sessions that keep a snapshot between two statements, as such transactions do: pid, application, role.
SELECT pid, coalesce(nullif(application_name, ''), 'unnamed application'), usename FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND state = 'idle in transaction' AND backend_xmin IS NOT NULL ORDER BY xact_start LIMIT 3;

-- returning: Functions that give rows of a table ($1) and list its columns: the number of columns is part of the result.
SELECT p.oid::regprocedure::text FROM pg_proc p JOIN pg_type t ON t.oid = p.prorettype
JOIN pg_class c ON c.oid = $1 AND c.reltype IN (t.oid, t.typelem)
WHERE p.prosqlbody IS NOT NULL OR p.prosrc !~ '\*' ORDER BY 1;

-- copying_triggers: Triggers of a table ($1) whose function inserts the whole row that fires them elsewhere.
SELECT t.tgname, p.oid::regproc::text FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
WHERE t.tgrelid = $1 AND NOT t.tgisinternal AND t.tgname NOT LIKE 'zzz\_zdm\_%'
  AND p.prosrc ~* '\minsert\s+into\M[^;]*\m(new|old)\s*\)?\s*\.\s*\*' ORDER BY 1;

-- statistics_schema: The schema of pg_stat_statements, quoted, where it may be read; none: it is not installed.
SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_stat_statements';
