== expand
-- create table "public"."user_addresses" (none)
CREATE TABLE "public"."user_addresses" (
  "user_id" bigint,
  "nr" integer,
  "street" text,
  "zip" integer,
  PRIMARY KEY ("user_id", "nr")
);
-- create function zdm."note_profiles"(text[], text, text) (none)
CREATE OR REPLACE FUNCTION zdm."note_profiles"(zdm_key text[], zdm_wrote text, zdm_failed text) RETURNS void
  LANGUAGE plpgsql AS $zdm_note$
DECLARE
  zdm_minute CONSTANT text
    := coalesce(zdm_failed, '') || (extract(epoch FROM statement_timestamp())::bigint / 60)::text;
BEGIN
  IF zdm_wrote IS NOT NULL AND current_setting('zdm.noted_7_' || zdm_wrote, true) IS DISTINCT FROM zdm_minute THEN
    PERFORM set_config('zdm.noted_7_' || zdm_wrote, zdm_minute, false);
    INSERT INTO zdm.writer (migration_id, wrote, failed, application_name, login)
    VALUES (7, zdm_wrote, zdm_failed, current_setting('application_name'), session_user);
  END IF;
END $zdm_note$;
-- let nobody else use zdm."note_profiles"(text[], text, text) (none)
REVOKE ALL ON FUNCTION zdm."note_profiles"(text[], text, text) FROM PUBLIC;
-- create function zdm."first_profiles"(bigint) (none)
CREATE OR REPLACE FUNCTION zdm."first_profiles"(bigint) RETURNS boolean LANGUAGE plpgsql
  SET search_path = pg_catalog, pg_temp AS $zdm_first$
BEGIN
  IF (pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16 THEN
    PERFORM FROM zdm."source_profiles" WHERE zdm_1 = $1 FOR NO KEY UPDATE;
  END IF;
  RETURN true;
END $zdm_first$;
-- create function zdm."fill_profiles"() (none)
CREATE OR REPLACE FUNCTION zdm."fill_profiles"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = public, pg_temp
  SET TimeZone = 'UTC' SET DateStyle = 'ISO, MDY' SET default_text_search_config FROM CURRENT SET lc_monetary FROM CURRENT SET lc_numeric FROM CURRENT SET lc_time FROM CURRENT SET timezone_abbreviations FROM CURRENT
  SET IntervalStyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex' SET array_nulls = 'on' SET backslash_quote = 'safe_encoding' SET escape_string_warning = 'off' SET quote_all_identifiers = 'off' SET standard_conforming_strings = 'on' SET transform_null_equals = 'off' SET xmlbinary = 'base64' SET xmloption = 'content' AS $zdm_sync$
#variable_conflict use_column
DECLARE
  zdm_at record;
  zdm_given record;
BEGIN
  FOR zdm_at IN SELECT NEW."user_id" AS zdm_1 LOOP
    PERFORM FROM ONLY "public"."users" AS "users" WHERE "users"."id" = zdm_at.zdm_1 FOR NO KEY UPDATE;
  END LOOP;
  RETURN NEW;
END $zdm_sync$;
-- let nobody else use zdm."fill_profiles"() (none)
REVOKE ALL ON FUNCTION zdm."fill_profiles"() FROM PUBLIC;
-- create function zdm."copy_profiles"() (none)
CREATE OR REPLACE FUNCTION zdm."copy_profiles"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = public, pg_temp
  SET TimeZone = 'UTC' SET DateStyle = 'ISO, MDY' SET default_text_search_config FROM CURRENT SET lc_monetary FROM CURRENT SET lc_numeric FROM CURRENT SET lc_time FROM CURRENT SET timezone_abbreviations FROM CURRENT
  SET IntervalStyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex' SET array_nulls = 'on' SET backslash_quote = 'safe_encoding' SET escape_string_warning = 'off' SET quote_all_identifiers = 'off' SET standard_conforming_strings = 'on' SET transform_null_equals = 'off' SET xmlbinary = 'base64' SET xmloption = 'content' AS $zdm_sync$
#variable_conflict use_column
DECLARE
  zdm_at record;
  zdm_outer CONSTANT text := coalesce(current_setting('zdm.syncing_7', true), '');
  zdm_kept boolean;
  zdm_failed text;
BEGIN
  PERFORM set_config('zdm.syncing_7', pg_catalog.pg_trigger_depth()::text, true);
  IF TG_OP = 'TRUNCATE' THEN
    -- One statement may have emptied both tables, and still uses them.
    IF pg_catalog.pg_relation_size('"public"."user_addresses"') > 0 THEN
      TRUNCATE ONLY "public"."user_addresses";
    END IF;
  ELSE
    IF TG_OP <> 'INSERT' AND current_setting('transaction_isolation') NOT LIKE 'read %' THEN
      -- A row copied since the transaction began is not seen, but its key is met: a serialization failure.
      BEGIN
        INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
        FROM (SELECT OLD.*) AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position)
        WHERE (true) ON CONFLICT ("user_id", "nr") DO NOTHING;
      EXCEPTION WHEN data_exception OR integrity_constraint_violation OR raise_exception THEN
        NULL;  -- what cannot be copied was not
      END;
    END IF;
    FOR zdm_at IN
      SELECT OLD."id" AS zdm_1 WHERE TG_OP IN ('UPDATE', 'DELETE') UNION ALL
      SELECT NEW."id" AS zdm_1 WHERE TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND pg_catalog.record_image_ne(ROW(OLD."id"), ROW(NEW."id"))
    LOOP
      zdm_failed := NULL;
      BEGIN
        DELETE FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1
          AND NOT EXISTS (SELECT FROM ONLY "public"."users" AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
                          AND (position::integer) = zdm_target."nr");
        INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
          FROM ONLY "public"."users" AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
          ON CONFLICT ("user_id", "nr") DO UPDATE SET "street" = EXCLUDED."street", "zip" = EXCLUDED."zip";
        zdm_kept := FOUND;
      EXCEPTION WHEN others THEN
        IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;
        -- The application's write goes through. Its row is then one that was not copied: batches say why it cannot be.
        zdm_kept := false;
        zdm_failed := SQLSTATE;
      END;
      IF NOT zdm_kept THEN
        DELETE FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1;
      END IF;
      PERFORM zdm."note_profiles"(ARRAY[zdm_at.zdm_1::text], CASE WHEN TG_OP = 'INSERT' AND (pg_catalog.record_image_ne(ROW(NEW."addresses"), ROW(('[]'::jsonb)::jsonb::jsonb))) OR TG_OP = 'UPDATE' AND (pg_catalog.record_image_ne(ROW(NEW."addresses"), ROW(OLD."addresses"))) THEN 'old' END, zdm_failed);
    END LOOP;
  END IF;
  PERFORM set_config('zdm.syncing_7', zdm_outer, true);
  RETURN NULL;
END $zdm_sync$;
-- let nobody else use zdm."copy_profiles"() (none)
REVOKE ALL ON FUNCTION zdm."copy_profiles"() FROM PUBLIC;
-- create function zdm."back_profiles"() (none)
CREATE OR REPLACE FUNCTION zdm."back_profiles"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = public, pg_temp
  SET TimeZone = 'UTC' SET DateStyle = 'ISO, MDY' SET default_text_search_config FROM CURRENT SET lc_monetary FROM CURRENT SET lc_numeric FROM CURRENT SET lc_time FROM CURRENT SET timezone_abbreviations FROM CURRENT
  SET IntervalStyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex' SET array_nulls = 'on' SET backslash_quote = 'safe_encoding' SET escape_string_warning = 'off' SET quote_all_identifiers = 'off' SET standard_conforming_strings = 'on' SET transform_null_equals = 'off' SET xmlbinary = 'base64' SET xmloption = 'content' AS $zdm_sync$
#variable_conflict use_column
DECLARE
  zdm_at record;
  zdm_outer CONSTANT text := coalesce(current_setting('zdm.syncing_7', true), '');
  zdm_kept boolean;
  zdm_failed text;
  zdm_agrees boolean;
  zdm_old_1 jsonb;
BEGIN
  PERFORM set_config('zdm.syncing_7', pg_catalog.pg_trigger_depth()::text, true);
  FOR zdm_at IN
      SELECT OLD."user_id" AS zdm_1 WHERE TG_OP IN ('UPDATE', 'DELETE') UNION ALL
      SELECT NEW."user_id" AS zdm_1 WHERE TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND pg_catalog.record_image_ne(ROW(OLD."user_id"), ROW(NEW."user_id"))
      UNION ALL SELECT "users"."id" AS zdm_1 FROM ONLY "public"."users" AS "users" WHERE TG_OP = 'TRUNCATE'
  LOOP
      zdm_failed := NULL;
      PERFORM FROM ONLY "public"."users" AS "users" WHERE "users"."id" = zdm_at.zdm_1 FOR NO KEY UPDATE;
      IF NOT FOUND THEN
        CONTINUE WHEN TG_OP = 'DELETE';  -- with its source row, most likely
        PERFORM zdm."note_profiles"(ARRAY[zdm_at.zdm_1::text], 'new', zdm_failed);
        CONTINUE;
      END IF;
      IF TG_OP = 'INSERT' AND current_setting('zdm.unmoved_7', true) = 'on' THEN
        BEGIN
          INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
          FROM ONLY "public"."users" AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
          ON CONFLICT ("user_id", "nr") DO NOTHING;
        EXCEPTION WHEN others THEN
          IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;  -- what cannot be mapped is not taken along
        END;
      END IF;
      BEGIN
        SELECT ARRAY(SELECT ROW((position::integer)::integer, (element->>'street')::text, ((element->>'zip')::integer)::integer)::text FROM pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE (true) ORDER BY (position::integer)::integer)
             = ARRAY(SELECT ROW(zdm_target."nr", zdm_target."street", zdm_target."zip")::text FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1 ORDER BY zdm_target."nr")
          INTO zdm_agrees FROM ONLY "public"."users" AS "users" WHERE "users"."id" = zdm_at.zdm_1;
      EXCEPTION WHEN others THEN
        IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;
        zdm_agrees := false;  -- what the old columns hold cannot be mapped, and is replaced now
      END;
      IF NOT zdm_agrees THEN
        BEGIN
          SELECT coalesce((jsonb_agg(jsonb_build_object('street', street, 'zip', zip) ORDER BY nr))::jsonb, ('[]'::jsonb)::jsonb) INTO zdm_old_1 FROM ONLY "public"."user_addresses" AS "user_addresses" WHERE "user_addresses"."user_id" = zdm_at.zdm_1;
          UPDATE ONLY "public"."users" AS "users" SET "addresses" = zdm_old_1 WHERE "users"."id" = zdm_at.zdm_1;
          SELECT pg_catalog.record_image_eq(ROW("users"."addresses"), ROW(zdm_old_1))
            INTO zdm_agrees FROM ONLY "public"."users" AS "users" WHERE "users"."id" = zdm_at.zdm_1;
        EXCEPTION WHEN others THEN
          IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;
          -- The application's write goes through; validate finds the row, for people to mend.
          zdm_agrees := true;
          zdm_failed := SQLSTATE;
        END;
        IF NOT zdm_agrees THEN
          -- A trigger of the application's on the source made something else of it: the new table follows.
      zdm_failed := NULL;
      BEGIN
        DELETE FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1
          AND NOT EXISTS (SELECT FROM ONLY "public"."users" AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
                          AND (position::integer) = zdm_target."nr");
        INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
          FROM ONLY "public"."users" AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
          ON CONFLICT ("user_id", "nr") DO UPDATE SET "street" = EXCLUDED."street", "zip" = EXCLUDED."zip";
        zdm_kept := FOUND;
      EXCEPTION WHEN others THEN
        IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;
        -- The application's write goes through. Its row is then one that was not copied: batches say why it cannot be.
        zdm_kept := false;
        zdm_failed := SQLSTATE;
      END;
      IF NOT zdm_kept THEN
        DELETE FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1;
      END IF;
        END IF;
      END IF;
      PERFORM zdm."note_profiles"(ARRAY[zdm_at.zdm_1::text], 'new', zdm_failed);
  END LOOP;
  PERFORM set_config('zdm.syncing_7', zdm_outer, true);
  RETURN NULL;
END $zdm_sync$;
-- let nobody else use zdm."back_profiles"() (none)
REVOKE ALL ON FUNCTION zdm."back_profiles"() FROM PUBLIC;
-- create function zdm."mark_profiles"() (none)
CREATE OR REPLACE FUNCTION zdm."mark_profiles"() RETURNS trigger LANGUAGE plpgsql STABLE SECURITY DEFINER
  SET search_path = public, pg_temp AS $zdm_mark$
BEGIN
  -- A stable function: it looks at what was there as the statement began. An array is taken along only then; rows that
  -- the same statement deletes, and inserts anew, were copied.
  PERFORM set_config('zdm.unmoved_7', CASE WHEN EXISTS (
    SELECT FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = NEW."user_id") THEN '' ELSE 'on' END, true);
  RETURN NULL;
END $zdm_mark$;
-- let nobody else use zdm."mark_profiles"() (none)
REVOKE ALL ON FUNCTION zdm."mark_profiles"() FROM PUBLIC;
-- create view zdm."source_profiles" (ACCESS SHARE: reads and writes go on)
CREATE VIEW zdm."source_profiles" AS SELECT zdm_source."id" AS zdm_1 FROM ONLY "public"."users" AS zdm_source CROSS JOIN (VALUES (1)) AS zdm_one WHERE pg_catalog.has_any_column_privilege(current_user, '"public"."user_addresses"'::regclass, 'INSERT, UPDATE');
-- let everybody use zdm."source_profiles" (none)
GRANT SELECT, UPDATE ON zdm."source_profiles" TO PUBLIC;
-- lock source rows before rows of the new table (none on a table that anybody knows)
ALTER TABLE "public"."user_addresses" ADD CONSTRAINT "zzz_zdm_profiles_first" CHECK (zdm."first_profiles"("user_id"));
-- create trigger "zzz_zdm_profiles_fill" (none on a table that anybody knows)
CREATE TRIGGER "zzz_zdm_profiles_fill" BEFORE INSERT ON "public"."user_addresses" FOR EACH ROW WHEN ((pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."fill_profiles"();
-- let "zzz_zdm_profiles_fill" fire in every session (none on a table that anybody knows)
ALTER TABLE "public"."user_addresses" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_fill";
-- create trigger "zzz_zdm_profiles_back_0" (none on a table that anybody knows)
CREATE TRIGGER "zzz_zdm_profiles_back_0" AFTER INSERT ON "public"."user_addresses" FOR EACH ROW WHEN ((pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."mark_profiles"();
-- let "zzz_zdm_profiles_back_0" fire in every session (none on a table that anybody knows)
ALTER TABLE "public"."user_addresses" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_back_0";
-- create trigger "zzz_zdm_profiles_back_insert" (none on a table that anybody knows)
CREATE TRIGGER "zzz_zdm_profiles_back_insert" AFTER INSERT ON "public"."user_addresses" FOR EACH ROW WHEN ((pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."back_profiles"();
-- let "zzz_zdm_profiles_back_insert" fire in every session (none on a table that anybody knows)
ALTER TABLE "public"."user_addresses" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_back_insert";
-- create trigger "zzz_zdm_profiles_back_update" (none on a table that anybody knows)
CREATE TRIGGER "zzz_zdm_profiles_back_update" AFTER UPDATE ON "public"."user_addresses" FOR EACH ROW WHEN (pg_catalog.record_image_ne(ROW(OLD."user_id", OLD."nr", OLD."street", OLD."zip"), ROW(NEW."user_id", NEW."nr", NEW."street", NEW."zip")) AND (pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."back_profiles"();
-- let "zzz_zdm_profiles_back_update" fire in every session (none on a table that anybody knows)
ALTER TABLE "public"."user_addresses" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_back_update";
-- create trigger "zzz_zdm_profiles_back_delete" (none on a table that anybody knows)
CREATE TRIGGER "zzz_zdm_profiles_back_delete" AFTER DELETE ON "public"."user_addresses" FOR EACH ROW WHEN ((pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."back_profiles"();
-- let "zzz_zdm_profiles_back_delete" fire in every session (none on a table that anybody knows)
ALTER TABLE "public"."user_addresses" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_back_delete";
-- create trigger "zzz_zdm_profiles_back_truncate" (none on a table that anybody knows)
CREATE TRIGGER "zzz_zdm_profiles_back_truncate" AFTER TRUNCATE ON "public"."user_addresses" FOR EACH STATEMENT WHEN ((pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."back_profiles"();
-- let "zzz_zdm_profiles_back_truncate" fire in every session (none on a table that anybody knows)
ALTER TABLE "public"."user_addresses" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_back_truncate";
-- create trigger "zzz_zdm_profiles_insert" (SHARE ROW EXCLUSIVE, for milliseconds)
CREATE TRIGGER "zzz_zdm_profiles_insert" AFTER INSERT ON "public"."users" FOR EACH ROW WHEN ((pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."copy_profiles"();
-- let "zzz_zdm_profiles_insert" fire in every session (SHARE ROW EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."users" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_insert";
-- create trigger "zzz_zdm_profiles_update" (SHARE ROW EXCLUSIVE, for milliseconds)
CREATE TRIGGER "zzz_zdm_profiles_update" AFTER UPDATE ON "public"."users" FOR EACH ROW WHEN (pg_catalog.record_image_ne(ROW(OLD."id", OLD."addresses"), ROW(NEW."id", NEW."addresses")) AND (pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."copy_profiles"();
-- let "zzz_zdm_profiles_update" fire in every session (SHARE ROW EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."users" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_update";
-- create trigger "zzz_zdm_profiles_delete" (SHARE ROW EXCLUSIVE, for milliseconds)
CREATE TRIGGER "zzz_zdm_profiles_delete" AFTER DELETE ON "public"."users" FOR EACH ROW WHEN ((pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."copy_profiles"();
-- let "zzz_zdm_profiles_delete" fire in every session (SHARE ROW EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."users" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_delete";
-- create trigger "zzz_zdm_profiles_truncate" (SHARE ROW EXCLUSIVE, for milliseconds)
CREATE TRIGGER "zzz_zdm_profiles_truncate" AFTER TRUNCATE ON "public"."users" FOR EACH STATEMENT WHEN ((pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm."copy_profiles"();
-- let "zzz_zdm_profiles_truncate" fire in every session (SHARE ROW EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."users" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_truncate";
-- create the trigger that notes who names an old column (SHARE ROW EXCLUSIVE, for milliseconds)
CREATE TRIGGER "zzz_zdm_profiles_names" BEFORE INSERT OR UPDATE OF "addresses" ON "public"."users" FOR EACH STATEMENT WHEN ((pg_catalog.pg_trigger_depth() > 0 OR coalesce(current_setting('zdm.backfill', true), '') = '') AND coalesce(current_setting('zdm.syncing_7', true), '') <> pg_catalog.pg_trigger_depth()::text AND pg_catalog.pg_trigger_depth() < 16) EXECUTE FUNCTION zdm.note_named('7', 'addresses');
-- let it fire in every session (names) (SHARE ROW EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."users" ENABLE ALWAYS TRIGGER "zzz_zdm_profiles_names";
== a batch
-- with [['1'], ['9']]
SELECT set_config('zdm.held_0', coalesce(array_agg("users".ctid)::text, '{}'), true) FROM (SELECT "users".ctid FROM ONLY "public"."users" AS "users" WHERE "id" >= ($1::text[])[1]::bigint AND "id" < ($2::text[])[1]::bigint AND (true) AND (EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position))) AND NOT EXISTS (SELECT FROM (SELECT "user_id" AS zdm_1 FROM ONLY "public"."user_addresses") AS zdm_copy WHERE zdm_1 = "users"."id") FOR SHARE OF "users" SKIP LOCKED) AS "users";
-- with []
INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
FROM ONLY "public"."users" AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position)
WHERE "users".ctid = ANY (current_setting('zdm.held_0')::tid[]) AND (true) AND (EXISTS (SELECT FROM pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position))) AND NOT EXISTS (SELECT FROM (SELECT "user_id" AS zdm_1 FROM ONLY "public"."user_addresses") AS zdm_copy WHERE zdm_1 = "users"."id")
ON CONFLICT ("user_id", "nr") DO NOTHING;
== a batch that repairs
-- with []
SELECT set_config('zdm.held_1', coalesce(array_agg(zdm_1.ctid)::text, '{}'), true) FROM (SELECT zdm_1.ctid FROM ONLY "public"."user_addresses" AS zdm_1 WHERE true AND NOT EXISTS (SELECT FROM ONLY "public"."users" AS "users" WHERE zdm_1."user_id" = "users"."id") FOR UPDATE OF zdm_1 SKIP LOCKED) AS zdm_1;
-- with []
SELECT set_config('zdm.held_1', coalesce(array_agg(zdm_1.ctid)::text, '{}'), true) FROM ONLY "public"."user_addresses" AS zdm_1 WHERE zdm_1.ctid = ANY (current_setting('zdm.held_1')::tid[]) AND NOT EXISTS (SELECT FROM ONLY "public"."users" AS "users" WHERE zdm_1."user_id" = "users"."id");
-- with []
DELETE FROM ONLY "public"."user_addresses" AS zdm_1 WHERE zdm_1.ctid = ANY (current_setting('zdm.held_1')::tid[]);
-- with []
SELECT set_config('zdm.held_0', coalesce(array_agg("users".ctid)::text, '{}'), true) FROM (SELECT "users".ctid FROM ONLY "public"."users" AS "users" WHERE true AND NOT (ARRAY(SELECT ROW((position::integer)::integer, (element->>'street')::text, ((element->>'zip')::integer)::integer)::text FROM pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE (true) ORDER BY (position::integer)::integer) = ARRAY(SELECT ROW(zdm_target."nr", zdm_target."street", zdm_target."zip")::text FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = "users"."id" ORDER BY zdm_target."nr") OR (SELECT "users"."addresses" IS NOT DISTINCT FROM (jsonb_agg(jsonb_build_object('street', street, 'zip', zip) ORDER BY nr))::jsonb FROM ONLY "public"."user_addresses" AS "user_addresses" WHERE "user_addresses"."user_id" = "users"."id")) FOR SHARE OF "users" SKIP LOCKED) AS "users";
-- with []
SELECT set_config('zdm.held_0', coalesce(array_agg("users".ctid)::text, '{}'), true) FROM ONLY "public"."users" AS "users" WHERE "users".ctid = ANY (current_setting('zdm.held_0')::tid[]) AND NOT (ARRAY(SELECT ROW((position::integer)::integer, (element->>'street')::text, ((element->>'zip')::integer)::integer)::text FROM pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE (true) ORDER BY (position::integer)::integer) = ARRAY(SELECT ROW(zdm_target."nr", zdm_target."street", zdm_target."zip")::text FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = "users"."id" ORDER BY zdm_target."nr") OR (SELECT "users"."addresses" IS NOT DISTINCT FROM (jsonb_agg(jsonb_build_object('street', street, 'zip', zip) ORDER BY nr))::jsonb FROM ONLY "public"."user_addresses" AS "user_addresses" WHERE "user_addresses"."user_id" = "users"."id"));
-- with []
DELETE FROM ONLY "public"."user_addresses" AS zdm_target USING ONLY "public"."users" AS "users" WHERE zdm_target."user_id" = "users"."id" AND "users".ctid = ANY (current_setting('zdm.held_0')::tid[]) AND true;
-- with []
INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
FROM ONLY "public"."users" AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position)
WHERE "users".ctid = ANY (current_setting('zdm.held_0')::tid[]) AND (true)
ON CONFLICT ("user_id", "nr") DO UPDATE SET "street" = EXCLUDED."street", "zip" = EXCLUDED."zip";
== parity
-- with [['1'], ['9']]
SELECT count(*),
  count(*) FILTER (WHERE cardinality(zdm_said) > 0 AND zdm_held IS NULL),
  count(*) FILTER (WHERE zdm_said IS NULL OR zdm_said IS NOT NULL AND zdm_held IS NOT NULL AND NOT (cardinality(zdm_said) > 0) AND NOT (zdm_old_1 IS NOT DISTINCT FROM zdm_down_1::jsonb AND zdm_source.zdm_key_1 IS NOT DISTINCT FROM zdm_new.zdm_key_1::bigint)),
  count(*) FILTER (WHERE zdm_said IS NOT NULL AND zdm_held IS NOT NULL AND cardinality(zdm_said) > 0 AND NOT (zdm_said = zdm_held AND zdm_source.zdm_key_1 IS NOT DISTINCT FROM zdm_new.zdm_key_1::bigint OR zdm_old_1 IS NOT DISTINCT FROM zdm_down_1::jsonb AND zdm_source.zdm_key_1 IS NOT DISTINCT FROM zdm_new.zdm_key_1::bigint)),
  count(*) FILTER (WHERE zdm_said IS NOT NULL AND zdm_held IS NOT NULL AND zdm_old_1 IS NOT DISTINCT FROM zdm_down_1::jsonb AND zdm_source.zdm_key_1 IS NOT DISTINCT FROM zdm_new.zdm_key_1::bigint AND NOT (cardinality(zdm_said) > 0 AND zdm_said = zdm_held AND zdm_source.zdm_key_1 IS NOT DISTINCT FROM zdm_new.zdm_key_1::bigint)),
  count(*) FILTER (WHERE cardinality(zdm_said) > 0 AND zdm_held IS NULL)
FROM (SELECT "id" AS zdm_key_1, "users"."addresses" AS zdm_old_1, ARRAY(SELECT ROW((position::integer)::integer, (element->>'street')::text, ((element->>'zip')::integer)::integer)::text FROM pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE (true) ORDER BY (position::integer)::integer) AS zdm_said FROM ONLY "public"."users" AS "users" WHERE "id" >= ($1::text[])[1]::bigint AND "id" < ($2::text[])[1]::bigint) AS zdm_source
FULL JOIN (SELECT "user_id" AS zdm_key_1, (jsonb_agg(jsonb_build_object('street', street, 'zip', zip) ORDER BY nr)) AS zdm_down_1, array_agg(ROW("user_addresses"."nr", "user_addresses"."street", "user_addresses"."zip")::text ORDER BY "user_addresses"."nr") AS zdm_held FROM ONLY "public"."user_addresses" AS "user_addresses" WHERE "user_id" >= ($1::text[])[1]::bigint AND "user_id" < ($2::text[])[1]::bigint GROUP BY "user_id") AS zdm_new ON zdm_source.zdm_key_1 = zdm_new.zdm_key_1;
== enforce
-- add constraint "user_addresses_user_id_fkey" (SHARE ROW EXCLUSIVE, for milliseconds, on both tables)
ALTER TABLE "public"."user_addresses" ADD CONSTRAINT "user_addresses_user_id_fkey" FOREIGN KEY ("user_id") REFERENCES "public"."users" ("id") ON UPDATE CASCADE ON DELETE CASCADE NOT VALID;
-- validate constraint "user_addresses_user_id_fkey" (SHARE UPDATE EXCLUSIVE: reads and writes go on)
ALTER TABLE "public"."user_addresses" VALIDATE CONSTRAINT "user_addresses_user_id_fkey";
-- add constraint "zdm_not_null_street" (ACCESS EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."user_addresses" ADD CONSTRAINT "zdm_not_null_street" CHECK ("street" IS NOT NULL) NOT VALID;
-- validate constraint "zdm_not_null_street" (SHARE UPDATE EXCLUSIVE: reads and writes go on)
ALTER TABLE "public"."user_addresses" VALIDATE CONSTRAINT "zdm_not_null_street";
-- set "street" NOT NULL (ACCESS EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."user_addresses" ALTER COLUMN "street" SET NOT NULL;
-- drop check "zdm_not_null_street" (ACCESS EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."user_addresses" DROP CONSTRAINT IF EXISTS "zdm_not_null_street";
== tombstone
-- rename "addresses" to "zdm_tombstone_addresses" (ACCESS EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."users" RENAME COLUMN "addresses" TO "zdm_tombstone_addresses";
-- point zdm."copy_profiles" at the tombstone (none)
CREATE OR REPLACE FUNCTION zdm."copy_profiles"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = public, pg_temp
  SET TimeZone = 'UTC' SET DateStyle = 'ISO, MDY' SET default_text_search_config FROM CURRENT SET lc_monetary FROM CURRENT SET lc_numeric FROM CURRENT SET lc_time FROM CURRENT SET timezone_abbreviations FROM CURRENT
  SET IntervalStyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex' SET array_nulls = 'on' SET backslash_quote = 'safe_encoding' SET escape_string_warning = 'off' SET quote_all_identifiers = 'off' SET standard_conforming_strings = 'on' SET transform_null_equals = 'off' SET xmlbinary = 'base64' SET xmloption = 'content' AS $zdm_sync$
#variable_conflict use_column
DECLARE
  zdm_at record;
  zdm_outer CONSTANT text := coalesce(current_setting('zdm.syncing_7', true), '');
  zdm_kept boolean;
  zdm_failed text;
BEGIN
  PERFORM set_config('zdm.syncing_7', pg_catalog.pg_trigger_depth()::text, true);
  IF TG_OP = 'TRUNCATE' THEN
    -- One statement may have emptied both tables, and still uses them.
    IF pg_catalog.pg_relation_size('"public"."user_addresses"') > 0 THEN
      TRUNCATE ONLY "public"."user_addresses";
    END IF;
  ELSE
    IF TG_OP <> 'INSERT' AND current_setting('transaction_isolation') NOT LIKE 'read %' THEN
      -- A row copied since the transaction began is not seen, but its key is met: a serialization failure.
      BEGIN
        INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
        FROM (SELECT OLD.*, OLD."zdm_tombstone_addresses" AS "addresses") AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position)
        WHERE (true) ON CONFLICT ("user_id", "nr") DO NOTHING;
      EXCEPTION WHEN data_exception OR integrity_constraint_violation OR raise_exception THEN
        NULL;  -- what cannot be copied was not
      END;
    END IF;
    FOR zdm_at IN
      SELECT OLD."id" AS zdm_1 WHERE TG_OP IN ('UPDATE', 'DELETE') UNION ALL
      SELECT NEW."id" AS zdm_1 WHERE TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND pg_catalog.record_image_ne(ROW(OLD."id"), ROW(NEW."id"))
    LOOP
      zdm_failed := NULL;
      BEGIN
        DELETE FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1
          AND NOT EXISTS (SELECT FROM (SELECT zdm_row.ctid, zdm_row.*, zdm_row."zdm_tombstone_addresses" AS "addresses" FROM ONLY "public"."users" AS zdm_row) AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
                          AND (position::integer) = zdm_target."nr");
        INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
          FROM (SELECT zdm_row.ctid, zdm_row.*, zdm_row."zdm_tombstone_addresses" AS "addresses" FROM ONLY "public"."users" AS zdm_row) AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
          ON CONFLICT ("user_id", "nr") DO UPDATE SET "street" = EXCLUDED."street", "zip" = EXCLUDED."zip";
        zdm_kept := FOUND;
      EXCEPTION WHEN others THEN
        IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;
        -- The application's write goes through. Its row is then one that was not copied: batches say why it cannot be.
        zdm_kept := false;
        zdm_failed := SQLSTATE;
      END;
      IF NOT zdm_kept THEN
        DELETE FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1;
      END IF;
      PERFORM zdm."note_profiles"(ARRAY[zdm_at.zdm_1::text], CASE WHEN TG_OP = 'INSERT' AND (pg_catalog.record_image_ne(ROW(NEW."zdm_tombstone_addresses"), ROW(('[]'::jsonb)::jsonb::jsonb))) OR TG_OP = 'UPDATE' AND (pg_catalog.record_image_ne(ROW(NEW."zdm_tombstone_addresses"), ROW(OLD."zdm_tombstone_addresses"))) THEN 'old' END, zdm_failed);
    END LOOP;
  END IF;
  PERFORM set_config('zdm.syncing_7', zdm_outer, true);
  RETURN NULL;
END $zdm_sync$;
-- point zdm."fill_profiles" at the tombstone (none)
CREATE OR REPLACE FUNCTION zdm."fill_profiles"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = public, pg_temp
  SET TimeZone = 'UTC' SET DateStyle = 'ISO, MDY' SET default_text_search_config FROM CURRENT SET lc_monetary FROM CURRENT SET lc_numeric FROM CURRENT SET lc_time FROM CURRENT SET timezone_abbreviations FROM CURRENT
  SET IntervalStyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex' SET array_nulls = 'on' SET backslash_quote = 'safe_encoding' SET escape_string_warning = 'off' SET quote_all_identifiers = 'off' SET standard_conforming_strings = 'on' SET transform_null_equals = 'off' SET xmlbinary = 'base64' SET xmloption = 'content' AS $zdm_sync$
#variable_conflict use_column
DECLARE
  zdm_at record;
  zdm_given record;
BEGIN
  FOR zdm_at IN SELECT NEW."user_id" AS zdm_1 LOOP
    PERFORM FROM ONLY "public"."users" AS "users" WHERE "users"."id" = zdm_at.zdm_1 FOR NO KEY UPDATE;
  END LOOP;
  RETURN NEW;
END $zdm_sync$;
-- point zdm."back_profiles" at the tombstone (none)
CREATE OR REPLACE FUNCTION zdm."back_profiles"() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
  SET search_path = public, pg_temp
  SET TimeZone = 'UTC' SET DateStyle = 'ISO, MDY' SET default_text_search_config FROM CURRENT SET lc_monetary FROM CURRENT SET lc_numeric FROM CURRENT SET lc_time FROM CURRENT SET timezone_abbreviations FROM CURRENT
  SET IntervalStyle = 'postgres' SET extra_float_digits = '1' SET bytea_output = 'hex' SET array_nulls = 'on' SET backslash_quote = 'safe_encoding' SET escape_string_warning = 'off' SET quote_all_identifiers = 'off' SET standard_conforming_strings = 'on' SET transform_null_equals = 'off' SET xmlbinary = 'base64' SET xmloption = 'content' AS $zdm_sync$
#variable_conflict use_column
DECLARE
  zdm_at record;
  zdm_outer CONSTANT text := coalesce(current_setting('zdm.syncing_7', true), '');
  zdm_kept boolean;
  zdm_failed text;
  zdm_agrees boolean;
  zdm_old_1 jsonb;
BEGIN
  PERFORM set_config('zdm.syncing_7', pg_catalog.pg_trigger_depth()::text, true);
  FOR zdm_at IN
      SELECT OLD."user_id" AS zdm_1 WHERE TG_OP IN ('UPDATE', 'DELETE') UNION ALL
      SELECT NEW."user_id" AS zdm_1 WHERE TG_OP = 'INSERT' OR TG_OP = 'UPDATE' AND pg_catalog.record_image_ne(ROW(OLD."user_id"), ROW(NEW."user_id"))
      UNION ALL SELECT "users"."id" AS zdm_1 FROM (SELECT zdm_row.ctid, zdm_row.*, zdm_row."zdm_tombstone_addresses" AS "addresses" FROM ONLY "public"."users" AS zdm_row) AS "users" WHERE TG_OP = 'TRUNCATE'
  LOOP
      zdm_failed := NULL;
      PERFORM FROM ONLY "public"."users" AS "users" WHERE "users"."id" = zdm_at.zdm_1 FOR NO KEY UPDATE;
      IF NOT FOUND THEN
        CONTINUE WHEN TG_OP = 'DELETE';  -- with its source row, most likely
        PERFORM zdm."note_profiles"(ARRAY[zdm_at.zdm_1::text], 'new', zdm_failed);
        CONTINUE;
      END IF;
      IF TG_OP = 'INSERT' AND current_setting('zdm.unmoved_7', true) = 'on' THEN
        BEGIN
          INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
          FROM (SELECT zdm_row.ctid, zdm_row.*, zdm_row."zdm_tombstone_addresses" AS "addresses" FROM ONLY "public"."users" AS zdm_row) AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
          ON CONFLICT ("user_id", "nr") DO NOTHING;
        EXCEPTION WHEN others THEN
          IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;  -- what cannot be mapped is not taken along
        END;
      END IF;
      BEGIN
        SELECT ARRAY(SELECT ROW((position::integer)::integer, (element->>'street')::text, ((element->>'zip')::integer)::integer)::text FROM pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE (true) ORDER BY (position::integer)::integer)
             = ARRAY(SELECT ROW(zdm_target."nr", zdm_target."street", zdm_target."zip")::text FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1 ORDER BY zdm_target."nr")
          INTO zdm_agrees FROM (SELECT zdm_row.ctid, zdm_row.*, zdm_row."zdm_tombstone_addresses" AS "addresses" FROM ONLY "public"."users" AS zdm_row) AS "users" WHERE "users"."id" = zdm_at.zdm_1;
      EXCEPTION WHEN others THEN
        IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;
        zdm_agrees := false;  -- what the old columns hold cannot be mapped, and is replaced now
      END;
      IF NOT zdm_agrees THEN
        BEGIN
          SELECT coalesce((jsonb_agg(jsonb_build_object('street', street, 'zip', zip) ORDER BY nr))::jsonb, ('[]'::jsonb)::jsonb) INTO zdm_old_1 FROM ONLY "public"."user_addresses" AS "user_addresses" WHERE "user_addresses"."user_id" = zdm_at.zdm_1;
          UPDATE ONLY "public"."users" AS "users" SET "zdm_tombstone_addresses" = zdm_old_1 WHERE "users"."id" = zdm_at.zdm_1;
          SELECT pg_catalog.record_image_eq(ROW("users"."zdm_tombstone_addresses"), ROW(zdm_old_1))
            INTO zdm_agrees FROM ONLY "public"."users" AS "users" WHERE "users"."id" = zdm_at.zdm_1;
        EXCEPTION WHEN others THEN
          IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;
          -- The application's write goes through; validate finds the row, for people to mend.
          zdm_agrees := true;
          zdm_failed := SQLSTATE;
        END;
        IF NOT zdm_agrees THEN
          -- A trigger of the application's on the source made something else of it: the new table follows.
      zdm_failed := NULL;
      BEGIN
        DELETE FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1
          AND NOT EXISTS (SELECT FROM (SELECT zdm_row.ctid, zdm_row.*, zdm_row."zdm_tombstone_addresses" AS "addresses" FROM ONLY "public"."users" AS zdm_row) AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
                          AND (position::integer) = zdm_target."nr");
        INSERT INTO "public"."user_addresses" AS zdm_target ("user_id", "nr", "street", "zip") SELECT "users"."id", (position::integer), (element->>'street'), ((element->>'zip')::integer)
          FROM (SELECT zdm_row.ctid, zdm_row.*, zdm_row."zdm_tombstone_addresses" AS "addresses" FROM ONLY "public"."users" AS zdm_row) AS "users" CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(nullif((addresses)::jsonb, 'null')) WITH ORDINALITY AS zdm_each (element, position) WHERE "users"."id" = zdm_at.zdm_1 AND (true)
          ON CONFLICT ("user_id", "nr") DO UPDATE SET "street" = EXCLUDED."street", "zip" = EXCLUDED."zip";
        zdm_kept := FOUND;
      EXCEPTION WHEN others THEN
        IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;
        -- The application's write goes through. Its row is then one that was not copied: batches say why it cannot be.
        zdm_kept := false;
        zdm_failed := SQLSTATE;
      END;
      IF NOT zdm_kept THEN
        DELETE FROM ONLY "public"."user_addresses" AS zdm_target WHERE zdm_target."user_id" = zdm_at.zdm_1;
      END IF;
        END IF;
      END IF;
      PERFORM zdm."note_profiles"(ARRAY[zdm_at.zdm_1::text], 'new', zdm_failed);
  END LOOP;
  PERFORM set_config('zdm.syncing_7', zdm_outer, true);
  RETURN NULL;
END $zdm_sync$;
-- point zdm."note_profiles" at the tombstone (none)
CREATE OR REPLACE FUNCTION zdm."note_profiles"(zdm_key text[], zdm_wrote text, zdm_failed text) RETURNS void
  LANGUAGE plpgsql AS $zdm_note$
DECLARE
  zdm_minute CONSTANT text
    := coalesce(zdm_failed, '') || (extract(epoch FROM statement_timestamp())::bigint / 60)::text;
BEGIN
  IF zdm_wrote IS NOT NULL AND current_setting('zdm.noted_7_' || zdm_wrote, true) IS DISTINCT FROM zdm_minute THEN
    PERFORM set_config('zdm.noted_7_' || zdm_wrote, zdm_minute, false);
    INSERT INTO zdm.writer (migration_id, wrote, failed, application_name, login)
    VALUES (7, zdm_wrote, zdm_failed, current_setting('application_name'), session_user);
  END IF;
END $zdm_note$;
== drop
-- drop the trigger that notes who names an old column (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_names" ON "public"."users";
-- drop trigger "zzz_zdm_profiles_truncate" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_truncate" ON "public"."users";
-- drop trigger "zzz_zdm_profiles_delete" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_delete" ON "public"."users";
-- drop trigger "zzz_zdm_profiles_update" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_update" ON "public"."users";
-- drop trigger "zzz_zdm_profiles_insert" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_insert" ON "public"."users";
-- drop trigger "zzz_zdm_profiles_back_truncate" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_back_truncate" ON "public"."user_addresses";
-- drop trigger "zzz_zdm_profiles_back_delete" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_back_delete" ON "public"."user_addresses";
-- drop trigger "zzz_zdm_profiles_back_update" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_back_update" ON "public"."user_addresses";
-- drop trigger "zzz_zdm_profiles_back_insert" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_back_insert" ON "public"."user_addresses";
-- drop trigger "zzz_zdm_profiles_back_0" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_back_0" ON "public"."user_addresses";
-- drop trigger "zzz_zdm_profiles_fill" (ACCESS EXCLUSIVE, for milliseconds)
DROP TRIGGER IF EXISTS "zzz_zdm_profiles_fill" ON "public"."user_addresses";
-- undo lock source rows before rows of the new table (ACCESS EXCLUSIVE, for milliseconds)
ALTER TABLE IF EXISTS "public"."user_addresses" DROP CONSTRAINT IF EXISTS "zzz_zdm_profiles_first";
-- drop view zdm."source_profiles" (ACCESS EXCLUSIVE, for milliseconds)
DROP VIEW IF EXISTS zdm."source_profiles";
-- drop function zdm."mark_profiles"() (ACCESS EXCLUSIVE, for milliseconds)
DROP FUNCTION IF EXISTS zdm."mark_profiles"();
-- drop function zdm."back_profiles"() (ACCESS EXCLUSIVE, for milliseconds)
DROP FUNCTION IF EXISTS zdm."back_profiles"();
-- drop function zdm."copy_profiles"() (ACCESS EXCLUSIVE, for milliseconds)
DROP FUNCTION IF EXISTS zdm."copy_profiles"();
-- drop function zdm."fill_profiles"() (ACCESS EXCLUSIVE, for milliseconds)
DROP FUNCTION IF EXISTS zdm."fill_profiles"();
-- drop function zdm."first_profiles"(bigint) (ACCESS EXCLUSIVE, for milliseconds)
DROP FUNCTION IF EXISTS zdm."first_profiles"(bigint);
-- drop function zdm."note_profiles"(text[], text, text) (ACCESS EXCLUSIVE, for milliseconds)
DROP FUNCTION IF EXISTS zdm."note_profiles"(text[], text, text);
-- keep the sequences that belong to "zdm_tombstone_addresses" (none)
DO 'DECLARE zdm_sequence regclass; BEGIN FOR zdm_sequence IN SELECT d.objid FROM pg_depend d JOIN pg_class s ON s.oid = d.objid AND s.relkind = ''S'' JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid WHERE d.classid = ''pg_class''::regclass AND d.refclassid = ''pg_class''::regclass AND d.deptype = ''a'' AND d.refobjid = ''"public"."users"''::regclass AND a.attname = ''zdm_tombstone_addresses'' LOOP EXECUTE format(''ALTER SEQUENCE %s OWNED BY %s'', zdm_sequence, ''NONE''); END LOOP; END';
-- drop "zdm_tombstone_addresses" (ACCESS EXCLUSIVE, for milliseconds)
ALTER TABLE "public"."users" DROP COLUMN "zdm_tombstone_addresses" RESTRICT;
