"""Rebuilds: how the indexes and constraints of the old column read on the new one.

On the temporary copy the old column takes the new one's name, and the server prints what depends on it: no SQL is
edited as text.
"""

from __future__ import annotations

from typing import Any

import psycopg

from zdm_pipelines.dialects.postgres.connection import Connection, attempt, query, safe, scalar
from zdm_pipelines.dialects.postgres.indexes import print_alike
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Column, Rebuild

COPY = "pg_temp.zdm_shape"

# Every index that reads the column, with the text that depends on neither its own name nor the table's.
_INDEXES = """
SELECT c.relname, i.indisunique, k.conname, k.contype,
       substr(pg_get_indexdef(i.indexrelid), strpos(pg_get_indexdef(i.indexrelid), p.prefix) + length(p.prefix)),
       strpos(pg_get_indexdef(i.indexrelid), p.prefix) > 0, i.indisreplident, k.condeferrable, k.condeferred
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('u', 'x')
CROSS JOIN LATERAL (SELECT format('INDEX %I ON %s USING ', c.relname, $3::text) AS prefix) p
WHERE i.indrelid = $1 AND i.indisvalid AND NOT i.indisprimary AND (
  $2::smallint = ANY (i.indkey::smallint[]) OR EXISTS (
    SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
      AND d.refobjid = $1 AND d.refobjsubid = $2))
ORDER BY c.relname"""

_CONSTRAINTS = """
SELECT conname, contype, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = $1 AND contype IN ('c', 'f') AND $2::smallint = ANY (conkey) ORDER BY conname"""

_TAKEN = """
SELECT EXISTS (SELECT 1 FROM pg_class c WHERE c.relname = $2
                 AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = $1))
    OR EXISTS (SELECT 1 FROM pg_constraint WHERE conrelid = $1 AND conname = $2)"""

_CHECK = "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = $1::regclass AND conname = 'zdm_check'"


class Rebuilds:
    """Reads them in the transaction in which the copy (`COPY`, with both columns) exists; collects problems."""

    def __init__(self, conn: Connection, *, table: TableName, oid: int, old: Column, new: str) -> None:
        self.conn = conn
        self.table = table
        self.oid = oid
        self.old = old
        self.new = new
        self.problems: list[Problem] = []

    def find(self) -> list[Rebuild]:
        """Every index and constraint of the old column, as it will stand on the new one."""
        printed = scalar(self.conn, "SELECT format('%I.%I', $1::text, $2::text)", [self.table.schema, self.table.name])
        indexes = [self._index(*row) for row in query(self.conn, _INDEXES, [self.oid, self.old.number, printed])]
        constraints = [
            self._foreign_key(name, definition) if kind == "f" else self._check(name, definition)
            for name, kind, definition in query(self.conn, _CONSTRAINTS, [self.oid, self.old.number])
        ]
        return [found for found in (*indexes, *constraints) if found is not None]

    def _name(self, name: str) -> str:
        """A name for the rebuilt one that tells where it comes from and is free."""
        fresh = fitted(name.replace(self.old.name, self.new) if self.old.name in name else f"{name}_zdm")
        return fitted(f"{fresh}_zdm") if scalar(self.conn, _TAKEN, [self.oid, fresh]) else fresh

    def _swap(self) -> None:
        self.conn.execute(f"ALTER TABLE {COPY} RENAME COLUMN {quote(self.new)} TO zdm_aside")
        self.conn.execute(f"ALTER TABLE {COPY} RENAME COLUMN {quote(self.old.name)} TO {quote(self.new)}")

    def _index(
        self,
        name: str,
        unique: bool,
        constraint: str | None,
        kind: str | None,
        tail: str,
        readable: bool,
        identity: bool,
        *deferring: Any,
    ) -> Rebuild | None:
        thing = f"index {quote(name)}"
        reasons = {"backs an exclusion constraint": kind == "x", "is the replica identity": identity}
        for fact in [f for f, holds in (reasons | {"is unreadable": not readable}).items() if holds]:
            self.problems.append(Problem(thing, fact, "drop it first; replace_column does not rebuild such"))
            return None
        try:
            with attempt(self.conn):
                self.conn.execute(f"CREATE INDEX zdm_index ON {COPY} USING {tail}".encode())
                self._swap()
                moved = self._printed()
            with attempt(self.conn):
                self.conn.execute(f"CREATE INDEX zdm_index ON {COPY} USING {moved}".encode())
                print_alike(self.conn)
                moved = self._printed()  # as it reads over a column of the new type
        except psycopg.Error as error:
            fact = f"cannot be built on the new column ({safe(error)})"
            self.problems.append(Problem(thing, fact, "drop it first, or choose a type it can index"))
            return None
        deferrable, deferred = deferring
        return Rebuild(
            kind="unique" if constraint else "unique_index" if unique else "index",
            original=constraint or name,
            name=self._name(name),
            definition=moved,
            deferrable=(" DEFERRABLE" if deferrable else "") + (" INITIALLY DEFERRED" if deferred else ""),
        )

    def _printed(self) -> str:
        return str(scalar(self.conn, "SELECT pg_get_indexdef('pg_temp.zdm_index'::regclass)")).split(" USING ", 1)[1]

    def _foreign_key(self, name: str, definition: str) -> Rebuild | None:
        columns, references = definition.split(") REFERENCES ", 1)
        if columns.removeprefix("FOREIGN KEY (") != scalar(self.conn, "SELECT quote_ident($1)", [self.old.name]):
            way_out = "drop it first; replace_column rebuilds one-column keys"
            self.problems.append(Problem(f"foreign key {quote(name)}", "spans several columns", way_out))
            return None
        moved = f"FOREIGN KEY ({quote(self.new)}) REFERENCES {references}".removesuffix(" NOT VALID")
        return Rebuild(kind="foreign_key", original=name, name=self._name(name), definition=moved)

    def _check(self, name: str, definition: str) -> Rebuild | None:
        try:
            with attempt(self.conn):
                self.conn.execute(f"ALTER TABLE {COPY} ADD CONSTRAINT zdm_check {definition}".encode())
                self._swap()
                moved = str(scalar(self.conn, _CHECK, [COPY])).removesuffix(" NOT VALID")
            with attempt(self.conn):
                self.conn.execute(f"ALTER TABLE {COPY} ADD CONSTRAINT zdm_check {moved}".encode())
        except psycopg.Error as error:
            fact = f"does not fit the new column ({safe(error)})"
            self.problems.append(Problem(f"check {quote(name)}", fact, "drop it first"))
            return None
        return Rebuild(kind="check", original=name, name=self._name(name), definition=moved)
