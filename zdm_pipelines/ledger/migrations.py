"""Migrations: where each stands, in the database that it changes, moved by compare-and-set only."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter
from pydantic_core import to_jsonable_python

from zdm_pipelines.dialects.server import Row, Session
from zdm_pipelines.ledger import claims as relations
from zdm_pipelines.ledger import declarations, restored, schema
from zdm_pipelines.ledger.events import append
from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.errors import MissingPrivilege, StateConflict
from zdm_pipelines.model.lifecycle import Lifecycle
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Catalog, Relation


def _with_environment(stored: Any) -> Any:
    """An earlier version recorded two settings at most, each beside the table's other properties."""
    if not isinstance(stored, dict) or "environment" in stored:
        return stored
    zone = stored.get("time_zone")
    found = {"search_path": stored.get("search_path", '"$user", public')} | ({"TimeZone": zone} if zone else {})
    told = (
        "began with an earlier version, which computed new values in the sessions' own settings: rows that agree "
        "through down only may be such"
    )
    return {**stored, "environment": found, "warnings": [*stored.get("warnings", ()), told]}


_CATALOG: TypeAdapter[Catalog] = TypeAdapter(Annotated[Catalog, BeforeValidator(_with_environment)])
_FACTS = "facts"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A migration's row as it was read; `version` makes it the compare of a compare-and-set."""

    id: int
    name: str
    state: State
    version: int
    change: Mapping[str, Any]  # as it was declared when the migration began
    catalog: Catalog  # the table as it was before, but for its name, which is the present one
    facts: Mapping[str, Any]  # what the kind learned of the table as the migration began
    switched_at: datetime | None
    tombstoned_at: datetime | None
    claims: Mapping[str, int] = field(default_factory=dict)  # oids of the relations that the migration holds, by name

    @cached_property
    def lifecycle(self) -> Lifecycle:
        """The phases and states of the change that was stored, whatever a file declares today."""
        return declarations.lifecycle_of(self.name, self.change, self.state)

    @property
    def spec(self) -> ChangeSpec:
        """The change that was stored.

        Raises:
            StateConflict: a newer version stored it.
        """
        return declarations.read_change(self.name, self.change)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.lifecycle.finished(self.state)

    @property
    def begun(self) -> bool:
        """Whether the migration began and was not rolled back since: the stored declaration counts, not the file's."""
        return self.lifecycle.is_past(self.state, State.ROLLED_BACK)

    def as_begun(self, migration: Migration) -> Migration:
        """The migration with the change that was stored: to take back what was done, not what a file says by now.

        What only a newer version understands stays as the file has it; whoever compares the two refuses then.
        """
        if not declarations.understood(self.name, self.change):
            return migration
        return migration.model_copy(update={"table": str(declarations.read_table(self.change)), "change": self.spec})

    def stored(self, database: str) -> Migration:
        """The migration that was stored, for a file that is gone; what may change while it runs has its defaults.

        Args:
            database: its name among the declared ones.

        Raises:
            StateConflict: a newer version stored it.
        """
        table = str(declarations.read_table(self.change))
        return Migration(name=self.name, database=database, table=table, change=self.spec)

    def conflict(self, migration: Migration) -> StateConflict | None:
        """What stands against going on by a file: it declares otherwise than what was stored; None: it does not."""
        if not self.begun:
            return None
        try:
            differing = declarations.differences(self.change, migration)
        except StateConflict as newer:
            return newer
        if not differing:
            return None
        return StateConflict(
            self.name,
            f"began with another declaration of {', '.join(differing)}",
            "put defs.yaml back as it was; once rolled back it may change",
        )


def find(conn: Session, name: str) -> Entry | None:
    """A migration's row, None when it never left `planned` here."""
    if not schema.exists(conn):
        return None
    if (owner := conn.value("ledger.foreign_owner")) is not None:
        raise MissingPrivilege(
            "ledger", f"schema zdm belongs to role {owner}", f"connect as {owner}, or GRANT {owner} to our role"
        )
    rows = conn.named("ledger.find", name)
    return _entry(conn, rows[0], relations.held(conn, rows[0][0])) if rows else None


def _entry(conn: Session, row: Row, claims: Mapping[str, int]) -> Entry:
    identity, name, state, version, change, catalog, switched_at, tombstoned_at, table_oid = row
    where = restored.home(conn)
    if not where.same or table_oid == 0:  # the next phase keeps what is found here
        found = restored.again(conn, catalog, claims, kept=where.kept and table_oid != 0)
        catalog, claims = found.catalog, found.claims
    table = _CATALOG.validate_python(catalog)
    for _, schema_now, name_now in conn.named("ledger.called", [table.oid]):
        table = replace(table, table=TableName(schema=schema_now, name=name_now))
    return Entry(
        id=identity, name=name, state=_state(name, state), version=version, change=change,
        catalog=table, facts=catalog.get(_FACTS, catalog),
        switched_at=switched_at, tombstoned_at=tombstoned_at, claims=claims,
    )  # fmt: skip


def _state(name: str, stored: str) -> State:
    try:
        return State(stored)
    except ValueError:
        raise StateConflict(
            name, f"is {stored}, which only a newer version of this software knows", "upgrade zdm_pipelines here"
        ) from None


def state(conn: Session, name: str) -> State:
    """Where a migration stands; `planned` when the ledger does not know it."""
    entry = find(conn, name)
    return entry.state if entry else State.PLANNED


def states(conn: Session, names: Collection[str]) -> dict[str, State]:
    """Where each of some migrations stands; those that the ledger does not know are left out."""
    if not schema.exists(conn):
        return {}
    return {name: _state(name, now) for name, now in conn.named("ledger.states", list(names))}


def require(
    conn: Session, migration: Migration, allowed: Collection[State], *, to_do: str, as_declared: bool = True
) -> Entry:
    """The row of a migration that is in one of the allowed states and declared as it was when it began.

    Args:
        to_do: what is to be done in these states: be validated.
        as_declared: false for brakes, which work whatever a file says by now.

    Raises:
        StateConflict: the migration is not, with what to run first.
    """
    entry = find(conn, migration.name)
    conflict = entry.conflict(migration) if entry is not None and as_declared else None
    # Of a declaration of another kind the states may be others: none of them says what to run first.
    if entry is not None and conflict is not None and (entry.state in allowed or not entry.finished):
        raise conflict
    if entry is None or entry.state not in allowed:
        now = entry.state if entry else State.PLANNED
        way_out = (entry.lifecycle if entry and entry.begun else migration.lifecycle).next_step(now).sentence
        raise StateConflict(migration.name, f"is {now}, so that it cannot {to_do}", way_out)
    return entry


def register(conn: Session, migration: Migration, catalog: Catalog, facts: Mapping[str, Any]) -> Entry:
    """Write (or, after a rollback, rewrite) the row of a migration about to begin.

    Args:
        facts: what the kind learned of the table; kept as JSON.

    Raises:
        StateConflict: another migration holds this table.
    """
    relations.require_free(conn, migration.name, [Relation(name=catalog.table, oid=catalog.oid)])
    stored = {**_CATALOG.dump_python(catalog, mode="json"), _FACTS: to_jsonable_python(dict(facts))}
    conn.named(
        "ledger.register", migration.name, catalog.oid, str(catalog.table),
        json.dumps(declarations.to_store(migration)), json.dumps(stored),
    )  # fmt: skip
    entry = find(conn, migration.name)
    assert entry is not None  # written above, in this transaction or an earlier one
    return entry


def move(
    conn: Session,
    entry: Entry,
    to: State,
    *,
    what: str,
    detail: Mapping[str, Any] | None = None,
    claims: Sequence[Relation] = (),
) -> Entry:
    """Compare-and-set to another state and append the event; a part of the caller's transaction, if there is one.

    A migration that begins claims its relations in the same transaction, one that ends gives them up.

    Args:
        claims: the relations of a migration that begins, in the order in which they are locked; default: the declared
            table.

    Raises:
        StateConflict: the transition does not exist, somebody else moved the migration meanwhile, or another migration
            holds one of the relations.
    """
    life = entry.lifecycle
    if to not in life.transitions(entry.state):
        way_out = life.next_step(entry.state).sentence
        raise StateConflict(entry.name, f"cannot go from {entry.state} to {to}", way_out)
    with conn.transaction():
        if not conn.named("ledger.move", str(to), entry.id, entry.version, str(entry.state)):
            raise StateConflict(
                entry.name,
                f"was moved on from {entry.state} by somebody else meanwhile",
                "look at its status and run again",
            )
        if not life.active(to):
            relations.give_up(conn, entry.id)
        elif not life.active(entry.state):
            wanted = claims or [Relation(name=entry.catalog.table, oid=entry.catalog.oid)]
            relations.take(conn, entry.id, entry.name, wanted)
        append(conn, entry.id, what, from_state=entry.state, to_state=to, detail=detail)
        found = find(conn, entry.name)
    assert found is not None  # updated above
    return found


def is_unmoved(conn: Session, entry: Entry) -> bool:
    """Whether nobody moved a migration since it was read; nobody does until the transaction ends."""
    return bool(conn.named("ledger.keep_version", entry.id, entry.version))
