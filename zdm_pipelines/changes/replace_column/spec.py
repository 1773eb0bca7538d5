"""Spec: what `change:` says when a column is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from zdm_pipelines.model.change import ChangeSpec, Expression, Unquoted
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.units import Declared


class NewColumn(Declared):
    """The column that takes over."""

    name: str = Field(min_length=1, description="Exact name of the new column.")
    type: str = Field(min_length=1, description="SQL type of the new column, as text or numeric(12,2).")
    nullable: bool = Field(default=True, strict=True, description="false: NOT NULL is set once parity is proven.")
    default: Annotated[str | None, Unquoted()] = Field(
        default=None, description="SQL default of the new column; set when the old column is renamed away."
    )


class ReplaceColumn(ChangeSpec):
    """Replace one column by another, keeping both in sync until nobody uses the old one."""

    kind: Literal["replace_column"]
    old: str = Field(min_length=1, description="Exact name of the column to be replaced.")
    new: NewColumn
    up: Expression = Field(description="SQL over the row that gives the new value from the old shape.")
    down: Expression = Field(
        description="SQL over the row that gives the old value from the new shape: keeps rollback open."
    )

    rebuild: Mapping[str, Expression] = Field(
        default={},
        description="Indexes and constraints of the old column by name: what stands on the new one instead, or drop.",
    )

    @model_validator(mode="after")
    def _two_columns(self) -> ReplaceColumn:
        if self.old == self.new.name:
            raise ValueError(f"old and new are both {self.old!r}: give the new column a name of its own")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        """Everything but what takes rows away: both columns live side by side until the old one goes."""
        return frozenset(Need) - {Need.DESTROYS, Need.CHECKS}

    def names(self) -> Mapping[str, str]:
        """The names of both columns."""
        return {"old column": self.old, "new column": self.new.name}
