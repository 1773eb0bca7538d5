"""Old indexes: what stands on one that is to go, how it goes, and how it comes back as it was."""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.postgres.builds import HARMLESS
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.indexes import Index, print_alike
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Catalog, Step


@dataclass(frozen=True, kw_only=True)
class OldIndex:
    """An index that goes, with everything that makes it anew."""

    index: Index
    oid: int
    belongings: tuple[str, ...] = ()  # statements that give it its comment and settings

    def stands(self, *, more: str = "") -> str:
        """Predicate: the index itself is there, whatever it is called now.

        Args:
            more: of `pg_index` as i, such as `AND i.indisvalid`.
        """
        return (
            f"EXISTS (SELECT FROM pg_index i WHERE i.indexrelid = {self.oid} AND i.indrelid = {self.index.table_oid}"
            f"{more})"
        )


def find(conn: Connection, found: Catalog, name: str) -> tuple[OldIndex, list[Problem]]:
    """An index of a table, and what stands against dropping it whatever is done about it.

    Raises:
        Problem: the table has no such index.
    """
    with conn.transaction():
        print_alike(conn)
        rows = conn.named("indexes.standing", found.table.schema, name)
    thing = f"index {quote(name)}"
    if not rows or rows[0][1] != found.oid:
        fact = "is on another table" if rows else "does not exist"
        raise Problem(thing, fact, f"write the exact name of an index of {found.table}")
    oid, _, unique, definition, where, tablespace, kind, belongings = rows[0]
    problems = []
    if kind == "I":
        way_out = (
            "DROP INDEX locks the table and every partition exclusively: run it yourself in a quiet moment, with a "
            "lock_timeout"
        )
        problems.append(Problem(thing, "is on a partitioned table and cannot be dropped concurrently", way_out))
    problems += [Problem(thing, reason, way_out) for reason, way_out in holders(conn, oid)]
    index = Index(
        name=name, table=found.table, table_oid=found.oid, unique=unique, definition=definition, where=where,
        tablespace=tablespace,
    )  # fmt: skip
    return OldIndex(index=index, oid=oid, belongings=tuple(belongings)), problems


def holders(conn: Connection, oid: int) -> list[tuple[str, str]]:
    """What an index cannot be dropped for, each with its way out."""
    return [(reason, way_out) for reason, way_out in conn.named("indexes.holders", oid)]


@dataclass(frozen=True, kw_only=True)
class Going:
    """An index that contract takes away; see `Retirement` for what each member is."""

    old: OldIndex

    def dependents(self, session: Connection) -> list[str]:
        """What stands on the index; nothing once the index is gone."""
        index, thing = self.old.index, f"index {quote(self.old.index.name)}"
        called = session.named("indexes.called", self.old.oid, index.table_oid)
        if not called:
            again = session.named("indexes.named", index.table.schema, index.name)
            # An earlier run dropped it, unless somebody else did so and made it anew.
            way_out = "roll back and begin anew"
            return [f"{thing} is another one than when the migration began: {way_out}"] if again else []
        if called != [(index.table.schema, index.name)]:
            now = ".".join(quote(part) for part in called[0])
            back = f"ALTER INDEX {now} RENAME TO {quote(index.name)}"
            if called[0][0] != index.table.schema:
                table = f"{quote(called[0][0])}.{quote(index.table.name)}"
                back = f"ALTER TABLE {table} SET SCHEMA {quote(index.table.schema)}"
                return [f"{thing} was moved to {now} with its table: {back}"]
            return [
                f"{thing} was renamed to {now}: give it its name back, {back}, or roll back and declare it by that name"
            ]
        return [f"{thing} {reason}: {way_out}" for reason, way_out in holders(session, self.old.oid)]

    def mentions(self, session: Connection) -> dict[str, str]:
        """None: no text that runs names an index."""
        return {}

    def tombstone(self) -> list[Step]:
        """None: an index out of sight of the planner would still cost every write."""
        return []

    def drop(self) -> list[Step]:
        """One step; it may be run again."""
        index = self.old.index
        return [
            Step(
                name=f"drop index {quote(index.name)}",
                sql=f"DROP INDEX CONCURRENTLY IF EXISTS {index.sql}",
                reason="waits for the queries that use it, and holds up nobody",
                lock=HARMLESS,
                done_when=f"SELECT NOT {self.old.stands()}",
                in_transaction=False,
            )
        ]

    def restore(self) -> list[Step]:
        """Build it as it was."""
        reason = "as it was before the migration"
        extras = [
            Step(name="restore its settings", sql=sql, reason=reason, lock=HARMLESS) for sql in self.old.belongings
        ]
        return [*self.old.index.build(reason=reason, done=self.old.stands(more=" AND i.indisvalid")), *extras]
