"""Meaning: whether what is said of the old column's values says the same of the new one's.

A predicate, a check, a unique expression or a foreign key speaks of values. It may be carried to the new column as it
reads only where `up` gives each value as it is. The server prints `up`, and the same print of the bare column tells
that; of a type with other operators, or with fewer values, the same text would say something else.
"""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from zdm_pipelines.dialects.postgres.connection import Connection, attempt, query, scalar
from zdm_pipelines.dialects.postgres.expressions import expression
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Column

# Alike in all that their operators say; a value that one of them has not is refused by the server.
_ALIKE = (frozenset(("int2", "int4", "int8")), frozenset(("text", "varchar")))
_NUMERIC = "numeric"
# Types whose modifier grows with what they take: a larger one changes no value.
_GROWING = frozenset(("text", "varchar", "varbit", "time", "timetz", "timestamp", "timestamptz"))
_ANY = -1  # the modifier of a type that is not limited

# A domain is what lies below it.
_TYPES = """
WITH RECURSIVE base (name, type, modifier, sorted) AS (
  SELECT attname, atttypid, atttypmod, attcollation FROM pg_attribute
  WHERE attrelid = $1::regclass AND attname = ANY ($2)
  UNION ALL SELECT b.name, t.typbasetype, t.typtypmod, b.sorted
  FROM base b JOIN pg_type t ON t.oid = b.type WHERE t.typtype = 'd')
SELECT b.name::text, t.oid::bigint, t.typname::text, b.modifier, b.sorted::bigint, coalesce(l.collisdeterministic, true)
FROM base b JOIN pg_type t ON t.oid = b.type LEFT JOIN pg_collation l ON l.oid = b.sorted WHERE t.typtype <> 'd'"""


@dataclass(frozen=True)
class _Type:
    oid: int
    name: str
    modifier: int
    collation: int
    deterministic: bool


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What `up` makes of the old column's values, on the copy `shape` with both columns."""

    conn: Connection
    shape: str
    alias: str  # what expressions call the table, quoted
    up: str
    old: Column
    new: str
    new_type: str
    values: bool  # each value that is not NULL is given as it is
    null: bool  # so is NULL, or the old column has none
    equality: bool  # of two values, both columns say alike whether they are the same

    def kept(self, before: str, after: str, *, false_only: bool) -> bool:
        """Whether a condition on the old column says the same of the new one, where its text is the same.

        Args:
            before: the condition, as it reads the old column.
            after: as it reads the new one.
            false_only: NULL is no objection, as in a check; else NULL is like false, as in a predicate.
        """
        return self.values and (self.null or self._alike_for_null(before, after, "false" if false_only else "true"))

    def _alike_for_null(self, before: str, after: str, verdict: str) -> bool:
        """Whether a condition that reads the one column alone says the same of NULL and of what `up` makes of it."""
        row = f"(SELECT NULL::{self.old.type} AS {quote(self.old.name)}) AS {self.alias}"
        made = f"(SELECT {expression(self.up)}::{self.new_type} AS {quote(self.new)} FROM {row}) AS {self.alias}"
        sql = f"SELECT (SELECT ({before}) IS {verdict} FROM {row}) = (SELECT ({after}) IS {verdict} FROM {made})"
        try:
            with attempt(self.conn):
                return bool(scalar(self.conn, sql))
        except psycopg.Error:
            return False  # more columns are read: what stands in them cannot be known


def judge(conn: Connection, *, shape: str, alias: str, up: str, old: Column, new: str, new_type: str) -> Meaning:
    """What `up` makes of values; in a transaction in which the copy exists."""
    found = {name: _Type(*rest) for name, *rest in query(conn, _TYPES, [shape, [old.name, new]])}
    before, after = found[old.name], found[new]
    same_collation = before.collation == after.collation
    bare, but_null = _is_column(conn, shape, alias, up, old, new_type)
    return Meaning(
        conn=conn, shape=shape, alias=alias, up=up, old=old, new=new, new_type=new_type,
        values=(bare or but_null) and same_collation and _fits(before, after),
        null=bare or old.not_null,
        equality=same_collation or (before.deterministic and after.deterministic),
    )  # fmt: skip


def _fits(old: _Type, new: _Type) -> bool:
    """Whether a column of the new type takes each value of the old one as it is, and its operators say the same."""
    if {old.name, new.name} <= _ALIKE[0]:
        return True
    if old.oid != new.oid and not {old.name, new.name} <= _ALIKE[1]:
        return False
    if new.modifier in (_ANY, old.modifier):
        return True
    if old.modifier == _ANY:
        return False
    if old.name == _NUMERIC:
        return _scale(new.modifier) >= _scale(old.modifier)
    return old.name in _GROWING and new.modifier >= old.modifier


def _scale(modifier: int) -> int:
    """Digits behind the point of a numeric, which may be negative."""
    digits = (modifier - 4) & 0x7FF
    return digits - 0x800 if digits & 0x400 else digits


def _is_column(conn: Connection, shape: str, alias: str, up: str, old: Column, new_type: str) -> tuple[bool, bool]:
    """Whether an expression is the old column under a cast at most, and whether it is so but for NULL."""

    def printed(sql: str) -> str:
        with attempt(conn):
            conn.execute(
                f"CREATE TEMPORARY VIEW zdm_printed AS SELECT {sql} AS zdm_value FROM {shape} AS {alias}".encode()
            )
            return str(scalar(conn, "SELECT pg_get_viewdef('pg_temp.zdm_printed'::regclass)"))

    given = printed(expression(up))
    column, head = quote(old.name), " SELECT "
    casts = [column, f"{column}::{new_type}", f"({column}::{old.type})::{new_type}"]
    for each in casts:
        try:
            bare = printed(each)
        except psycopg.Error:
            continue  # there is no such cast
        if given == bare:
            return True, True
        core = bare.removeprefix(head).rpartition(" AS zdm_value")[0]
        # Printed so, nothing is around it: an operator, a cast or a subscript would set it in parentheses.
        if given.startswith(f"{head}COALESCE({core}, "):
            return False, True
    return False, False
