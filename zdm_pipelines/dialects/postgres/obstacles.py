"""Obstacles: what lets a migration begin and never end, found before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import psycopg

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.connection import Connection, query
from zdm_pipelines.dialects.postgres.expressions import expression
from zdm_pipelines.dialects.postgres.faults import safe
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Catalog

MOST_COLUMNS = 1600  # of the server; a dropped column keeps its place
_LOOK = "10s"  # a look at the rows that takes longer tells nothing
_FEW = 5  # rows that a finding names
_EVENTS = {"UPDATE": "2", "INSERT": "3", "DELETE": "4"}  # as the catalog has them
_QUOTES = "$zdm_"  # begins the quotes around the bodies of our functions


def rules(conn: Connection, table: TableName, oid: int, *events: str) -> list[Problem]:
    """Rules that rewrite statements of ours."""
    found = conn.named("obstacles.rules", oid, [_EVENTS[event] for event in events])
    return [
        Problem(
            f"rule {quote(name)} of {table}",
            f"rewrites each {event}, our own too",
            f"DROP RULE {quote(name)} ON {table.sql} first; a trigger can do what it does",
        )
        for name, event in found
    ]


def alterable(conn: Connection, found: Catalog, *, columns: int) -> list[Problem]:
    """What keeps columns from being added to a table, renamed or dropped.

    Args:
        columns: that are added.
    """
    _, typed, count = conn.named("obstacles.about", found.oid)[0]
    thing, problems = f"table {found.table}", []
    if typed:
        way_out = f"ALTER TABLE {found.table.sql} NOT OF first"
        problems.append(Problem(thing, "is of a composite type, which says its columns", way_out))
    if count + columns > MOST_COLUMNS:
        dropped = count - len(found.columns)
        fact = f"has {count} columns, {dropped} of them dropped, and the server has room for {MOST_COLUMNS}"
        problems.append(Problem(thing, fact, "copy it into a new table first: only that gives dropped ones back"))
    return problems


def published(conn: Connection, found: Catalog, event: str, *, adds: bool = False) -> list[Problem]:
    """Publications for which the server would refuse to change rows.

    Args:
        event: UPDATE or DELETE.
        adds: a column is added.
    """
    rows = conn.named("obstacles.unpublished", found.oid, f"pub{event.lower()}", adds)
    way_out = f"ALTER TABLE {found.table.sql} REPLICA IDENTITY DEFAULT"
    return [
        Problem(f"table {found.table}", f"has {what}, and publication {quote(name)} publishes each {event}: the server "
                "would refuse it", way_out)
        for name, what in rows
    ]  # fmt: skip


def unproven(conn: Connection, found: Catalog, moved: str) -> tuple[list[Problem], list[str]]:
    """Rows that cannot be updated, for they break a constraint that was never proven.

    Args:
        moved: SQL that is not NULL for the rows which are to be updated.
    """
    problems, warnings = [], []
    for name, condition in conn.named("obstacles.unproven", found.oid):
        thing = f"constraint {quote(name)} of {found.table}"
        alias = quote(found.table.name)
        rows = (
            f"FROM ONLY {found.table.sql} AS {alias} WHERE ({condition}) IS FALSE AND {expression(moved)} IS NOT NULL"
        )
        look = f"SELECT {keys.columns(found.key)} {rows}"
        try:
            with conn.transaction():
                conn.execute(f"SET LOCAL statement_timeout = '{_LOOK}'".encode())
                first = query(conn, f"SELECT {keys.as_text(found.key)} {rows} LIMIT {_FEW + 1}")
        except psycopg.Error as error:
            warnings.append(
                f"{thing} was never proven, and the update of a row checks it: rows that break it stop the backfill; "
                f"looking for them did not end ({safe(error)}): {look}"
            )
            continue
        if first:
            named = ", ".join("/".join(key) for (key,) in first[:_FEW]) + (", …" if len(first) > _FEW else "")
            fact = f"was never proven, and rows break it (keys: {named}): the server would refuse to update them"
            drop = f"ALTER TABLE {found.table.sql} DROP CONSTRAINT {quote(name)}"
            problems.append(Problem(thing, fact, f"correct them ({look}), or go without it until the end: {drop}"))
    return problems, warnings


def taken(
    conn: Connection, found: Catalog, *, columns: Iterable[str] = (), constraints: Sequence[str] = (),
    triggers: Sequence[str] = (),
) -> list[Problem]:  # fmt: skip
    """Names on a table that a later step needs."""
    present = {column.name for column in found.columns}
    names = [("column", name) for name in columns if name in present]
    names += [("constraint", name) for (name,) in conn.named("obstacles.constraints", found.oid, list(constraints))]
    names += [("trigger", name) for (name,) in conn.named("obstacles.triggers", found.oid, list(triggers))]
    return [
        Problem(
            f"{what} {quote(name)} of {found.table}",
            "has a name that a later step needs",
            f"drop it, or {renaming(found.table, what, name)}",
        )
        for what, name in names
    ]


def renaming(table: TableName, what: str, name: str) -> str:
    """The statement that gives a column, a constraint or a trigger of a table another name; one that sorts first."""
    other = quote(fitted(f"a_{name}"))
    if what == "trigger":
        return f"ALTER TRIGGER {quote(name)} ON {table.sql} RENAME TO {other}"
    return f"ALTER TABLE {table.sql} RENAME {what.upper()} {quote(name)} TO {other}"


def quoting(*texts: str) -> list[Problem]:
    """Names and expressions that would end the body of a function of ours."""
    fact, way_out = f"holds {_QUOTES}, which quotes the bodies of our functions", "write or name it otherwise"
    return [Problem(text, fact, way_out) for text in texts if _QUOTES in text]


def event_triggers(conn: Connection) -> list[str]:
    """Warnings of event triggers, which may refuse each change of the schema."""
    return [
        f"event trigger {quote(name)} fires at changes of the schema: one that it refuses cannot be made"
        for (name,) in conn.named("obstacles.event_triggers")
    ]
