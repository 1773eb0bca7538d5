"""Preflight: everything that can be known to be wrong before anything is changed, and the whole plan."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg

from zdm_pipelines.changes import bind
from zdm_pipelines.dialects.postgres.connection import Connection, connected, privilege_problem, scalar
from zdm_pipelines.dialects.postgres.survey import survey
from zdm_pipelines.engine import ledger
from zdm_pipelines.engine.ranges import estimate_rows
from zdm_pipelines.model.errors import PreflightError, Problem
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import ACTIVE, Phase
from zdm_pipelines.model.values import Catalog, Step
from zdm_pipelines.phases import backfill, contract, expand, switch_reads, validate


def look(conn: Connection, migration: Migration) -> Catalog:
    """The catalog as it is before the migration; changes nothing.

    Raises:
        PreflightError: with every problem that was found.
    """
    try:
        if scalar(conn, "SELECT pg_is_in_recovery()"):
            raise Problem("database", "is a read-only replica", "point the URL at the primary")
        catalog, problems = survey(conn, migration)
    except Problem as problem:
        raise PreflightError(migration.name, [problem]) from None
    except psycopg.errors.InsufficientPrivilege as error:
        missing = privilege_problem(error, f"table {migration.table}")
        raise PreflightError(migration.name, [Problem(missing.thing, missing.fact, missing.way_out)]) from None
    if problems:
        raise PreflightError(migration.name, problems)
    return catalog


def catalog_of(url: str, migration: Migration) -> Catalog:
    """The catalog from the ledger where the migration has begun, else from the database.

    Raises:
        PreflightError: the database cannot take the migration.
        DatabaseUnreachable: no connection could be had.
    """
    with connected(url, purpose=f"{migration.name} plan") as conn:
        entry = ledger.find(conn, migration.name)
        if entry is not None and entry.state in ACTIVE:
            return entry.catalog
        return look(conn, migration)


def plan(migration: Migration, catalog: Catalog) -> dict[Phase, Sequence[Step]]:
    """Every step of every phase, in order: the dry run."""
    return {
        Phase.EXPAND: expand.plan(migration, catalog),
        Phase.BACKFILL: backfill.plan(migration, catalog),
        Phase.VALIDATE: validate.plan(migration, catalog),
        Phase.SWITCH_READS: switch_reads.plan(migration, catalog),
        Phase.CONTRACT: contract.plan(migration, catalog),
    }


def size(url: str, catalog: Catalog) -> int:
    """About how many rows the table has now."""
    with connected(url, purpose="plan") as conn:
        return estimate_rows(conn, catalog)


__all__ = ["bind", "catalog_of", "look", "plan", "size"]
