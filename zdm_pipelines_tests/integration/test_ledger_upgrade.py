"""Upgrade: a migration that the version before began, in each state, goes on and ends with this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.ledger import declarations
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import switch_reads
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import rollback
from zdm_pipelines_tests.helpers import backfilled, dump, expanded, one, replaced, sql, state, walk, work

_DUMPS = Path(__file__).parent / "ledgers"
M = replaced(
    new={"name": "display_name", "type": "text", "nullable": False, "default": "'nobody'"},
    up="coalesce(full_name, '')",
    down="display_name",
    backfill={"range_rows": 10, "batch_rows": 5},
)
STATES = (State.PLANNED, *M.lifecycle.states, State.ROLLED_BACK)
NOTE = {"name": "remark", "type": "text"}
OTHER = replaced(name="people_note", old="note", new=NOTE, up="note", down="remark")


def restored(url: str, where: State) -> str:
    """A database as it was left by version 0003; see ledgers/make_dumps.py."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute((_DUMPS / f"{where}.sql").read_text(encoding="utf-8"))
    if where != State.PLANNED:
        # An upgrade in place keeps the tables' oids; a restored dump gives new ones.
        sql(
            url,
            "UPDATE zdm.migration SET table_oid = 'public.people'::regclass, "
            "catalog = jsonb_set(catalog, '{oid}', to_jsonb('public.people'::regclass::oid::bigint))",
        )
        assert one(url, "SELECT version_num FROM zdm.schema_version") == "0003"
    return url


@pytest.fixture
def plain(server: Server) -> Iterator[str]:
    """A database like the others, in which nothing was begun."""
    yield restored(server.create_database("plain"), State.PLANNED)
    server.drop_database("plain")


def as_found(url: str) -> None:
    """Whatever runs first upgrades the ledger, if anything does."""


def upgraded(url: str) -> None:
    """The ledger is upgraded before anything runs, as by another migration of the same database."""
    ledger.ensure(server_at(url))


def test_there_is_a_dump_for_each_state() -> None:
    assert {file.stem for file in _DUMPS.glob("*.sql")} == {str(s) for s in STATES}


@pytest.mark.parametrize("first", [as_found, upgraded])
@pytest.mark.parametrize("where", STATES)
def test_a_migration_of_the_version_before_ends(database: str, where: State, first: Callable[[str], None]) -> None:
    url = restored(database, where)
    first(url)
    assert state(M, url) == where
    if where == State.BACKFILLING:
        backfilled(M, url)
    if where == State.SWITCHING:
        switch_reads.run(work(M, url))
    walk(M, url, State.CONTRACTED)
    assert one(url, "SELECT count(*) FROM people WHERE display_name LIKE 'v%'") == 20
    expanded(OTHER, url)
    assert one(url, "SELECT count(*) FROM zdm.claim") == 1
    assert one(url, "SELECT version_num FROM zdm.schema_version") == "0005"


@pytest.mark.parametrize("first", [as_found, upgraded])
@pytest.mark.parametrize("where", [s for s in STATES if M.lifecycle.can_go_back(s)])
def test_a_migration_of_the_version_before_is_rolled_back(
    server: Server, plain: str, database: str, where: State, first: Callable[[str], None]
) -> None:
    url = restored(database, where)
    first(url)
    rollback.run(work(M, url), to=State.ROLLED_BACK, force=True)
    assert dump(server, url) == dump(server, plain)
    expanded(OTHER, url)
    assert sql(url, "SELECT m.name FROM zdm.claim c JOIN zdm.migration m ON m.id = c.migration_id") == [(OTHER.name,)]


@pytest.mark.parametrize("where", STATES)
def test_an_upgrade_claims_what_is_held(database: str, where: State) -> None:
    url = restored(database, where)
    upgraded(url)
    held = [(M.name, "public.people")] if M.lifecycle.active(where) else []
    assert sql(url, "SELECT m.name, c.name FROM zdm.claim c JOIN zdm.migration m ON m.id = c.migration_id") == held
    with connected(url, purpose="test") as conn:
        relation = int(one(url, "SELECT 'public.people'::regclass::oid::bigint"))
        assert [c.migration for c in ledger.claimed_by(conn, [relation])] == [name for name, _ in held]
        entry = ledger.find(conn, M.name)
        if entry is not None:
            assert entry.facts["up_inputs"] == ["full_name"]  # they stood beside the table's
            assert declarations.differences(entry.change, M) == []
            assert entry.lifecycle == M.lifecycle
