"""Catalog: what the server knows of a relation, and which declared things do not fit it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.environment import recorded
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.values import Catalog, Column

_NOBODYS = ("pg_catalog", "information_schema", "pg_toast", "zdm")  # schemas without tables of the application's

ANOTHER_KEY = (
    "the key must stay as it is: make another one the primary key first, by CREATE UNIQUE INDEX CONCURRENTLY over "
    "columns that stay and, in one ALTER TABLE, DROP CONSTRAINT and ADD PRIMARY KEY USING INDEX"
)


def _close(word: str, possible: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, possible, n=3, cutoff=0.6)
    exact = [p for p in possible if p.lower() == word.lower() and p not in found]
    names = exact + found
    return f"did you mean {' or '.join(names)}? " if names else ""


def missing_table(conn: Connection, table: TableName) -> Problem:
    """The finding that a table does not exist, with close names."""
    tables = [str(TableName(schema=s, name=n)) for s, n in conn.named("catalog.tables")]
    return Problem(
        f"table {table}",
        "does not exist in this database",
        f"{_close(str(table), tables)}write its exact name",
    )


def missing_column(catalog_columns: Sequence[Column], table: TableName, column: str) -> Problem:
    """The finding that a column does not exist, with close names."""
    names = [c.name for c in catalog_columns]
    return Problem(
        f"column {quote(column)} of {table}",
        "does not exist",
        f"{_close(column, names)}the table has {', '.join(names)}",
    )


def read(conn: Connection, table: TableName, *, partitioned: bool = False, keyless: bool = False) -> Catalog:
    """Read a table's columns, key and size.

    Args:
        partitioned: a partitioned table or a partition will do, too.
        keyless: a table without primary key will do, too.

    Raises:
        Problem: the relation is missing, is no ordinary table, is not ours to alter, or has no primary key.
    """
    rows = conn.named("catalog.relation", table.schema, table.name)
    if not rows:
        raise missing_table(conn, table)
    oid, kind, estimate, size, is_partition, inherits, ours, owner = rows[0]
    thing = f"table {table}"
    if table.schema in _NOBODYS:
        raise Problem(thing, "belongs to the server or to the ledger", "name a table of the application's")
    if conn.named("obstacles.about", oid)[0][0]:
        raise Problem(thing, "is temporary: no other session sees its rows", "name a table that stays")
    in_tree = kind == "p" or is_partition
    only = "this kind of change works on ordinary tables only, so far"
    if in_tree and not partitioned:
        fact = "is partitioned" if kind == "p" else "is a partition of a table that is partitioned"
        raise Problem(thing, fact, only if kind == "p" else _apart(conn, oid, only))
    if kind not in ("r", "p"):
        what = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}.get(kind, f"relkind {kind!r}")
        raise Problem(thing, f"is {what}", "name the table that holds the rows")
    if inherits and not in_tree:
        raise Problem(thing, "has a parent or children by inheritance", _apart(conn, oid, only))
    if not ours:
        raise Problem(
            thing,
            f"belongs to role {owner}, which we are not a member of",
            f"connect as {owner}, or GRANT {quote(owner)} TO {quote(conn.info.user)}",
        )
    columns = tuple(
        Column(name=n, type=t, not_null=nn, default=d, generated=g, identity=i, number=no)
        for n, t, nn, d, g, i, no in conn.named("catalog.columns", oid)
    )
    by_name = {c.name: c for c in columns}
    key = tuple(by_name[name] for (name,) in conn.named("catalog.key", oid))
    if not key and not keyless:
        raise Problem(
            thing,
            "has no primary key",
            "ranges and checkpoints need one: CREATE UNIQUE INDEX CONCURRENTLY over columns that are NOT NULL, then "
            f"ALTER TABLE {table.sql} ADD PRIMARY KEY USING INDEX it",
        )
    return Catalog(
        table=table, oid=oid, rows=estimate, bytes=size, columns=columns, key=key, environment=recorded(conn)
    )


def hidden_rows(conn: Connection, table: TableName, oid: int) -> list[Problem]:
    """What keeps us from seeing every row of a table: rows that we do not see would be neither moved nor compared."""
    if not conn.value("catalog.hides_rows", oid):
        return []
    # The table is ours: its policies hold for its owner only where that is forced.
    way_out = f"connect as a role with BYPASSRLS, or ALTER TABLE {table.sql} NO FORCE ROW LEVEL SECURITY"
    return [Problem(f"table {table}", "has row-level security that may hide rows from our role", way_out)]


def referenced(conn: Connection, found: Catalog, column: Column) -> list[Problem]:
    """Foreign keys that refer to a column."""
    thing = f"column {quote(column.name)} of {found.table}"
    return [
        Problem(
            thing,
            f"is referenced by {other} (foreign key {name})",
            f"let that refer to another column, or drop it first: ALTER TABLE {exact} DROP CONSTRAINT {quote(name)}",
        )
        for name, other, exact in conn.named("catalog.referenced", found.oid, column.number)
    ]


def computed(conn: Connection, found: Catalog, column: Column) -> str | None:
    """The way out for a column that the server fills; None: the application fills it."""
    alter = f"ALTER TABLE {found.table.sql} ALTER COLUMN {quote(column.name)}"
    if column.identity:
        return f"{alter} DROP IDENTITY first, and let the application name its value"
    if not column.generated:
        return None
    if conn.value("catalog.is_virtual", found.oid, column.name):
        return "leave it: its successor is a generated column of its own, which needs no migration"
    return plain(found, column)


def plain(found: Catalog, column: Column) -> str:
    """The way out for a column that the server computes and keeps."""
    alter = f"ALTER TABLE {found.table.sql} ALTER COLUMN {quote(column.name)}"
    return f"{alter} DROP EXPRESSION first, and let the application name its value"


def _apart(conn: Connection, oid: int, why: str) -> str:
    """The way out for a table that has parents or children: what makes it an ordinary one."""
    return f"{why}: {'; '.join(end for _, end in conn.named('inventory.kin', oid))}"


def row_triggers(conn: Connection, oid: int) -> list[tuple[str, bool, bool]]:
    """The application's row triggers: name, fires before, fires on an update of whatever column."""
    return [(n, b, u) for n, b, u in conn.named("catalog.row_triggers", oid)]


def column_number(conn: Connection, oid: int, column: str) -> int | None:
    """The attribute number of a column as it is called now, None when there is none."""
    number = conn.value("catalog.column_number", oid, column)
    return None if number is None else int(number)


def volatile_functions(conn: Connection, expression: str) -> list[str]:
    """Functions called in an expression, by name, that may give another value each time.

    Errs on the side of caution: a name counts when any function of that name is volatile.
    """
    called = sorted({name.lower() for name in re.findall(r"([A-Za-z_][A-Za-z0-9_$]*)\"?\s*\(", expression)})
    rows = conn.named("catalog.volatile", called)
    return [name for (name,) in rows]


def missing_privileges(conn: Connection, table: TableName) -> list[Problem]:
    """What our role lacks to migrate this table."""
    found = []
    database = conn.info.dbname
    has_ledger = conn.value("catalog.has_ledger")
    if not has_ledger and not conn.value("catalog.may_create_schemas"):
        found.append(
            Problem(
                f"role {conn.info.user}",
                "may not create the zdm schema",
                f"GRANT CREATE ON DATABASE {quote(database)} TO {quote(conn.info.user)}, or let an administrator run "
                f"CREATE SCHEMA zdm AUTHORIZATION {quote(conn.info.user)}",
            )
        )
    if has_ledger and not conn.value("catalog.may_write_ledger"):
        found.append(
            Problem(
                f"role {conn.info.user}",
                "may not write to the zdm schema",
                f"GRANT ALL ON SCHEMA zdm TO {quote(conn.info.user)}, or connect as the role that owns it",
            )
        )
    if not conn.value("catalog.may_create_temporary"):
        found.append(
            Problem(
                f"role {conn.info.user}",
                "may not create temporary objects, in which expressions are tried before anything is changed",
                f"GRANT TEMPORARY ON DATABASE {quote(database)} TO {quote(conn.info.user)}",
            )
        )
    # A schema that does not exist is told of together with its table.
    if conn.value("catalog.may_create_in", table.schema) is False:
        found.append(
            Problem(
                f"role {conn.info.user}",
                f"may not create indexes in schema {quote(table.schema)}",
                f"GRANT CREATE ON SCHEMA {quote(table.schema)} TO {quote(conn.info.user)}",
            )
        )
    return found
