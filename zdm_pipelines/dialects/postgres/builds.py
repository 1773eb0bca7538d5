"""Builds: give a table indexes and constraints while it is read and written, and after its rows where that is safe.

What a copy's target must have before its first row, and therefore keeps:

- the primary key, unique constraints and unique indexes: `ON CONFLICT` of batches and of the sync trigger infers one of
  them, and a duplicate is met by the write that makes it, not by a build at the end of a long load;
- exclusion constraints: for the same reason, and the server builds none of them concurrently;
- checks and NOT NULL: they cost nothing, and the row that does not fit is named by its batch.

What may wait:

- every other index: it decides nothing but the speed of reads, and until reads are switched nobody reads the target but
  by its key. Built in one go it takes less time and less room than grown row by row, and CREATE INDEX CONCURRENTLY
  takes in what is written meanwhile;
- foreign keys: VALIDATE reads every row, and names what the source did not keep either. Standing, they would lock a
  referenced row for each row of a batch, and there wait for the application.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from zdm_pipelines.dialects.postgres.connection import Connection, query
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Rebuild, Step

SHORT = "ACCESS EXCLUSIVE, for milliseconds"
HARMLESS = "SHARE UPDATE EXCLUSIVE: reads and writes go on"

_MAY_WAIT = """
SELECT 'index', c.relname,
       substr(pg_get_indexdef(c.oid), strpos(pg_get_indexdef(c.oid), p.prefix) + length(p.prefix))
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
CROSS JOIN LATERAL (SELECT format('INDEX %I ON %s USING ', c.relname, format('%I.%I', $2::text, $3::text)) AS prefix) p
WHERE i.indrelid = $1 AND NOT i.indisunique AND NOT i.indisexclusion AND strpos(pg_get_indexdef(c.oid), p.prefix) > 0
UNION ALL
SELECT 'foreign_key', conname, regexp_replace(pg_get_constraintdef(oid), ' NOT VALID$', '') FROM pg_constraint
WHERE conrelid = $1 AND contype = 'f' AND conparentid = 0 AND pg_get_constraintdef(oid) !~ 'NOT ENFORCED$'
ORDER BY 1 DESC, 2"""


def may_wait(conn: Connection, table: TableName, oid: int) -> tuple[Rebuild, ...]:
    """The indexes and foreign keys of a table that may be made after its rows are there."""
    return tuple(
        Rebuild(kind=kind, original=name, name=name, definition=definition)
        for kind, name, definition in query(conn, _MAY_WAIT, [oid, table.schema, table.name])
    )


def put_off(table: TableName, waiting: Sequence[Rebuild]) -> list[Step]:
    """Take them from a table that was just created, in the same transaction: it has no row, and nobody knows it yet."""
    drops = {
        "index": lambda name: f"DROP INDEX {quote(table.schema)}.{name}",
        "foreign_key": lambda name: f"ALTER TABLE {table.sql} DROP CONSTRAINT {name}",
    }
    return [
        Step(
            name=f"put off {quote(w.name)}",
            sql=drops[w.kind](quote(w.name)),
            reason="it is made when the rows are there, which is faster",
            lock=f"{SHORT}, on a table that nobody knows yet",
        )
        for w in waiting
    ]


def catch_up(table: TableName, waiting: Sequence[Rebuild]) -> list[Step]:
    """Make what was put off; each step may be run again."""
    reason = "put off until the rows were there"
    return [
        step
        for w in waiting
        for step in (
            index(table, w.name, w.definition, reason=reason)
            if w.kind == "index"
            else constraint(table, w.name, w.definition, reason=reason)
        )
    ]


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
