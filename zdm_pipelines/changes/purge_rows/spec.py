"""Spec: what `change:` says when rows are purged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.units import Declared

Expression = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]*$", max_length=63)]


class Archive(Declared):
    """Where the rows are kept for as long as they may come back."""

    table: str = Field(min_length=1, description="schema.table; made by expand, the schema must be there.")
    keep: bool = Field(
        default=False, strict=True, description="true: the archive stays when contract.tombstone_window has ended."
    )

    @field_validator("table")
    @classmethod
    def _is_a_table_name(cls, text: str) -> str:
        TableName.parse(text)
        return text


class PurgeRows(ChangeSpec):
    """Delete the rows that match a predicate."""

    kind: Literal["purge_rows"]
    where: Expression = Field(
        description="SQL over the row and the names of once, and nothing else: such rows are deleted."
    )
    once: Mapping[Name, Expression] = Field(
        default={}, description="Values that expand computes once, by name, as cutoff: now() - interval '90 days'."
    )
    children: Literal["refuse", "delete"] = Field(
        default="refuse",
        description="Rows of other tables that refer to such a row: refuse keeps the row, delete takes them first.",
    )
    archive: Archive | None = Field(
        default=None, description="A table that keeps the deleted rows, so that they can come back; null: none."
    )

    @property
    def deletes_children(self) -> bool:
        """Whether child rows go first."""
        return self.children == "delete"

    @property
    def archive_name(self) -> TableName | None:
        """The name of the archive, parsed."""
        return None if self.archive is None else TableName.parse(self.archive.table)

    @property
    def needs(self) -> frozenset[Need]:
        """Row work that destroys; with an archive also something to expand, and a way back."""
        kept = {Need.EXPAND, Need.TOMBSTONE} if self.archive is not None else set()
        return frozenset({Need.ROWS, Need.DESTROYS, Need.CHECKS} | kept)

    def names(self) -> Mapping[str, str]:
        """The archive, and the schema in which it is."""
        name = self.archive_name
        return {} if name is None else {"archive": name.name, "schema of the archive": name.schema}
