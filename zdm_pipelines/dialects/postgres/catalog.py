"""Catalog: what the server knows of a relation, and which declared things do not fit it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from zdm_pipelines.dialects.postgres.connection import Connection, query, scalar
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.values import Catalog, Column

_RELATION = """
SELECT c.oid, c.relkind, greatest(c.reltuples, 0)::bigint, pg_relation_size(c.oid), c.relispartition,
       EXISTS (SELECT 1 FROM pg_inherits i WHERE i.inhparent = c.oid OR i.inhrelid = c.oid),
       pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2"""

_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
       a.attgenerated <> '', a.attidentity <> '', a.attnum
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""

_KEY = """
SELECT a.attname FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, position)
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
WHERE i.indrelid = $1 AND i.indisprimary AND k.position <= i.indnkeyatts ORDER BY k.position"""

_SIMILAR = """
SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' LIMIT 5000"""

# Objects that read a column and would stop its drop, or keep reading it under its tombstone name.
_DEPENDENTS = """
SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_depend d WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = $1 AND d.refobjsubid = $2
  AND d.deptype IN ('n', 'a')
  AND NOT (d.classid = 'pg_class'::regclass AND EXISTS (
             SELECT 1 FROM pg_index i WHERE i.indexrelid = d.objid AND i.indrelid = $1))
  AND NOT (d.classid = 'pg_class'::regclass AND EXISTS (
             SELECT 1 FROM pg_class s WHERE s.oid = d.objid AND s.relkind = 'S'))
  AND NOT (d.classid = 'pg_attrdef'::regclass AND EXISTS (
             SELECT 1 FROM pg_attrdef f WHERE f.oid = d.objid AND f.adrelid = $1 AND f.adnum = $2))
  AND NOT (d.classid = 'pg_constraint'::regclass AND EXISTS (
             SELECT 1 FROM pg_constraint k WHERE k.oid = d.objid AND k.conrelid = $1))
  AND NOT (d.classid = 'pg_trigger'::regclass AND EXISTS (
             SELECT 1 FROM pg_trigger t WHERE t.oid = d.objid AND t.tgname LIKE 'zzz\\_zdm\\_%'))
ORDER BY 1"""

_TRIGGERS = """
SELECT tgname, (tgtype & 2) <> 0 AS before, (tgtype & 16) <> 0 AS on_update FROM pg_trigger
WHERE tgrelid = $1 AND NOT tgisinternal AND (tgtype & 1) <> 0 AND tgenabled <> 'D'
  AND tgname NOT LIKE 'zzz\\_zdm\\_%' ORDER BY tgname"""


def _close(word: str, possible: Sequence[str]) -> str:
    found = difflib.get_close_matches(word, possible, n=3, cutoff=0.6)
    exact = [p for p in possible if p.lower() == word.lower() and p not in found]
    names = exact + found
    return f"did you mean {' or '.join(names)}? " if names else ""


def missing_table(conn: Connection, table: TableName) -> Problem:
    """The finding that a table does not exist, with close names."""
    tables = [str(TableName(schema=s, name=n)) for s, n in query(conn, _SIMILAR)]
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


def read(conn: Connection, table: TableName) -> Catalog:
    """Read a table's columns, key and size.

    Raises:
        Problem: the relation is missing, is no ordinary table, is not ours to alter, or has no primary key.
    """
    rows = query(conn, _RELATION, [table.schema, table.name])
    if not rows:
        raise missing_table(conn, table)
    oid, kind, estimate, size, is_partition, inherits, ours, owner = rows[0]
    thing = f"table {table}"
    if kind == "p" or is_partition:
        raise Problem(thing, "is partitioned", "replace_column works on ordinary tables only, so far")
    if kind != "r":
        what = {"v": "a view", "m": "a materialized view", "f": "a foreign table"}.get(kind, f"relkind {kind!r}")
        raise Problem(thing, f"is {what}", "name the table that holds the rows")
    if inherits:
        raise Problem(
            thing,
            "has a parent or children by inheritance",
            "replace_column works on ordinary tables only, so far",
        )
    if not ours:
        raise Problem(
            thing,
            f"belongs to role {owner}, which we are not a member of",
            f"connect as {owner} or GRANT {quote(owner)} to our role",
        )
    columns = tuple(
        Column(name=n, type=t, not_null=nn, default=d, generated=g, identity=i, number=no)
        for n, t, nn, d, g, i, no in query(conn, _COLUMNS, [oid])
    )
    by_name = {c.name: c for c in columns}
    key = tuple(by_name[name] for (name,) in query(conn, _KEY, [oid]))
    if not key:
        raise Problem(
            thing,
            "has no primary key",
            "ranges and checkpoints need one: add it, CREATE UNIQUE INDEX CONCURRENTLY first",
        )
    path = str(scalar(conn, "SELECT current_setting('search_path')"))
    return Catalog(table=table, oid=oid, rows=estimate, bytes=size, columns=columns, key=key, search_path=path)


def dependents(conn: Connection, oid: int, column: int) -> list[str]:
    """Views, policies, other tables' constraints and the like that read a column."""
    return [name for (name,) in query(conn, _DEPENDENTS, [oid, column])]


def row_triggers(conn: Connection, oid: int) -> list[tuple[str, bool, bool]]:
    """The application's row triggers: name, fires before, fires on update."""
    return [(n, b, u) for n, b, u in query(conn, _TRIGGERS, [oid])]


def column_number(conn: Connection, oid: int, column: str) -> int | None:
    """The attribute number of a column as it is called now, None when there is none."""
    number = scalar(
        conn,
        "SELECT attnum FROM pg_attribute WHERE attrelid = $1 AND attname = $2 AND NOT attisdropped",
        [oid, column],
    )
    return None if number is None else int(number)


def volatile_functions(conn: Connection, expression: str) -> list[str]:
    """Functions called in an expression, by name, that may give another value each time.

    Errs on the side of caution: a name counts when any function of that name is volatile.
    """
    called = sorted({name.lower() for name in re.findall(r"([A-Za-z_][A-Za-z0-9_$]*)\"?\s*\(", expression)})
    rows = query(
        conn, "SELECT DISTINCT proname FROM pg_proc WHERE provolatile = 'v' AND proname = ANY ($1) ORDER BY 1", [called]
    )
    return [name for (name,) in rows]


def missing_privileges(conn: Connection, table: TableName) -> list[Problem]:
    """What our role lacks to migrate this table."""
    found = []
    database = conn.info.dbname
    has_ledger = scalar(conn, "SELECT to_regnamespace('zdm') IS NOT NULL")
    if not has_ledger and not scalar(conn, "SELECT has_database_privilege(current_database(), 'CREATE')"):
        found.append(
            Problem(
                f"role {conn.info.user}",
                "may not create the zdm schema",
                f"GRANT CREATE ON DATABASE {quote(database)} TO {quote(conn.info.user)}, or let an administrator run "
                f"CREATE SCHEMA zdm AUTHORIZATION {quote(conn.info.user)}",
            )
        )
    if has_ledger and not scalar(conn, "SELECT has_schema_privilege('zdm', 'CREATE')"):
        found.append(
            Problem(
                f"role {conn.info.user}",
                "may not write to the zdm schema",
                f"GRANT ALL ON SCHEMA zdm TO {quote(conn.info.user)}, or connect as the role that owns it",
            )
        )
    if not scalar(conn, "SELECT has_database_privilege(current_database(), 'TEMPORARY')"):
        found.append(
            Problem(
                f"role {conn.info.user}",
                "may not create temporary objects, in which expressions are tried before anything is changed",
                f"GRANT TEMPORARY ON DATABASE {quote(database)} TO {quote(conn.info.user)}",
            )
        )
    # A schema that does not exist is told with its table.
    may_create = "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace WHERE nspname = $1"
    if scalar(conn, may_create, [table.schema]) is False:
        found.append(
            Problem(
                f"role {conn.info.user}",
                f"may not create indexes in schema {quote(table.schema)}",
                f"GRANT CREATE ON SCHEMA {quote(table.schema)} TO {quote(conn.info.user)}",
            )
        )
    return found
