"""Declared: what is asked of a declaration of this kind, and what the survey found out about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from zdm_pipelines.dialects.postgres.facts import StoredFacts
from zdm_pipelines.model.values import Rebuild

GIVEN_UP = "drop"  # what `rebuild` says of an index or constraint that is not wanted on the new column


class DeclaredColumn(Protocol):
    """The column that takes over."""

    @property
    def name(self) -> str:
        """Its exact name."""
        ...

    @property
    def type(self) -> str:
        """Its SQL type."""
        ...

    @property
    def nullable(self) -> bool:
        """Whether NULL may stand in the column in the end."""
        ...

    @property
    def default(self) -> str | None:
        """Its SQL default, None when there is none."""
        ...


class Declared(Protocol):
    """The declared change."""

    @property
    def old(self) -> str:
        """Exact name of the column to be replaced."""
        ...

    @property
    def new(self) -> DeclaredColumn:
        """The column that takes over."""
        ...

    @property
    def up(self) -> str:
        """SQL over the row that gives the new value."""
        ...

    @property
    def down(self) -> str:
        """SQL over the row that gives the old value."""
        ...

    @property
    def rebuild(self) -> Mapping[str, str]:
        """What stands on the new column in place of indexes and constraints of the old one, by their names."""
        ...


@dataclass(frozen=True, kw_only=True)
class Facts(StoredFacts):
    """What the server said of a declaration before anything was changed; kept in the ledger as JSON."""

    up_inputs: tuple[str, ...] = ()  # columns that `up` reads
    down_inputs: tuple[str, ...] = ()  # columns that `down` reads
    rebuilds: tuple[Rebuild, ...] = ()  # indexes and constraints of the old column, as they will stand on the new one
    settings: tuple[str, ...] = ()  # statements that give the new column the grants, comment and storage of the old
