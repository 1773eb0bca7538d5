"""Postgres's part of drop_index: what stands on an index, whether it is used, and how it goes and comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import TypeAdapter

from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres.builds import HARMLESS
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.indexes import Index, print_alike
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.units import Unit, for_people
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


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the server said of the index before anything was changed; kept in the ledger as JSON."""

    old: OldIndex

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Facts:
        """The facts as the ledger has them."""
        return _FACTS.validate_python(stored)

    def stored(self) -> dict[str, Any]:
        """The facts as JSON."""
        found: dict[str, Any] = _FACTS.dump_python(self, mode="json")
        return found


_FACTS = TypeAdapter(Facts)


def survey(conn: Connection, table: TableName, name: str) -> tuple[Catalog, Facts, list[Problem]]:
    """Read the catalog and the index; changes nothing.

    Raises:
        Problem: the table has no such index, so that nothing more can be looked at.
    """
    found = catalogs.read(conn, table, partitioned=True, keyless=True)
    old, problems = find(conn, found, name)
    problems = [*catalogs.missing_privileges(conn, table), *problems]
    warnings = [
        f"only this index serves foreign key {quote(key)}: a delete in {parent} will read the whole table"
        for key, parent in conn.named("indexes.served", old.oid)
    ]
    if old.index.unique:
        warnings.append("the index is unique: without it, nothing keeps duplicates out")
    return replace(found, warnings=tuple(warnings)), Facts(old=old), problems


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
    problems += [Problem(thing, reason, "see docs/kinds.md for what to do first") for reason in holders(conn, oid)]
    index = Index(
        name=name, table=found.table, table_oid=found.oid, unique=unique, definition=definition, where=where,
        tablespace=tablespace,
    )  # fmt: skip
    return OldIndex(index=index, oid=oid, belongings=tuple(belongings)), problems


def holders(conn: Connection, oid: int) -> list[str]:
    """What an index cannot be dropped for."""
    return [reason for (reason,) in conn.named("indexes.holders", oid)]


@dataclass(frozen=True, kw_only=True)
class Going:
    """An index that contract takes away; see `Retirement` for what each member is."""

    old: OldIndex
    unused_for: float | None  # seconds; None: it may be in use

    def dependents(self, session: Connection) -> list[str]:
        """What stands on the index, or scans it; nothing once the index is gone."""
        index, thing = self.old.index, f"index {quote(self.old.index.name)}"
        called = session.named("indexes.called", self.old.oid, index.table_oid)
        if not called:
            again = session.named("indexes.named", index.table.schema, index.name)
            # An earlier run dropped it, unless somebody else did so and made it anew.
            return [f"{thing} is another one than when the migration began: somebody made it anew"] if again else []
        if called != [(index.table.schema, index.name)]:
            now = ".".join(quote(part) for part in called[0])
            return [f"{thing} was renamed to {now}: give it its name back, or roll back and declare it by that name"]
        return [f"{thing} {reason}" for reason in holders(session, self.old.oid)]

    def in_use(self, session: Connection, replicas: Mapping[str, Connection]) -> list[str]:
        """Why the index counts as used; what is not known counts as used.

        Args:
            replicas: sessions on those that are declared, by what they are called.
        """
        rows, thing = session.named("indexes.use", self.old.oid), f"index {quote(self.old.index.name)}"
        if self.unused_for is None or not rows:
            return []  # asked by nobody, or dropped by an earlier run
        found = [self._used(rows[0], self.unused_for)]
        if (following := session.value("indexes.replicas")) > len(replicas):
            found.append(
                f"may be in use on replicas: {following} follow this server and {len(replicas)} are declared; declare "
                f"them under replicas of the database, or unused_for: null"
            )
        for called, replica in replicas.items():
            there = replica.named("indexes.use", self.old.oid) if replica.value("catalog.is_replica") else []
            reason = (
                self._used(there[0], self.unused_for) if there else "is not there: is it a replica of this database?"
            )
            found.append(reason and f"on {called} {reason}")
        return [f"{thing} {reason}" for reason in found if reason]

    def _used(self, use: tuple[Any, ...], unused_for: float) -> str:
        scans, last, since, now, counted = use
        window = for_people(unused_for, Unit.SECONDS)
        if not counted:
            return "may be in use: the server counts no scans (track_counts is off); declare unused_for: null"
        if scans and last is None:
            return (
                f"was scanned {scans:,} times, and this server does not say when: run "
                f"pg_stat_reset_single_table_counters({self.old.oid}) and wait {window}, or declare unused_for: null"
            )
        if last is not None and _seconds(last, now) < unused_for:
            return f"was scanned {scans:,} times, last at {last:%Y-%m-%d %H:%M %Z}, less than {window} ago"
        if _seconds(since, now) < unused_for:
            return f"may be in use: scans are counted since {since:%Y-%m-%d %H:%M %Z} only, less than {window} ago"
        return ""

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


def _seconds(since: datetime, now: datetime) -> float:
    return (now - since) / timedelta(seconds=1)
