"""Survey: which rows a predicate names for good, what refers to them, and whether an archive can keep them.

The server itself judges the predicate, on a temporary copy of the table's shape: as what a generated column is made of,
an expression may depend on nothing but the row.
"""

from __future__ import annotations

from dataclasses import replace

import psycopg

from zdm_pipelines.dialects.postgres import applications, obstacles, subscribers
from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres.archive import TRANSACTION, Archive
from zdm_pipelines.dialects.postgres.children import Child, Fate, Search, unseen
from zdm_pipelines.dialects.postgres.connection import Connection, attempt, scalar, undone
from zdm_pipelines.dialects.postgres.expressions import expression
from zdm_pipelines.dialects.postgres.faults import safe, stated
from zdm_pipelines.dialects.postgres.kinds.purge_rows.declared import Declared, Facts
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.values import Catalog

_COPY = "pg_temp.zdm_shape"
_PRINTED = (
    "SELECT pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid "
    f"AND a.attnum = d.adnum WHERE d.adrelid = '{_COPY}'::regclass AND a.attname = 'zdm_value'"
)
# What is printed under it names everything by its schema but what the server brings along.
_PRINTING = "SET LOCAL search_path = pg_catalog"
_NOT_IMMUTABLE = "42P17"


def survey(conn: Connection, table: TableName, change: Declared) -> tuple[Catalog, Facts, list[Problem]]:
    """Read the catalog for a declared purge and everything that does not fit; changes nothing.

    Raises:
        Problem: the table or the predicate cannot be had, so that nothing more can be looked at.
    """
    problems = catalogs.missing_privileges(conn, table)
    found = catalogs.read(conn, table)
    if any("temporary" in problem.fact for problem in problems):
        raise problems[0]
    problems += unseen(conn, table, found.oid)
    problems += obstacles.published(conn, found, "DELETE")
    archives = [] if change.archive_name is None else [change.archive_name]
    received, unreceived = subscribers.judged(
        conn, [*subscribers.of_ledger(conn), *subscribers.of_tables(conn, *archives)]
    )
    problems += received
    with undone(conn):
        once = {name: _compute(conn, found, name, sql) for name, sql in change.once.items()}
        where = _judge(conn, found, change.where, once)
    search = Search(conn, delete=change.deletes_children).run(table, found.oid)
    facts = Facts(where=where, once=once, children=tuple(search.children))
    warnings = [
        *unreceived,
        *search.warnings,
        *applications.of_isolation(conn),
        *_triggers(conn, table, found.oid, comes_back=change.archive_name is not None),
    ]
    for child in search.children:
        if child.fate is Fate.DELETED:
            warnings += _triggers(conn, child.table, child.oid, comes_back=change.archive_name is not None)
    if change.archive_name is not None:
        facts = replace(
            facts,
            owner=str(conn.value("children.owner", found.oid)),
            readers=tuple(role for (role,) in conn.named("children.default_readers", change.archive_name.schema)),
        )
        problems += _archive(conn, found, facts, change.archive_name)
        warnings += [
            f"constraint {quote(name)} was never proven: rows that break it cannot come back from the archive"
            for name, _ in conn.named("obstacles.unproven", found.oid)
        ]
    return replace(found, warnings=tuple(warnings)), facts, [*problems, *search.problems]


def _compute(conn: Connection, found: Catalog, name: str, sql: str) -> str:
    """A value, computed now, as the SQL that gives it again."""
    thing = f"once.{name}: {sql}"
    if any(column.name == name for column in found.columns):
        raise Problem(thing, f"is the name of a column of {found.table}", "choose another name")
    value = (
        f"SELECT format('%L', zdm_value), pg_typeof(zdm_value)::oid FROM (SELECT {expression(sql)} AS zdm_value) AS zdm"
    )
    try:
        with attempt(conn):
            # A prepared statement can be but one: what follows a semicolon is refused by the server.
            printed, kind = conn.execute(value.encode(), prepare=True).fetchall()[0]
            conn.execute(_PRINTING.encode())
            named = scalar(conn, "SELECT format_type($1, -1)", [kind])  # -1: character is bpchar, not character(1)
    except psycopg.Error as error:
        raise Problem(thing, f"cannot be computed ({safe(error)})", f"correct once.{name}") from None
    if printed == "NULL":
        raise Problem(thing, "is NULL, which no row compares with", f"correct once.{name}")
    return f"{printed}::{named}"


def _judge(conn: Connection, found: Catalog, where: str, once: dict[str, str]) -> str:
    """The predicate as the server prints it, when it depends on the row and the computed values alone."""
    more = len(once) + 1
    if len(found.columns) + more > obstacles.MOST_COLUMNS:
        fact = (
            f"has {len(found.columns)} columns, and where is tried on a copy with {more} more: the server has no room"
        )
        raise Problem(f"table {found.table}", fact, "drop columns that nobody needs")
    conn.execute(f"CREATE TEMPORARY TABLE zdm_shape (LIKE {found.table.sql}) ON COMMIT DROP".encode())
    for name, value in once.items():
        kind = scalar(conn, f"SELECT pg_typeof({value})::text")
        conn.execute(f"ALTER TABLE {_COPY} ADD COLUMN {quote(name)} {kind}".encode())
    judged = f"ALTER TABLE {_COPY} ADD COLUMN zdm_value boolean GENERATED ALWAYS AS ({where.strip()}\n) STORED"
    try:
        with attempt(conn):
            conn.execute(judged.encode(), prepare=True)
            conn.execute(_PRINTING.encode())
            return str(scalar(conn, _PRINTED))
    except psycopg.Error as error:
        if error.sqlstate == _NOT_IMMUTABLE:
            raise Problem(
                f"where: {where}",
                "may give another answer at another time or in another session: rows would go that no dry run counted",
                "compute the moment once, as once: {cutoff: \"now() - interval '90 days'\"} and where: created_at < "
                "cutoff; or write it out with its time zone",
            ) from None
        why = stated(error).replace("column generation expression", "where")
        raise Problem(f"where: {where}", f"is no predicate over one row ({why})", "correct where") from None


def _triggers(conn: Connection, table: TableName, oid: int, *, comes_back: bool) -> list[str]:
    """Warnings of what the application's triggers do for each row."""
    rows = conn.named("children.row_triggers", oid)
    goes = [f"trigger {quote(name)} of {table} fires for each row that goes" for name, _, delete, _ in rows if delete]
    back = [
        f"trigger {quote(name)} of {table} fires for each row that comes back from the archive, and may alter it"
        for name, _, _, insert in rows
        if insert and comes_back
    ]
    return [*goes, *back]


def _archive(conn: Connection, found: Catalog, facts: Facts, name: TableName) -> list[Problem]:
    """What keeps an archive from holding exactly what goes, and from giving it back."""
    deleted = [child for child in facts.children if child.fate is Fate.DELETED]
    archive = Archive(name=name, source=found, children=deleted, owner=facts.owner, readers=facts.readers)
    problems, without = [], "declare no archive"
    there, ours, _ = conn.named("children.archive_place", name.schema, name.name)[0]
    if not there or not ours:
        fact = "may not be written by our role" if there else "does not exist"
        grant = f"GRANT USAGE, CREATE ON SCHEMA {quote(name.schema)} TO {quote(conn.info.user)}"
        way_out = grant if there else f"CREATE SCHEMA {quote(name.schema)}"
        problems.append(Problem(f"schema {quote(name.schema)}", fact, way_out))
    problems += [
        Problem(f"archive {table}", "exists already", "choose another name for the archive")
        for table in archive.tables()
        if conn.named("children.archive_place", table.schema, table.name)[0][2]
    ]
    for table, oid, columns in _kept(found, deleted):
        if len(columns) >= obstacles.MOST_COLUMNS:
            fact = f"has {len(columns)} columns, and an archive needs one more: the server has room for no more"
            problems.append(Problem(f"table {table}", fact, without))
        if TRANSACTION in columns:
            problems.append(Problem(f"table {table}", f"has a column {TRANSACTION} of its own", without))
        for trigger, before, on_delete, _ in conn.named("children.row_triggers", oid):
            if before and on_delete:
                fact = "runs before a row is deleted, and may keep one that was archived"
                drop = f"DROP TRIGGER {quote(trigger)} ON {table.sql}"
                problems.append(Problem(f"trigger {quote(trigger)} of {table}", fact, f"{without}, or {drop}"))
    for child in facts.children:
        thing = f"foreign key {quote(child.constraint)} of {child.table}"
        if child.fate is Fate.CLEARED:
            problems.append(Problem(thing, "is set to NULL or a default, which no archive keeps", without))
        elif child.fate is Fate.DELETED and not child.key:
            problems.append(
                Problem(f"table {child.table}", "has no primary key, so its rows cannot come back", without)
            )
        elif child.fate is Fate.DELETED and [c.oid for c in deleted].count(child.oid) > 1:
            fact = "is one of several along which rows go, so that they could not come back one by one"
            problems.append(Problem(thing, fact, without))
    return problems


def _kept(found: Catalog, deleted: list[Child]) -> list[tuple[TableName, int, list[str]]]:
    own = [(child.table, child.oid, list(child.all_columns)) for child in deleted]
    return [(found.table, found.oid, [column.name for column in found.columns]), *own]


def changed(conn: Connection, found: Catalog, change: Declared, facts: Facts) -> list[str]:
    """What is not as it was when the migration began, as reasons against deleting anything."""
    anew = "roll back and begin anew"
    today = Search(conn, delete=change.deletes_children).run(found.table, found.oid)
    reasons = [str(problem) for problem in today.problems]
    if tuple(today.children) != facts.children:
        reasons.append(f"other foreign keys refer to {found.table} than when the migration began: {anew}")
    if change.archive_name is not None:
        reasons += [str(p) for p in _archive(conn, found, facts, change.archive_name) if "exists already" not in p.fact]
        columns = [column.name for column in catalogs.read(conn, found.table).columns]
        if columns != [column.name for column in found.columns]:
            reasons.append(f"{found.table} has other columns than its archive: {anew}")
    return reasons
