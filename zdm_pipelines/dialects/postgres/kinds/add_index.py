"""Postgres's part of add_index: try the index on a temporary copy of the table's shape, and roll it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import psycopg
from pydantic import TypeAdapter

from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres.builds import text
from zdm_pipelines.dialects.postgres.connection import Connection, attempt, safe, undone
from zdm_pipelines.dialects.postgres.expressions import expression
from zdm_pipelines.dialects.postgres.indexes import Index, NewIndex, partitions, print_alike
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Catalog

_COPY = "pg_temp.zdm_shape"


class Declared(Protocol):
    """The declared index; see `IndexSpec` for what each member is."""

    name: str
    columns: Sequence[str]
    unique: bool
    nulls_distinct: bool
    method: str
    include: Sequence[str]
    where: str | None
    storage: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the server said of a declaration before anything was changed; kept in the ledger as JSON."""

    new: NewIndex

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Facts:
        """The facts as the ledger has them."""
        return _FACTS.validate_python(stored)

    def stored(self) -> dict[str, Any]:
        """The facts as JSON."""
        found: dict[str, Any] = _FACTS.dump_python(self, mode="json")
        return found


_FACTS = TypeAdapter(Facts)


def survey(conn: Connection, table: TableName, change: Declared) -> tuple[Catalog, Facts, list[Problem]]:
    """Read the catalog, and what the server makes of a declared index; changes nothing.

    Raises:
        Problem: the table or the index itself cannot be had, so that nothing more can be looked at.
    """
    problems = catalogs.missing_privileges(conn, table)
    found = catalogs.read(conn, table, partitioned=True, keyless=True)
    if any("temporary" in problem.fact for problem in problems):
        raise problems[0]
    new = try_index(conn, found, change)
    with conn.transaction():
        print_alike(conn)
        problems += taken_names(conn, new)
        warnings = look_alikes(conn, new, problems)
    return replace(found, warnings=tuple(warnings)), Facts(new=new), problems


def try_index(conn: Connection, found: Catalog, change: Declared) -> NewIndex:
    """What the server makes of a declared index, on a temporary table of the same columns and partition key.

    Raises:
        Problem: the server refuses it.
    """
    key = conn.value("indexes.partition_key", found.oid)
    partitioned = f" PARTITION BY {key}" if key else ""
    like = f"LIKE {found.table.sql} INCLUDING GENERATED"  # columns that are not stored cannot be in an index
    try:
        with undone(conn):
            conn.execute(f"CREATE TEMPORARY TABLE zdm_shape ({like}){partitioned} ON COMMIT DROP".encode())
            with attempt(conn):
                # A prepared statement can be but one: what follows a semicolon is refused by the server.
                conn.execute(_create(change).encode(), prepare=True)
                print_alike(conn)
                printed, predicate, elements, alike, columns = conn.named("indexes.tried", found.oid)[0]
    except psycopg.Error as error:
        thing = f"index {quote(change.name)} on ({', '.join(change.columns)})"
        why = error.diag.message_primary or safe(error)  # the copy has no rows, so no message quotes their values
        raise Problem(thing, f"cannot be built ({why})", "correct the declaration of the index") from None
    index = Index(
        name=change.name,
        table=found.table,
        table_oid=found.oid,
        unique=change.unique,
        definition=printed.split(" USING ", 1)[1],
        columns=tuple(columns),
        where=f" WHERE {predicate}" if predicate else "",
    )
    return NewIndex(
        index=index,
        elements=tuple(elements),
        nulls_distinct=not alike,
        partitioned=bool(key),
        partitions=partitions(conn, found.oid) if key else (),
    )


def _create(change: Declared) -> str:
    storage = ", ".join(f"{quote(name)} = {text(str(value))}" for name, value in change.storage.items())
    columns = "\n, ".join(change.columns)  # a line end closes a trailing comment
    parts = (
        f"CREATE {'UNIQUE ' if change.unique else ''}INDEX zdm_index ON {_COPY}",
        f"USING {quote(change.method)} ({columns}\n)",
        f"INCLUDE ({', '.join(quote(column) for column in change.include)})" if change.include else "",
        "" if change.nulls_distinct else "NULLS NOT DISTINCT",
        f"WITH ({storage})" if storage else "",
        f"WHERE {expression(change.where)}" if change.where else "",
    )
    return " ".join(part for part in parts if part)


def taken_names(conn: Connection, new: NewIndex) -> list[Problem]:
    """Names of the index and of its parts that stand for something else, and partitions that can have no index."""
    problems, index = [], new.index
    names = [(index.table, index.name, index.table_oid)]
    for part in new.partitions:
        if conn.value("indexes.is_foreign", part.oid):
            fact, way_out = "is a foreign table, which has no indexes", "detach it, or add indexes to the others"
            problems.append(Problem(f"partition {part.table}", fact, way_out))
        names.append((part.table, fitted(f"{part.table.name}_{index.name}"), part.oid))
    for table, name, oid in names:
        for _, _, of, valid, unique, printed in conn.named("indexes.named", table.schema, name):
            ours = of == oid and unique == index.unique and printed.endswith(f" USING {index.definition}")
            if ours and not valid:
                continue  # what an interrupted build left: it is built again
            fact = "exists already, as declared" if ours else "is the name of something else"
            way_out = "nothing is left to be done: take the migration out" if ours else "choose another name"
            problems.append(Problem(f"{quote(name)} in schema {quote(table.schema)}", fact, way_out))
    return problems


def look_alikes(conn: Connection, new: NewIndex, problems: list[Problem]) -> list[str]:
    """Warnings of indexes that are the same but for the name; on a partitioned table they are problems."""
    index, found = new.index, []
    for (name,) in conn.named("indexes.alike", index.table_oid, index.unique, f"USING {index.definition}"):
        if name == index.name:
            continue
        if new.partitioned:
            fact = f"is the same as index {quote(name)}"
            problems.append(Problem(f"index {quote(index.name)}", fact, "use that one, or drop it first"))
        found.append(f"index {quote(name)} is the same but for its name: one of them is enough")
    if new.partitions:
        found.append("to roll back, the index is dropped under a short ACCESS EXCLUSIVE lock on every partition")
    return found
