"""Spec: what `change:` says when columns move into a table of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.units import Declared

Expression = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(min_length=1)]


class NewColumn(Declared):
    """A column of the new table."""

    type: str = Field(min_length=1, description="SQL type, as text or numeric(12,2).")
    up: Expression = Field(description="SQL over the old columns (and element) that gives the value.")
    nullable: bool = Field(default=True, strict=True, description="false: NOT NULL is set once parity is proven.")
    default: str | None = Field(
        default=None,
        description="SQL default: for inserts that leave the column out, of rows that the source says nothing of.",
    )


class Index(Declared):
    """An index of the new table."""

    name: Name = Field(description="Exact name of the index.")
    definition: Expression = Field(description="Columns and all that follows them, as (theme) WHERE theme <> ''.")
    using: str = Field(default="btree", pattern=r"^[a-z_][a-z0-9_]*$", description="Access method.")
    unique: bool = Field(
        default=False, strict=True, description="true: stands before the first row; else built after the rows."
    )


class NewTable(Declared):
    """The table that takes over."""

    table: str = Field(min_length=1, description="schema.table, which does not exist yet.")
    key: Mapping[Name, Name] = Field(
        min_length=1,
        description="Key columns of the new table: each with the column of the source's primary key that it holds.",
    )
    columns: Mapping[Name, NewColumn] = Field(min_length=1, description="Its other columns.")
    position: str | None = Field(
        default=None, min_length=1, description="With each: a column that numbers the elements from 1."
    )
    element_key: str | None = Field(
        default=None, min_length=1, description="With each: the column that tells elements of one source row apart."
    )
    foreign_key: bool = Field(
        default=True, strict=True, description="The key references the source: deleted, and changed, with its row."
    )
    indexes: tuple[Index, ...] = Field(default=(), description="Its indexes besides the primary key.")

    @field_validator("table")
    @classmethod
    def _is_a_table_name(cls, text: str) -> str:
        TableName.parse(text)
        return text

    @property
    def table_name(self) -> TableName:
        """The name of the new table, parsed."""
        return TableName.parse(self.table)


class ExtractTable(ChangeSpec):
    """Move columns, or the elements of an array in one, into a new table, keeping both in sync."""

    kind: Literal["extract_table"]
    old: Name | Annotated[tuple[Name, ...], Field(min_length=1)] = Field(
        description="Exact names of the columns that go."
    )
    new: NewTable
    down: Expression | Mapping[Name, Expression] = Field(
        description="SQL over the new row that gives the old value; of several old columns one for each. With each: "
        "over all rows of one source row, by aggregates."
    )
    each: Expression | None = Field(
        default=None, description="SQL over the old columns that gives a JSON array: one row for each element."
    )
    when: Expression | None = Field(
        default=None,
        description="Which rows have a row in the new table; default: where an old column holds something.",
    )
    grants: Literal["copy"] | None = Field(
        default=None, description="copy: who may read or write the source may do so with the new table."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ExtractTable:
        if not isinstance(self.down, str) and set(self.down) != set(self.olds):
            raise ValueError(
                f"down gives {', '.join(self.down)}: give one expression for each of {', '.join(self.olds)}"
            )
        if isinstance(self.down, str) and len(self.olds) > 1:
            raise ValueError("down is one expression for several old columns: map each of them to its own")
        apart = [name for name in (self.new.position, self.new.element_key) if name is not None]
        if len(apart) != (self.each is not None):
            raise ValueError(
                "with each, and only then, give new.position or new.element_key: elements must be told apart"
            )
        if self.new.element_key is not None and self.new.element_key not in self.new.columns:
            raise ValueError(f"new.element_key {self.new.element_key!r} is none of new.columns")
        names = [*self.new.key, *self.new.columns, *([self.new.position] if self.new.position else [])]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"column {', '.join(sorted(twice))} of the new table is declared twice")
        if set(self.new.columns) == {self.new.element_key}:
            raise ValueError("new.columns has the element's key only: nothing would be moved")
        return self

    @property
    def olds(self) -> tuple[str, ...]:
        """The columns that go."""
        return (self.old,) if isinstance(self.old, str) else self.old

    @property
    def downs(self) -> dict[str, str]:
        """By old column, the SQL that gives its value."""
        return {self.olds[0]: self.down} if isinstance(self.down, str) else dict(self.down)

    @property
    def needs(self) -> frozenset[Need]:
        """Everything: a table is made, mirrored, filled, compared, constrained, read by flag; the old columns go."""
        return frozenset(Need) - {Need.DESTROYS, Need.CHECKS}

    def names(self) -> Mapping[str, str]:
        """Columns, tables and indexes."""
        new = self.new
        columns = [*new.key, *new.columns, *([new.position] if new.position else [])]
        return {
            "new schema": new.table_name.schema,
            "new table": new.table_name.name,
            **{f"old column {i}": name for i, name in enumerate(self.olds, 1)},
            **{f"new column {i}": name for i, name in enumerate(columns, 1)},
            **{f"index {i}": index.name for i, index in enumerate(new.indexes, 1)},
        }
