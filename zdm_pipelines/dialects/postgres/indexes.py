"""Indexes: build them while their table is read and written, on partitioned tables too, and know them again.

An index is recognised by its table, its definition as the server prints it, and whether it is valid; a name alone
proves nothing. Definitions are printed under one search path, for the session's own says which names have a schema.

On a partitioned table the server builds nothing concurrently, so each partition gets an index of its own first; the
parent's index is then made empty and takes those of the partitions in. In that order an undo can drop whatever stands:
the parent's index takes along what it has taken in, and the rest is dropped concurrently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.builds import HARMLESS, SHORT, text
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Column, Step

FEW = 5  # rows that a finding names
_PATH = "pg_catalog"  # everything else is printed with its schema
# The definition of pg_index i. CASE settles the order; the path is put back, for transactions go on behind a predicate.
_PRINTED = (
    f"(SELECT CASE WHEN set_config('search_path', '{_PATH}', true) <> '' THEN pg_get_indexdef(i.indexrelid) "
    "|| left(set_config('search_path', s.path, true), 0) END "
    "FROM (SELECT current_setting('search_path') AS path OFFSET 0) s)"
)


def print_alike(conn: Connection) -> None:
    """Let the server print definitions as predicates compare them, until the present transaction or savepoint ends."""
    conn.execute(f"SET LOCAL search_path = {_PATH}".encode())


@dataclass(frozen=True, kw_only=True)
class Index:
    """One index of one table, as the server prints it."""

    name: str
    table: TableName
    table_oid: int  # 0: the table is made by an earlier step, and is found by its name
    unique: bool
    definition: str  # everything behind USING
    printed: bool = True  # the definition is as the server prints it; else it is as declared, and is not compared
    columns: tuple[int, ...] = ()  # numbers of its columns in the table, 0 for an expression; empty: not known
    where: str = ""  # the end of the definition that says which rows, with its WHERE
    tablespace: str = ""  # quoted; empty: the database's own

    @property
    def sql(self) -> str:
        """The name with its schema, which is the table's, quoted."""
        return f"{quote(self.table.schema)}.{quote(self.name)}"

    def _on_table(self) -> str:
        table = self.table_oid or f"to_regclass({text(self.table.sql)})"
        return f"i.indrelid = {table} AND {'' if self.unique else 'NOT '}i.indisunique"

    def _alike(self) -> str:
        tail = f"USING {self.definition}"
        compared = f" AND right({_PRINTED}, {len(tail)}) = {text(tail)}" if self.printed else ""
        return f"{self._on_table()}{compared}"

    def stands(self, *, more: str = "") -> str:
        """Predicate: an index of this name, table and definition is there.

        Args:
            more: of `pg_index` as i, such as `AND i.indisvalid`.
        """
        return self._named(f"{self._alike()}{more}")

    def remains(self) -> str:
        """Predicate: there is something to take back, though a renamed column has changed how the definition reads."""
        columns = f" AND i.indkey::text = {text(' '.join(map(str, self.columns)))}" if self.columns else ""
        return self._named(f"{self._on_table()}{columns}")

    def _named(self, condition: str) -> str:
        return (
            "EXISTS (SELECT FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
            f"WHERE c.relname = {text(self.name)} AND {condition})"
        )

    def taken_in(self) -> str:
        """Predicate: the table has an index of this definition, under any name, that belongs to its parent's."""
        return f"EXISTS (SELECT FROM pg_index i JOIN pg_inherits h ON h.inhrelid = i.indexrelid WHERE {self._alike()})"

    def create(self, how: str = "", *, only: bool = False) -> str:
        """The statement that makes it."""
        body = self.definition.removesuffix(self.where)
        tablespace = f" TABLESPACE {self.tablespace}" if self.tablespace else ""
        return (
            f"CREATE {'UNIQUE ' if self.unique else ''}INDEX {how}{quote(self.name)} "
            f"ON {'ONLY ' if only else ''}{self.table.sql} USING {body}{tablespace}{self.where}"
        )

    def build(self, *, reason: str, done: str = "") -> list[Step]:
        """Steps that build it concurrently; each may be run again.

        Args:
            done: a predicate that makes the build needless, too.
        """
        drop = f"DROP INDEX CONCURRENTLY IF EXISTS {self.sql}"
        more = f" OR {done}" if done else ""
        return [
            Step(
                name=f"remove an unfinished index {quote(self.name)}",
                sql=drop,
                reason="a build that was interrupted leaves an invalid index, which writes keep up and no read uses",
                lock=HARMLESS,
                done_when=f"SELECT NOT {self.stands(more=' AND NOT i.indisvalid')}{more}",
                in_transaction=False,
            ),
            Step(
                name=f"build index {quote(self.name)}",
                sql=self.create("CONCURRENTLY "),
                reason=reason,
                lock=HARMLESS,
                undo=drop,
                done_when=f"SELECT {self.stands(more=' AND i.indisvalid')}{more}",
                undone_when=f"SELECT NOT {self.remains()}{more}",
                in_transaction=False,
            ),
        ]


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
