-- "Do not write now", with an owner and a reason; any number may stand at once, work goes on when none does.
CREATE TABLE zdm.hold (
  migration text NOT NULL,           -- name of a migration; *: every migration of this database
  owner text NOT NULL,               -- operator, or whatever name a script gives itself; signal:<name>
  reason text NOT NULL,
  since timestamptz NOT NULL DEFAULT clock_timestamp(),
  expires_at timestamptz,            -- null: until lifted. Those who watch a signal renew its hold while it is bad
  PRIMARY KEY (migration, owner)
);

-- What may be changed while a backfill runs.
CREATE TABLE zdm.tuning (
  migration text PRIMARY KEY,
  declared jsonb NOT NULL DEFAULT '{}',  -- as the newest loaded code has it
  tuned jsonb NOT NULL DEFAULT '{}',     -- what an operator set on top
  changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Beats of a backfill that watches replicas: when the WAL had come how far. What a replica shows of them, and which
-- of them it has replayed, is its lag, whatever the server's own statistics say.
CREATE TABLE zdm.heartbeat (
  at timestamptz PRIMARY KEY,
  lsn pg_lsn NOT NULL
);
