"""Rollback: from every state up to the tombstone to every earlier one, and at the end the schema is as it was."""

from __future__ import annotations

import psycopg
import pytest

from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import switch_reads, validate
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import rollback, status
from zdm_pipelines_tests.helpers import at, backfilled, dump, expanded, one, ranges, replaced, sql, state, walk, work

TABLE = """
CREATE TABLE public.teams (name text PRIMARY KEY);
INSERT INTO teams SELECT 'v' || n FROM generate_series(1, 200) n;
CREATE TABLE public.people (
  id bigint PRIMARY KEY,
  full_name text NOT NULL DEFAULT 'v1' UNIQUE CHECK (full_name <> '') REFERENCES teams DEFERRABLE,
  note text,
  CHECK (full_name <> note)
);
CREATE INDEX people_full_name_idx ON people (lower(full_name), note) WHERE full_name <> 'v9';
CREATE UNIQUE INDEX people_full_name_once ON people (full_name) INCLUDE (note);
INSERT INTO people (id, full_name) SELECT n, 'v' || n FROM generate_series(1, 200) n;
"""
M = replaced(
    new={"name": "display_name", "type": "text", "nullable": False, "default": "'v1'"},
    up="full_name",
    down="display_name",
    backfill={"range_rows": 50, "batch_rows": 20},
)

ORDER = [
    State.ROLLED_BACK,
    State.EXPANDED,
    State.BACKFILLING,
    State.BACKFILLED,
    State.VALIDATED,
    State.SWITCHING,
    State.SWITCHED,
    State.TOMBSTONED,
]
PAIRS = [(a, b) for a in ORDER[1:] for b in M.lifecycle.targets if ORDER.index(b) < ORDER.index(a)]


@pytest.fixture(scope="module")
def template(cluster: object) -> str:
    sql(cluster.primary.create_database("rollback_template"), TABLE)  # type: ignore[attr-defined]
    return "rollback_template"


@pytest.fixture
def url(server: Server, template: str) -> object:
    yield server.create_database("rollback_one", template=template)
    server.drop_database("rollback_one")


@pytest.mark.parametrize(("start", "target"), PAIRS)
def test_back_and_forth(server: Server, url: str, start: State, target: State) -> None:
    before = dump(server, url)
    at(M, url, start)
    sql(url, "UPDATE people SET note = 'kept'")
    assert rollback.run(work(M, url), to=target, force=True) == target == state(M, url)
    has_new = one(
        url, "SELECT count(*) FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname = 'display_name'"
    )
    assert has_new == (target != State.ROLLED_BACK)
    has_constraints = one(
        url,
        "SELECT count(*) > 0 FROM pg_index WHERE indrelid = 'people'::regclass AND pg_get_indexdef(indexrelid) LIKE '%display_name%'",
    )
    assert has_constraints == (target in (State.VALIDATED, State.SWITCHED))
    flag = status.read(work(M, url)).flag
    if target == State.ROLLED_BACK:
        assert dump(server, url) == before
        assert flag is None
    else:
        assert flag is not None
        assert flag.percent == (100 if target == State.SWITCHED else 0)
        assert one(
            url, "SELECT attnotnull FROM pg_attribute WHERE attrelid = 'people'::regclass AND attname = 'display_name'"
        ) == (target in (State.VALIDATED, State.SWITCHED))
    # Both code versions go on writing, and the way forward is open.
    sql(url, "UPDATE people SET full_name = full_name WHERE id = 1")
    walk(M, url, State.CONTRACTED)
    assert one(url, "SELECT count(*) FROM people WHERE display_name = 'v' || id AND note = 'kept'") == 200


def test_nothing_that_the_application_wrote_is_lost(server: Server, url: str) -> None:
    before = dump(server, url)
    for to in (State.EXPANDED, State.BACKFILLED, State.TOMBSTONED):
        walk(M, url, to)
        sql(url, "INSERT INTO teams VALUES (%s)", f"new {to}")
        sql(url, "UPDATE people SET display_name = %s WHERE id = 7", f"new {to}")
        rollback.run(work(M, url), to=State.ROLLED_BACK, force=True)
        assert one(url, "SELECT full_name FROM people WHERE id = 7") == f"new {to}"
        assert dump(server, url) == before


def test_rows_moved_again_after_validation(url: str) -> None:
    """Constraints that an earlier validate made do not outlive a rollback to before it."""
    walk(M, url, State.VALIDATED)
    with psycopg.connect(url) as c:
        c.execute("ALTER TABLE people DISABLE TRIGGER USER; ALTER TABLE people ALTER display_name DROP NOT NULL")
        c.execute("UPDATE people SET display_name = NULL WHERE id = 3")
        for event in ("insert", "update"):
            c.execute(f"ALTER TABLE people ENABLE ALWAYS TRIGGER zzz_zdm_{M.name}_{event}".encode())
    key = next(r.range.partition for r in ranges(M, url) if r.range.lower is None)
    sql(url, "UPDATE zdm.range SET done_at = NULL WHERE ordinal = 4")
    backfilled(M, url, partitions=[key])
    assert state(M, url) == State.BACKFILLING
    sql(url, "UPDATE zdm.flag SET percent = 100")  # as when reads had been switched before
    rollback.run(work(M, url), to=State.EXPANDED)
    assert one(url, "SELECT percent FROM zdm.flag") == 0
    indexes = "SELECT count(*) FROM pg_index WHERE indrelid = 'people'::regclass AND pg_get_indexdef(indexrelid) LIKE '%display_name%'"
    assert one(url, indexes) == 0


def test_a_validate_that_did_not_finish(url: str) -> None:
    walk(M, url, State.BACKFILLED)
    sql(url, "CREATE UNIQUE INDEX people_display_name_once ON people (display_name) INCLUDE (note)")
    assert rollback.run(work(M, url), to=State.BACKFILLED) == State.BACKFILLED
    assert one(url, "SELECT to_regclass('people_display_name_once') IS NULL")


@pytest.mark.parametrize(
    ("start", "target"),
    [(a, b) for a in ORDER[1:] for b in M.lifecycle.targets if ORDER.index(b) > ORDER.index(a)],
)
def test_not_forwards(url: str, start: State, target: State) -> None:
    at(M, url, start)
    with pytest.raises(StateConflict, match=f"is {start}"):
        rollback.run(work(M, url), to=target)
    assert state(M, url) == start


def test_not_to_a_state_in_between(url: str) -> None:
    walk(M, url, State.BACKFILLED)
    with pytest.raises(StateConflict, match="choose one of"):
        rollback.run(work(M, url), to=State.BACKFILLING)


def test_not_while_new_code_writes(server: Server, url: str) -> None:
    walk(M, url, State.VALIDATED)
    with psycopg.connect(url, application_name="new release") as c:
        c.execute("INSERT INTO teams VALUES ('x'); UPDATE people SET display_name = 'x' WHERE id = 1")
    with pytest.raises(StateConflict, match="new release"):
        rollback.run(work(M, url), to=State.ROLLED_BACK)
    assert state(M, url) == State.EXPANDED
    assert one(url, "SELECT count(display_name) FROM people") == 200
    sql(url, "UPDATE zdm.writer SET at = at - interval '121 seconds'")
    rollback.run(work(M, url), to=State.ROLLED_BACK)
    assert one(url, "SELECT full_name FROM people WHERE id = 1") == "x"


@pytest.mark.parametrize("target", M.lifecycle.targets)
def test_not_after_the_drop(url: str, target: State) -> None:
    walk(M, url, State.CONTRACTED)
    with pytest.raises(StateConflict, match="contracted"):
        rollback.run(work(M, url), to=target)
    assert state(M, url) == State.CONTRACTED


def test_not_before_the_beginning(url: str) -> None:
    with pytest.raises(StateConflict, match="never began"):
        rollback.run(work(M, url), to=State.ROLLED_BACK)
    assert one(url, "SELECT to_regnamespace('zdm') IS NULL")


def test_twice(url: str) -> None:
    expanded(M, url)
    assert rollback.run(work(M, url), to=State.ROLLED_BACK) == State.ROLLED_BACK
    assert rollback.run(work(M, url), to=State.ROLLED_BACK) == State.ROLLED_BACK


def test_a_failed_validate_leaves_no_constraint(url: str) -> None:
    """The data refuses one of them: writers are not bound by it, nor by those before it."""
    m = replaced(
        new={"name": "display_name", "type": "text", "nullable": False, "default": "''"}, up="left(full_name, 2)", down="display_name",
        rebuild={"people_full_name_idx": "USING btree (display_name)", "people_check": "drop",
                 "people_full_name_check": "CHECK (display_name <> '')"},
        backfill={"range_rows": 50},
    )  # fmt: skip
    sql(url, "ALTER TABLE people DROP CONSTRAINT people_full_name_fkey")
    walk(m, url, State.BACKFILLED)
    report = validate.run(work(m, url))
    assert not {c.name: c.passed for c in report.checks}["constraints_valid"]
    assert "v1" not in report.summary
    left = "SELECT count(*) FROM pg_index WHERE indrelid = 'people'::regclass AND pg_get_indexdef(indexrelid) LIKE '%display_name%'"
    assert one(url, left) == 0
    assert (
        one(
            url,
            "SELECT count(*) FROM pg_constraint WHERE conrelid = 'people'::regclass AND conname LIKE '%display_name%'",
        )
        == 0
    )
    with pytest.raises(StateConflict):
        switch_reads.run(work(m, url))
