"""Naming: note who names an old column in a statement, whatever becomes of the column's value.

Such a statement fails once the column is renamed out of sight, though the sync, which looks at values, sees nothing. A
trigger of a statement fires for an UPDATE that names the column in SET, that of an upsert included. Of INSERT and COPY
the trigger looks at the client's text. What it cannot see: reads, and an INSERT inside of a function.
"""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.postgres.literals import text
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Step

_LOCK = "SHARE ROW EXCLUSIVE, for milliseconds"


@dataclass(frozen=True, kw_only=True)
class Naming:
    """The trigger on a table whose columns are to go."""

    table: str  # quoted
    name: str  # of the trigger
    migration_id: int
    columns: tuple[str, ...]  # as clients name them
    when: str  # predicate: none of our own writes

    def steps(self) -> list[Step]:
        """The steps that make the trigger."""
        listed = ", ".join(quote(column) for column in self.columns)
        told = ", ".join(text(told) for told in (str(self.migration_id), *self.columns))
        return [
            Step(
                name="create the trigger that notes who names an old column",
                sql=f"CREATE TRIGGER {quote(self.name)} BEFORE INSERT OR UPDATE OF {listed} ON {self.table} "
                f"FOR EACH STATEMENT WHEN ({self.when}) EXECUTE FUNCTION zdm.note_named({told})",
                reason="a statement that names an old column will fail, though it may not change the column's value",
                lock=_LOCK,
                undo=self.drop,
            ),
            Step(
                name="let it fire in every session (names)",
                sql=f"ALTER TABLE {self.table} ENABLE ALWAYS TRIGGER {quote(self.name)}",
                reason="sessions in replica role are stragglers as others are",
                lock=_LOCK,
            ),
        ]

    @property
    def drop(self) -> str:
        """The statement that takes the trigger away; a migration that an earlier version began has none."""
        return f"DROP TRIGGER IF EXISTS {quote(self.name)} ON {self.table}"
