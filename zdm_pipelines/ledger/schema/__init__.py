"""Schema: the ledger's own tables, made and brought to this software's version by the Alembic scripts beside."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, cast

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.model.errors import StateConflict


def _alembic(connection: Any = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    return config


@cache
def _known() -> str:
    return cast(str, ScriptDirectory.from_config(_alembic()).get_current_head())


def exists(conn: Session) -> bool:
    """Whether this database has a ledger; every door asks, and none of an older software's is open to a newer ledger.

    Raises:
        StateConflict: the ledger was made by a newer version of this software.
    """
    there, readable = conn.named("ledger.exists")[0]
    if there and readable and (found := str(conn.value("ledger.version"))) > _known():
        raise newer(found)
    return bool(there)


def newer(found: str) -> StateConflict:
    """The refusal of a ledger that a newer version made."""
    return StateConflict(
        "ledger",
        f"is at version {found}, this software knows {_known()}: it changes nothing",
        "upgrade zdm_pipelines here",
    )


def known_versions(conn: Session) -> tuple[str | None, str]:
    """The version this database's ledger is at (None: it has none) and the one this software knows."""
    there, readable = conn.named("ledger.exists")[0]
    return (conn.value("ledger.version") if there and readable else None), _known()


def ensure(server: Server) -> None:
    """Create the ledger or bring it to this version; does nothing when it is there.

    Raises:
        MissingPrivilege: the role may not create the schema.
        StateConflict: the ledger was made by a newer version of this software.
        LockNotAcquired: others use its tables.
    """
    server.upgrade_ledger(lambda connection: command.upgrade(_alembic(connection), "head"), head=_known())
