"""Subscribers: whoever receives a table by logical replication does not stop unless people were told and said yes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import psycopg
import pytest

from zdm_pipelines.model.errors import GateRefused, PreflightError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import contract, expand
from zdm_pipelines.phases.beginning import look
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests import in_memory
from zdm_pipelines_tests.helpers import eventually, one, people, replaced, sql, surveyed, walk, work

READY = {
    "confidence_window": "0s",
    "tombstone_window": "0s",
    "straggler_window": "0s",
    "unaffected": ["publication feed"],
}
PLAIN: dict[str, Any] = {"up": "full_name", "down": "display_name"}
EXTRACT = {
    "kind": "extract_table",
    "old": "profile",
    "new": {"table": "public.settings", "key": {"user_id": "id"}, "columns": {"theme": {"type": "text", "up": "profile->>'theme'"}}},
    "down": "jsonb_build_object('theme', theme)",
}  # fmt: skip
_numbers = count(1)


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server from which changes can be received."""
    cluster = Cluster(
        in_memory.folder(tmp_path_factory.mktemp("publisher")),
        replica=False,
        settings={"wal_level": "logical", "fsync": "off"},
    )
    try:
        cluster.start()
        yield cluster.primary
    finally:
        cluster.remove()


@pytest.fixture
def url(publisher: Server) -> str:
    made = publisher.create_database(f"publisher_{next(_numbers)}")
    people(made, 50)
    return made


@contextmanager
def waited_for(url: str) -> Iterator[None]:
    """Somebody waits for changes of the database."""
    slot = f"slot_{next(_numbers)}"
    sql(url, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    try:
        yield
    finally:
        sql(url, "SELECT pg_drop_replication_slot(%s)", slot)


@contextmanager
def subscribed(url: str, table: str) -> Iterator[str]:
    """The URL of a database that receives what `feed` sends."""
    name, slot = f"subscriber_{next(_numbers)}", f"slot_{next(_numbers)}"
    sql(url, f"CREATE DATABASE {name}")
    there = f"{url.rpartition('/')[0]}/{name}"
    sql(url, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    sql(there, table)
    sql(
        there,
        f"CREATE SUBSCRIPTION s CONNECTION '{url}' PUBLICATION feed WITH (create_slot = false, slot_name = {slot})",
    )
    try:
        eventually(lambda: one(there, "SELECT count(*) FROM people") == 50)
        yield there
    finally:
        sql(there, "ALTER SUBSCRIPTION s DISABLE")
        sql(there, "ALTER SUBSCRIPTION s SET (slot_name = NONE)")
        sql(there, "DROP SUBSCRIPTION s")
        with psycopg.connect(url, autocommit=True) as c:  # once its walsender is gone
            eventually(
                lambda: (
                    not c.execute("SELECT active FROM pg_replication_slots WHERE slot_name = %s", [slot]).fetchall()[0][
                        0
                    ]
                )
            )
            c.execute("SELECT pg_drop_replication_slot(%s)", [slot])


def looked(m: Migration, url: str) -> None:
    """What every first phase asks before anything is changed."""
    with work(m, url).looking("plan") as session:
        look(session, work(m, url))


TABLE = "CREATE TABLE people (id bigint PRIMARY KEY, full_name text, note text)"


def test_a_list_of_columns_keeps_subscribers_going(url: str) -> None:
    m = replaced(**PLAIN)
    sql(url, "CREATE PUBLICATION feed FOR TABLE people WHERE (id > 0)")
    with subscribed(url, TABLE) as there:
        with pytest.raises(PreflightError, match='without column "display_name" stops') as refused:
            expand.run(work(m, url))
        assert one(url, "SELECT to_regnamespace('zdm')") is None
        (statements,) = re.findall(r"columns only: (BEGIN; .*?; COMMIT)", str(refused.value))
        sql(url, statements)
        walk(m, url, State.VALIDATED)
        sql(url, "UPDATE people SET note = 'after' WHERE id = 1")
        eventually(lambda: one(there, "SELECT note FROM people WHERE id = 1") == "after")


def test_a_subscriber_that_was_prepared_goes_on_to_the_end(url: str) -> None:
    m = replaced(**PLAIN, contract=READY)
    sql(url, "CREATE PUBLICATION feed FOR TABLE people")
    with subscribed(url, TABLE) as there:
        with pytest.raises(PreflightError) as refused:
            expand.run(work(replaced(**PLAIN), url))
        (statement,) = re.findall(r"run there first: (.*?); then list it", str(refused.value))
        sql(there, statement)
        walk(m, url, State.SWITCHED)
        with pytest.raises(GateRefused, match="publication feed sends full_name with whole rows"):
            contract.run(work(replaced(**PLAIN), url))
        sql(there, "ALTER TABLE people ADD zdm_tombstone_full_name text")
        walk(m, url, State.CONTRACTED)
        sql(url, "UPDATE people SET display_name = 'after' WHERE id = 1")
        eventually(lambda: one(there, "SELECT display_name FROM people WHERE id = 1") == "after")


ALL = "CREATE PUBLICATION feed FOR ALL TABLES"
LEDGER = "publication feed: sends tables of the ledger, too"


@pytest.mark.parametrize(
    ("publication", "change", "facts"),
    [
        (ALL, None, ['without column "display_name"', LEDGER]),
        ("CREATE PUBLICATION feed FOR TABLES IN SCHEMA public", None, ['without column "display_name"']),
        ("CREATE PUBLICATION feed FOR TABLES IN SCHEMA public", EXTRACT, ["will send table public.settings"]),
        (ALL, EXTRACT, ["will send table public.settings", LEDGER]),
        (ALL, {"kind": "purge_rows", "where": "id < 10", "archive": {"table": "public.gone"}}, ["will send table public.gone", LEDGER]),
        (ALL, {"kind": "add_index", "name": "by_note", "columns": ["note"]}, [LEDGER]),
        (ALL, {"kind": "drop_index", "name": "by_name"}, [LEDGER]),
    ],
)  # fmt: skip
def test_every_kind_asks(url: str, publication: str, change: dict[str, Any] | None, facts: list[str]) -> None:
    sql(url, "ALTER TABLE people ADD profile jsonb; CREATE INDEX by_name ON people (full_name)")
    sql(url, publication)

    def declared(**contract: Any) -> Migration:
        if change is None:
            return replaced(**PLAIN, contract=READY | contract)
        return Migration.model_validate(
            {"name": "m", "database": "app", "table": "public.people", "change": change, "contract": contract}
        )

    warned = "\n".join(surveyed(declared(), url).warnings)
    assert "publication feed" in warned  # nobody receives anything
    with waited_for(url):
        with pytest.raises(PreflightError) as refused:
            looked(declared(unaffected=[]), url)
        for fact in facts:
            assert fact in str(refused.value)
        looked(declared(unaffected=["publication feed"]), url)


def test_who_receives_nothing_of_it_is_no_matter(url: str) -> None:
    sql(
        url,
        "CREATE PUBLICATION feed FOR TABLE people (id, note); CREATE TABLE other (); CREATE PUBLICATION f2 FOR TABLE other",
    )
    with waited_for(url):
        walk(replaced(**PLAIN), url, State.CONTRACTED)
