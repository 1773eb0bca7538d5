-- One row per migration that ever left `planned`. `version` is what compare-and-set compares.
CREATE TABLE zdm.migration (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL UNIQUE,
  table_oid oid NOT NULL,
  table_name text NOT NULL,
  change jsonb NOT NULL,             -- as declared when it was expanded
  catalog jsonb NOT NULL,            -- the table as it was before
  range_rows integer,                -- as declared when the ranges were cut last
  state text NOT NULL,
  version bigint NOT NULL DEFAULT 1,
  state_since timestamptz NOT NULL DEFAULT clock_timestamp(),
  switched_at timestamptz,           -- when reads reached 100 %
  tombstoned_at timestamptz,
  created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- One active migration per table is a fact of the database, not of our carefulness.
CREATE UNIQUE INDEX migration_one_active_per_table ON zdm.migration (table_oid)
  WHERE state NOT IN ('planned', 'contracted', 'rolled_back');

CREATE TABLE zdm.range (
  migration_id bigint NOT NULL REFERENCES zdm.migration ON DELETE CASCADE,
  ordinal integer NOT NULL,
  partition text NOT NULL,
  lower text[],                      -- inclusive; null: from the first key
  upper text[],                      -- exclusive; null: to the end, rows not yet inserted included
  checkpoint text[],                 -- rows below it were visited; committed with the batch it describes
  done_at timestamptz,
  rows bigint NOT NULL DEFAULT 0,
  batches bigint NOT NULL DEFAULT 0,
  retries bigint NOT NULL DEFAULT 0,
  seconds double precision NOT NULL DEFAULT 0,
  wal_bytes bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (migration_id, ordinal),
  UNIQUE (migration_id, partition)
) WITH (fillfactor = 50);            -- its rows are rewritten once a batch: room for heap-only updates

CREATE TABLE zdm.check_result (
  migration_id bigint NOT NULL REFERENCES zdm.migration ON DELETE CASCADE,
  name text NOT NULL,
  passed boolean NOT NULL,
  summary text NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  PRIMARY KEY (migration_id, name)
);

-- What the application asks. A retired flag stays at 100 for processes that still know it.
CREATE TABLE zdm.flag (
  name text PRIMARY KEY,
  migration_id bigint NOT NULL REFERENCES zdm.migration,
  percent smallint NOT NULL DEFAULT 0 CHECK (percent BETWEEN 0 AND 100),
  retired boolean NOT NULL DEFAULT false,
  changed_at timestamptz NOT NULL DEFAULT '-infinity'  -- when the percentage moved last
);

-- Who writes which shape, once a minute and session; those who write the old one are stragglers.
-- Written by the sync trigger inside the application's transactions: append-only, nothing to wait for.
CREATE TABLE zdm.writer (
  migration_id bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  wrote text NOT NULL,               -- old, new, both
  failed text,                       -- SQLSTATE when `up` or `down` raised
  application_name text NOT NULL,
  login text NOT NULL
);
CREATE INDEX writer_latest_old ON zdm.writer (migration_id, at) WHERE wrote IN ('old', 'both');
CREATE INDEX writer_latest_new ON zdm.writer (migration_id, at) WHERE wrote IN ('new', 'both');

-- Keys written while contract proves parity, likewise.
CREATE TABLE zdm.touched (
  migration_id bigint NOT NULL,
  key text[] NOT NULL
);

-- Without a key, deleting from them would be refused where a publication of all tables takes them along.
ALTER TABLE zdm.writer REPLICA IDENTITY FULL;
ALTER TABLE zdm.touched REPLICA IDENTITY FULL;

CREATE TABLE zdm.event (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  migration_id bigint NOT NULL,
  at timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor text NOT NULL,
  what text NOT NULL,
  from_state text,
  to_state text,
  detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX event_by_migration ON zdm.event (migration_id, id);

CREATE FUNCTION zdm.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'zdm.event is append-only';
END $$;
CREATE TRIGGER event_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON zdm.event
  FOR EACH STATEMENT EXECUTE FUNCTION zdm.refuse_change();

-- The application reads flags with whatever role it has.
GRANT USAGE ON SCHEMA zdm TO PUBLIC;
GRANT SELECT ON zdm.flag TO PUBLIC;
