"""Declared: what is asked of a declaration of this kind, and what the survey found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from zdm_pipelines.dialects.postgres.facts import StoredFacts
from zdm_pipelines.model.names import TableName


class DeclaredColumn(Protocol):
    """A column of the new table."""

    type: str  # its SQL type
    up: str  # SQL over the source row, and the element, that gives its value
    nullable: bool  # whether NULL may stand in the column in the end
    default: str | None


class DeclaredIndex(Protocol):
    """An index of the new table."""

    name: str
    definition: str  # everything behind the method
    using: str
    unique: bool


class DeclaredTable(Protocol):
    """The new table."""

    table_name: TableName
    key: Mapping[str, str]  # by the new table's column: the column of the source's primary key
    columns: Mapping[str, DeclaredColumn]
    position: str | None  # the column that numbers the elements of one source row, from 1
    element_key: str | None  # or the declared column that tells them apart
    foreign_key: bool
    indexes: tuple[DeclaredIndex, ...]


class Declared(Protocol):
    """The declared change."""

    olds: tuple[str, ...]  # the columns that go
    downs: Mapping[str, str]  # by old column: SQL over the new row, or over all rows of one source row
    new: DeclaredTable
    each: str | None  # SQL over the source row that gives an array: a row for each element
    when: str | None  # predicate over the source row: the others have no row
    grants: str | None  # copy: whoever may do something with the source may do it with the new table


@dataclass(frozen=True, kw_only=True)
class Facts(StoredFacts):
    """What the server said of a declaration before anything was changed; kept in the ledger as JSON."""

    grants: tuple[str, ...] = ()  # statements that give the source's privileges on the new table
    collations: Mapping[str, str] = field(default_factory=dict)  # of key columns that have one of their own, as SQL
    losses: Mapping[str, tuple[str, ...]] | None = None  # by old column: what goes with it; None: it was not looked at
