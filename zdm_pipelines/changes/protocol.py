"""The protocol of a kind: small capabilities, each asked by one phase; what is None does not exist for the kind.

A kind is a package `changes/<kind>/` whose `__init__` gives `KIND`. Phases ask a bound `Change` for a capability and
never for its kind. SQL comes from the server's part of the kind (`server.kind(name)`) or the server's `ddl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.model.capabilities import Comparison, Notes, RowWork, Sync
from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase
from zdm_pipelines.model.values import Catalog, Named, Relation, Step


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a kind calls things: the texts of UI, command line and refusals. None of them needs a database."""

    summary: str  # one line for lists: full_name → display_name
    old: str  # what contract takes away, as a sentence's subject: the old column
    new: str  # what takes over: column display_name
    phases: Mapping[Phase, str]  # what the asset of each phase does, in Markdown
    undone: Mapping[Phase, str]  # what undoing each phase takes back
    checks: Mapping[str, str] = field(default_factory=dict)  # the checks of validate, each with what it says
    last: str = ""  # what is said before the step that cannot be undone: Column x of t is dropped now, for good


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What the server says before anything is changed."""

    catalog: Catalog  # the table that is declared
    facts: Mapping[str, Any]  # the kind's own, as JSON; the ledger keeps them from the first phase on
    problems: Sequence[Problem] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A migration with what the ledger knows of it: what a change is bound to."""

    migration: Migration
    catalog: Catalog
    facts: Mapping[str, Any]
    migration_id: int = 0  # 0 until the ledger knows it
    tombstoned: bool = False  # the old shape is out of sight
    notes: Notes = field(default_factory=Notes)
    claims: Mapping[str, int] = field(default_factory=dict)  # oids of the relations that are claimed, by name


class Retirement(Protocol):
    """What contract takes away: first out of sight, where the kind can, then for good."""

    def dependents(self, session: Session) -> list[str]:
        """Everything that still stands on what goes, or has gone before us, as reasons against contract."""
        ...

    def mentions(self, session: Session) -> Mapping[str, str]:
        """What names what goes in a text that the server does not parse, and why that stands against contract.

        By what the thing is called in `contract.unaffected`, where people say that it means something else.
        """
        ...

    def tombstone(self) -> list[Step]:
        """Steps of one short transaction that put the old shape out of sight; empty: the kind has no tombstone."""
        ...

    def drop(self) -> list[Step]:
        """Steps that remove the old shape and the sync."""
        ...

    def restore(self) -> list[Step]:
        """Steps that make anew what `drop` took away, each safe to run again; empty: only a tombstone comes back."""
        ...


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """A verdict of the kind's own on the data, looked at by validate before anything is enforced."""

    check: str  # the name of the check that it belongs to
    count: str  # a query that counts the rows that stand against it
    failed: str  # what is said when there are any, with {count}
    keys: str = ""  # a query for the first primary keys of such rows, each as text[], told behind `failed`; empty: none


@dataclass(frozen=True, kw_only=True)
class Change:
    """One change, bound to its migration: the capabilities that its kind has."""

    relations: tuple[Relation, ...]  # claimed in the ledger, locked in this order; the first is the declared table
    named: tuple[Named, ...] = ()  # the columns that its statements name, once it has begun
    told: Sequence[tuple[str, str]] = ()  # further lines above a plan: name and value
    expand: Sequence[Step] = ()
    sync: Sync | None = None
    rows: RowWork | None = None
    parity: Comparison | None = None
    enforce: Sequence[Step] = ()
    # What `enforce` would be today, each step with `done_when`: a partition may have been attached since the survey.
    # Asked behind `enforce` until nothing of it is left to do, and by a rollback, which takes it back as well.
    today: Callable[[Session], Sequence[Step]] | None = None
    checks: Sequence[DataCheck] = ()
    retire: Retirement | None = None
    # Why what goes counts as used, for a server counts its own reads alone: asked with a session on each declared
    # replica, by what it is called.
    in_use: Callable[[Session, Mapping[str, Session]], list[str]] | None = None
    remember: Callable[[Session], None] | None = None  # keeps what was used so far, for a later look to compare with
    unseen: Callable[[Session], list[str]] | None = None  # what is not known of who uses what goes


class Kind(Protocol):
    """One kind of change."""

    @property
    def name(self) -> str:
        """What `kind:` says in the YAML, and what the kind's packages are called."""
        ...

    @property
    def spec(self) -> type[ChangeSpec]:
        """The kind's arm of `change` in the YAML."""
        ...

    @property
    def example(self) -> str:
        """What stands below `kind:` in the scaffold, commented."""
        ...

    def words(self, migration: Migration) -> Words:
        """What it calls things."""
        ...

    def survey(self, session: Session, migration: Migration, server: Server) -> Survey:
        """Look whether the server can take the change; changes nothing.

        Raises:
            Problem: the table itself cannot be migrated, so that nothing more can be looked at.
        """
        ...

    def bind(self, bound: Bound, server: Server) -> Change:
        """The change over a table as it was before."""
        ...
