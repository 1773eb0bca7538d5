-- Since when all reads are on the new shape, and when the flag moved last: facts of the database, whoever moves the flag.
ALTER TABLE zdm.flag ADD COLUMN full_since timestamptz;  -- null: some reads are on the old shape
UPDATE zdm.flag f SET full_since = coalesce(greatest(nullif(f.changed_at, '-infinity'), m.switched_at), clock_timestamp())
FROM zdm.migration m WHERE m.id = f.migration_id AND f.percent = 100;

CREATE FUNCTION zdm.flag_times() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  before CONSTANT smallint := CASE WHEN TG_OP = 'UPDATE' THEN OLD.percent ELSE 0 END;
BEGIN
  -- Either time may be moved on by hand, never back: a window can only begin anew.
  IF NEW.percent <> before THEN
    NEW.changed_at := clock_timestamp();
  ELSIF TG_OP = 'UPDATE' THEN
    NEW.changed_at := greatest(OLD.changed_at, NEW.changed_at);
  END IF;
  NEW.full_since := CASE WHEN NEW.percent < 100 THEN NULL
                         WHEN before < 100 THEN clock_timestamp()
                         ELSE greatest(OLD.full_since, NEW.full_since) END;
  RETURN NEW;
END $$;
CREATE TRIGGER flag_times BEFORE INSERT OR UPDATE ON zdm.flag FOR EACH ROW EXECUTE FUNCTION zdm.flag_times();
ALTER TABLE zdm.flag ENABLE ALWAYS TRIGGER flag_times;

-- Of a writer there is one line a minute, however many sessions the writer has, and however its sessions are pooled. The
-- application inserts the line, so nothing may be waited for: a line that is there is found by a plain read. Those who
-- write at the same moment do not see each other's lines, and leave a few too many.
CREATE INDEX writer_latest ON zdm.writer (migration_id, application_name, wrote, at);
CREATE FUNCTION zdm.writer_once() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  context text;
  line text;
BEGIN
  GET DIAGNOSTICS context = PG_CONTEXT;
  IF context LIKE '%"UPDATE ONLY %OPERATOR(pg_catalog.%' THEN
    -- What the server itself writes for a foreign key (CASCADE, SET NULL, SET DEFAULT) follows a rename, and is nobody's.
    FOREACH line IN ARRAY string_to_array(context, E'\n') LOOP
      CONTINUE WHEN line !~* '"\s*(with|insert|update|merge)\M' OR line ~ 'zdm\.';
      EXIT WHEN line !~ '"UPDATE ONLY ".*" SET .* OPERATOR\(pg_catalog\.';
      -- The session may still write by itself in this minute.
      PERFORM set_config('zdm.noted_' || NEW.migration_id || '_' || NEW.wrote, '', false);
      RETURN NULL;
    END LOOP;
  END IF;
  -- Names that differ from process to process are one writer's: app-12345, worker-3f2a91c07.
  NEW.application_name := regexp_replace(
    regexp_replace(NEW.application_name, '\m(?=[a-zA-Z]*[0-9])[a-zA-Z0-9]{9,}\M', '#', 'g'), '[0-9]+', '#', 'g');
  -- A serializable transaction that reads here could fail for it.
  IF current_setting('transaction_isolation') <> 'serializable' AND EXISTS (
    SELECT FROM zdm.writer w
    WHERE w.migration_id = NEW.migration_id AND w.application_name = NEW.application_name AND w.wrote = NEW.wrote
      AND w.at >= date_trunc('minute', NEW.at) AND w.login = NEW.login AND w.failed IS NOT DISTINCT FROM NEW.failed
  ) THEN
    RETURN NULL;
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER writer_once BEFORE INSERT ON zdm.writer FOR EACH ROW EXECUTE FUNCTION zdm.writer_once();
ALTER TABLE zdm.writer ENABLE ALWAYS TRIGGER writer_once;

-- Who names an old column in a statement fails once it is out of sight, though no value of the column changes. The
-- trigger says which migration and which columns. An UPDATE fires it by naming one of them in SET; of an INSERT or COPY
-- the client's own text tells.
CREATE FUNCTION zdm.note_named() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  noted CONSTANT text := 'zdm.noted_' || TG_ARGV[0] || '_names';
  minute CONSTANT text := (extract(epoch FROM statement_timestamp())::bigint / 60)::text;
  said text;
  named boolean := TG_OP = 'UPDATE';
BEGIN
  IF current_setting(noted, true) IS NOT DISTINCT FROM minute THEN
    RETURN NULL;
  END IF;
  IF NOT named THEN
    said := lower(left(current_query(), 8000));
    FOR i IN 1 .. TG_NARGS - 1 LOOP
      -- The name is looked for first: most statements do not hold it. Then it must be in the list of this table's columns.
      named := named OR strpos(said, lower(TG_ARGV[i])) > 0 AND said ~ (
        '\m(into|copy)\s+([^\s(]+\.)?"?' || regexp_replace(lower(TG_TABLE_NAME), '\W', '\\\&', 'g') || '"?'
        || '(\s+(as\s+)?(?!(select|values|with|table)\M)[^\s(]+)?\s*\(\s*(?!(select|values|with|table)\M)'
        || '([^)]*[\s,])?"?' || regexp_replace(lower(TG_ARGV[i]), '\W', '\\\&', 'g') || '"?\s*[,)]');
    END LOOP;
  END IF;
  IF named THEN
    PERFORM set_config(noted, minute, false);
    INSERT INTO zdm.writer (migration_id, wrote, application_name, login)
    VALUES (TG_ARGV[0]::bigint, 'names', current_setting('application_name'), session_user);
  END IF;
  RETURN NULL;
END $$;
REVOKE ALL ON FUNCTION zdm.note_named() FROM PUBLIC;

-- Statements of clients that name an old column, as pg_stat_statements counts them: their number when looked at last.
CREATE TABLE zdm.statement (
  migration_id bigint NOT NULL,
  login oid NOT NULL,
  query bigint NOT NULL,
  calls bigint NOT NULL,
  grown_at timestamptz NOT NULL,     -- when a look found more calls than the one before
  PRIMARY KEY (migration_id, login, query)
);

-- Where the ledger stands. What it keeps by oid is true there alone: a dump that is restored makes every relation anew.
CREATE TABLE zdm.home (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  system text NOT NULL,              -- of the cluster
  database oid NOT NULL,
  ledger oid NOT NULL                -- zdm.migration; 0: an earlier version began it, perhaps elsewhere
);
INSERT INTO zdm.home (system, database, ledger)
SELECT system_identifier::text, (SELECT oid FROM pg_database WHERE datname = current_database()),
  CASE WHEN EXISTS (SELECT FROM zdm.migration) THEN 0::oid ELSE 'zdm.migration'::regclass::oid END
FROM pg_control_system();
