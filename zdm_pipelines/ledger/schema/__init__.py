"""Schema: the ledger's own tables, made and brought to this software's version by the Alembic scripts beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from zdm_pipelines.dialects.server import Server, Session


def _alembic(connection: Any = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


def _known() -> str:
    return cast(str, ScriptDirectory.from_config(_alembic()).get_current_head())


def exists(conn: Session) -> bool:
    """Whether this database has a ledger."""
    return bool(conn.value("ledger.exists"))


def known_versions(conn: Session) -> tuple[str | None, str]:
    """The version this database's ledger is at (None: it has none) and the one this software knows."""
    return (conn.value("ledger.version") if conn.value("ledger.has_version") else None), _known()


def ensure(server: Server) -> None:
    """Create the ledger or bring it to this version; does nothing when it is there.

    Raises:
        MissingPrivilege: the role may not create the schema.
        StateConflict: the ledger was made by a newer version of this software.
        LockNotAcquired: others use its tables.
    """
    server.upgrade_ledger(lambda connection: command.upgrade(_alembic(connection), "head"), head=_known())
