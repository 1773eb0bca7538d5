"""A kind that is written here, one expand step long, has everything that the others have, without a line elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import dagster as dg
import pytest
from pydantic import Field

from zdm_pipelines import changes
from zdm_pipelines.changes import Bound, Change, Relation, Survey, Words, overview
from zdm_pipelines.changes.registry import forget, register
from zdm_pipelines.cli import show
from zdm_pipelines.components import assets
from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Catalog, Column, Step
from zdm_pipelines.phases import expand
from zdm_pipelines.sandbox.server import Server as Cluster
from zdm_pipelines.verbs import plan, rollback, status
from zdm_pipelines_tests.helpers import dump, one, people, work


class Describe(ChangeSpec):
    """Say on the table itself what it holds."""

    kind: Literal["describe_table"]
    text: str = Field(min_length=1, description="What the table holds.")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.EXPAND})


class DescribeKind:
    """See `Kind`."""

    name = "describe_table"
    spec = Describe
    example = 'text: "people and their names"'

    def words(self, migration: Migration) -> Words:
        return Words(
            summary="a description",
            old="nothing",
            new="the description",
            phases={Phase.EXPAND: "Describes the table."},
            undone={Phase.EXPAND: "the description is removed"},
        )

    def survey(self, session: Session, migration: Migration, server: Server) -> Survey:
        oid = session.value("catalog.oid", migration.table_name.sql)
        key = Column(name="id", type="bigint", not_null=True, default=None, generated=False, identity=True, number=1)
        return Survey(
            catalog=Catalog(table=migration.table_name, oid=oid, rows=0, bytes=0, columns=(key,), key=(key,)), facts={}
        )

    def bind(self, bound: Bound, server: Server) -> Change:
        assert isinstance(bound.migration.change, Describe)
        table, text = bound.catalog.table, bound.migration.change.text.replace("'", "''")
        step = Step(
            name="describe the table",
            sql=f"COMMENT ON TABLE {table.sql} IS '{text}'",
            reason="people read it",
            lock="SHARE UPDATE EXCLUSIVE",
            undo=f"COMMENT ON TABLE {table.sql} IS NULL",
        )
        return Change(relations=(Relation(name=table, oid=bound.catalog.oid),), expand=(step,))


@pytest.fixture(autouse=True)
def known() -> Iterator[None]:
    register(DescribeKind())
    yield
    forget("describe_table")


def described(**sections: object) -> Migration:
    change = {"kind": "describe_table", "text": "people"}
    declared = {"name": "people_described", "database": "app", "table": "public.people", "change": change}
    return Migration.model_validate({**declared, **sections})


def test_the_story(database: str, server: Cluster) -> None:
    people(database, rows=10)
    m, before = described(), dump(server, database)

    printed = plan.read(work(m, database))
    assert list(printed.phases) == [Phase.EXPAND]
    assert [step.sql for step in printed.phases[Phase.EXPAND]] == ['COMMENT ON TABLE "public"."people" IS \'people\'']
    assert printed.ranges == 0
    assert dump(server, database) == before

    for _ in range(2):  # start, undo, start
        report = expand.run(work(m, database))
        assert report.state == State.EXPANDED
        assert list(report.sql) == [step.sql for step in printed.phases[Phase.EXPAND]]  # what ran was printed
        assert one(database, "SELECT obj_description('people'::regclass)") == "people"
        assert status.read(work(m, database)).state == State.EXPANDED
        assert "finished" in show.next_step(m.name, m.lifecycle, State.EXPANDED)
        assert rollback.run(work(m, database), to=State.ROLLED_BACK) == State.ROLLED_BACK
        assert dump(server, database) == before


def test_finished_it_holds_nothing(database: str) -> None:
    people(database, rows=10)
    expand.run(work(described(), database))
    other = described(name="people_described_again")
    assert expand.run(work(other, database)).state == State.EXPANDED


def test_phases_that_it_has_not_cannot_be_run(database: str) -> None:
    people(database, rows=10)
    with pytest.raises(StateConflict, match="choose one of rolled_back"):
        rollback.run(work(described(), database), to=State.SWITCHED)


def test_what_dagster_shows() -> None:
    made = assets.of_migration(described())
    assert [next(iter(asset.keys)).path[-1] for asset in made] == ["plan", "expand"]
    spec = next(iter(made[1].specs))
    assert spec.description is not None
    assert spec.description.startswith("Describes the table.")
    assert "describe_table" in spec.description
    dg.Definitions.validate_loadable(dg.Definitions(assets=made, resources={"database_app": object()}))


def test_the_table_of_kinds_has_it() -> None:
    assert "| `describe_table` | Say on the table itself what it holds. | expand | – | always |" in overview.markdown()
    assert "describe_table" in changes.KINDS
