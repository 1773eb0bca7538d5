"""Held rows: rows that one statement of a transaction locks, and that its later statements name exactly.

Their places (ctid) stand in a setting of the transaction. A row that we have locked FOR UPDATE, or FOR SHARE, keeps its
place and its values until we end, whoever else wants it, so every later statement means the same rows. Locking gives
the place of the version that was locked, though it be newer than the snapshot of the statement that locked it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Held:
    """The held rows of one table."""

    number: int  # of the table within the transaction
    source: str  # the table as FROM has it, quoted
    called: str = ""  # what expressions call it, quoted; default: a name of ours
    strength: str = "UPDATE"  # of the lock

    @property
    def alias(self) -> str:
        """What the table is called in the statements."""
        return self.called or f"zdm_{self.number}"

    @property
    def table(self) -> str:
        """The table with its alias."""
        return f"{self.source} AS {self.alias}"

    @property
    def _setting(self) -> str:
        return f"'zdm.held_{self.number}'"

    @property
    def _places(self) -> str:
        return f"current_setting({self._setting})::tid[]"

    @property
    def held(self) -> str:
        """Predicate: the row is held; found by its place."""
        return f"{self.alias}.ctid = ANY ({self._places})"

    @property
    def free(self) -> str:
        """Predicate: the row is not held."""
        return f"{self.alias}.ctid NOT IN (SELECT unnest({self._places}))"

    def lock(self, rows: str, *, wait: bool, limit: int | None = None) -> str:
        """Lock rows and hold them.

        Args:
            rows: everything behind FROM; the table has its alias.
            wait: for rows that somebody else has locked; else they are passed over.
        """
        limited = "" if limit is None else f" LIMIT {limit}"
        locking = f"FOR {self.strength} OF {self.alias}{'' if wait else ' SKIP LOCKED'}"
        return self._hold(f"(SELECT {self.alias}.ctid FROM {rows}{limited} {locking}) AS {self.alias}")

    def keep(self, rows: str) -> str:
        """Go on with some of the held rows.

        Args:
            rows: everything behind FROM; the table has its alias.
        """
        return self._hold(rows)

    def keep_written(self, insert: str, match: str) -> str:
        """Insert rows, and go on with those of the held rows that were inserted.

        Args:
            insert: the statement, which returns what `match` compares with, as zdm_written.
        """
        return f"WITH zdm_written AS ({insert}) " + self._hold(
            f"{self.table} JOIN zdm_written ON {match} WHERE {self.held}"
        )

    def _hold(self, rows: str) -> str:
        places = f"coalesce(array_agg({self.alias}.ctid)::text, '{{}}')"
        return f"SELECT set_config({self._setting}, {places}, true) FROM {rows}"

    def delete(self) -> str:
        """Delete the held rows."""
        return f"DELETE FROM {self.table} WHERE {self.held}"
