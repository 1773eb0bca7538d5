"""Claims: the relations that a migration holds from its first phase to its end, so that no second one touches them.

Two that begin at once are told apart by the primary key of zdm.claim, not by our looking first. A claim whose migration
is at its end holds nobody and is taken over: a worker of an earlier version, which knows no claims, may have ended that
migration. The other way round, a migration that began without a claim holds its table all the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.ledger import declarations, schema
from zdm_pipelines.model.errors import Problem, StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Catalog, Relation


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A relation under a migration."""

    relation: int  # its oid
    name: str  # what the relation was called when the migration began
    migration: str
    state: State

    @property
    def fact(self) -> str:
        """Under which migration the relation is, as the end of a sentence about the relation."""
        return f"is under migration {self.migration} ({self.state})"


_WAY_OUT = "finish or roll back that one first"


def claimed_by(conn: Session, oids: Collection[int]) -> list[Claim]:
    """Which migrations hold some relations, given by their oids."""
    if not schema.exists(conn):
        return []
    wanted = list(oids)
    found = conn.named("ledger.claimed", wanted) if _known(conn) else []
    held = {(relation, name) for relation, _, name, _, _ in found}
    # Without a claim, nothing but the declaration says whether a migration holds anything in its state.
    begun = [
        row
        for row in conn.named("ledger.begun_on", wanted)
        if (row[0], row[2]) not in held and declarations.understood(row[2], row[4])
    ]
    return [
        Claim(relation=relation, name=called, migration=name, state=State(state))
        for relation, called, name, state, change in (*found, *begun)
        if _active(name, state, change)
    ]


def _active(name: str, state: str, change: dict[str, Any]) -> bool:
    now = State(state)
    return declarations.lifecycle_of(name, change, now).active(now)


def _known(conn: Session) -> bool:
    """Whether this ledger knows claims; one made by an earlier version does not."""
    return bool(conn.value("ledger.has_claims"))


def claimed(conn: Session, migration: Migration, catalog: Catalog) -> list[Problem]:
    """What stands against beginning a migration: its table is under another one."""
    return [
        Problem(f"table {catalog.table}", claim.fact, _WAY_OUT)
        for claim in claimed_by(conn, [catalog.oid])
        if claim.migration != migration.name
    ]


def held(conn: Session, migration_id: int) -> dict[str, int]:
    """The relations that a migration holds: the oid of each, by what it was called when the migration began."""
    return dict(conn.named("ledger.claims", migration_id)) if _known(conn) else {}


def take(conn: Session, migration_id: int, name: str, relations: Sequence[Relation]) -> None:
    """Claim relations for a migration, in the transaction that makes it active.

    Args:
        name: the migration's.
        relations: in the order in which they are locked.

    Raises:
        StateConflict: another migration holds one of them.
    """
    require_free(conn, name, relations)
    _take_over(conn, name, [relation.oid for relation in relations])
    # By oid, so that two migrations over the same relations never wait for each other.
    for place, relation in sorted(enumerate(relations), key=lambda claim: claim[1].oid):
        if not conn.named("ledger.claim", relation.oid, migration_id, place, str(relation.name)):
            require_free(conn, name, [relation])
            raise StateConflict(name, f"table {relation.name} came under another migration meanwhile", _WAY_OUT)


def _take_over(conn: Session, name: str, oids: Sequence[int]) -> None:
    """Remove the claims of migrations that are at their end.

    A migration that began since we looked is left alone: its claim is met when ours is written.
    """
    for _, _, other, state, change in conn.named("ledger.claimed", oids):
        if other == name or _active(other, state, change):
            continue
        # The migration is kept in its state, so that it does not begin anew while the claim is taken from it.
        if (ended := conn.value("ledger.keep_state", other, state)) is not None:
            conn.named("ledger.give_up_claims", ended)


def require_free(conn: Session, name: str, relations: Sequence[Relation]) -> None:
    """Refuse relations that another migration than the named one holds.

    Raises:
        StateConflict: another migration holds one of them.
    """
    called = {relation.oid: relation.name for relation in relations}
    for claim in claimed_by(conn, list(called)):
        if claim.migration != name:
            raise StateConflict(name, f"table {called[claim.relation]} {claim.fact}", _WAY_OUT)


def give_up(conn: Session, migration_id: int) -> None:
    """Give up what a migration holds, in the transaction that ends it."""
    if _known(conn):
        conn.named("ledger.give_up_claims", migration_id)
