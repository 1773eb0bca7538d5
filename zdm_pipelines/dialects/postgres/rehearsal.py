"""Rehearsal: run a migration's very steps on an empty copy, and see what they do to it, before anything is changed.

Whether a statement rewrites or reads a table hangs on the server's version, on types and on what else stands there. A
rewrite gives the copy another file; a scan is counted by the server; locks on other tables are listed. Both would take
as long as the real table is large, under a lock that everybody waits for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg

from zdm_pipelines.dialects.postgres.connection import Connection, attempt
from zdm_pipelines.dialects.postgres.faults import safe
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.values import Catalog, Step

COPY = TableName(schema="pg_temp", name="zdm_rehearsed")
_WAY_OUT = "declare otherwise what it is for: no step may hold up the application"
_SHAPING = ("ALTER TABLE", "CREATE INDEX", "CREATE UNIQUE INDEX")
# What neither rewrites nor reads, or cannot be done to a temporary table: triggers, and keys to tables that stay.
_NOT_HERE = (" TRIGGER ", " FOREIGN KEY ")


def copied(conn: Connection, found: Catalog) -> int:
    """Make the copy, in a transaction that is undone; its oid."""
    like = f"LIKE {found.table.sql} INCLUDING GENERATED INCLUDING DEFAULTS"
    conn.execute(f"CREATE TEMPORARY TABLE {COPY.name} ({like}) ON COMMIT DROP".encode())
    return int(conn.value("rehearsal.copy"))


def rehearse(conn: Connection, copy: int, steps: Sequence[Step]) -> list[Problem]:
    """What the steps would do to a table with rows that no step may.

    Args:
        copy: oid of the copy, which the steps name.
    """
    problems: list[Problem] = []
    if conn.value("rehearsal.blind"):
        fact = "is off for our role or this database: whether a step reads the whole table is not seen"
        return [Problem("setting track_counts", fact, "let an administrator RESET it for the role and the database")]
    with attempt(conn):
        for step in _on_copy(steps):
            before = _seen(conn, copy)
            try:
                # Concurrently means in several transactions: what is built, and how, is the same.
                conn.execute(step.sql.replace("INDEX CONCURRENTLY ", "INDEX ", 1).encode())
            except psycopg.errors.DependentObjectsStillExist:
                return problems  # such as a generated column: the survey warns of it, and the gate asks for it
            except psycopg.Error as error:
                problems.append(Problem(f"step {step.name}", f"the server refuses it: {safe(error)}", _WAY_OUT))
                return problems  # the transaction takes no more statements, and the rest builds on this one
            after = _seen(conn, copy)
            if step.in_transaction:
                problems += _harm(step, before, after)
    return problems


def _on_copy(steps: Sequence[Step]) -> Iterator[Step]:
    elsewhere: set[str] = set()  # constraints that are not made here, and so not proven
    for step in steps:
        name = step.name.rpartition("constraint ")[2]
        if any(word in step.sql for word in _NOT_HERE):
            elsewhere.add(name)
        elif "VALIDATE CONSTRAINT" in step.sql and name in elsewhere:
            continue
        elif COPY.sql in step.sql and step.sql.startswith(_SHAPING):
            yield step


def _seen(conn: Connection, copy: int) -> tuple[int, int, set[tuple[str, str]]]:
    """The copy's file, how often it was read, and strong locks on other tables."""
    file, scans = conn.named("rehearsal.state", copy)[0]
    return file, scans, {(table, mode) for table, mode in conn.named("rehearsal.locks", copy)}


def _harm(
    step: Step, before: tuple[int, int, set[tuple[str, str]]], after: tuple[int, int, set[tuple[str, str]]]
) -> Iterator[Problem]:
    thing = f"step {step.name}"
    if before[0] != after[0]:
        yield Problem(thing, "would rewrite the whole table while nobody can read it", _WAY_OUT)
    elif before[1] != after[1]:
        yield Problem(thing, "would read the whole table while nobody can write it", _WAY_OUT)
    for table, mode in sorted(after[2] - before[2]):
        yield Problem(thing, f"would lock {table} too ({mode})", _WAY_OUT)


def lands(conn: Connection, thing: str, type_name: str) -> list[Problem]:
    """What is wrong with a type for a column that is added to a table with rows; in a transaction that is undone."""
    with attempt(conn):
        conn.execute(b"CREATE TEMPORARY TABLE zdm_rows ON COMMIT DROP AS SELECT 1 AS zdm_row")
        file = conn.execute(b"SELECT pg_relation_filenode('pg_temp.zdm_rows')::bigint").fetchall()[0][0]
        try:
            conn.execute(f"ALTER TABLE pg_temp.zdm_rows ADD COLUMN zdm_value {type_name}".encode(), prepare=True)
        except psycopg.Error as error:
            fact = f"cannot be added to a table with rows ({safe(error)})"
            return [Problem(thing, fact, "declare a type that takes NULL, without constraints of its own")]
        rewritten, filled, base = conn.named("rehearsal.lands", file)[0]
    if rewritten:
        fact = (
            "would rewrite the whole table while nobody can read it, for each row must meet the constraints or the "
            "default of the type"
        )
        way_out = (
            f"write type: {base}, and ALTER TABLE … ADD CHECK … NOT VALID for what the type demands, once expand has "
            "run; or declare a domain without constraints, and ALTER DOMAIN … ADD … NOT VALID at the end"
        )
        return [Problem(thing, fact, way_out)]
    if filled:
        fact = "has a default of its own, which rows that were never moved would hold"
        return [Problem(thing, fact, f"write type: {base}, or one without default, and declare new.default")]
    return []
