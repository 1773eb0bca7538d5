"""Spec: what `change:` says when an index is added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.units import Declared

Element = Annotated[str, Field(min_length=1)]


class IndexSpec(Declared):
    """An index to be built."""

    name: str = Field(min_length=1, description="Exact name of the index; it stands in the schema of its table.")
    columns: tuple[Element, ...] = Field(
        min_length=1, description="Columns and expressions in order, each as in SQL: created_at DESC, lower(email)."
    )
    unique: bool = Field(default=False, strict=True, description="true: no two rows may share these values.")
    nulls_distinct: bool = Field(
        default=True, strict=True, description="false: of a unique index, NULLs count as the same value."
    )
    method: str = Field(default="btree", min_length=1, description="btree, hash, gin, gist, brin, or of an extension.")
    include: tuple[Element, ...] = Field(default=(), description="Further columns that the index carries.")
    where: str | None = Field(default=None, min_length=1, description="SQL over the row: only such rows are in it.")
    storage: Mapping[str, bool | int | float | str] = Field(
        default={}, description="Storage parameters, as fillfactor: 80."
    )

    @model_validator(mode="after")
    def _nulls_of_what(self) -> IndexSpec:
        if not self.nulls_distinct and not self.unique:
            raise ValueError("nulls_distinct: false says something of unique indexes only: add unique: true")
        return self


class AddIndex(IndexSpec, ChangeSpec):
    """Build an index while the table is read and written."""

    kind: Literal["add_index"]

    @property
    def needs(self) -> frozenset[Need]:
        """Nothing but the index, which must stand."""
        return frozenset({Need.ENFORCE})

    def names(self) -> Mapping[str, str]:
        """The name of the index that is built."""
        return {"index": self.name}
