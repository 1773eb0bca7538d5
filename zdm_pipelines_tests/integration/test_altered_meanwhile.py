"""Altered meanwhile: others rename and drop what a migration names; writes go through, and it is said what is gone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

from zdm_pipelines.model.errors import GateRefused, StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import backfill, contract, expand, switch_reads, validate
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import plan, rollback, status
from zdm_pipelines_tests.helpers import one, people, replaced, sql, state, walk, work

DECLARED: dict[str, Any] = {
    "new": {"name": "display_name", "type": "text", "nullable": False},
    "up": "coalesce(full_name, '') || coalesce(note, '')",
    "down": "left(display_name, length(display_name) - length(coalesce(remark, '')))",
}
M = replaced(**DECLARED)
_numbers = count(1)


@pytest.fixture(scope="module")
def templates(cluster: Cluster) -> dict[State, str]:
    """The names of databases in which the migration stands so far, to copy."""
    found = {}
    for where in (State.EXPANDED, State.SWITCHED, State.TOMBSTONED):
        url = cluster.primary.create_database(f"altered_{where}")
        people(url, 20)
        sql(url, "ALTER TABLE people ADD remark text")
        walk(M, url, where)
        found[where] = f"altered_{where}"
    return found


@pytest.fixture
def at(server: Server, templates: dict[State, str]) -> Iterator[Any]:
    """A copy of one of them."""
    made = []

    def copy(where: State) -> str:
        made.append(f"altered_copy_{next(_numbers)}")
        url = server.create_database(made[-1], template=templates[where])
        with work(M, url).session("look"):  # the ledger knows from now on that it stands here
            return url

    yield copy
    for name in made:
        server.drop_database(name)


def writes(url: str, *, old: str = "full_name", new: str = "display_name", key: str = "id") -> None:
    """Every write of old and new code that does not name what is gone."""
    sql(url, f"UPDATE people SET {old} = 'u' WHERE {key} = 1; INSERT INTO people ({old}) VALUES ('i')")
    sql(url, f"UPDATE people SET {new} = 'u' WHERE {key} = 2; INSERT INTO people ({new}) VALUES ('i')")
    sql(url, f"UPDATE people SET {old} = 'b', {new} = 'b' WHERE {key} = 3; DELETE FROM people WHERE {key} = 4")


RENAMED = [
    ("note", {}), ("remark", {}), ("full_name", {"old": "anew"}), ("display_name", {"new": "anew"}), ("id", {"key": "anew"}),
]  # fmt: skip


@pytest.mark.parametrize(("column", "names"), RENAMED)
def test_a_renamed_column_is_named_and_stops_no_write(at: Any, column: str, names: dict[str, str]) -> None:
    url = at(State.EXPANDED)
    sql(url, f"ALTER TABLE people RENAME COLUMN {column} TO anew")
    writes(url, **names)
    for phase in (lambda: expand.run(work(M, url)), lambda: list(backfill.run(work(M, url)))):
        with pytest.raises(StateConflict, match=f"column {column} of people is (called anew now|gone)"):
            phase()
    assert any(f"column {column} of people is" in reason for reason in contract.refusals(work(M, url)))
    sql(url, f"ALTER TABLE people RENAME COLUMN anew TO {column}")
    assert all("column" not in reason for reason in contract.refusals(work(M, url)))
    list(backfill.run(work(M, url), repair=True))
    walk(M, url, State.VALIDATED)


@pytest.mark.parametrize(("column", "names"), RENAMED)
def test_it_stops_the_later_phases_and_no_rollback(at: Any, column: str, names: dict[str, str]) -> None:
    url = at(State.SWITCHED)
    sql(url, f"ALTER TABLE people RENAME COLUMN {column} TO anew")
    with pytest.raises(StateConflict, match=f"column {column} of people is"):
        validate.run(work(M, url))
    with pytest.raises(GateRefused, match=f"column {column} of people is"):
        contract.run(work(M, url))
    switch_reads.run(work(M, url), percent=0)
    with pytest.raises(StateConflict, match=f"column {column} of people is"):
        switch_reads.run(work(M, url))
    if column == "display_name":  # it would stay behind, NOT NULL
        with pytest.raises(
            StateConflict, match="is called anew now; ALTER TABLE people RENAME COLUMN anew TO display_name"
        ):
            rollback.run(work(M, url), to=State.ROLLED_BACK, force=True)
        sql(url, "ALTER TABLE people RENAME COLUMN anew TO display_name")
    rollback.run(work(M, url), to=State.ROLLED_BACK, force=True)
    assert one(url, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'people'::regclass AND NOT tgisinternal") == 0
    sql(url, "INSERT INTO people DEFAULT VALUES")


def test_the_way_out_of_a_renamed_column_is_a_statement(at: Any) -> None:
    url = at(State.SWITCHED)
    sql(url, "ALTER TABLE people RENAME COLUMN note TO anew")
    (reason,) = contract.refusals(work(M, url))
    sql(url, reason.partition(": ")[2].partition(", or ")[0])
    assert contract.refusals(work(M, url)) == []
    walk(M, url, State.CONTRACTED)


@pytest.mark.parametrize("drop", ["note", "full_name", "display_name", "remark"])
def test_a_dropped_column_is_named(at: Any, drop: str) -> None:
    """The server drops it only together with the sync trigger that reads it."""
    url = at(State.SWITCHED)
    sql(url, f"ALTER TABLE people DROP COLUMN {drop} CASCADE")
    assert contract.refusals(work(M, url)) == [
        f"column {drop} of people is gone, or has another name: give it back, or roll back"
    ]
    rollback.run(work(M, url), to=State.ROLLED_BACK, force=True)
    sql(url, "INSERT INTO people (id) VALUES (900)")


@pytest.mark.parametrize(
    "change", ["RENAME COLUMN zdm_tombstone_full_name TO anew", "DROP COLUMN zdm_tombstone_full_name CASCADE"]
)
def test_a_tombstone_that_others_took_is_named(at: Any, change: str) -> None:
    url = at(State.TOMBSTONED)
    sql(url, f"ALTER TABLE people {change}")
    for attempt in (lambda: contract.run(work(M, url)), lambda: rollback.run(work(M, url), to=State.SWITCHED)):
        with pytest.raises((GateRefused, StateConflict), match="column zdm_tombstone_full_name of people is"):
            attempt()
    sql(url, "INSERT INTO people (display_name) VALUES ('n'); UPDATE people SET display_name = 'm' WHERE id = 1")


def test_a_column_is_renamed_while_rows_move(at: Any) -> None:
    url = at(State.EXPANDED)
    renamed: list[object] = []

    def rename(_: object) -> None:
        if not renamed:
            renamed.append(sql(url, "ALTER TABLE people RENAME COLUMN note TO anew"))

    small = replaced(**DECLARED, backfill={"batch_rows": 5, "range_rows": 100})
    with pytest.raises(StateConflict, match="column note of people is called anew now"):
        list(backfill.run(work(small, url), batch=rename))
    sql(url, "ALTER TABLE people RENAME COLUMN anew TO note")
    walk(small, url, State.BACKFILLED)


@pytest.mark.parametrize(("alter", "called"), [
    ("ALTER TABLE people RENAME TO persons", "public.persons"),
    ("CREATE SCHEMA other; ALTER TABLE people SET SCHEMA other", "other.people"),
    ("CREATE SCHEMA other; ALTER TABLE people SET SCHEMA other; ALTER TABLE other.people RENAME TO persons", "other.persons"),
])  # fmt: skip
def test_a_renamed_table_is_told_and_gone_on_with(at: Any, alter: str, called: str) -> None:
    url = at(State.EXPANDED)
    sql(url, alter)
    assert status.read(work(M, url)).called == called
    assert str(plan.read(work(M, url)).catalog.table) == called
    sql(url, f"UPDATE {called} SET full_name = 'u' WHERE id = 1; INSERT INTO {called} (full_name) VALUES ('i')")
    walk(M, url, State.CONTRACTED)
    assert one(url, f"SELECT display_name FROM {called} WHERE id = 1") == "unote 1"


def test_expressions_go_on_with_the_declared_name_of_a_table(database: str) -> None:
    people(database, 20)
    m = replaced(up="'n:' || people.full_name", down="substr(people.display_name, 3)")
    walk(m, database, State.EXPANDED)
    sql(database, "ALTER TABLE people RENAME TO persons")
    walk(m, database, State.CONTRACTED)
    assert one(database, "SELECT count(*) FROM persons WHERE display_name = 'n:v' || id") == 20


def test_a_renamed_table_is_rolled_back(at: Any) -> None:
    url = at(State.SWITCHED)
    sql(url, "ALTER TABLE people RENAME TO persons")
    rollback.run(work(M, url), to=State.ROLLED_BACK, force=True)
    assert one(url, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'persons'::regclass") == 0


SWAPPED = "ALTER TABLE people RENAME TO people_old; CREATE TABLE people (LIKE people_old INCLUDING ALL)"


def test_a_name_that_another_table_has_taken_stops_all_but_the_way_back(at: Any) -> None:
    said = "public.people is another table than when the migration began, which is called public.people_old"
    url = at(State.EXPANDED)
    sql(url, SWAPPED)
    with pytest.raises(StateConflict, match=said):
        list(backfill.run(work(M, url)))
    url = at(State.SWITCHED)
    sql(url, SWAPPED)
    with pytest.raises(StateConflict, match=said):
        validate.run(work(M, url))
    assert [reason.startswith(said) for reason in contract.refusals(work(M, url))] == [True]
    sql(url, "ALTER TABLE people RENAME TO people_new; ALTER TABLE people_old RENAME TO people")
    assert contract.refusals(work(M, url)) == []
    url = at(State.TOMBSTONED)
    sql(url, SWAPPED)
    rollback.run(work(M, url), to=State.ROLLED_BACK, force=True)
    assert one(url, "SELECT count(*) FROM pg_trigger WHERE tgrelid = 'people_old'::regclass") == 0


def test_a_table_is_renamed_while_rows_move(at: Any) -> None:
    url = at(State.EXPANDED)
    renamed: list[object] = []

    def rename(_: object) -> None:
        if not renamed:
            renamed.append(sql(url, "ALTER TABLE people RENAME TO persons"))

    small = replaced(**DECLARED, backfill={"batch_rows": 5, "range_rows": 100})
    with pytest.raises(StateConflict, match=r"public\.people is called public\.persons since a moment ago"):
        list(backfill.run(work(small, url), batch=rename))
    walk(small, url, State.BACKFILLED)


def test_a_key_that_was_renamed_and_back_voids_what_was_proven(at: Any) -> None:
    url = at(State.SWITCHED)
    validate.run(work(M, url))
    assert validate.run(work(M, url)).facts["ranges_compared"] == 0
    sql(url, "ALTER TABLE people RENAME COLUMN id TO anew; UPDATE people SET full_name = 'unseen' WHERE anew = 1; "
             "ALTER TABLE people RENAME COLUMN anew TO id")  # fmt: skip
    report = validate.run(work(M, url))
    assert report.facts["ranges_compared"] == 1
    assert state(M, url) == State.BACKFILLED


def test_what_is_written_while_an_input_is_renamed_is_marked(at: Any) -> None:
    url = at(State.SWITCHED)
    validate.run(work(M, url))
    sql(url, "ALTER TABLE people RENAME COLUMN note TO anew; UPDATE people SET full_name = 'unseen' WHERE id = 1; "
             "ALTER TABLE people RENAME COLUMN anew TO note")  # fmt: skip
    assert validate.run(work(M, url)).facts["ranges_compared"] == 1


# -- tables of another kind -------------------------------------------------------------------------------------------

EXTRACT = {
    "kind": "extract_table",
    "old": "profile",
    "new": {"table": "public.settings", "key": {"user_id": "id"}, "columns": {"theme": {"type": "text", "up": "profile->>'theme'"}}},
    "down": "jsonb_build_object('theme', theme)",
}  # fmt: skip


@pytest.mark.parametrize(("alter", "said"), [
    ("ALTER TABLE users RENAME COLUMN profile TO anew", "column profile of users is called anew now"),
    ("ALTER TABLE settings RENAME COLUMN theme TO anew", "column theme of settings is called anew now"),
])  # fmt: skip
def test_the_columns_of_an_extracted_table(database: str, alter: str, said: str) -> None:
    sql(
        database,
        'CREATE TABLE users (id int PRIMARY KEY, profile jsonb); INSERT INTO users VALUES (1, \'{"theme": "dark"}\')',
    )
    m = Migration.model_validate({"name": "settings", "database": "app", "table": "public.users", "change": EXTRACT})
    expand.run(work(m, database))
    sql(database, alter)
    with pytest.raises(StateConflict, match=said):
        list(backfill.run(work(m, database)))
    assert contract.refusals(work(m, database))[0].startswith(said)
    rollback.run(work(m, database), to=State.ROLLED_BACK, force=True)
