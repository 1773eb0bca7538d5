"""Sync: what the triggers that mirror old and new shape note, and what else the agreement of rows hangs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zdm_pipelines.dialects.postgres import marking as blocks
from zdm_pipelines.model.capabilities import Marking
from zdm_pipelines.model.values import Catalog, Column

if TYPE_CHECKING:
    from zdm_pipelines.dialects.postgres.connection import Connection

# One order each, whatever the collation or the session; a domain or a type of the application's own may have another.
_KEY_TYPES = (
    "{smallint,integer,bigint,numeric,oid,uuid,date,timestamp without time zone,timestamp with time zone,"
    "time without time zone}"
)


class PostgresSyncNotes:
    """See `SyncNotes` for what each member is."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def can_mark(self, table: Catalog) -> bool:
        """Whether the key is one column of a type that has one order."""
        if len(table.key) != 1:
            return False
        return bool(self._conn.value("sync.can_mark", table.oid, table.key[0].name, _KEY_TYPES))

    def body(self, function: str) -> str | None:
        """The body of a trigger function."""
        found = self._conn.value("sync.body", function)
        return None if found is None else str(found)

    def marks(self, body: str, marking: Marking, migration_id: int, key: Column) -> bool:
        """Whether a body holds the very block that marking puts into it."""
        return blocks.block(marking, migration_id, key) in body

    def surroundings(self, table: int) -> list[str]:
        """Any function of the application's that is made anew counts, since declared expressions may call it."""
        return [text for (text,) in self._conn.named("sync.surroundings", table)]

    def cascades(self, table: int) -> bool:
        """Whether triggers or rules stand on a table."""
        return bool(self._conn.value("sync.cascades", table))
