"""Environment: what `up` and `down` give does not hang on whose session evaluates them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.errors import PreflightError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Statement
from zdm_pipelines.phases.beginning import bound
from zdm_pipelines.sandbox.postgres import Server
from zdm_pipelines.verbs import plan, rollback
from zdm_pipelines_tests.helpers import (
    backfilled,
    expanded,
    one,
    people,
    replaced,
    sql,
    surveyed,
    validated,
    walk,
    work,
)
from zdm_pipelines_tests.kinds.extraction import Extraction

# Every setting that changes how a value is printed, parsed or compared, with another value than a session has.
ALTERED = {
    "DateStyle": "German, DMY",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Tokyo",
    "array_nulls": "off",
    "backslash_quote": "off",
    "bytea_output": "escape",
    "client_encoding": "LATIN1",
    "default_text_search_config": "simple",
    "escape_string_warning": "on",
    "extra_float_digits": "-5",
    "lc_monetary": "C",
    "lc_numeric": "C",
    "lc_time": "C",
    "quote_all_identifiers": "on",
    "search_path": "other",
    "standard_conforming_strings": "off",
    "timezone_abbreviations": "India",
    "transform_null_equals": "on",
    "xmlbinary": "hex",  # this and the next one are set alike; the server of the tests is built without XML
    "xmloption": "document",
}
# Settings of the same categories that are left out, and why.
LEFT_OUT = {
    "check_function_bodies": "functions are made by our sessions, which set it",
    "client_min_messages": "what is told on the side",
    "createrole_self_grant": "makes roles",
    "default_table_access_method": "where rows lie",
    "default_tablespace": "where rows lie",
    "default_toast_compression": "how rows lie",
    "default_transaction_deferrable": "when a transaction begins",
    "default_transaction_isolation": "which rows are seen, and not what they are; our sessions set it",
    "default_transaction_read_only": "whether rows are written",
    "dynamic_library_path": "where code lies",
    "event_triggers": "definitions, and not rows",
    "extension_control_path": "where code lies",
    "gin_fuzzy_search_limit": "takes a random part of what an index finds: nothing makes that one answer",
    "gin_pending_list_limit": "how an index is kept",
    "icu_validation_level": "what is told when a collation is made",
    "idle_in_transaction_session_timeout": "how long a session lasts",
    "idle_session_timeout": "how long a session lasts",
    "lc_messages": "the language of errors, which are no values",
    "lo_compat_privileges": "rights",
    "local_preload_libraries": "loads code",
    "lock_timeout": "how long a session waits",
    "restrict_nonsystem_relation_kind": "which relations may be read, and not what is in them",
    "row_security": "which rows are seen: tables that hide rows from us are refused",
    "session_preload_libraries": "loads code",
    "session_replication_role": "which triggers fire: ours do always",
    "statement_timeout": "how long a statement takes",
    "synchronize_seqscans": "the order of rows, which nothing here hangs on",
    "temp_tablespaces": "where rows lie",
    "transaction_deferrable": "when a transaction begins",
    "transaction_isolation": "which rows are seen, and not what they are",
    "transaction_read_only": "whether rows are written",
    "transaction_timeout": "how long a transaction lasts",
}
# Categories without a setting that says what a value is: they say how fast, how safely and where things are done.
CATEGORIES = (
    "Autovacuum", "Connections and Authentication", "Customized Options", "Developer Options", "Error Handling",
    "File Locations", "Lock Management", "Preset Options", "Query Tuning", "Replication", "Reporting and Logging",
    "Resource Usage", "Statistics", "Vacuuming", "Write-Ahead Log",
)  # fmt: skip

ROWS = """
CREATE SCHEMA other;
CREATE FUNCTION public.tell(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT ''public ''::text || $1';
CREATE FUNCTION other.tell(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT ''other ''::text || $1';
-- Called immutable, though it is not.
CREATE FUNCTION public.stamp(timestamptz) RETURNS text IMMUTABLE LANGUAGE plpgsql
  AS $$ BEGIN RETURN $1::text || to_char($1, ' TMMonth') || '01/02/2025'::date; END $$;
CREATE TABLE public.readings (id bigint PRIMARY KEY, score float8 DEFAULT 1 / 3.0, raw bytea DEFAULT '\\x00ff5c',
  at timestamptz DEFAULT '2025-03-04 12:00Z', took interval DEFAULT '1 day 02:03', price money DEFAULT '1234.5',
  amount numeric DEFAULT 1234.5, word text DEFAULT 'The "Rats"');
"""
# What only settings of printing matter to: the sync function sets no others for it.
PLAIN = {
    "old": "score",
    "up": "coalesce(score::text || raw::text, '')",
    "down": "length(shown)::float8",
    "type": "text",
}
EVERYTHING = {
    "old": "word",
    "type": "text[]",
    "down": "shown[1]",
    "up": r"""ARRAY[word, tell(word), score::text, raw::text, at::text, took::text, price::text, to_jsonb(at)::text, stamp(at),
      to_char(amount, 'L9G999D99'), to_char(at, 'TMDay'), to_tsvector(word)::text, quote_ident('lower'),
      ('{NULL,a}'::text[])[1], 'a\b', E'\'',
      (word = NULL)::text, '01/02/2025'::date::text, format('%I', word),
      ('2025-01-01 12:00 IST'::timestamptz AT TIME ZONE 'UTC')::text]""",
}


def declared(what: dict[str, str]) -> Migration:
    """A migration of readings."""
    new = {"name": "shown", "type": what["type"], "nullable": False, "default": "'{}'"}
    return replaced(table="public.readings", old=what["old"], new=new, up=what["up"], down=what["down"])


class Readings:
    """One migration of readings, begun; who writes and who compares is another session each time."""

    def __init__(self, url: str, what: dict[str, str]) -> None:
        self.url, self.what, self.m = url, what, declared(what)
        sql(url, ROWS)
        expanded(self.m, url)
        with self.session() as (session, change):
            assert change.parity is not None
            given = (
                f"SELECT {what['up']} AS shown FROM (SELECT (r).* FROM (SELECT readings AS r FROM readings) s) readings"
            )
            sql(url, "INSERT INTO readings (id) VALUES (0)")
            self.expected = session.run(Statement(given))[0][0]

    def session(self, **options: str) -> Any:
        """A session of ours as a phase has it, and the change; beside it what another machine or role brings along."""

        @contextmanager
        def opened() -> Iterator[tuple[Session, Change]]:
            told = " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in options.items())
            context = work(self.m, f"{self.url}?options={quote(told)}" if told else self.url)
            with context.looking("test") as session:
                entry = ledger.find(session, self.m.name)
                assert entry is not None
                session.rows.prepare(entry.catalog)
                yield session, bound(context, entry)

        return opened()

    def shown(self) -> set[Any]:
        """What the new column holds."""
        return {str(shown) for (shown,) in sql(self.url, "SELECT DISTINCT shown FROM readings")}


@pytest.mark.parametrize("what", [EVERYTHING, PLAIN], ids=["everything", "plain"])
def test_every_setting_in_client_trigger_batch_and_parity(database: str, what: dict[str, str]) -> None:
    table = Readings(database, what)
    for number, (name, value) in enumerate(ALTERED.items(), 1):
        with psycopg.connect(database, autocommit=True) as client:
            client.execute("SELECT set_config(%s, %s, false)", [name, value])
            # Through the trigger, by an insert and by an update of old code.
            client.execute("INSERT INTO public.readings (id) VALUES (%s)", [number])
            client.execute("INSERT INTO public.readings (id) VALUES (%s)", [number + 100])
            client.execute(f"UPDATE public.readings SET {what['old']} = NULL WHERE id = %s", [number + 100])
            client.execute(f"UPDATE public.readings SET {what['old']} = DEFAULT WHERE id = %s", [number + 100])
            # A row that waits for a batch.
            client.execute("SELECT set_config('zdm.backfill', 'on', false)")
            client.execute("INSERT INTO public.readings (id) VALUES (%s)", [number + 200])
        with table.session(**{name: value}) as (session, change):
            assert change.rows is not None
            assert change.parity is not None
            session.rows.write(change.rows.batch(None, None), wait=1.0)
            rows, missing, extra, different, through_down, unmoved = session.run(change.parity.compare(None, None))[0]
            assert (rows, missing, extra, different, through_down, unmoved) == (1 + 3 * number, 0, 0, 0, 0, 0), name
        assert table.shown() == {str(table.expected)}, name


def test_no_setting_is_forgotten(server: Server) -> None:
    found = sql(server.url(), "SELECT name, category FROM pg_settings WHERE context IN ('user', 'superuser')")
    named = {name for name, category in found if not category.startswith(CATEGORIES)}
    assert named - {*ALTERED, *LEFT_OUT} == set()
    assert {*ALTERED, *LEFT_OUT} <= {name for name, _ in found}


# -- whose machine, whose role ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given", [{"PGTZ": "America/New_York"}, {"PGDATESTYLE": "German, DMY"}, {"PGOPTIONS": "-c bytea_output=escape -c timezone=Japan"}]
)  # fmt: skip
def test_the_machine_of_a_worker_has_no_say(
    database: str, monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    sql(database, ROWS)
    expected = surveyed(declared(PLAIN), database).environment
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert surveyed(declared(PLAIN), database).environment == expected
    assert expected["DateStyle"] == "ISO, MDY"


def test_a_database_that_is_given_another_time_zone_meanwhile(database: str) -> None:
    people(database, 20)
    sql(database, "ALTER TABLE people ADD seen timestamptz DEFAULT '2025-06-01 12:00Z'")
    m = replaced(
        old="seen",
        new={"name": "seen_at", "type": "timestamp", "default": "NULL"},
        up="seen::timestamp",
        down="seen_at AT TIME ZONE 'UTC'",
        backfill={"range_rows": 10},
    )
    expanded(m, database)
    sql(database, "UPDATE people SET seen = seen + interval '1 s' WHERE id <= 10")
    name = database.rpartition("/")[2]
    sql(
        database, f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'; ALTER DATABASE {name} SET datestyle = 'SQL, DMY'"
    )
    backfilled(m, database)
    report = validated(m, database)
    assert report.facts["agree_through_down_only"] == 0
    assert sql(database, "SELECT DISTINCT seen_at - (seen AT TIME ZONE 'UTC') FROM people") == [(timedelta(0),)]
    # Who brings the new column back out of a rolled back attempt begins anew: the environment is today's then.
    rollback.run(work(m, database), to=State.ROLLED_BACK, force=True)
    assert surveyed(m, database).environment["TimeZone"] == "Asia/Tokyo"


def test_rows_that_an_earlier_version_computed_elsewhere_are_told(database: str) -> None:
    table = Readings(database, PLAIN)
    sql(database, "UPDATE zdm.migration SET catalog = catalog - 'environment' || '{\"time_zone\": \"Japan\"}'")
    found = plan.read(work(table.m, database))
    assert found.catalog.environment == {"search_path": '"$user", public', "TimeZone": "Japan"}
    assert "earlier version" in found.warnings[-1]
    sql(database, "SELECT set_config('zdm.backfill', 'on', false); UPDATE readings SET shown = 'x', score = 1")
    backfilled(table.m, database)
    (check, _) = validated(table.m, database).checks[:2]
    assert check.summary == "1 rows agree, 1 of them through down only"


@pytest.mark.parametrize(
    "up", ["full_name || current_user", "full_name || session_user", "full_name || current_setting('TimeZone')",
           "full_name || pg_backend_pid()", "full_name || current_schema"],
)  # fmt: skip
def test_who_asks_is_no_part_of_a_row(database: str, up: str) -> None:
    people(database, 3)
    with pytest.raises(PreflightError, match=r"another session answers otherwise; compute up from the row"):
        expanded(replaced(up=up, down="display_name"), database)
    walk(replaced(), database, State.EXPANDED)  # as the message says


# -- search paths -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["''", "nowhere", "pg_catalog", '"$user", public', '"odd, ""name", public'])
def test_any_search_path(database: str, path: str) -> None:
    people(database, 3)
    sql(database, 'CREATE SCHEMA "odd, ""name"')
    sql(database, f"ALTER DATABASE {database.rpartition('/')[2]} SET search_path = {path}")
    m = replaced()
    walk(m, database, State.CONTRACTED)
    assert sql(database, "SELECT display_name FROM public.people ORDER BY id") == [("n:v1",), ("n:v2",), ("n:v3",)]


def test_a_plan_says_what_expressions_see(database: str) -> None:
    people(database, 3)
    path = f"ALTER DATABASE {database.rpartition('/')[2]} SET search_path = nowhere, public"
    sql(database, path)
    environment = plan.read(work(replaced(), database)).catalog.environment
    assert list(environment.items())[:3] == [
        ("search_path", "public"),
        ("TimeZone", environment["TimeZone"]),
        ("DateStyle", "ISO, MDY"),
    ]


# -- a table that is extracted ----------------------------------------------------------------------------------------

EXTRACTED: dict[str, Any] = {
    "kind": "extract_table",
    "old": ["score", "raw", "at"],
    "new": {
        "table": "public.shown",
        "key": {"reading_id": "id"},
        "columns": {
            "score": {"type": "text", "up": "score::text"},
            "raw": {"type": "text", "up": "raw::text || E'\\''"},
            "at": {"type": "text", "up": "stamp(at)"},
        },
    },
    "down": {
        "score": "score::float8",
        "raw": "left(raw, -1)::bytea",
        "at": 'left("at", 22)::timestamptz',
    },
}

OTHERS = (
    "UPDATE public.readings SET score = 2 / 3.0, raw = decode('00ff5d', 'hex'), at = to_timestamp(1e9) WHERE id = %s"
)


def test_an_extracted_table_is_the_same_whoever_writes(database: str) -> None:
    sql(database, ROWS)
    table = Extraction(database, EXTRACTED, table="public.readings").expand()
    for number, (name, value) in enumerate(ALTERED.items(), 1):
        with psycopg.connect(database, autocommit=True) as client:
            client.execute("SELECT set_config(%s, %s, false)", [name, value])
            client.execute("INSERT INTO public.readings (id) VALUES (%s)", [number])
            client.execute(OTHERS, [number])
    assert sql(database, "SELECT DISTINCT failed FROM zdm.writer") == [(None,)]
    assert one(database, "SELECT count(DISTINCT (score, raw, at)) FROM shown") == 1
    with server_at(database).connect(purpose="test") as session:
        session.rows.prepare(table.surveyed.catalog)
        assert table.change.parity is not None
        assert session.run(table.change.parity.compare(None, None))[0] == (len(ALTERED), 0, 0, 0, 0, 0)
