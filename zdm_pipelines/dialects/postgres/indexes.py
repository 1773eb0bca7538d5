"""Indexes: build one while its table is read and written, and know it again.

An index is recognised by its table, its definition as the server prints it, and whether it is valid; a name alone
proves nothing. Definitions are printed under one search path, for the session's own says which names have a schema.
"""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.postgres.builds import HARMLESS, PRINTING_PATH, printed_alike
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.literals import text
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.values import Step

_PRINTED = printed_alike("pg_get_indexdef(i.indexrelid)")  # of pg_index i


def print_alike(conn: Connection) -> None:
    """Let the server print definitions as predicates compare them, until the present transaction or savepoint ends."""
    conn.execute(f"SET LOCAL search_path = {PRINTING_PATH}".encode())


@dataclass(frozen=True, kw_only=True)
class Index:
    """One index of one table, as the server prints it."""

    name: str
    table: TableName
    table_oid: int  # 0: the table is made by an earlier step, and is found by its name
    unique: bool
    definition: str  # everything behind USING
    printed: bool = True  # the definition is as the server prints it; else it is as declared, and is not compared
    # Numbers of its columns in the table, 0 for an expression; a name: of a column yet to be added; empty: not known.
    columns: tuple[int | str, ...] = ()
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
        if not self.columns:
            return self._named(self._on_table())
        numbers = ", ".join(
            str(column)
            if isinstance(column, int)
            else f"(SELECT attnum FROM pg_attribute WHERE attrelid = i.indrelid "
            f"AND attname = {text(column)} AND NOT attisdropped)"
            for column in self.columns
        )
        return self._named(f"{self._on_table()} AND i.indkey::text = concat_ws(' ', {numbers})")

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

    def build(self, *, reason: str, done: str = "", broken_by: str = "") -> list[Step]:
        """Steps that build it concurrently; each may be run again.

        Args:
            done: a predicate that makes the build needless, too.
            broken_by: a query for the keys of rows that are not unique.
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
                broken_by=broken_by,
            ),
        ]
