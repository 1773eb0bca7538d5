"""Applications: what their transactions, functions, triggers and statements meet when a table's rows or columns change.

What can be seen before anything is changed is told as warnings. What cannot: an isolation level that code sets for its
transactions, statements without column lists where pg_stat_statements does not show them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import psycopg

from zdm_pipelines.dialects.postgres.connection import attempt, query
from zdm_pipelines.model.names import TableName, quote

if TYPE_CHECKING:
    from zdm_pipelines.dialects.postgres.connection import Connection

_RETRY = "let such code retry, as at that level it must, or pause the backfill while it runs"
_LIST = "name the columns"


def of_isolation(conn: Connection) -> list[str]:
    """Whose transactions fail when they write a row that a batch has written since they began."""
    fails = "what it writes fails (could not serialize access) where a batch wrote the row since the transaction began"
    warnings = [
        f"{who} has default_transaction_isolation {level}: {fails}; {_RETRY}"
        for who, level in conn.named("applications.isolation")
    ]
    return warnings + [
        f"pid {pid} {application} (role {role}) keeps a snapshot between statements, as REPEATABLE READ does: {fails}; "
        f"{_RETRY}"
        for pid, application, role in conn.named("applications.snapshots")
    ]


def of_columns(conn: Connection, table: TableName, oid: int) -> list[str]:
    """What counts on the columns that a table has, and fails once it has one more."""
    warnings = [
        f"function {function} gives rows of {table} and lists their columns: once there is one more it may fail; "
        "let it select * (and not in BEGIN ATOMIC, which freezes it)"
        for (function,) in conn.named("applications.returning", oid)
    ]
    warnings += [
        f"trigger {quote(name)} inserts all columns of {table} elsewhere (NEW.* or OLD.* in {function}): once there is "
        f"one more it fails, and each write with it, unless the other table has that column first; {_LIST} there"
        for name, function in conn.named("applications.copying_triggers", oid)
    ]
    return warnings + _of_statements(conn, table)


def _of_statements(conn: Connection, table: TableName) -> list[str]:
    """Statements that were run without a column list."""
    ((schema,),) = conn.named("applications.statistics_schema") or [(None,)]
    if schema is None:
        return []
    name = rf'(?:"?{re.escape(table.schema)}"?\s*\.\s*)?"?{re.escape(table.name)}"?'
    shapes = {
        rf"^\s*copy\s+{name}\s+from\M": (f"COPY {table} FROM without columns", "fails once there is one more"),
        rf"^\s*insert\s+into\s+{name}\s+(?:as\s+\w+\s+)?(?:overriding|values|select|table|with)\M": (
            f"INSERT INTO {table} without columns",
            "writes the old shape, by place: after the drop its values would go to other columns",
        ),
        rf"\minsert\s+into\M[^;]*\mselect\s+\*\s+from\s+(?:only\s+)?{name}(?!\S)": (
            f"INSERT … SELECT * FROM {table}",
            "fails once there is one more column than in the other table",
        ),
    }
    seen = f"SELECT 1 FROM {schema}.pg_stat_statements(true) WHERE query ~* $1 LIMIT 1"
    try:
        with attempt(conn):
            found = [told for shape, told in shapes.items() if query(conn, seen, [shape])]
    except psycopg.Error:
        return []  # it may not be read: a signal that needs it says why
    return [f"pg_stat_statements has {what}: it {fact}; {_LIST}" for what, fact in found]
