"""Builds: give a table constraints while it is read and written; each step may be run again. See `indexes`, too."""

from __future__ import annotations

from dataclasses import replace

from zdm_pipelines.dialects.postgres.literals import text
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Step

SHORT = "ACCESS EXCLUSIVE, for milliseconds"
HARMLESS = "SHARE UPDATE EXCLUSIVE: reads and writes go on"


def constraint(table: TableName, name: str, definition: str, *, reason: str) -> list[Step]:
    """Add a check or foreign key that new writes keep at once, then prove it for the rows that are there."""
    kind, options = definition[0].lower(), definition.rpartition(")")[2]
    stands = constraint_exists(table, name, kind=kind, options=options)
    return [
        Step(
            name=f"add constraint {quote(name)}",
            sql=f"ALTER TABLE {table.sql} ADD CONSTRAINT {quote(name)} {definition} NOT VALID",
            reason=f"{reason}; NOT VALID: holds for new writes, reads no row yet",
            lock=SHORT,
            undo=f"ALTER TABLE {table.sql} DROP CONSTRAINT IF EXISTS {quote(name)}",
            done_when=stands,
            undone_when=f"SELECT NOT ({stands})",
        ),
        Step(
            name=f"validate constraint {quote(name)}",
            sql=f"ALTER TABLE {table.sql} VALIDATE CONSTRAINT {quote(name)}",
            reason="reads the table while it is read and written",
            lock=HARMLESS,
            done_when=constraint_exists(table, name, kind=kind, options=options, validated=True),
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
            undone_when=f"SELECT NOT coalesce(({is_set}), false)",  # others may have dropped the column
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


def constraint_exists(
    table: TableName, name: str, *, kind: str = "", options: str = "", validated: bool = False
) -> str:
    """Query: whether a table has a constraint of that name.

    Args:
        kind: as the server's catalog has it: c, f or u; empty: of any kind.
        options: of that kind, what stands behind its last parenthesis, as ON DELETE CASCADE.
    """
    printed = "replace(regexp_replace(pg_get_constraintdef(oid), '.*[)]', ''), ' NOT VALID', '')"
    alike = f" AND contype = {text(kind)} AND {printed} = {text(options)}" if kind else ""
    more = " AND convalidated" if validated else ""
    return (
        f"SELECT EXISTS (SELECT 1 FROM pg_constraint WHERE conrelid = {text(table.sql)}::regclass "
        f"AND conname = {text(name)}{alike}{more})"
    )
