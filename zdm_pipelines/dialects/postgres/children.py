"""Children: tables whose foreign keys refer to rows that go, and the statements that take their rows first.

Nothing here waits while it holds a lock, unless it is asked to: a child row that the application has locked keeps its
parent from going, and with the parent all its other children. New children cannot come, since the parent is locked: an
insert needs a key share of the parent row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres import obstacles
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.held import Held
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, quote


class Fate(StrEnum):
    """What happens to child rows when their parent goes."""

    REFUSES = "refuses"  # the parent stays
    DELETED = "deleted"  # child rows go before their parent
    CLEARED = "cleared"  # the server sets the reference of the child rows to NULL or the default


@dataclass(frozen=True, kw_only=True)
class Child:
    """A table along one foreign key that refers to the declared table, or to another child's."""

    number: int  # its place: parents before children; 0 is the declared table
    parent: int
    table: TableName
    oid: int
    constraint: str
    columns: tuple[tuple[str, str], ...]  # its own, each with the one that it refers to
    fate: Fate
    all_columns: tuple[str, ...] = ()  # of rows that are deleted
    generated: tuple[str, ...] = ()
    key: tuple[str, ...] = ()

    @property
    def held(self) -> Held:
        """The rows of the table that a batch holds."""
        only = "" if self.fate is Fate.REFUSES else "ONLY "  # a foreign key of a partitioned table is all partitions'
        return Held(number=self.number, source=f"{only}{self.table.sql}")

    def refers(self, own: str, parent: str) -> str:
        """Predicate: a row of one alias refers to a row of the other."""
        return " AND ".join(f"{own}.{quote(mine)} = {parent}.{quote(theirs)}" for mine, theirs in self.columns)


@dataclass(frozen=True)
class Tree:
    """The declared table with the tables that refer to it."""

    root: Held
    children: tuple[Child, ...]

    def parent_of(self, child: Child) -> Held:
        """The held rows that a child's rows refer to."""
        return self.root if child.parent == 0 else self.children[child.parent - 1].held

    def childless(self) -> str:
        """Predicate over rows of the declared table: no child refuses; empty when none could."""
        return " AND ".join(
            f"NOT EXISTS (SELECT FROM {c.held.table} WHERE {c.refers(c.held.alias, self.root.alias)})"
            for c in self.children
            if c.fate is Fate.REFUSES
        )

    def narrow(self, *, wait: bool) -> Iterator[str]:
        """Statements that hold the child rows of held rows, then let go of rows that cannot go."""
        if childless := self.childless():
            # Asked again, now that the rows are locked: rows that were committed meanwhile are seen only now.
            yield self.root.keep(f"{self.root.table} WHERE {self.root.held} AND {childless}")
        held = [c for c in self.children if c.fate is not Fate.REFUSES]
        for child in held:
            yield child.held.lock(f"{self._joined(child)} WHERE {self.parent_of(child).held}", wait=wait)
        for child in reversed(held):
            own, parent = child.held, self.parent_of(child)
            locked_out = f"SELECT FROM {own.table} WHERE {child.refers(own.alias, parent.alias)} AND {own.free}"
            yield parent.keep(f"{parent.table} WHERE {parent.held} AND NOT EXISTS ({locked_out})")
        for child in self.deleted:
            yield child.held.keep(f"{self._joined(child)} WHERE {child.held.held} AND {self.parent_of(child).held}")

    def _joined(self, child: Child) -> str:
        own, parent = child.held, self.parent_of(child)
        return f"{own.table} JOIN {parent.table} ON {child.refers(own.alias, parent.alias)}"

    @property
    def deleted(self) -> Sequence[Child]:
        """The tables whose rows go with their parents."""
        return [c for c in self.children if c.fate is Fate.DELETED]


@dataclass
class Search:
    """Looks for the tables that refer to a table."""

    conn: Connection
    delete: bool  # children that would refuse are deleted
    children: list[Child] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def run(self, table: TableName, oid: int) -> Search:
        """Fill in what refers to a table, parents before children."""
        self._below(table, oid, 0, (oid,))
        return self

    def _below(self, table: TableName, oid: int, number: int, path: tuple[int, ...]) -> None:
        for constraint, schema, name, own, action, mine, theirs, indexed in self.conn.named("children.references", oid):
            thing = f"foreign key {quote(constraint)} of {(referring := TableName(schema=schema, name=name))}"
            cleared = action in ("n", "d")
            fate = Fate.CLEARED if cleared else Fate.DELETED if self.delete else Fate.REFUSES
            if own in path:
                fact = f"leads back to {table if own == oid else referring}"
                drop = f"ALTER TABLE {referring.sql} DROP CONSTRAINT {quote(constraint)}"
                self._refuse(thing, fact, f"set it to NULL for the rows that go, and drop it first: {drop}")
                continue
            child = Child(
                number=len(self.children) + 1, parent=number, table=referring, oid=own, constraint=constraint,
                columns=tuple(zip(mine, theirs, strict=True)), fate=fate,
            )  # fmt: skip
            if not indexed:
                self.warnings.append(f"{thing} has no index: each batch reads the whole table {referring}")
            self.children.append(child if fate is Fate.REFUSES else self._looked_at(child))
            if fate is Fate.DELETED:
                self._below(referring, own, child.number, (*path, own))

    def _looked_at(self, child: Child) -> Child:
        try:
            found = catalogs.read(self.conn, child.table, keyless=True)
        except Problem as problem:
            self.problems.append(problem)
            return child
        self.problems += unseen(self.conn, child.table, child.oid)
        return Child(
            number=child.number, parent=child.parent, table=child.table, oid=child.oid, constraint=child.constraint,
            columns=child.columns, fate=child.fate, all_columns=tuple(c.name for c in found.columns),
            generated=tuple(c.name for c in found.columns if c.generated), key=tuple(c.name for c in found.key),
        )  # fmt: skip

    def _refuse(self, thing: str, fact: str, way_out: str) -> None:
        self.problems.append(Problem(thing, fact, way_out))


def unseen(conn: Connection, table: TableName, oid: int) -> list[Problem]:
    """What keeps us from seeing every row of a table, or a delete from doing what it says."""
    # Rows come back from an archive by INSERT.
    return [*catalogs.hidden_rows(conn, table, oid), *obstacles.rules(conn, table, oid, "DELETE", "INSERT")]
