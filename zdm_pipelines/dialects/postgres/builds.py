"""Builds: give a table indexes and constraints while it is read and written; each step may be run again."""

from __future__ import annotations

from dataclasses import replace

from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Step

SHORT = "ACCESS EXCLUSIVE, for milliseconds"
HARMLESS = "SHARE UPDATE EXCLUSIVE: reads and writes go on"


def index(table: TableName, name: str, definition: str, *, reason: str, unique: bool = False) -> list[Step]:
    """Build an index.

    Args:
        definition: everything from USING on.
    """
    relation = f"to_regclass({text(f'{quote(table.schema)}.{quote(name)}')})"
    done = f"SELECT coalesce((SELECT indisvalid FROM pg_index WHERE indexrelid = {relation}), false)"
    drop = f"DROP INDEX CONCURRENTLY IF EXISTS {quote(table.schema)}.{quote(name)}"
    create = f"CREATE {'UNIQUE ' if unique else ''}INDEX CONCURRENTLY {quote(name)}"
    return [
        Step(
            name=f"remove an unfinished index {quote(name)}",
            sql=drop,
            reason="a build that was interrupted leaves an invalid index, which writes keep up and no read uses",
            lock=HARMLESS,
            done_when=f"SELECT {relation} IS NULL OR ({done})",
            in_transaction=False,
        ),
        Step(
            name=f"build index {quote(name)}",
            sql=f"{create} ON {table.sql} USING {definition}",
            reason=reason,
            lock=HARMLESS,
            undo=drop,
            done_when=done,
            in_transaction=False,
        ),
    ]


def constraint(table: TableName, name: str, definition: str, *, reason: str) -> list[Step]:
    """Add a check or foreign key that new writes keep at once, then prove it for the rows that are there."""
    return [
        Step(
            name=f"add constraint {quote(name)}",
            sql=f"ALTER TABLE {table.sql} ADD CONSTRAINT {quote(name)} {definition} NOT VALID",
            reason=f"{reason}; NOT VALID: holds for new writes, reads no row yet",
            lock=SHORT,
            undo=f"ALTER TABLE {table.sql} DROP CONSTRAINT IF EXISTS {quote(name)}",
            done_when=constraint_exists(table, name),
        ),
        Step(
            name=f"validate constraint {quote(name)}",
            sql=f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {quote(name)}",
            reason="reads the table while it is read and written",
            lock=HARMLESS,
            done_when=constraint_exists(table, name, validated=True),
            in_transaction=False,
        ),
    ]


def not_null(table: TableName, column: str) -> list[Step]:
    """Set a column NOT NULL without reading the table under a strong lock: a valid check proves it."""
    name, check, is_set = quote(column), fitted(f"zdm_not_null_{column}"), is_not_null(table, column)
    prove = constraint(table, check, f"CHECK ({name} IS NOT NULL)", reason="proves that no row is NULL")
    return [
        *(replace(step, done_when=f"SELECT ({is_set}) OR ({step.done_when})") for step in prove),
        Step(
            name=f"set {name} NOT NULL",
            sql=f"ALTER TABLE {table.sql} ALTER COLUMN {name} SET NOT NULL",
            reason="the valid check proves it, so no row is read",
            lock=SHORT,
            undo=f"ALTER TABLE {table.sql} ALTER COLUMN {name} DROP NOT NULL",
            done_when=is_set,
        ),
        Step(
            name=f"drop check {quote(check)}",
            sql=f"ALTER TABLE {table.sql} DROP CONSTRAINT IF EXISTS {quote(check)}",
            reason="NOT NULL says the same",
            lock=SHORT,
            done_when=f"SELECT NOT ({constraint_exists(table, check)})",
        ),
    ]


def is_not_null(table: TableName, column: str) -> str:
    """Query: whether a column is NOT NULL."""
    return (
        f"SELECT attnotnull FROM pg_attribute WHERE attrelid = {text(table.sql)}::regclass AND attname = {text(column)}"
    )


def constraint_exists(table: TableName, name: str, *, validated: bool = False) -> str:
    """Query: whether a table has a constraint of that name."""
    more = " AND convalidated" if validated else ""
    return (
        f"SELECT EXISTS (SELECT 1 FROM pg_constraint WHERE conrelid = {text(table.sql)}::regclass "
        f"AND conname = {text(name)}{more})"
    )


def text(value: str) -> str:
    """A name as an SQL string."""
    return "'" + value.replace("'", "''") + "'"
