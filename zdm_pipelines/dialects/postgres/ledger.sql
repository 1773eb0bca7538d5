-- exists: Whether this database has a ledger, and whether we may read at which version it is.
SELECT to_regclass('zdm.migration') IS NOT NULL,
  coalesce(has_table_privilege(to_regclass('zdm.schema_version'), 'SELECT'), false);

-- version: The version that the ledger is at.
SELECT version_num FROM zdm.schema_version;

-- foreign_owner: The role that owns the ledger, when our role may not act for that role.
SELECT pg_get_userbyid(relowner) FROM pg_class
WHERE oid = 'zdm.migration'::regclass AND NOT pg_has_role(relowner, 'USAGE');

-- find: One migration's row, by its name.
SELECT id, name, state, version, change, catalog, switched_at, tombstoned_at, table_oid::bigint
FROM zdm.migration WHERE name = $1;

-- called: What relations are called by now, given by their oids; those that are gone are left out.
SELECT c.oid::bigint, n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = ANY ($1::oid[]);

-- has_home: Whether this ledger says where it stands; one made by an earlier version does not.
SELECT to_regclass('zdm.home') IS NOT NULL;

-- home: Whether the ledger stands where its oids were read; whether its own table kept its oid, as pg_upgrade and copies
-- of a whole database let it (taken so where an earlier version began it); whether some table was not found again.
SELECT h.ledger = 'zdm.migration'::regclass AND h.system = (SELECT system_identifier::text FROM pg_control_system())
    AND h.database = (SELECT oid FROM pg_database WHERE datname = current_database()),
  h.ledger IN (0, 'zdm.migration'::regclass), EXISTS (SELECT FROM zdm.migration WHERE table_oid = 0)
FROM zdm.home h;

-- lock_home: Let nobody else say where the ledger stands until our transaction ends.
SELECT 1 FROM zdm.home FOR UPDATE;

-- at_home: The ledger stands here.
UPDATE zdm.home SET ledger = 'zdm.migration'::regclass,
  system = (SELECT system_identifier::text FROM pg_control_system()),
  database = (SELECT oid FROM pg_database WHERE datname = current_database());

-- every_migration: Every migration, with what it keeps by oid; nobody moves one until our transaction ends.
SELECT id, name, state, change, catalog, table_oid::bigint FROM zdm.migration ORDER BY id FOR UPDATE;

-- take_claims: Take every claim away, before relations are claimed as they are here.
DELETE FROM zdm.claim RETURNING migration_id, place, name, relation::bigint;

-- claim_again: Claim a relation as it is here; one that was not found keeps its number, unless that is another's by now.
INSERT INTO zdm.claim (relation, migration_id, place, name) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING;

-- lose_table: The table of a migration is not known here.
UPDATE zdm.migration SET table_oid = 0 WHERE id = $1;

-- found_again: What a migration keeps by oid, as it is here. Marks of the server proved what they proved elsewhere, and
-- nobody has read or missed anything here: proofs are void, and windows begin anew.
WITH zdm_proofs AS (UPDATE zdm.range SET proof = NULL WHERE migration_id = $1 AND proof IS NOT NULL),
zdm_reads AS (UPDATE zdm.flag SET full_since = clock_timestamp(), changed_at = clock_timestamp() WHERE migration_id = $1)
UPDATE zdm.migration SET table_oid = $2, catalog = $3,
  tombstoned_at = CASE WHEN state = 'tombstoned' THEN clock_timestamp() ELSE tombstoned_at END
WHERE id = $1;

-- forget_measured: Forget heartbeats and counted statements: they speak of another server.
WITH zdm_counted AS (DELETE FROM zdm.statement) DELETE FROM zdm.heartbeat;

-- id: The number of a migration, by its name.
SELECT id FROM zdm.migration WHERE name = $1;

-- states: The states of some migrations, by their names.
SELECT name, state FROM zdm.migration WHERE name = ANY ($1);

-- register: Write a migration's row before its first phase, or write the row anew after a rollback.
INSERT INTO zdm.migration (name, table_oid, table_name, change, catalog, state)
VALUES ($1, $2, $3, $4, $5, 'planned')
ON CONFLICT (name) DO UPDATE SET table_oid = excluded.table_oid, table_name = excluded.table_name,
  change = excluded.change, catalog = excluded.catalog
WHERE zdm.migration.state IN ('planned', 'rolled_back');

-- move: Compare-and-set to another state; no row when somebody else moved the migration meanwhile.
-- The times belong to states: when the state is left behind, its time goes.
UPDATE zdm.migration SET state = $1, version = version + 1, state_since = clock_timestamp(),
  switched_at = CASE WHEN $1 = 'switched' AND switched_at IS NULL THEN clock_timestamp()
    WHEN $1 IN ('switched', 'tombstoned', 'contracted') THEN switched_at END,
  tombstoned_at = CASE WHEN $1 = 'tombstoned' THEN clock_timestamp()
    WHEN $1 = 'contracted' THEN tombstoned_at END
WHERE id = $2 AND version = $3 AND state = $4 RETURNING version;

-- has_claims: Whether this ledger knows claims; one made by an earlier version does not.
SELECT to_regclass('zdm.claim') IS NOT NULL;

-- claimed: Which migrations have a claim on some relations, in whatever state each is.
SELECT c.relation, c.name, m.name, m.state, m.change FROM zdm.claim c JOIN zdm.migration m ON m.id = c.migration_id
WHERE c.relation = ANY ($1::oid[]) ORDER BY c.relation;

-- begun_on: Which migrations have begun on some tables, and are not known to be at their end.
SELECT table_oid, table_name, name, state, change FROM zdm.migration
WHERE table_oid = ANY ($1::oid[]) AND state NOT IN ('planned', 'contracted', 'rolled_back') ORDER BY name;

-- claim: Claim a relation for a migration; no row when another one has a claim on the relation.
INSERT INTO zdm.claim AS c (relation, migration_id, place, name) VALUES ($1, $2, $3, $4)
ON CONFLICT (relation) DO UPDATE SET place = excluded.place, name = excluded.name
WHERE c.migration_id = excluded.migration_id RETURNING relation;

-- keep_state: Keep a migration in its state until our transaction ends; no row when the state is another meanwhile.
SELECT id FROM zdm.migration WHERE name = $1 AND state = $2 FOR UPDATE;

-- give_up_claims: Give up every claim of a migration.
DELETE FROM zdm.claim WHERE migration_id = $1;

-- keep_version: Keep a migration's row as it is until our transaction ends; no row when it was moved meanwhile.
SELECT 1 FROM zdm.migration WHERE id = $1 AND version = $2 FOR UPDATE;

-- append_event: Add a line to the migration's events.
INSERT INTO zdm.event (migration_id, actor, what, from_state, to_state, detail)
VALUES ($1, session_user || ' via ' || current_setting('application_name'), $2, $3, $4, $5);

-- append_refusal: Add a refusal to the migration's events, unless the latest line says the same, figures aside, since a day.
INSERT INTO zdm.event (migration_id, actor, what, detail)
SELECT $1, session_user || ' via ' || current_setting('application_name'), $2, $3
WHERE NOT EXISTS (
  SELECT FROM (SELECT * FROM zdm.event WHERE migration_id = $1 ORDER BY id DESC LIMIT 1) AS zdm_latest
  WHERE what = $2 AND at > clock_timestamp() - interval '1 day'
    AND regexp_replace(detail::text, '[0-9.,]+', '#', 'g') = regexp_replace($3::jsonb::text, '[0-9.,]+', '#', 'g'));

-- latest_events: The latest events of a migration, newest first.
SELECT at, actor, what, from_state, to_state FROM zdm.event WHERE migration_id = $1 ORDER BY id DESC LIMIT $2;

-- beginning: The event with which the present attempt at a migration began, 0 without any.
-- A rollback that takes contract back is another beginning: rows that contract took are there again.
SELECT coalesce(max(id), 0) FROM zdm.event WHERE migration_id = $1 AND (to_state IN ('expanded', 'rolled_back')
  OR from_state IN ('contracting', 'tombstoned') AND to_state NOT IN ('contracting', 'tombstoned', 'contracted'));

-- record_check: Keep the latest verdict of one check.
INSERT INTO zdm.check_result (migration_id, name, passed, summary) VALUES ($1, $2, $3, $4)
ON CONFLICT (migration_id, name) DO UPDATE SET passed = excluded.passed, summary = excluded.summary,
  at = clock_timestamp();

-- checks: The latest verdict of each check of a migration.
SELECT name, passed, summary FROM zdm.check_result WHERE migration_id = $1;

-- forget_checks: Drop every verdict of a migration.
DELETE FROM zdm.check_result WHERE migration_id = $1;

-- flag: The flag of a migration, and since when it is at 100 %; a ledger of an earlier version does not know that.
SELECT name, percent, retired, (to_jsonb(f) ->> 'full_since')::timestamptz FROM zdm.flag AS f WHERE migration_id = $1;

-- keep_flag: Keep the flag of a migration as it is until our transaction ends.
SELECT percent FROM zdm.flag WHERE migration_id = $1 FOR UPDATE;

-- create_flag: A flag at 0 %; no row when another migration uses the name, as one that was rolled back does not.
WITH zdm_earlier AS (DELETE FROM zdm.flag WHERE migration_id = $2 AND name <> $1)
INSERT INTO zdm.flag AS f (name, migration_id) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET migration_id = excluded.migration_id, percent = 0, retired = false
WHERE f.migration_id = excluded.migration_id
  OR EXISTS (SELECT FROM zdm.migration m WHERE m.id = f.migration_id AND m.state = 'rolled_back')
RETURNING name;

-- set_flag: Move a flag to a percentage, which changes nothing when it is there.
UPDATE zdm.flag SET percent = $2, retired = $3, changed_at = clock_timestamp()
WHERE migration_id = $1 AND (percent, retired) <> ($2::int, $3);

-- flag_settles: How many seconds are left until a flag was as it is for $2 seconds.
SELECT extract(epoch FROM changed_at + make_interval(secs => $2) - clock_timestamp())::float8
FROM zdm.flag WHERE migration_id = $1 AND changed_at > clock_timestamp() - make_interval(secs => $2);

-- old_writers: Who wrote the old shape, alone or beside the new one, or named it, in the last $2 seconds; latest first.
SELECT application_name, login, max(at), clock_timestamp() - max(at), bool_or(wrote <> 'names') FROM zdm.writer
WHERE migration_id = $1 AND wrote IN ('old', 'both', 'names') AND at > clock_timestamp() - make_interval(secs => $2)
GROUP BY 1, 2 ORDER BY 3 DESC;

-- new_writers: Who wrote the new shape, alone or beside the old one, in the last $2 seconds; the latest first.
-- The condition on the shape is that of an index.
SELECT application_name, login, max(at), clock_timestamp() - max(at), true FROM zdm.writer
WHERE migration_id = $1 AND wrote IN ('new', 'both') AND at > clock_timestamp() - make_interval(secs => $2)
GROUP BY 1, 2 ORDER BY 3 DESC;

-- failing_writers: For whose rows the sync could not compute the other shape, the latest first.
SELECT failed, application_name, max(at) FROM zdm.writer
WHERE migration_id = $1 AND failed IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 5;

-- tidy_writers: Keep the latest line of each writer, and of writers of a kind the latest $2: older lines decide nothing.
DELETE FROM zdm.writer w USING (
  SELECT zdm_place, zdm_latest, row_number() OVER (PARTITION BY wrote, failed, zdm_latest ORDER BY at DESC) AS zdm_nth
  FROM (SELECT ctid AS zdm_place, wrote, failed, at, row_number() OVER (
          PARTITION BY wrote, failed, application_name, login ORDER BY at DESC, ctid) = 1 AS zdm_latest
        FROM zdm.writer WHERE migration_id = $1) AS zdm_lines) AS zdm_ranked
WHERE w.migration_id = $1 AND w.ctid = zdm_place AND (NOT zdm_latest OR zdm_nth > $2);

-- forget_writers: Forget who wrote which shape.
DELETE FROM zdm.writer WHERE migration_id = $1;

-- forget_statements: Forget how often statements were called.
DELETE FROM zdm.statement WHERE migration_id = $1;

-- remembered_statements: How often statements were called at the last look, and for how long no look found more calls.
SELECT login::bigint, query, calls, extract(epoch FROM clock_timestamp() - grown_at) FROM zdm.statement
WHERE migration_id = $1;

-- remember_statement: Keep how often a statement was called so far.
INSERT INTO zdm.statement AS s (migration_id, login, query, calls, grown_at)
VALUES ($1, $2::bigint::oid, $3, $4, clock_timestamp())
ON CONFLICT (migration_id, login, query) DO UPDATE SET calls = excluded.calls,
  grown_at = CASE WHEN s.calls = excluded.calls THEN s.grown_at ELSE excluded.grown_at END;

-- are_touched: Whether keys are recorded that were written while contract proved parity.
SELECT EXISTS (SELECT FROM zdm.touched WHERE migration_id = $1);

-- forget_touched: Forget the keys that were written while contract proved parity.
DELETE FROM zdm.touched WHERE migration_id = $1;

-- vacuum_touched: Give the dead rows of keys that were taken back, or every later look reads them again.
VACUUM (TRUNCATE false) zdm.touched;

-- forget_written: Forget which ranges were written in which epoch.
DELETE FROM zdm.written WHERE migration_id = $1;

-- store_range: Write one range that nobody has begun.
INSERT INTO zdm.range (migration_id, ordinal, partition, lower, upper) VALUES ($1, $2, $3, $4, $5);

-- ranges: Every range of a migration with how far it got.
-- A ledger made by an earlier version has no column `hot`, and may be looked at without being changed.
SELECT ordinal, partition, lower, upper, checkpoint, done_at IS NOT NULL, rows, batches, retries, seconds, wal_bytes,
  coalesce((to_jsonb(r) ->> 'hot')::bigint, 0)
FROM zdm.range AS r WHERE migration_id = $1;

-- reset_ranges: Forget the progress of every range; their bounds stay.
UPDATE zdm.range SET checkpoint = NULL, done_at = NULL, rows = 0, batches = 0, retries = 0, seconds = 0,
  wal_bytes = 0, hot = 0, proof = NULL
WHERE migration_id = $1;

-- remove_ranges: Remove some ranges, by their ordinals.
DELETE FROM zdm.range WHERE migration_id = $1 AND ordinal = ANY ($2);

-- remove_every_range: Remove every range of a migration.
DELETE FROM zdm.range WHERE migration_id = $1;

-- range_rows: With how many rows each the ranges were cut last.
SELECT range_rows FROM zdm.migration WHERE id = $1;

-- set_range_rows: Note with how many rows each the ranges are cut.
UPDATE zdm.migration SET range_rows = $2 WHERE id = $1;

-- has_proofs: Whether this ledger knows proofs of ranges; one made by an earlier version does not.
SELECT to_regclass('zdm.written') IS NOT NULL;

-- epoch: The present epoch of a migration's proofs.
SELECT epoch FROM zdm.migration WHERE id = $1;

-- begin_epoch: Begin another epoch of a migration.
-- A clock, so that no number comes twice, not even in a ledger made anew: sessions remember the numbers.
UPDATE zdm.migration SET epoch = greatest(epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
WHERE id = $1 RETURNING epoch;

-- one_snapshot: Read everything as it is at one moment, until the transaction ends.
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY;

-- proofs: The proof of each range, and how many batches moved rows of the range so far.
SELECT ordinal, proof, batches FROM zdm.range WHERE migration_id = $1;

-- keep_proof: Keep what comparing a range proved.
UPDATE zdm.range SET proof = $3 WHERE migration_id = $1 AND ordinal = $2;

-- void_proofs: Void every proof of a migration.
UPDATE zdm.range SET proof = NULL WHERE migration_id = $1 AND proof IS NOT NULL;

-- void_other_proofs: Void the proofs that were made under another fingerprint.
UPDATE zdm.range SET proof = NULL
WHERE migration_id = $1 AND proof IS NOT NULL AND proof ->> 'fingerprint' IS DISTINCT FROM $2;

-- void_proofs_besides: Void the proofs of all ranges but these.
UPDATE zdm.range SET proof = NULL WHERE migration_id = $1 AND proof IS NOT NULL AND NOT ordinal = ANY ($2);

-- renew_proofs: Let the proofs of a migration hold as of an epoch.
UPDATE zdm.range SET proof = jsonb_set(proof, '{epoch}', to_jsonb($2::bigint))
WHERE migration_id = $1 AND proof IS NOT NULL;

-- tidy_written: Delete the lines that are older than every proof; without proofs, than an epoch.
DELETE FROM zdm.written WHERE migration_id = $1 AND epoch < (
  SELECT coalesce(min((proof ->> 'epoch')::bigint), $2) FROM zdm.range WHERE migration_id = $1);

-- has_holds: Whether this ledger knows of holds; one made by an earlier version does not until it is upgraded.
SELECT to_regclass('zdm.hold') IS NOT NULL;

-- holds: The holds that stand against a migration ($1), those of the whole database ($2) among them; oldest first.
SELECT migration, owner, reason, since FROM zdm.hold
WHERE migration IN ($1, $2) AND (expires_at IS NULL OR expires_at > clock_timestamp()) ORDER BY since, owner;

-- place_hold: Place a hold or renew it; true when it did not stand before. One that expired begins anew.
-- The comparison of times at the end tells our hold from another's, who may have been quicker.
WITH zdm_now AS MATERIALIZED (SELECT clock_timestamp() AS at)
INSERT INTO zdm.hold AS h (migration, owner, reason, since, expires_at)
SELECT $1, $2, $3, at, at + make_interval(secs => $4) FROM zdm_now
ON CONFLICT (migration, owner) DO UPDATE SET reason = excluded.reason, expires_at = excluded.expires_at,
  since = CASE WHEN h.expires_at <= clock_timestamp() THEN excluded.since ELSE h.since END
RETURNING h.since = (SELECT at FROM zdm_now);

-- lift_hold: Lift a hold; no row when it did not stand.
DELETE FROM zdm.hold WHERE migration = $1 AND owner = $2 RETURNING 1;

-- publish_settings: Let running backfills know what the code declares.
INSERT INTO zdm.tuning AS t (migration, declared) VALUES ($1, $2::jsonb)
ON CONFLICT (migration) DO UPDATE SET declared = excluded.declared, changed_at = clock_timestamp()
WHERE t.declared <> excluded.declared;

-- settings: What is declared of a migration, and what was tuned.
SELECT declared, tuned FROM zdm.tuning WHERE migration = $1;

-- settings_row: Make the row of a migration's settings, unless it is there.
INSERT INTO zdm.tuning (migration) VALUES ($1) ON CONFLICT DO NOTHING;

-- settings_locked: What is declared of a migration, and what was tuned; nobody else tunes until we commit.
SELECT declared, tuned FROM zdm.tuning WHERE migration = $1 FOR UPDATE;

-- tune: Keep what an operator set.
UPDATE zdm.tuning SET tuned = $2::jsonb, changed_at = clock_timestamp() WHERE migration = $1;

-- begun_range: How far one range got: its checkpoint, whether it is done, rows moved.
SELECT checkpoint, done_at IS NOT NULL, rows FROM zdm.range WHERE migration_id = $1 AND ordinal = $2;

-- finish_range: A range is done, or found done again: seconds, bytes of WAL and retries of this run.
UPDATE zdm.range SET done_at = coalesce(done_at, clock_timestamp()), seconds = seconds + $3,
  wal_bytes = wal_bytes + $4, retries = retries + $5 WHERE migration_id = $1 AND ordinal = $2;

-- claims: The relations that a migration holds, in the order in which they are locked.
SELECT name, relation::bigint FROM zdm.claim WHERE migration_id = $1 ORDER BY place;
