"""Upgrade: run the ledger's scripts once and in one transaction, whoever else tries at the same time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from zdm_pipelines.dialects.postgres.connection import parameters
from zdm_pipelines.dialects.postgres.faults import fault, safe
from zdm_pipelines.dialects.postgres.statements import named_statements
from zdm_pipelines.dialects.server import Fault
from zdm_pipelines.model.errors import LockNotAcquired, MissingPrivilege, StateConflict

_REFUSED = (Fault.OTHER, Fault.OF_DATA, Fault.TAKEN, Fault.TOO_LARGE)


def upgrade_ledger(url: str, upgrade: Callable[[Connection], None], *, head: str) -> None:
    """See `Server.upgrade_ledger`; the scripts run on SQLAlchemy's connection, which Alembic asks for."""
    try:
        _upgrade(url, upgrade, head)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):  # so that a lost database is known as such
            raise error.orig from None
        raise


def _upgrade(url: str, upgrade: Callable[[Connection], None], head: str) -> None:
    def connected() -> psycopg.Connection[Any]:
        conn = psycopg.connect(url, **parameters(url, purpose="ledger"))
        conn.execute(named_statements()["environment.own"].encode())
        conn.commit()
        return conn

    engine = create_engine("postgresql+psycopg://", creator=connected, poolclass=NullPool)
    with engine.begin() as connection:
        # Two processes at once: the second waits here and then finds the work done.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('zdm:ledger', 0))"))
        # The application's transactions write into the ledger: a version that alters its tables gives up instead.
        connection.execute(text("SET LOCAL lock_timeout = '500ms'"))
        current = _version(connection)
        if current == head:
            return
        if current is not None and current > head:
            raise StateConflict(
                "ledger",
                f"is at version {current}, this software knows {head}: it changes nothing",
                "upgrade zdm_pipelines here",
            )
        try:
            if not connection.execute(text("SELECT to_regnamespace('zdm')")).scalar():
                connection.execute(text("CREATE SCHEMA zdm"))
            upgrade(connection)
        except Exception as error:
            original = getattr(error, "orig", None)
            if isinstance(original, psycopg.errors.LockNotAvailable):
                raise LockNotAcquired("ledger", "its tables are in use", "run it again: it begins anew") from None
            if isinstance(original, psycopg.errors.InsufficientPrivilege):
                raise MissingPrivilege(
                    "ledger", "the role may not create schema zdm", "GRANT CREATE ON DATABASE to it once"
                ) from None
            if isinstance(original, psycopg.Error) and fault(original) in _REFUSED:
                raise StateConflict(
                    "ledger",
                    f"cannot be made, the server refuses it ({safe(original)})",
                    "see which trigger on events, extension or setting does so, and let it take changes by our role",
                ) from None
            raise


def _version(connection: Connection) -> str | None:
    if not connection.execute(text("SELECT to_regclass('zdm.schema_version')")).scalar():
        return None
    return connection.execute(text("SELECT version_num FROM zdm.schema_version")).scalar()
