"""Declared: what is asked of a declaration of this kind, and what the survey found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from zdm_pipelines.dialects.postgres.children import Child
from zdm_pipelines.dialects.postgres.facts import StoredFacts
from zdm_pipelines.model.names import TableName


class Declared(Protocol):
    """The declared change."""

    @property
    def where(self) -> str:
        """SQL over the row and the names of `once`."""
        ...

    @property
    def once(self) -> Mapping[str, str]:
        """SQL of values that are computed once, by name."""
        ...

    @property
    def deletes_children(self) -> bool:
        """Whether rows that refer to those that go are deleted first."""
        ...

    @property
    def archive_name(self) -> TableName | None:
        """The table that keeps the rows, None when they are gone."""
        ...


@dataclass(frozen=True, kw_only=True)
class Facts(StoredFacts):
    """What the server said of a declaration before anything was changed; kept in the ledger as JSON."""

    where: str  # which rows, as the server prints it
    once: Mapping[str, str] = field(default_factory=dict)  # values that were computed then, as SQL
    children: tuple[Child, ...] = ()  # parents first
    owner: str = ""  # to whom the archive is to belong; empty: to our role
    readers: tuple[str, ...] = ()  # roles that new tables of ours are granted to by default
