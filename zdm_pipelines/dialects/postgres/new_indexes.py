"""New indexes: try one out before anything is changed, and build it, on partitioned tables too.

On a partitioned table the server builds nothing concurrently, so each partition gets an index of its own first; the
parent's index is then made empty and takes those of the partitions in. In that order an undo can drop whatever stands:
the parent's index takes along what it has taken in, and the rest is dropped concurrently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import psycopg

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.builds import SHORT
from zdm_pipelines.dialects.postgres.connection import Connection, attempt, undone
from zdm_pipelines.dialects.postgres.expressions import expression
from zdm_pipelines.dialects.postgres.faults import stated
from zdm_pipelines.dialects.postgres.indexes import Index, print_alike
from zdm_pipelines.dialects.postgres.literals import text
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Catalog, Column, Step

FEW = 5  # rows that a finding names
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
class Partition:
    """A partition, or a partitioned table below another one."""

    table: TableName
    oid: int
    parent: int  # the oid of the table that it is attached to
    leaf: bool


@dataclass(frozen=True, kw_only=True)
class NewIndex:
    """An index to be built, with what the server said of it when it was tried."""

    index: Index
    elements: tuple[str, ...]  # what it orders by, each as an expression over the row
    nulls_distinct: bool = True
    partitioned: bool = False
    partitions: tuple[Partition, ...] = ()  # when it was surveyed, parents first

    def steps(self, *, reason: str) -> list[Step]:
        """Steps that build the index on the table and on its partitions."""
        if not self.partitioned:
            return self.index.build(reason=reason)
        steps: list[Step] = []
        for leaf in (p for p in self.partitions if p.leaf):
            index = self._on(leaf)
            steps += index.build(reason=f"{reason}; on each partition by itself", done=index.taken_in())
        # The deepest first: what is made empty here takes in what stands already.
        for part in reversed([p for p in self.partitions if not p.leaf]):
            steps += self._parent(self._on(part), part.oid, done=self._on(part).taken_in())
        return steps + self._parent(self.index, self.index.table_oid)

    def today(self, session: Connection) -> list[Step]:
        """The same for the partitions of today."""
        if not self.partitioned:
            return []
        today = replace(self, partitions=partitions(session, self.index.table_oid))
        return today.steps(reason="for a partition that was attached meanwhile")

    def duplicates(self) -> str:
        """Query: rows that share what is to be unique with another row."""
        listed = ", ".join(f"{element} AS zdm_{i}" for i, element in enumerate(self.elements, 1))
        grouped = ", ".join(f"zdm_{i}" for i, _ in enumerate(self.elements, 1))
        groups = (
            f"SELECT count(*) AS zdm_rows FROM (SELECT {listed} FROM {self.index.table.sql}{self._where()}) AS zdm_row "
            f"GROUP BY {grouped} HAVING count(*) > 1"
        )
        count = f"SELECT coalesce(sum(zdm_rows), 0)::bigint FROM ({groups}) AS zdm_groups"
        return f"SELECT CASE WHEN {self.index.stands(more=' AND i.indisvalid')} THEN 0 ELSE ({count}) END"

    def duplicate_keys(self, key: Sequence[Column]) -> str:
        """Query: the first keys of such rows, each as text[]; empty for a table without primary key."""
        if not key:
            return ""
        rows = (
            f"SELECT {keys.columns(key)}, {keys.as_text(key)} AS zdm_key, "
            f"count(*) OVER (PARTITION BY {', '.join(self.elements)}) AS zdm_rows "
            f"FROM {self.index.table.sql}{self._where()}"
        )
        return f"SELECT zdm_key FROM ({rows}) AS zdm_row WHERE zdm_rows > 1 ORDER BY {keys.columns(key)} LIMIT {FEW}"

    def _where(self) -> str:
        parts = [self.index.where.removeprefix(" WHERE ")] if self.index.where else []
        if self.nulls_distinct:
            parts += [f"{element} IS NOT NULL" for element in self.elements]
        return f" WHERE {' AND '.join(parts)}" if parts else ""

    def _on(self, part: Partition) -> Index:
        name = fitted(f"{part.table.name}_{self.index.name}")
        return replace(self.index, name=name, table=part.table, table_oid=part.oid, columns=())

    def _parent(self, index: Index, oid: int, *, done: str = "") -> list[Step]:
        """Make a partitioned table's index empty, and let it take in those of its partitions."""
        more = f" OR {done}" if done else ""
        steps = [
            Step(
                name=f"create index {quote(index.name)} on the partitioned table alone",
                sql=index.create(only=True),
                reason="nothing is built; partitions that are created from now on have theirs at once",
                lock="SHARE, for milliseconds",
                undo=f"DROP INDEX IF EXISTS {index.sql}",
                done_when=f"SELECT {index.stands()}{more}",
                undone_when=f"SELECT NOT {index.remains()}{more}",
            )
        ]
        for part in (p for p in self.partitions if p.parent == oid):
            own = self._on(part)
            steps.append(
                Step(
                    name=f"attach index {quote(own.name)}",
                    sql=f"ALTER INDEX {index.sql} ATTACH PARTITION {own.sql}",
                    reason="with the last of them the index of the partitioned table is valid",
                    lock=f"{SHORT}, on the partition's index",
                    done_when=f"SELECT {own.taken_in()}",
                )
            )
        return steps


def partitions(conn: Connection, oid: int) -> tuple[Partition, ...]:
    """Every partition below a partitioned table, parents first."""
    return tuple(
        Partition(table=TableName(schema=schema, name=name), oid=own, parent=parent, leaf=kind != "p")
        for schema, name, own, parent, kind in conn.named("indexes.partitions", oid)
    )


# -- before anything is changed --------------------------------------------------------------------------------------


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
        why = stated(error)  # the copy has no rows
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
