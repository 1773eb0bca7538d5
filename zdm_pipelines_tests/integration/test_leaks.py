"""Leaks: no password, no value of a row, and no statement out of a name, whatever is written, raised or called so."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from zdm_pipelines.cli import show
from zdm_pipelines.components import metadata
from zdm_pipelines.components.failures import readable
from zdm_pipelines.dialects.postgres.urls import unquoted, where
from zdm_pipelines.model.errors import DatabaseUnreachable, MappingFailed, ZdmError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase
from zdm_pipelines.model.values import Step
from zdm_pipelines.sandbox.postgres import Server
from zdm_pipelines.verbs import plan
from zdm_pipelines.verbs.failures import as_shown
from zdm_pipelines_tests.helpers import (
    backfilled,
    contracted,
    expanded,
    one,
    people,
    replaced,
    sql,
    validated,
    work,
)
from zdm_pipelines_tests.integration.conftest import Say

# -- passwords --------------------------------------------------------------------------------------------------------

SECRET = "hunter2"
AT = "127.0.0.1:1"
MISWRITTEN = (
    # Characters that are not meant as they stand.
    f"postgresql://app:12/{SECRET}@{AT}/db",
    f"postgresql://app:/{SECRET}@{AT}/db",
    f"postgresql://app:p@{SECRET}@{AT}/db",
    f"postgresql://app:p@/{SECRET}@{AT}/db",
    f"postgresql://app:{SECRET}%@{AT}/db",
    f"postgresql://app:p#{SECRET}@{AT}/db",
    f"postgresql://app:p?{SECRET}@{AT}/db",
    f"postgresql://app:p/{SECRET}?@{AT}/db",
    f"postgresql://app:[{SECRET}@{AT}/db",
    f"postgresql://app:p\n{SECRET}@{AT}/db",
    f"postgresql://app:{SECRET}\udcff@{AT}/db",
    f"postgresql://app%3A{SECRET}@{AT}/db",
    f"postgresql://app%3A{SECRET}%40{AT}/db",
    # Something is forgotten or stands elsewhere.
    f"postgresql://app:12/{SECRET}",
    f"postgresql://app:{SECRET}/db",
    f"postgresql://app@127.0.0.1:{SECRET}/db",
    f"postgresql://{SECRET}@{AT}/db",
    f"app:{SECRET}@{AT}/db",
    f'"postgresql://app:{SECRET}@{AT}/db"',
    SECRET,
    f"mysql://app:{SECRET}@{AT}/db",
    f"jdbc:postgresql://{AT}/db?user=app&password={SECRET}",
    f"postgresql+psycopg://app:{SECRET}@{AT}/db",
    f"postgresql://app:{SECRET}@{'a' * 80}.invalid/db",
    # Among the options.
    f"postgresql://{AT}/db?passwrd={SECRET}",
    f"postgresql://{AT}/db?user=app&password=p&{SECRET}",
    f"postgresql://app@{AT}/db?sslmode=require?password={SECRET}",
    f"postgresql://app@{AT}/db?sslmode=verify-ca&sslrootcert=/none?password={SECRET}",
    f"postgresql://app@{AT}/db?target_session_attrs={SECRET}",
    f"postgresql://app@{AT}/db?keepalives={SECRET}",
    f"postgresql://app@{AT}/db?require_auth={SECRET}",
    f"postgresql://app@{AT}/db?hostaddr={SECRET}",
    f"postgresql://app@{AT}/db?service={SECRET}",
    f"postgresql://app:12/{SECRET}?user=@{AT}/db",
    # As libpq has it in words.
    f"host=127.0.0.1 port=1 password=p {SECRET}",
    f"host=127.0.0.1 port=1 password=p {SECRET}=p",
    f"host=127.0.0.1 port={SECRET}",
    f"host=app:{SECRET}@127.0.0.1 port=1",
    f"dbname=postgresql://app:{SECRET}@{AT}/db host=127.0.0.1 port=1",
)


@pytest.mark.parametrize("url", MISWRITTEN)
def test_no_part_of_a_password_is_told(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(DatabaseUnreachable) as caught:
        plan.read(work(replaced(), url))
    assert SECRET not in str(caught.value) + caplog.text + where(url)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert caught.value.way_out


@pytest.mark.parametrize("options", ["-c {0}=1", "-c {0}", "-c statement_timeout=5 password={0}", "-c work_mem={0}"])
def test_what_the_server_says_of_options(database: str, options: str) -> None:
    """Some of it without quotes."""
    given = options.format(SECRET).replace(" ", "%20").replace("=", "%3D")
    with pytest.raises(DatabaseUnreachable) as caught:
        plan.read(work(replaced(), f"{database}?options={given}"))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("role “Ärger” fehlt", "role … fehlt"),
        ("Rolle „hunter2“ existiert nicht", "Rolle … existiert nicht"),
        ("le rôle « hunter2 » n'existe pas", "le rôle … n'existe pas"),
        ("the server's answer to 'hunter2' isn't one", "the server's answer to … isn't one"),
    ],
)
def test_quotes_of_every_language(said: str, left: str) -> None:
    assert unquoted(said) == left


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://app:pass%2Fword@db.internal:6432/shop", "db.internal:6432/shop"),
        ("postgresql://app@a,b/shop?target_session_attrs=read-write", "a,b:5432/shop"),
        ("postgresql://db.internal/shop?user=app&password=x", "db.internal:5432/shop"),
        ("postgresql:///shop?host=/run/postgresql", "/run/postgresql:5432/shop"),
        ("postgresql://app@[::1]:5433/shop", "::1:5433/shop"),
        ("host=db.internal port=5433 dbname=shop password='a b'", "db.internal:5433/shop"),
    ],
)
def test_where_a_well_written_url_leads_is_told(url: str, told: str) -> None:
    assert where(url) == told


@pytest.mark.parametrize("words", [("doctor",), ("status", "users_display_name"), ("run", "users_display_name"),
                                   ("plan", "users_display_name"), ("list",), ("pause", "users_display_name")])  # fmt: skip
def test_the_command(zdm: Say, defs: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    defs.write_text(defs.read_text().replace("  name: app\n", "  name: app\n  replicas: [ZDM_REPLICA]\n", 1))
    monkeypatch.setenv("ZDM_APP_URL", f"postgresql://app:12/{SECRET}@{AT}/db")
    monkeypatch.setenv("ZDM_REPLICA", f"postgresql://app:9999/{SECRET}@{AT}/db")
    monkeypatch.setenv("PGPASSWORD", SECRET)
    said = zdm(*words, status=0 if words == ("list",) else 1).output
    assert SECRET not in said


@pytest.mark.parametrize("line", [f"url_env: postgresql://app:{SECRET}@h/db", f"url: postgresql://app:{SECRET}@h/db",
                                  f"password: {SECRET}", f"replicas: ['postgresql://app:1/{SECRET}@h/db']",
                                  f"url_env: app:{SECRET}@h/db", f"dsn: host=h user=app password={SECRET}",
                                  f"url: postgresql://h/db?user=app&password={SECRET}"])  # fmt: skip
def test_a_url_that_stands_in_the_file(zdm: Say, defs: Path, line: str) -> None:
    defs.write_text(defs.read_text().replace("  name: app\n", f"  name: app\n  {line}\n", 1))
    said = zdm("list", status=2).output
    assert SECRET not in said
    assert line.partition(":")[0] in said


# -- what functions raise ---------------------------------------------------------------------------------------------

VALUE = "secret-iban-DE99"
# SQLSTATEs of the application's own and of the server's, which a function may raise as well.
STATES = ("ZX001", "P0001", "22999", "42501", "42P01", "40001", "40P01", "55P03", "57014", "57P01", "08006", "25006",
          "0A000", "53100", "54000", "XX000", "F0000", "HV000")  # fmt: skip
RAISES = """
CREATE FUNCTION public.strict_name(v text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
  IF v ~ '^secret' THEN RAISE EXCEPTION 'not a name: %', v USING ERRCODE = '{state}', DETAIL = v, HINT = v,
    COLUMN = v, CONSTRAINT = v, DATATYPE = v, TABLE = v, SCHEMA = v; END IF; RETURN v; END $$;
"""


def strict(**sections: Any) -> Migration:
    return replaced(up="public.strict_name(full_name)", down="display_name", **sections)


def shown(error: BaseException) -> str:
    """What is told of an error, in the command and in Dagster alike."""
    with pytest.raises(dg.Failure) as caught, readable():
        raise error
    told = str(caught.value.description)
    assert isinstance(error, ZdmError) or told == str(as_shown(error))  # type: ignore[arg-type]
    assert caught.value.__suppress_context__
    return told + str(caught.value.metadata)


@pytest.mark.parametrize("state", STATES)
def test_a_function_that_raises_in_a_batch(database: str, state: str) -> None:
    people(database, 50)
    sql(database, RAISES.format(state=state))
    sql(database, f"INSERT INTO people (id, full_name) VALUES (500, '{VALUE}')")
    m = strict()
    expanded(m, database)
    with pytest.raises(MappingFailed) as caught:
        backfilled(m, database)
    assert "the row with key 500" in str(caught.value)
    assert state in str(caught.value)
    assert VALUE not in shown(caught.value)
    sql(database, "UPDATE people SET full_name = 'v500' WHERE id = 500")
    backfilled(m, database)


@pytest.mark.parametrize("state", ["ZX001", "57014", "08006", "42P01"])
def test_a_function_that_raises_in_a_comparison(database: str, state: str) -> None:
    people(database, 50)
    sql(database, RAISES.format(state=state))
    m = strict()
    expanded(m, database)
    backfilled(m, database)
    sql(database, f"SET session_replication_role = replica; UPDATE people SET full_name = '{VALUE}', display_name = 'x' "
                  "WHERE id = 7; ALTER TABLE people DISABLE TRIGGER USER")  # fmt: skip
    sql(database, "ALTER TABLE people ENABLE TRIGGER USER")
    for (trigger,) in sql(database, "SELECT tgname FROM pg_trigger WHERE tgname LIKE 'zzz%%'"):
        sql(database, f"ALTER TABLE people ENABLE ALWAYS TRIGGER {trigger}")
    with pytest.raises(MappingFailed) as caught:
        validated(m, database)
    assert "the row with key 7" in str(caught.value)
    assert VALUE not in shown(caught.value)


@pytest.mark.parametrize("state", ["ZX001", "42501", "57014"])
@pytest.mark.parametrize("verb", ["INSERT OR UPDATE", "DELETE"])
def test_a_trigger_that_raises(database: str, verb: str, state: str) -> None:
    """In whatever kind of change: one that writes rows, and one that deletes them."""
    people(database, 50)
    row = "OLD" if verb == "DELETE" else "NEW"
    sql(database, f"UPDATE people SET full_name = '{VALUE}' WHERE id = 7")
    sql(database, f"CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {row}.full_name ~ '^secret' THEN "
                  f"RAISE EXCEPTION '%', {row}.full_name USING ERRCODE = '{state}'; END IF; RETURN {row}; END $$; "
                  f"CREATE TRIGGER judge BEFORE {verb} ON people FOR EACH ROW EXECUTE FUNCTION judge()")  # fmt: skip
    m = replaced()
    if verb == "DELETE":
        purge = {"kind": "purge_rows", "where": "id < 10"}
        m = Migration.model_validate(
            m.model_dump(mode="json", exclude_unset=True, exclude={"reads"}) | {"change": purge}
        )
    expanded(m, database)
    if verb == "DELETE":
        validated(m, database)
    move = backfilled if verb != "DELETE" else contracted
    with pytest.raises(MappingFailed) as caught:
        move(m, database)
    assert "the row with key 7" in str(caught.value)
    assert "trigger judge" in str(caught.value)
    assert VALUE not in shown(caught.value)


SAID_INSIDE = {
    # A statement that a function makes of a value, and one whose names are values.
    "EXECUTE 'SELECT ' || quote_literal('{0}') || '::int'": "22P02",
    "EXECUTE 'SELECT * FROM ' || quote_ident('{0}')": "42P01",
    "EXECUTE '{0} ('": "42601",
    "PERFORM current_setting('{0}.x')": "42704",
    "RAISE undefined_table USING MESSAGE = '{0}'": "42P01",
    "PERFORM ('{0}'::text)::int": "22P02",
    "PERFORM set_config('work_mem', '{0}', true)": "22023",
}


@pytest.mark.parametrize("statement", SAID_INSIDE)
def test_what_the_server_says_of_statements_inside_of_functions(database: str, statement: str) -> None:
    body = statement.format(VALUE)
    sql(database, f"CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN {body}; END $$")
    with psycopg.connect(database, autocommit=True) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(b"SELECT f()")
    assert VALUE in str(caught.value)
    assert VALUE not in shown(caught.value)
    assert SAID_INSIDE[statement] in shown(caught.value)


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("SELECT * FROM nowhere", 'relation "nowhere" does not exist'),
        ("SET statement_timeout = '10ms'; SELECT pg_sleep(5)", "canceling statement due to statement timeout"),
        ("SELECT 'x'::int", "InvalidTextRepresentation (SQLSTATE 22P02)"),
        ("INSERT INTO people (id) VALUES (1)", "UniqueViolation (SQLSTATE 23505)"),
    ],
)
def test_what_names_objects_only_is_told(database: str, statement: str, told: str) -> None:
    people(database, 1)
    with psycopg.connect(database, autocommit=True) as connection, pytest.raises(psycopg.Error) as caught:
        connection.execute(statement.encode())
    assert told in shown(caught.value)


# -- printed SQL ------------------------------------------------------------------------------------------------------

HOSTILE = (
    "x\nDROP TABLE public.victim; --",
    "x\r\nDROP TABLE public.victim; --",
    "x\n\\! touch pwned\n",
    "x */ DROP TABLE public.victim; /*",
    "x'; DROP TABLE public.victim; --",
    'x"; DROP TABLE public.victim; --',
    "x$$; DROP TABLE public.victim; --",
    "x$zdm$; DROP TABLE public.victim; --",
    "x\\'; DROP TABLE public.victim; --",
    "x\x1b[2J\x1b]0;title\x07",
    "x\\gexec",
)


def declared(hostile: str) -> tuple[str, Migration]:
    name = '"' + hostile.replace('"', '""') + '"'
    constraint = f"ALTER TABLE people ADD CONSTRAINT {name} UNIQUE (full_name)"
    return f"{constraint}; CREATE INDEX ON people (full_name) WHERE note <> '{hostile.replace(chr(39), chr(39) * 2)}'; "\
           f"COMMENT ON COLUMN people.full_name IS '{hostile.replace(chr(39), chr(39) * 2)}'", replaced(up="full_name", down="display_name")  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("literals", ["on", "off"])
def test_printed_sql_is_safe_to_pipe(server: Server, database: str, hostile: str, literals: str) -> None:
    people(database, 20)
    named, m = declared(hostile)
    sql(database, f"CREATE TABLE public.victim (id int); {named}")
    sql(database, f"ALTER DATABASE {database.rpartition('/')[2]} SET standard_conforming_strings = {literals}")
    found = plan.read(work(m, database))
    printed = show.plain_sql(found.phases)
    psql = subprocess.run(
        [server.binary("psql"), "-X", database],
        input=printed,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=server.data.parent,
    )
    assert one(database, "SELECT to_regclass('public.victim') IS NOT NULL"), psql.stderr
    assert not (server.data.parent / "pwned").exists()
    # Nothing is taken away behind batches that nobody ran.
    assert one(database, "SELECT count(full_name) FROM people") == 20
    comments = [line for line in printed.splitlines() if line.startswith("-- ")]
    assert all(line.isprintable() for line in comments)


def test_a_statement_that_ends_in_a_comment_is_ended() -> None:
    step = Step(name="a\nb", sql="SELECT 1 -- one", reason="", lock="")
    assert show.plain_sql({Phase.EXPAND: [step]}).splitlines()[2:] == ["-- expand: a�b", "SELECT 1 -- one", ";", ""][:3]


def test_statements_stay_between_their_fences() -> None:
    step = Step(name="a", sql='SELECT "```\n<b>````"', reason="", lock="", undo="```")
    text = str(metadata.statements({Phase.EXPAND: [step]}).value)
    assert text.count("`````") == 2
    assert text.endswith("````sql\n```\n````")


def test_a_terminal_obeys_no_name(zdm: Say, database_of: str) -> None:
    sql(database_of, f'CREATE INDEX "{HOSTILE[-2]}" ON users (full_name)')
    said = zdm("plan", "users_display_name").output
    assert "\x1b" not in said
    assert "�[2J" in said
