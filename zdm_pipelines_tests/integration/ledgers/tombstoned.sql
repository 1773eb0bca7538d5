--
-- PostgreSQL database dump
--


-- Dumped from database version 18.4
-- Dumped by pg_dump version 18.4

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

--
-- Name: zdm; Type: SCHEMA; Schema: -; Owner: -
--

CREATE SCHEMA zdm;


--
-- Name: refuse_change(); Type: FUNCTION; Schema: zdm; Owner: -
--

CREATE FUNCTION zdm.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
  RAISE EXCEPTION 'zdm.event is append-only';
END $$;


--
-- Name: sync_people_display_name(); Type: FUNCTION; Schema: zdm; Owner: -
--

CREATE FUNCTION zdm.sync_people_display_name() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO '$user', 'public', 'pg_temp'
    AS $$
#variable_conflict use_column
DECLARE
  wrote text;
  failed text;
  minute text;
BEGIN
  IF TG_OP = 'INSERT' THEN
    wrote := CASE WHEN NEW."display_name" IS NOT NULL THEN CASE WHEN NEW."zdm_tombstone_full_name" IS NULL THEN 'new' ELSE 'both' END
                  WHEN NEW."zdm_tombstone_full_name" IS NULL THEN 'neither' ELSE 'old' END;
  ELSE
    wrote := CASE WHEN NOT (pg_catalog.record_image_ne(ROW(NEW."zdm_tombstone_full_name", NEW."display_name"), ROW(OLD."zdm_tombstone_full_name", OLD."display_name")))
                  THEN CASE WHEN NEW."display_name" IS NULL THEN 'neither' ELSE 'nothing' END
                  WHEN NEW."display_name" IS NULL THEN CASE WHEN pg_catalog.record_image_ne(ROW(NEW."zdm_tombstone_full_name"), ROW(OLD."zdm_tombstone_full_name")) THEN 'old' ELSE 'neither' END
                  WHEN NOT (pg_catalog.record_image_ne(ROW(NEW."display_name"), ROW(OLD."display_name"))) THEN 'old'
                  WHEN NOT (pg_catalog.record_image_ne(ROW(NEW."zdm_tombstone_full_name"), ROW(OLD."zdm_tombstone_full_name"))) THEN 'new' ELSE 'both' END;
  END IF;
  BEGIN
    IF wrote IN ('old', 'neither') THEN
      SELECT (coalesce(full_name, '')) INTO NEW."display_name"
        FROM (SELECT NEW."zdm_tombstone_full_name" AS "full_name") AS "people";
    ELSIF wrote = 'new' THEN
      SELECT (display_name) INTO NEW."zdm_tombstone_full_name"
        FROM (SELECT NEW."display_name" AS "display_name") AS "people";
    END IF;
  EXCEPTION WHEN others THEN
    -- The application's write goes through, until NOT NULL is set; validate finds such rows, for people to mend.
    failed := SQLSTATE;
    IF wrote IN ('old', 'neither') THEN
      NEW."display_name" := NULL;
    END IF;
  END;
  DECLARE
    zdm_bucket CONSTANT integer := coalesce(pg_catalog.width_bucket(NEW."id", '{"11"}'::bigint[]), 0);
    zdm_seen CONSTANT text := current_setting('zdm.written_1_' || zdm_bucket, true);
  BEGIN
    IF zdm_seen IS DISTINCT FROM '1795626994665878'
       AND zdm_seen IS DISTINCT FROM '1795626994665878:' || pg_catalog.pg_current_xact_id()::text THEN
      IF zdm_seen LIKE '1795626994665878:%'
         AND pg_catalog.pg_xact_status(split_part(zdm_seen, ':', 2)::pg_catalog.xid8) = 'committed' THEN
        PERFORM set_config('zdm.written_1_' || zdm_bucket, '1795626994665878', false);
      ELSE
        -- Sessions may be as many as transactions: lines are not.
        IF NOT EXISTS (SELECT FROM zdm.written
                       WHERE migration_id = 1 AND epoch = 1795626994665878 AND bucket = zdm_bucket) THEN
          INSERT INTO zdm.written (migration_id, epoch, bucket) VALUES (1, 1795626994665878, zdm_bucket);
        END IF;
        PERFORM set_config(
          'zdm.written_1_' || zdm_bucket, '1795626994665878:' || pg_catalog.pg_current_xact_id()::text, false);
      END IF;
    END IF;
  END;
  -- Once a minute and session: exact about who, cheap, and two sessions never wait for each other.
  minute := coalesce(failed, '') || (extract(epoch FROM statement_timestamp())::bigint / 60)::text;
  IF wrote NOT IN ('neither', 'nothing') AND current_setting('zdm.noted_1_' || wrote, true) IS DISTINCT FROM minute THEN
    PERFORM set_config('zdm.noted_1_' || wrote, minute, false);
    INSERT INTO zdm.writer (migration_id, wrote, failed, application_name, login)
    VALUES (1, wrote, failed, current_setting('application_name'), session_user);
  END IF;
  RETURN NEW;
END $$;


SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: people; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.people (
    id bigint NOT NULL,
    zdm_tombstone_full_name text,
    note text,
    display_name text DEFAULT 'nobody'::text NOT NULL,
    CONSTRAINT display_name_is_short CHECK ((length(display_name) < 80)),
    CONSTRAINT full_name_is_short CHECK ((length(zdm_tombstone_full_name) < 80))
);


--
-- Name: people_id_seq; Type: SEQUENCE; Schema: public; Owner: -
--

ALTER TABLE public.people ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.people_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: check_result; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.check_result (
    migration_id bigint NOT NULL,
    name text NOT NULL,
    passed boolean NOT NULL,
    summary text NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: event; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.event (
    id bigint NOT NULL,
    migration_id bigint NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    actor text NOT NULL,
    what text NOT NULL,
    from_state text,
    to_state text,
    detail jsonb DEFAULT '{}'::jsonb NOT NULL
);


--
-- Name: event_id_seq; Type: SEQUENCE; Schema: zdm; Owner: -
--

ALTER TABLE zdm.event ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME zdm.event_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: flag; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.flag (
    name text NOT NULL,
    migration_id bigint NOT NULL,
    percent smallint DEFAULT 0 NOT NULL,
    retired boolean DEFAULT false NOT NULL,
    changed_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    CONSTRAINT flag_percent_check CHECK (((percent >= 0) AND (percent <= 100)))
);


--
-- Name: heartbeat; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.heartbeat (
    at timestamp with time zone NOT NULL,
    lsn pg_lsn NOT NULL
);


--
-- Name: hold; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.hold (
    migration text NOT NULL,
    owner text NOT NULL,
    reason text NOT NULL,
    since timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    expires_at timestamp with time zone
);


--
-- Name: migration; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.migration (
    id bigint NOT NULL,
    name text NOT NULL,
    table_oid oid NOT NULL,
    table_name text NOT NULL,
    change jsonb NOT NULL,
    catalog jsonb NOT NULL,
    range_rows integer,
    state text NOT NULL,
    version bigint DEFAULT 1 NOT NULL,
    state_since timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    switched_at timestamp with time zone,
    tombstoned_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    epoch bigint DEFAULT 0 NOT NULL
);


--
-- Name: migration_id_seq; Type: SEQUENCE; Schema: zdm; Owner: -
--

ALTER TABLE zdm.migration ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME zdm.migration_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


--
-- Name: range; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.range (
    migration_id bigint NOT NULL,
    ordinal integer NOT NULL,
    partition text NOT NULL,
    lower text[],
    upper text[],
    checkpoint text[],
    done_at timestamp with time zone,
    rows bigint DEFAULT 0 NOT NULL,
    batches bigint DEFAULT 0 NOT NULL,
    retries bigint DEFAULT 0 NOT NULL,
    seconds double precision DEFAULT 0 NOT NULL,
    wal_bytes bigint DEFAULT 0 NOT NULL,
    hot bigint DEFAULT 0 NOT NULL,
    proof jsonb
)
WITH (fillfactor='50');


--
-- Name: schema_version; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.schema_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: touched; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.touched (
    migration_id bigint NOT NULL,
    key text[] NOT NULL
);

ALTER TABLE ONLY zdm.touched REPLICA IDENTITY FULL;


--
-- Name: tuning; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.tuning (
    migration text NOT NULL,
    declared jsonb DEFAULT '{}'::jsonb NOT NULL,
    tuned jsonb DEFAULT '{}'::jsonb NOT NULL,
    changed_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);


--
-- Name: writer; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.writer (
    migration_id bigint NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    wrote text NOT NULL,
    failed text,
    application_name text NOT NULL,
    login text NOT NULL
);

ALTER TABLE ONLY zdm.writer REPLICA IDENTITY FULL;


--
-- Name: written; Type: TABLE; Schema: zdm; Owner: -
--

CREATE TABLE zdm.written (
    migration_id bigint NOT NULL,
    epoch bigint NOT NULL,
    bucket integer NOT NULL
);

ALTER TABLE ONLY zdm.written REPLICA IDENTITY FULL;


--
-- Data for Name: people; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.people VALUES (1, 'v1', 'note 1', 'v1');
INSERT INTO public.people VALUES (2, 'v2', 'note 2', 'v2');
INSERT INTO public.people VALUES (3, 'v3', 'note 3', 'v3');
INSERT INTO public.people VALUES (4, 'v4', 'note 4', 'v4');
INSERT INTO public.people VALUES (5, 'v5', 'note 5', 'v5');
INSERT INTO public.people VALUES (6, 'v6', 'note 6', 'v6');
INSERT INTO public.people VALUES (7, 'v7', 'note 7', 'v7');
INSERT INTO public.people VALUES (8, 'v8', 'note 8', 'v8');
INSERT INTO public.people VALUES (9, 'v9', 'note 9', 'v9');
INSERT INTO public.people VALUES (10, 'v10', 'note 10', 'v10');
INSERT INTO public.people VALUES (11, 'v11', 'note 11', 'v11');
INSERT INTO public.people VALUES (12, 'v12', 'note 12', 'v12');
INSERT INTO public.people VALUES (13, 'v13', 'note 13', 'v13');
INSERT INTO public.people VALUES (14, 'v14', 'note 14', 'v14');
INSERT INTO public.people VALUES (15, 'v15', 'note 15', 'v15');
INSERT INTO public.people VALUES (16, 'v16', 'note 16', 'v16');
INSERT INTO public.people VALUES (17, 'v17', 'note 17', 'v17');
INSERT INTO public.people VALUES (18, 'v18', 'note 18', 'v18');
INSERT INTO public.people VALUES (19, 'v19', 'note 19', 'v19');
INSERT INTO public.people VALUES (20, 'v20', 'note 20', 'v20');


--
-- Data for Name: check_result; Type: TABLE DATA; Schema: zdm; Owner: -
--

INSERT INTO zdm.check_result VALUES (1, 'parity', true, '20 rows agree', '2026-11-25 17:16:34.753337+00');
INSERT INTO zdm.check_result VALUES (1, 'backfill_complete', true, 'every range is done and no row is left', '2026-11-25 17:16:34.753779+00');
INSERT INTO zdm.check_result VALUES (1, 'constraints_valid', true, '8 steps in place', '2026-11-25 17:16:34.753994+00');


--
-- Data for Name: event; Type: TABLE DATA; Schema: zdm; Owner: -
--

INSERT INTO zdm.event OVERRIDING SYSTEM VALUE VALUES (1, 1, '2026-11-25 17:16:34.160113+00', 'postgres via zdm people_display_name expand', 'expanded', 'planned', 'expanded', '{}');
INSERT INTO zdm.event OVERRIDING SYSTEM VALUE VALUES (2, 1, '2026-11-25 17:16:34.456813+00', 'postgres via zdm people_display_name range 000001-from-start', 'backfill began', 'expanded', 'backfilling', '{}');
INSERT INTO zdm.event OVERRIDING SYSTEM VALUE VALUES (3, 1, '2026-11-25 17:16:34.536235+00', 'postgres via zdm people_display_name backfill', 'every range is moved', 'backfilling', 'backfilled', '{}');
INSERT INTO zdm.event OVERRIDING SYSTEM VALUE VALUES (4, 1, '2026-11-25 17:16:34.754735+00', 'postgres via zdm people_display_name validate', 'validated', 'backfilled', 'validated', '{"parity": "20 rows agree", "backfill_complete": "every range is done and no row is left", "constraints_valid": "8 steps in place"}');
INSERT INTO zdm.event OVERRIDING SYSTEM VALUE VALUES (5, 1, '2026-11-25 17:16:34.851253+00', 'postgres via zdm people_display_name switch reads', 'reads at 100 %', 'validated', 'switched', '{"to": 100, "from": 0}');
INSERT INTO zdm.event OVERRIDING SYSTEM VALUE VALUES (6, 1, '2026-11-25 17:16:35.063115+00', 'postgres via zdm people_display_name contract', 'old column out of sight', 'switched', 'tombstoned', '{}');


--
-- Data for Name: flag; Type: TABLE DATA; Schema: zdm; Owner: -
--

INSERT INTO zdm.flag VALUES ('read_people_display_name', 1, 100, false, '2026-11-25 17:16:34.848053+00');


--
-- Data for Name: heartbeat; Type: TABLE DATA; Schema: zdm; Owner: -
--



--
-- Data for Name: hold; Type: TABLE DATA; Schema: zdm; Owner: -
--



--
-- Data for Name: migration; Type: TABLE DATA; Schema: zdm; Owner: -
--

INSERT INTO zdm.migration OVERRIDING SYSTEM VALUE VALUES (1, 'people_display_name', 17850, 'public.people', '{"up": "coalesce(full_name, '''')", "new": {"name": "display_name", "type": "text", "default": "''nobody''", "nullable": false}, "old": "full_name", "down": "display_name", "kind": "replace_column", "table": "public.people"}', '{"key": [{"name": "id", "type": "bigint", "number": 1, "default": null, "identity": true, "not_null": true, "generated": false}], "oid": 17850, "rows": 20, "bytes": 8192, "table": {"name": "people", "schema": "public"}, "columns": [{"name": "id", "type": "bigint", "number": 1, "default": null, "identity": true, "not_null": true, "generated": false}, {"name": "full_name", "type": "text", "number": 2, "default": null, "identity": false, "not_null": false, "generated": false}, {"name": "note", "type": "text", "number": 3, "default": null, "identity": false, "not_null": false, "generated": false}], "rebuilds": [{"kind": "index", "name": "people_by_name_zdm", "original": "people_by_name", "deferrable": "", "definition": "btree (display_name)"}, {"kind": "check", "name": "display_name_is_short", "original": "full_name_is_short", "deferrable": "", "definition": "CHECK ((length(display_name) < 80))"}], "warnings": [], "immutable": true, "up_inputs": ["full_name"], "down_inputs": ["display_name"], "search_path": "\"$user\", public"}', 10, 'tombstoned', 7, '2026-11-25 17:16:35.062463+00', '2026-11-25 17:16:34.848853+00', '2026-11-25 17:16:35.062463+00', '2026-11-25 17:16:34.119209+00', 1795626994665878);


--
-- Data for Name: range; Type: TABLE DATA; Schema: zdm; Owner: -
--

INSERT INTO zdm.range VALUES (1, 1, '000001-from-start', NULL, '{11}', '{11}', '2026-11-25 17:16:34.479829+00', 10, 2, 0, 0.012069786999745702, 1594, 10, '{"rows": 10, "epoch": 1795626994665878, "marks": [["zzz_zdm_people_display_name_insert", "18086/960"], ["zzz_zdm_people_display_name_update", "18087/960"]], "batches": 2, "fingerprint": "0dfaa80802faeeba3abba1e03f06f7eefa90ea1129ff526de633f28a642a34ed", "through_down": 0}');
INSERT INTO zdm.range VALUES (1, 2, '000002-from-11', '{11}', NULL, '{16}', '2026-11-25 17:16:34.509525+00', 10, 2, 0, 0.03039816399996198, 1598, 10, '{"rows": 10, "epoch": 1795626994665878, "marks": [["zzz_zdm_people_display_name_insert", "18086/960"], ["zzz_zdm_people_display_name_update", "18087/960"]], "batches": 2, "fingerprint": "0dfaa80802faeeba3abba1e03f06f7eefa90ea1129ff526de633f28a642a34ed", "through_down": 0}');


--
-- Data for Name: schema_version; Type: TABLE DATA; Schema: zdm; Owner: -
--

INSERT INTO zdm.schema_version VALUES ('0003');


--
-- Data for Name: touched; Type: TABLE DATA; Schema: zdm; Owner: -
--



--
-- Data for Name: tuning; Type: TABLE DATA; Schema: zdm; Owner: -
--

INSERT INTO zdm.tuning VALUES ('people_display_name', '{"allowed": [], "backfill": {"passes": null, "max_runs": 1, "batch_rows": 5, "range_rows": 10, "batch_target": "250ms", "max_parallel": 2}, "throttle": {"sql": [], "http": [], "nice": 0.0, "max_wait": "10m", "wal_rate": null, "disk_used": null, "autovacuum": null, "lock_waits": null, "latency_p95": null, "heartbeat_lag": {"pause_above": "5s", "resume_below": "1s", "critical_above": null}, "slot_retention": null, "statements_p95": null, "active_sessions": null, "archive_backlog": null, "replication_lag": null, "waiting_sessions": null, "oldest_transaction": null, "replication_lag_bytes": null}}', '{}', '2026-11-25 17:16:34.3159+00');


--
-- Data for Name: writer; Type: TABLE DATA; Schema: zdm; Owner: -
--



--
-- Data for Name: written; Type: TABLE DATA; Schema: zdm; Owner: -
--



--
-- Name: people_id_seq; Type: SEQUENCE SET; Schema: public; Owner: -
--

SELECT pg_catalog.setval('public.people_id_seq', 20, true);


--
-- Name: event_id_seq; Type: SEQUENCE SET; Schema: zdm; Owner: -
--

SELECT pg_catalog.setval('zdm.event_id_seq', 6, true);


--
-- Name: migration_id_seq; Type: SEQUENCE SET; Schema: zdm; Owner: -
--

SELECT pg_catalog.setval('zdm.migration_id_seq', 1, true);


--
-- Name: people people_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.people
    ADD CONSTRAINT people_pkey PRIMARY KEY (id);


--
-- Name: check_result check_result_pkey; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.check_result
    ADD CONSTRAINT check_result_pkey PRIMARY KEY (migration_id, name);


--
-- Name: event event_pkey; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.event
    ADD CONSTRAINT event_pkey PRIMARY KEY (id);


--
-- Name: flag flag_pkey; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.flag
    ADD CONSTRAINT flag_pkey PRIMARY KEY (name);


--
-- Name: heartbeat heartbeat_pkey; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.heartbeat
    ADD CONSTRAINT heartbeat_pkey PRIMARY KEY (at);


--
-- Name: hold hold_pkey; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.hold
    ADD CONSTRAINT hold_pkey PRIMARY KEY (migration, owner);


--
-- Name: migration migration_name_key; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.migration
    ADD CONSTRAINT migration_name_key UNIQUE (name);


--
-- Name: migration migration_pkey; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.migration
    ADD CONSTRAINT migration_pkey PRIMARY KEY (id);


--
-- Name: range range_migration_id_partition_key; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.range
    ADD CONSTRAINT range_migration_id_partition_key UNIQUE (migration_id, partition);


--
-- Name: range range_pkey; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.range
    ADD CONSTRAINT range_pkey PRIMARY KEY (migration_id, ordinal);


--
-- Name: schema_version schema_version_pkc; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.schema_version
    ADD CONSTRAINT schema_version_pkc PRIMARY KEY (version_num);


--
-- Name: tuning tuning_pkey; Type: CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.tuning
    ADD CONSTRAINT tuning_pkey PRIMARY KEY (migration);


--
-- Name: people_by_name; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX people_by_name ON public.people USING btree (zdm_tombstone_full_name);


--
-- Name: people_by_name_zdm; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX people_by_name_zdm ON public.people USING btree (display_name);


--
-- Name: event_by_migration; Type: INDEX; Schema: zdm; Owner: -
--

CREATE INDEX event_by_migration ON zdm.event USING btree (migration_id, id);


--
-- Name: migration_one_active_per_table; Type: INDEX; Schema: zdm; Owner: -
--

CREATE UNIQUE INDEX migration_one_active_per_table ON zdm.migration USING btree (table_oid) WHERE (state <> ALL (ARRAY['planned'::text, 'contracted'::text, 'rolled_back'::text]));


--
-- Name: writer_latest_new; Type: INDEX; Schema: zdm; Owner: -
--

CREATE INDEX writer_latest_new ON zdm.writer USING btree (migration_id, at) WHERE (wrote = ANY (ARRAY['new'::text, 'both'::text]));


--
-- Name: writer_latest_old; Type: INDEX; Schema: zdm; Owner: -
--

CREATE INDEX writer_latest_old ON zdm.writer USING btree (migration_id, at) WHERE (wrote = ANY (ARRAY['old'::text, 'both'::text]));


--
-- Name: written_migration_id_epoch_bucket_idx; Type: INDEX; Schema: zdm; Owner: -
--

CREATE INDEX written_migration_id_epoch_bucket_idx ON zdm.written USING btree (migration_id, epoch, bucket);


--
-- Name: people zzz_zdm_people_display_name_insert; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER zzz_zdm_people_display_name_insert BEFORE INSERT ON public.people FOR EACH ROW WHEN ((COALESCE(current_setting('zdm.backfill'::text, true), ''::text) = ''::text)) EXECUTE FUNCTION zdm.sync_people_display_name();

ALTER TABLE public.people ENABLE ALWAYS TRIGGER zzz_zdm_people_display_name_insert;


--
-- Name: people zzz_zdm_people_display_name_update; Type: TRIGGER; Schema: public; Owner: -
--

CREATE TRIGGER zzz_zdm_people_display_name_update BEFORE UPDATE ON public.people FOR EACH ROW WHEN (((COALESCE(current_setting('zdm.backfill'::text, true), ''::text) = ''::text) AND record_image_ne(ROW(new.zdm_tombstone_full_name, new.display_name, new.id), ROW(old.zdm_tombstone_full_name, old.display_name, old.id)))) EXECUTE FUNCTION zdm.sync_people_display_name();

ALTER TABLE public.people ENABLE ALWAYS TRIGGER zzz_zdm_people_display_name_update;


--
-- Name: event event_append_only; Type: TRIGGER; Schema: zdm; Owner: -
--

CREATE TRIGGER event_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON zdm.event FOR EACH STATEMENT EXECUTE FUNCTION zdm.refuse_change();


--
-- Name: check_result check_result_migration_id_fkey; Type: FK CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.check_result
    ADD CONSTRAINT check_result_migration_id_fkey FOREIGN KEY (migration_id) REFERENCES zdm.migration(id) ON DELETE CASCADE;


--
-- Name: flag flag_migration_id_fkey; Type: FK CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.flag
    ADD CONSTRAINT flag_migration_id_fkey FOREIGN KEY (migration_id) REFERENCES zdm.migration(id);


--
-- Name: range range_migration_id_fkey; Type: FK CONSTRAINT; Schema: zdm; Owner: -
--

ALTER TABLE ONLY zdm.range
    ADD CONSTRAINT range_migration_id_fkey FOREIGN KEY (migration_id) REFERENCES zdm.migration(id) ON DELETE CASCADE;


--
-- Name: SCHEMA zdm; Type: ACL; Schema: -; Owner: -
--

GRANT USAGE ON SCHEMA zdm TO PUBLIC;


--
-- Name: FUNCTION sync_people_display_name(); Type: ACL; Schema: zdm; Owner: -
--

REVOKE ALL ON FUNCTION zdm.sync_people_display_name() FROM PUBLIC;


--
-- Name: TABLE flag; Type: ACL; Schema: zdm; Owner: -
--

GRANT SELECT ON TABLE zdm.flag TO PUBLIC;


--
-- PostgreSQL database dump complete
--
