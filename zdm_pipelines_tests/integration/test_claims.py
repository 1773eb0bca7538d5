"""Claims: no relation is under two migrations, whoever begins at once, and none stays claimed behind a migration's end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import psycopg
import pytest
from pydantic import TypeAdapter

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres.connection import Connection, connected
from zdm_pipelines.model import migration as model
from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.errors import PreflightError, StateConflict
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Relation
from zdm_pipelines.phases.beginning import look
from zdm_pipelines.verbs import rollback
from zdm_pipelines_tests.helpers import (
    Background,
    eventually,
    expanded,
    one,
    people,
    replaced,
    sql,
    state,
    surveyed,
    walk,
    work,
)

M = replaced()
NOTE = {"name": "remark", "type": "text"}
OTHER = replaced(name="people_note", old="note", new=NOTE, up="note", down="remark")


@pytest.fixture
def url(database: str) -> str:
    people(database, 20)
    sql(database, "CREATE TABLE pets (id int PRIMARY KEY, full_name text)")
    ledger.ensure(server_at(database))
    return database


def claims(url: str) -> list[tuple[Any, ...]]:
    """Who holds what, in the order of locking."""
    return sql(
        url,
        "SELECT m.name, c.relation::regclass::text, c.name FROM zdm.claim c JOIN zdm.migration m ON m.id = c.migration_id "
        "ORDER BY m.name, c.place",
    )


def address(conn: Connection) -> str:
    return f"postgresql://{conn.info.user}@{conn.info.host}:{conn.info.port}/{conn.info.dbname}"


def registered(conn: Connection, m: Migration) -> ledger.Entry:
    return ledger.register(conn, m, look(conn, work(m, address(conn))).catalog, {})


def begin(conn: Connection, entry: ledger.Entry, relations: Sequence[Relation] = ()) -> ledger.Entry:
    return ledger.move(conn, entry, State.EXPANDED, what="expanded", claims=relations)


def oid(url: str, table: str) -> int:
    return int(one(url, f"SELECT '{table}'::regclass::oid::bigint"))


def relation(url: str, table: str) -> Relation:
    return Relation(name=TableName.parse(table), oid=oid(url, table))


def test_a_table_is_claimed_from_the_first_phase_to_the_end(url: str) -> None:
    for to in (State.EXPANDED, State.BACKFILLED, State.VALIDATED, State.SWITCHED, State.TOMBSTONED):
        walk(M, url, to)
        assert claims(url) == [(M.name, "people", "public.people")]
    walk(M, url, State.CONTRACTED)
    assert claims(url) == []
    expanded(OTHER, url)
    assert claims(url) == [(OTHER.name, "people", "public.people")]
    rollback.run(work(OTHER, url), to=State.ROLLED_BACK)
    assert claims(url) == []


def test_a_plan_says_at_once_that_a_table_is_taken(url: str) -> None:
    expanded(M, url)
    said = (
        r"table public\.people: is under migration people_display_name \(expanded\); finish or roll back that one first"
    )
    for call in (lambda: surveyed(OTHER, url), lambda: expanded(OTHER, url)):
        with pytest.raises(PreflightError, match=said):
            call()
    assert surveyed(M, url).oid == oid(url, "people")
    assert one(url, "SELECT count(*) FROM zdm.migration") == 1


def test_the_database_itself_refuses_a_second_claim(url: str) -> None:
    expanded(M, url)
    with pytest.raises(psycopg.errors.UniqueViolation, match="claim_pkey"):
        sql(
            url,
            "INSERT INTO zdm.claim (relation, migration_id, place, name) SELECT relation, migration_id, 1, name FROM zdm.claim",
        )


@pytest.mark.parametrize("first_commits", [True, False])
def test_two_sessions_claim_a_table_at_once(url: str, first_commits: bool) -> None:
    """The second waits for the first to commit, and is refused; or the first rolls back, and the second has it."""
    with connected(url, purpose="first") as one_, connected(url, purpose="second") as other:
        mine, theirs = registered(one_, M), registered(other, OTHER)
        one_.execute("BEGIN")
        begin(one_, mine)
        second = Background(lambda: begin(other, theirs))
        eventually(lambda: one(url, "SELECT count(*) FROM pg_locks WHERE NOT granted") == 1)
        assert claims(url) == []
        one_.execute("COMMIT" if first_commits else "ROLLBACK")
        if first_commits:
            with pytest.raises(
                StateConflict, match=r"table public.people is under migration people_display_name \(expanded\)"
            ):
                second.result()
        else:
            assert second.result().state == State.EXPANDED
    winner, loser = (M, OTHER) if first_commits else (OTHER, M)
    assert claims(url) == [(winner.name, "people", "public.people")]
    assert (state(winner, url), state(loser, url)) == (State.EXPANDED, State.PLANNED)
    assert sql(url, "SELECT what, to_state FROM zdm.event") == [("expanded", "expanded")]


def test_two_relations_in_either_order_never_lock_each_other_out(url: str) -> None:
    both = [relation(url, "public.people"), relation(url, "public.pets")]
    pets = replaced(name="pets_name", table="pets")
    barrier = threading.Barrier(2)

    def try_it(m: Migration, relations: Sequence[Relation]) -> bool:
        with connected(url, purpose=m.name) as conn:
            entry = ledger.find(conn, m.name) or registered(conn, m)
            barrier.wait(30)
            try:
                begin(conn, entry, relations)
            except StateConflict:
                return False
            return True

    for _ in range(10):
        tries = [Background(lambda: try_it(M, both)), Background(lambda: try_it(pets, both[::-1]))]
        had = [t.result() for t in tries]
        assert sorted(had) == [False, True], had
        winner = M if had[0] else pets
        names = ["public.people", "public.pets"] if had[0] else ["public.pets", "public.people"]
        assert [(name, called) for name, _, called in claims(url)] == [(winner.name, called) for called in names]
        with connected(url, purpose="end") as conn:
            entry = ledger.find(conn, winner.name)
            assert entry is not None
            ledger.move(conn, entry, State.ROLLED_BACK, what="rolled back")
        assert claims(url) == []


def test_a_relation_that_another_change_made_is_claimed_too(url: str) -> None:
    with connected(url, purpose="test") as conn:
        begin(conn, registered(conn, M), [relation(url, "public.people"), relation(url, "public.pets")])
        (held,) = ledger.claimed_by(conn, [oid(url, "pets")])
        assert (held.migration, held.name, held.state) == (M.name, "public.pets", State.EXPANDED)
        with pytest.raises(PreflightError, match="under migration people_display_name"):
            look(conn, work(replaced(name="pets_name", table="pets"), address(conn)))


@pytest.mark.parametrize("ended", [State.ROLLED_BACK, State.CONTRACTED])
def test_a_claim_that_was_left_behind_is_taken_over(url: str, ended: State) -> None:
    """A worker of an earlier version ends migrations without giving claims up."""
    expanded(M, url)
    sql(url, "UPDATE zdm.migration SET state = %s", str(ended))
    expanded(OTHER, url)
    assert claims(url) == [(OTHER.name, "people", "public.people")]


def test_a_migration_without_a_claim_holds_its_table(url: str) -> None:
    """A ledger that was upgraded by hand: nothing crashes, nobody else comes in, and the end is reached."""
    expanded(M, url)
    sql(url, "DELETE FROM zdm.claim")
    with pytest.raises(PreflightError, match="under migration people_display_name"):
        expanded(OTHER, url)
    with connected(url, purpose="test") as conn:
        entry = registered(conn, replaced(name="pets_name", table="pets"))
        with pytest.raises(StateConflict, match=r"table public\.people is under migration people_display_name"):
            begin(conn, entry, [relation(url, "public.people")])
    walk(M, url, State.CONTRACTED)
    expanded(OTHER, url)


class Indexed(ChangeSpec):
    """A kind whose migrations end validated."""

    kind: Literal["index"]

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.ENFORCE})


def test_the_end_is_that_of_the_lifecycle(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(model._changes, "union", TypeAdapter(Indexed))
    index = M.model_copy(update={"name": "people_index", "change": Indexed(kind="index")})
    with connected(url, purpose="test") as conn:
        entry = ledger.register(conn, index, catalogs.read(conn, M.table_name), {"valid": True})
        assert entry.facts == {"valid": True}
        entry = ledger.move(conn, entry, State.BUILDING, what="building")
        assert [c.migration for c in ledger.claimed_by(conn, [entry.catalog.oid])] == [index.name]
        ledger.move(conn, entry, State.VALIDATED, what="validated")
        assert ledger.claimed_by(conn, [entry.catalog.oid]) == []
    assert claims(url) == []
