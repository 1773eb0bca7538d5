"""Restored: what a ledger keeps by oid, found again after a dump of the database was restored.

The ledger says where it stands: the cluster, the database, the oid of its own table. While that is so, an oid means the
relation that it meant, whatever the relation is called by now. After a restore of a dump every oid is another one: then
relations are found again by the names that they had when the migration began, and a table by its key, too. Where the
ledger's own table kept its oid (pg_upgrade, a copy of the whole database), so did the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.ledger import declarations, schema
from zdm_pipelines.ledger.events import append
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.states import State

_OIDS = ("oid", "table_oid", "parent")  # under these keys


class Home(NamedTuple):
    """Where a ledger stands."""

    same: bool  # where its oids were read
    kept: bool  # elsewhere, but relations kept their oids, as far as is known
    lost: bool  # some migration's table was not found again so far


def home(conn: Session) -> Home:
    """Where the ledger stands; of one that an earlier version made that is not known."""
    rows = conn.named("ledger.home") if conn.value("ledger.has_home") else []
    return Home(*rows[0]) if rows else Home(same=False, kept=True, lost=False)


@dataclass(frozen=True, kw_only=True)
class Again:
    """What a migration keeps by oid, as it is here."""

    catalog: Mapping[str, Any]
    claims: Mapping[str, int]  # oids by name; 0: nothing has that name
    moved: bool  # an oid is another one than the ledger has


def again(conn: Session, catalog: Mapping[str, Any], claims: Mapping[str, int], *, kept: bool) -> Again:
    """Find again what a migration keeps by oid.

    Args:
        catalog: the table as it was, with what the kind learned of it.
        claims: the oids of its relations, by name.
        kept: relations have their oids still, so that one that was renamed is known by its own.
    """
    names = {**dict(_named(catalog)), **{oid: TableName.parse(name) for name, oid in claims.items()}}
    called = {oid: TableName(schema=s, name=n) for oid, s, n in conn.named("ledger.called", list(names))}
    oids = {}
    for oid, name in names.items():
        found = conn.value("catalog.oid", name.sql)
        still = kept and oid in called and (called[oid] == name or found is None)
        oids[oid] = oid if still else int(found or 0)
    return Again(
        catalog=_with(catalog, oids),
        claims={name: oids[oid] for name, oid in claims.items()},
        moved=any(before != now for before, now in oids.items()),
    )


def _named(document: Any) -> Iterator[tuple[int, TableName]]:
    """The relations of a document: those that stand beside an oid with their name."""
    if isinstance(document, list):
        for part in document:
            yield from _named(part)
    if not isinstance(document, dict):
        return
    table, index = document.get("table"), document.get("index")
    if isinstance(table, dict) and {"schema", "name"} <= table.keys():
        for key in ("oid", "table_oid"):
            if document.get(key):
                yield document[key], TableName(schema=table["schema"], name=table["name"])
    elif isinstance(index, dict) and document.get("oid"):
        yield document["oid"], TableName(schema=index["table"]["schema"], name=index["name"])
    for part in document.values():
        yield from _named(part)


def _with(document: Any, oids: Mapping[int, int]) -> Any:
    if isinstance(document, list):
        return [_with(part, oids) for part in document]
    if not isinstance(document, dict):
        return document
    return {
        key: oids.get(value, value) if key in _OIDS and isinstance(value, int) else _with(value, oids)
        for key, value in document.items()
    }


def settle(conn: Session, name: str) -> None:
    """Where the ledger stands elsewhere by now, keep the relations of every migration as they are here.

    Raises:
        StateConflict: the table of the migration with this name is not here, or it is another one.
    """
    if not schema.exists(conn) or not conn.value("ledger.has_home") or conn.value("ledger.foreign_owner") is not None:
        return  # whoever reads the migration says what is wrong
    where = home(conn)
    if (where.same and not where.lost) or conn.value("catalog.is_replica"):
        return  # a replica is told by whoever begins there
    with conn.transaction():
        conn.named("ledger.lock_home")
        problem = _settle(conn, home(conn), name)
        conn.named("ledger.at_home")
    if problem is not None:
        raise problem


def _settle(conn: Session, where: Home, name: str) -> StateConflict | None:
    """What stands against the migration with this name; the others are none of its business."""
    if not where.same:
        conn.named("ledger.forget_measured")
    claims = conn.named("ledger.take_claims")
    wanted: list[tuple[int, int, int, str]] = []
    stands: StateConflict | None = None
    for identity, called, state, change, catalog, table_oid in conn.named("ledger.every_migration"):
        mine = {claimed: (oid, place) for owner, place, claimed, oid in claims if owner == identity}
        oids = {claimed: oid for claimed, (oid, _) in mine.items()}
        if not where.same or table_oid == 0:
            found = again(conn, catalog, oids, kept=where.kept and table_oid != 0)
            problem = None
            if declarations.lifecycle_of(called, change, State(state)).active(State(state)):
                problem = _problem(conn, called, found.catalog)
            if problem is not None:
                conn.named("ledger.lose_table", identity)
                stands = problem if called == name else stands
            elif found.moved:
                oids = {claimed: oid or oids[claimed] for claimed, oid in found.claims.items()}
                conn.named("ledger.found_again", identity, found.catalog["oid"], json.dumps(found.catalog))
                append(conn, identity, "found again after a restore: proofs are void, windows begin anew")
        wanted += [(oids[claimed], identity, place, claimed) for claimed, (_, place) in mine.items()]
    for claim in wanted:
        conn.named("ledger.claim_again", *claim)
    return stands


def _problem(conn: Session, name: str, catalog: Mapping[str, Any]) -> StateConflict | None:
    """What stands against taking a table for the one that a migration began on."""
    table = TableName(**catalog["table"])
    if not catalog["oid"]:
        fact = f"was restored from a dump, and there is no table {table}, on which it began"
        return StateConflict(name, fact, f"rename that table back to {table}, then run it again")
    key = [(column["name"], column["type"]) for column in catalog["key"]]
    types = {row[0]: row[1] for row in conn.named("catalog.columns", catalog["oid"])}
    here = [(column, types[column]) for (column,) in conn.named("catalog.key", catalog["oid"])]
    if here == key:
        return None
    fact = f"was restored from a dump, and table {table} has another primary key than the table on which it began"
    return StateConflict(name, fact, f"rename the table that is meant to {table}, then run it again")
