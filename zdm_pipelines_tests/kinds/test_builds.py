"""Builds on a real server: what only has the name of a rebuilt index or constraint is not taken for it."""

from __future__ import annotations

import psycopg
import pytest

from zdm_pipelines.dialects.postgres import builds
from zdm_pipelines.model.names import TableName
from zdm_pipelines_tests import walking
from zdm_pipelines_tests.walking import one, sql

PEOPLE = """
CREATE TABLE people (id bigint PRIMARY KEY, full_name text, note text);
CREATE INDEX people_full_name ON people (lower(full_name), note) WHERE full_name <> '';
CREATE UNIQUE INDEX full_name_once ON people (full_name);
ALTER TABLE people ADD CONSTRAINT named UNIQUE (full_name) DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE other (x int);
"""
CHANGE = {
    "kind": "replace_column", "old": "full_name", "new": {"name": "shown", "type": "varchar"},
    "up": "full_name::varchar", "down": "shown",
}  # fmt: skip


@pytest.mark.parametrize("valid", [True, False])
def test_index_of_another_table_is_neither_taken_for_ours_nor_dropped(database: str, valid: bool) -> None:
    sql(database, PEOPLE)
    bound = walking.change(database, walking.migration("people", CHANGE))
    sql(database, "CREATE INDEX people_shown ON other (x)")
    sql(database, "UPDATE pg_index SET indisvalid = %s WHERE indexrelid = 'people_shown'::regclass", valid)
    with psycopg.connect(database, autocommit=True) as session:
        session.execute("ALTER TABLE people ADD COLUMN shown varchar")
    with pytest.raises(psycopg.errors.DuplicateTable):
        walking.run(database, bound.enforce)
    walking.undo(database, bound.enforce)
    assert set(walking.indexes(database, "other")) == {"people_shown"}


def test_every_index_of_the_old_column_stands_on_the_new_one(database: str) -> None:
    sql(database, PEOPLE)
    before = set(walking.indexes(database, "people"))
    bound = walking.change(database, walking.migration("people", CHANGE))
    sql(database, "ALTER TABLE people ADD COLUMN shown varchar")
    walking.run(database, bound.enforce)
    assert walking.run(database, bound.enforce) == []
    assert [one(database, step.done_when) for step in bound.enforce] == [True] * len(bound.enforce)
    assert set(walking.indexes(database, "people")) - before == {"people_shown", "shown_once", "named_zdm"}
    sql(database, "ALTER TABLE people RENAME note TO remark")
    walking.undo(database, bound.enforce)
    assert set(walking.indexes(database, "people")) == before


def test_constraint_that_acts_otherwise_is_another_one(database: str) -> None:
    sql(database, "CREATE TABLE parents (id int PRIMARY KEY); CREATE TABLE children (id int REFERENCES parents)")
    definition = 'FOREIGN KEY ("id") REFERENCES "public"."parents" ("id") ON UPDATE CASCADE ON DELETE CASCADE'
    table, name = TableName(schema="public", name="children"), "children_id_fkey"
    declared = builds.Constraint(name=name, table=table, definition=definition, printed=False)
    add, validate = declared.add(reason="as declared")
    assert [one(database, step.done_when) for step in (add, validate)] == [False, False]
    assert walking.undo(database, [add, validate]) == []  # it is somebody else's
    sql(database, f"ALTER TABLE children DROP CONSTRAINT {name}; {add.sql}")
    assert [one(database, step.done_when) for step in (add, validate)] == [True, False]
    sql(database, validate.sql)
    assert one(database, validate.done_when)
