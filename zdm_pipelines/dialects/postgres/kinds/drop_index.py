"""Postgres's part of drop_index: an index that goes unless somebody uses it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres import subscribers
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.facts import StoredFacts
from zdm_pipelines.dialects.postgres.old_indexes import Going, OldIndex, find
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.units import Unit, for_people
from zdm_pipelines.model.values import Catalog

__all__ = ["Facts", "Going", "Use", "survey"]


@dataclass(frozen=True, kw_only=True)
class Facts(StoredFacts):
    """What the server said of the index before anything was changed."""

    old: OldIndex


def survey(conn: Connection, table: TableName, name: str) -> tuple[Catalog, Facts, list[Problem]]:
    """Read the catalog and the index; changes nothing.

    Raises:
        Problem: the table has no such index, so that nothing more can be looked at.
    """
    found = catalogs.read(conn, table, partitioned=True, keyless=True)
    old, problems = find(conn, found, name)
    problems = [*catalogs.missing_privileges(conn, table), *problems]
    received, warnings = subscribers.judged(conn, subscribers.of_ledger(conn))
    problems += received
    warnings += [
        f"only this index serves foreign key {quote(key)}: a delete in {parent} will read the whole table"
        for key, parent in conn.named("indexes.served", old.oid)
    ]
    if old.index.unique:
        warnings.append("the index is unique: without it, nothing keeps duplicates out")
    return replace(found, warnings=tuple(warnings)), Facts(old=old), problems


@dataclass(frozen=True, kw_only=True)
class Use:
    """Who uses an index that is to go, as each server counts it for itself; what is not known counts as used."""

    old: OldIndex
    unused_for: float  # seconds

    def reasons(self, session: Connection, replicas: Mapping[str, Connection]) -> list[str]:
        """Why the index counts as used; nothing once the index is gone.

        Args:
            replicas: sessions on those that are declared, by what they are called.
        """
        rows, thing = session.named("indexes.use", self.old.oid), f"index {quote(self.old.index.name)}"
        if not rows:
            return []  # an earlier run dropped it
        found = [self._used(*rows[0])]
        if (following := session.value("indexes.replicas")) > len(replicas):
            found.append(
                f"may be in use on replicas: {following} follow this server and {len(replicas)} are declared; declare "
                f"them under replicas of the database, or unused_for: null"
            )
        for called, replica in replicas.items():
            there = replica.named("indexes.use", self.old.oid) if replica.value("catalog.is_replica") else []
            reason = self._used(*there[0]) if there else "is not there: is it a replica of this database?"
            found.append(reason and f"on {called} {reason}")
        return [f"{thing} {reason}" for reason in found if reason]

    def _used(self, scans: int, last: datetime | None, since: datetime, now: datetime, counted: bool) -> str:
        window, otherwise = for_people(self.unused_for, Unit.SECONDS), "wait, or declare unused_for: null"
        if not counted:
            return "may be in use: the server counts no scans (track_counts is off); declare unused_for: null"
        if scans and last is None:
            return (
                f"was scanned {scans:,} times, and this server does not say when: run "
                f"pg_stat_reset_single_table_counters({self.old.oid}) and wait {window}, or declare unused_for: null"
            )
        if last is not None and now - last < timedelta(seconds=self.unused_for):
            return f"was scanned {scans:,} times, last at {last:%Y-%m-%d %H:%M %Z}, less than {window} ago; {otherwise}"
        if now - since < timedelta(seconds=self.unused_for):
            since_when = f"{since:%Y-%m-%d %H:%M %Z}"
            return f"may be in use: scans are counted since {since_when} only, less than {window} ago; {otherwise}"
        return ""
