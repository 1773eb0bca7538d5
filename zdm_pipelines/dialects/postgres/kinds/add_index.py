"""Postgres's part of add_index: try the index on a temporary copy of the table's shape, and roll it back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres import subscribers
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.facts import StoredFacts
from zdm_pipelines.dialects.postgres.indexes import print_alike
from zdm_pipelines.dialects.postgres.new_indexes import Declared, NewIndex, look_alikes, taken_names, try_index
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.values import Catalog


@dataclass(frozen=True, kw_only=True)
class Facts(StoredFacts):
    """What the server said of a declaration before anything was changed."""

    new: NewIndex


def survey(conn: Connection, table: TableName, change: Declared) -> tuple[Catalog, Facts, list[Problem]]:
    """Read the catalog, and what the server makes of a declared index; changes nothing.

    Raises:
        Problem: the table or the index itself cannot be had, so that nothing more can be looked at.
    """
    problems = catalogs.missing_privileges(conn, table)
    found = catalogs.read(conn, table, partitioned=True, keyless=True)
    if any("temporary" in problem.fact for problem in problems):
        raise problems[0]
    received, unreceived = subscribers.judged(conn, subscribers.of_ledger(conn))
    problems += received
    new = try_index(conn, found, change)
    with conn.transaction():
        print_alike(conn)
        problems += taken_names(conn, new)
        warnings = [*unreceived, *look_alikes(conn, new, problems)]
    return replace(found, warnings=tuple(warnings)), Facts(new=new), problems
