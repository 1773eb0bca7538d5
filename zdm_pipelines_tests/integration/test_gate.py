"""Gate: each kind of change is asked for what it has, and for nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import pytest
from pydantic import TypeAdapter

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres.connection import Connection, connected
from zdm_pipelines.engine import gate
from zdm_pipelines.ledger import ranges
from zdm_pipelines.model import migration as model
from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import KeyRange, Step
from zdm_pipelines_tests.helpers import people, replaced

EVERYTHING = frozenset(set(Need) - {Need.DESTROYS, Need.CHECKS})
KEPT = frozenset({Need.ENFORCE, Need.RETIRE, Need.TOMBSTONE})  # as of an index that is replaced
DESTROYING = frozenset({Need.ROWS, Need.DESTROYS, Need.CHECKS})  # as of rows that are purged
DROPPED = frozenset({Need.RETIRE})  # as of an index that is dropped
ADDED = frozenset({Need.ENFORCE})  # as of an index that is built: nothing is taken away

RANGES = "1 of 1 ranges are not backfilled"
CHECK = "check good never ran"
READS = ("reads are at 0 %", "reads were never fully switched")
STRAGGLER = "straggler: shop"
DEPENDENT = "view names reads it"
STEP = "not in place: build it"


class Custom(ChangeSpec):
    """A change that needs whatever a test says."""

    kind: Literal["custom"]
    wanted: tuple[Need, ...]

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset(self.wanted)


def custom(needs: frozenset[Need], window: str = "0s") -> Migration:
    change = Custom(kind="custom", wanted=tuple(sorted(needs)))
    return replaced(contract={"tombstone_window": window, "straggler_window": "1d"}).model_copy(
        update={"change": change}
    )


@pytest.fixture
def conn(database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connection]:
    """A database in which each reason is planted: a range not done, a straggler."""
    monkeypatch.setitem(model._changes, "union", TypeAdapter(Custom))
    people(database, 5)
    ledger.ensure(server_at(database))
    with connected(database, purpose="test") as opened:
        yield opened


def planted(conn: Connection, migration: Migration, state: State) -> ledger.Entry:
    """A migration in a state, of which everything is missing."""
    entry = ledger.register(conn, migration, catalogs.read(conn, migration.table_name), {})
    ranges.store(conn, entry.id, [KeyRange(ordinal=1, partition="1", lower=None, upper=None)])
    conn.execute(
        "INSERT INTO zdm.writer (migration_id, wrote, application_name, login) VALUES ($1, 'old', 'shop', 'app')",
        [entry.id],
    )
    conn.execute("UPDATE zdm.migration SET state = $1, tombstoned_at = now()", [str(state)])
    found = ledger.find(conn, migration.name)
    assert found is not None
    return found


def refused(conn: Connection, migration: Migration, entry: ledger.Entry | None) -> list[str]:
    step = Step(name="build it", sql="", reason="", lock="", done_when="SELECT false")
    return gate.reasons(
        conn,
        entry,
        migration,
        checks=("good",),
        old="the old thing",
        dependents=(DEPENDENT,),
        sync=None,
        constraints=(step,),
    )


@pytest.mark.parametrize(
    ("needs", "state", "expected"),
    [
        (EVERYTHING, State.SWITCHED, (RANGES, CHECK, *READS, STRAGGLER, DEPENDENT, STEP)),
        (EVERYTHING - {Need.READS}, State.VALIDATED, (RANGES, CHECK, STRAGGLER, DEPENDENT, STEP)),
        (EVERYTHING - {Need.ROWS}, State.SWITCHED, (CHECK, *READS, STRAGGLER, DEPENDENT, STEP)),
        (EVERYTHING - {Need.SYNC}, State.SWITCHED, (RANGES, CHECK, *READS, DEPENDENT, STEP)),
        (
            EVERYTHING - {Need.READS, Need.PARITY, Need.ENFORCE},
            State.EXPANDED,
            ("is expanded, contract begins from backfilled", RANGES, CHECK, STRAGGLER, DEPENDENT, STEP),
        ),
        (KEPT, State.VALIDATED, (CHECK, DEPENDENT, STEP)),
        (KEPT, State.BUILDING, ("is building, contract begins from validated", CHECK, DEPENDENT, STEP)),
        (DESTROYING, State.VALIDATED, (CHECK, DEPENDENT, STEP)),
        (DESTROYING, State.CONTRACTING, (CHECK, DEPENDENT, STEP)),
        (DROPPED, State.PLANNED, (CHECK, DEPENDENT, STEP)),
        (DROPPED, State.CONTRACTED, ("is contracted, contract begins from planned",)),
        (EVERYTHING, State.ROLLED_BACK, ("is rolled_back, contract begins from switched",)),
    ],
)  # fmt: skip
def test_reasons_follow_from_needs(
    conn: Connection, needs: frozenset[Need], state: State, expected: tuple[str, ...]
) -> None:
    migration = custom(needs)
    found = refused(conn, migration, planted(conn, migration, state))
    assert len(found) == len(expected), found
    for reason, said in zip(found, expected, strict=True):
        assert said in reason


def test_a_tombstone_is_kept_for_its_window(conn: Connection) -> None:
    migration = custom(KEPT, window="1d")
    entry = planted(conn, migration, State.TOMBSTONED)
    found = refused(conn, migration, entry)
    assert re.match(r"check good never ran .*; roll back to validated first$", found[0])
    assert re.match(r"the old thing is out of sight since .*; it is kept for .* more$", found[1])
    assert [reason for reason in found if "straggler" in reason or "reads are" in reason] == []
    conn.execute("UPDATE zdm.migration SET tombstoned_at = now() - interval '25 hours'")
    found = refused(conn, migration, ledger.find(conn, migration.name))
    assert [reason for reason in found if "out of sight" in reason] == []


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (EVERYTHING, ["people_display_name is planned: it never began; run expand first"]),
        (KEPT, ["people_display_name is planned: it never began; run validate first"]),
        (DROPPED, []),
        (ADDED, ["people_display_name takes nothing away: it has no contract"]),
    ],
)
def test_what_never_began(conn: Connection, needs: frozenset[Need], expected: list[str]) -> None:
    assert refused(conn, custom(needs), None) == expected


def test_another_declaration(conn: Connection) -> None:
    entry = planted(conn, custom(EVERYTHING), State.SWITCHED)
    found = refused(conn, custom(EVERYTHING - {Need.SYNC}), entry)
    assert "it began with another declaration of wanted" in found[0]
