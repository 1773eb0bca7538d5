"""Builds: give a table constraints while it is read and written; each step may be run again. See `indexes`, too."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres.literals import text
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Step

SHORT = "ACCESS EXCLUSIVE, for milliseconds"
HARMLESS = "SHARE UPDATE EXCLUSIVE: reads and writes go on"
BOTH = "SHARE ROW EXCLUSIVE, for milliseconds, on both tables"
PRINTING_PATH = "pg_catalog"  # everything else is printed with its schema
_NOT_ENFORCED = " NOT ENFORCED"
_KEPT = "regexp_replace(pg_get_constraintdef(k.oid), ' NOT VALID$', '')"


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A check or foreign key of one table."""

    name: str
    table: TableName
    oid: int = 0  # of the table; 0: it is made by an earlier step, and is found by its name
    definition: str  # without NOT VALID
    printed: bool = True  # the definition is as the server prints it; else what is told apart is how it acts
    original: str = ""  # the constraint that it is to stand beside; of a foreign key: it refers to the same table
    validated: bool = True  # rows that are there must keep it, too
    broken_by: str = ""  # query for the keys of rows that do not

    def stands(self, *, validated: bool = False) -> str:
        """Predicate: it is there, whatever it refers to is what the original refers to."""
        kind, expected = self.definition[0].lower(), self.definition
        if self.printed:
            # An earlier version kept how it is printed under the search path of its session.
            alike = f"{text(expected)} IN ({_KEPT}, {printed_alike(_KEPT)})"
        else:
            alike = f"regexp_replace({_KEPT}, '.*[)]', '') = {text(expected.rpartition(')')[2])}"
        if self.original and kind == "f":
            alike += (
                " AND NOT EXISTS (SELECT FROM pg_constraint o WHERE o.conrelid = k.conrelid AND o.contype = 'f' "
                f"AND o.conname = {text(self.original)} AND o.confrelid <> k.confrelid)"
            )
        return _named(self.table, self.oid, self.name, f"k.contype = {text(kind)} AND {alike}", validated=validated)

    def add(self, *, reason: str) -> list[Step]:
        """Steps that add it for new writes at once, and then prove it for the rows that are there."""
        name, stands = quote(self.name), self.stands()
        add = Step(
            name=f"add constraint {name}",
            sql=f"ALTER TABLE {self.table.sql} ADD CONSTRAINT {name} {self.definition}"
            + ("" if self.definition.endswith(_NOT_ENFORCED) else " NOT VALID"),
            reason=f"{reason}; NOT VALID: holds for new writes, reads no row yet",
            lock=SHORT if self.definition.startswith("CHECK") else BOTH,
            undo=f"ALTER TABLE {self.table.sql} DROP CONSTRAINT IF EXISTS {name}",
            done_when=f"SELECT {stands}",
            undone_when=f"SELECT NOT {stands}",
        )
        if not self.validated:
            return [replace(add, reason=f"{reason}, which is not proven for every row either")]
        validate = Step(
            name=f"validate constraint {name}",
            sql=f"ALTER TABLE {self.table.sql} VALIDATE CONSTRAINT {name}",
            reason="reads the table while it is read and written",
            lock=HARMLESS,
            done_when=f"SELECT {self.stands(validated=True)}",
            in_transaction=False,
            broken_by=self.broken_by,
        )
        return [add, validate]


def not_null(table: TableName, column: str, *, oid: int = 0) -> list[Step]:
    """Set a column NOT NULL without reading the table under a strong lock: a valid check proves it."""
    name, check, is_set = quote(column), not_null_check(column), is_not_null(table, column)
    prove = Constraint(name=check, table=table, oid=oid, definition=f"CHECK ({name} IS NOT NULL)", printed=False)
    alike = f"{_KEPT} = format('CHECK ((%I IS NOT NULL))', {text(column)})"  # as the server prints it
    stands, valid = (f"SELECT {_named(table, oid, check, alike, validated=valid)}" for valid in (False, True))
    add, validate = prove.add(reason="proves that no row is NULL")
    return [
        replace(add, done_when=f"SELECT ({is_set}) OR ({stands})", undone_when=f"SELECT NOT ({stands})"),
        replace(validate, done_when=f"SELECT ({is_set}) OR ({valid})"),
        Step(
            name=f"set {name} NOT NULL",
            sql=f"ALTER TABLE {table.sql} ALTER COLUMN {name} SET NOT NULL",
            reason="the valid check proves it, so no row is read",
            lock=SHORT,
            undo=f"ALTER TABLE {table.sql} ALTER COLUMN {name} DROP NOT NULL",
            done_when=is_set,
            undone_when=f"SELECT NOT coalesce(({is_set}), false)",  # others may have dropped the column
        ),
        Step(
            name=f"drop check {quote(check)}",
            sql=f"ALTER TABLE {table.sql} DROP CONSTRAINT IF EXISTS {quote(check)}",
            reason="NOT NULL says the same",
            lock=SHORT,
            done_when=f"SELECT NOT ({stands})",
        ),
    ]


def not_null_check(column: str) -> str:
    """What the check is called that proves a column NOT NULL."""
    return fitted(f"zdm_not_null_{column}")


def is_not_null(table: TableName, column: str) -> str:
    """Query: whether a column is NOT NULL."""
    return (
        f"SELECT attnotnull FROM pg_attribute WHERE attrelid = {text(table.sql)}::regclass AND attname = {text(column)}"
    )


def unique_constraint(table: TableName, oid: int, name: str, *, deferrable: str) -> str:
    """Predicate: a table has a unique constraint of that name that is deferred as said."""
    how = f"k.contype = 'u' AND regexp_replace(pg_get_constraintdef(k.oid), '.*[)]', '') = {text(deferrable)}"
    return _named(table, oid, name, how, validated=False)


def _named(table: TableName, oid: int, name: str, how: str, *, validated: bool) -> str:
    """Predicate: a table has a constraint of that name and kind."""
    more = " AND k.convalidated" if validated else ""
    return (
        f"EXISTS (SELECT FROM pg_constraint k WHERE k.conrelid = {oid or f'{text(table.sql)}::regclass'} "
        f"AND k.conname = {text(name)} AND {how}{more})"
    )


def printed_alike(sql: str) -> str:
    """An expression that prints a definition, under the one search path that leaves no schema out.

    CASE settles the order; the path is put back, for transactions go on behind a predicate.
    """
    return (
        f"(SELECT CASE WHEN set_config('search_path', '{PRINTING_PATH}', true) <> '' THEN {sql} "
        "|| left(set_config('search_path', s.path, true), 0) END "
        "FROM (SELECT current_setting('search_path') AS path OFFSET 0) s)"
    )
