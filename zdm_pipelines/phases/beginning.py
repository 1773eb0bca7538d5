"""Beginning: what the first phase of a migration does before its own work, and how every phase finds its change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change, Survey, bind, kind_of
from zdm_pipelines.dialects import DatabaseError, fault, safe
from zdm_pipelines.dialects.server import Fault, Session
from zdm_pipelines.engine.context import Context
from zdm_pipelines.model.capabilities import Notes
from zdm_pipelines.model.errors import Judged, PreflightError, Problem, StateConflict
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Relation


def look(session: Session, context: Context) -> Survey:
    """What the server says of the declared change; changes nothing.

    Raises:
        PreflightError: with every problem that was found.
    """
    migration = context.migration
    try:
        for fact, way_out in session.named("catalog.refuses_writes"):
            raise Problem("database", fact, way_out)
        found = kind_of(migration).survey(session, migration, context.server)
        taken = ledger.claimed(session, migration, found.catalog)
    except Problem as problem:
        raise PreflightError(migration.name, [problem]) from None
    except DatabaseError as error:
        if (refused := _refused(error, f"table {migration.table}")) is None:
            raise
        raise PreflightError(migration.name, [refused]) from None
    said = migration.contract.unaffected
    if problems := [p for p in (*taken, *found.problems) if not (isinstance(p, Judged) and p.thing in said)]:
        raise PreflightError(migration.name, problems)
    return found


def _refused(error: DatabaseError, thing: str) -> Problem | None:
    """What the server has against looking; None: it is no refusal."""
    why = fault(error)
    if why is Fault.PRIVILEGE:
        return Problem(thing, f"the role may not do this ({safe(error)})", "see docs/production.md for the grants")
    if why not in (Fault.OTHER, Fault.OF_DATA, Fault.TAKEN, Fault.TOO_LARGE):
        return None
    fact = f"the server refuses to try the change on a temporary copy ({safe(error)})"
    way_out = (
        "see which trigger on events, extension or setting does so, and let it take changes of the schema by our role"
    )
    return Problem(thing, fact, way_out)


def as_begun(context: Context, session: Session) -> Context:
    """The work with the declaration with which the migration began: brakes take back what was done then.

    A file that was edited since may name a column of the application's own as the new one.
    """
    entry = ledger.find(session, context.name)
    return replace(context, migration=entry.as_begun(context.migration)) if entry else context


def bound(context: Context, entry: ledger.Entry, *, notes: Notes = Notes()) -> Change:  # noqa: B008 - a frozen value
    """The change as it stands now.

    Args:
        notes: what the sync notes at present.
    """
    return bind(
        context.migration,
        context.server,
        entry.catalog,
        entry.facts,
        migration_id=entry.id,
        tombstoned=entry.state == State.TOMBSTONED,
        notes=notes,
        claims=entry.claims,
    )


def begin(context: Context, session: Session, phase: Phase) -> tuple[ledger.Entry | None, bool]:
    """The migration's row, and whether running a phase begins the migration: then its table was looked at first.

    Bad input changes nothing: the table is surveyed before the ledger is made.

    Raises:
        PreflightError: the database cannot take the migration as it is declared.
    """
    entry = ledger.find(session, context.name)
    begins = context.lifecycle.begins(phase, entry.state if entry else State.PLANNED)
    survey = look(session, context) if begins else None
    ledger.ensure(context.server)
    if survey is not None:
        entry = ledger.register(session, context.migration, survey.catalog, survey.facts)
    return entry, begins


def altered(session: Session, change: Change, *, left_behind: bool = False) -> list[str]:
    """What others renamed or dropped that the change names, each with its way out.

    Args:
        left_behind: only what a rollback would leave behind in the declared table, under another name than expand gave.
    """
    return [
        reason
        for named in change.named
        if named.table and (not left_behind or named.table == change.relations[0].oid)
        for reason, renamed in session.named("catalog.altered", named.table, json.dumps(dict(named.columns)))
        if renamed or not left_behind
    ]


def taken(session: Session, context: Context, change: Change) -> list[str]:
    """That the declared name is another table's by now: which of the two is meant, only people know."""
    table, declared = change.relations[0], context.migration.table_name
    now = session.value("catalog.oid", declared.sql)
    if now in (None, table.oid):
        return []
    other = f"{declared} is another table than when the migration began"
    if table.name == declared:  # the one that it began with is gone
        return [f"{other}: roll back and begin anew"]
    return [f"{other}, which is called {table.name}: give the tables their names back, or roll back and begin anew"]


def unaltered(
    session: Session, context: Context, change: Change, *, left_behind: bool = False, back: bool = False
) -> Change:
    """The same change, whose table and columns are called as its statements call them; see `altered` and `taken`.

    Args:
        back: something is taken back, which goes on with the table that the migration began with.

    Raises:
        StateConflict: others renamed or dropped one, or gave its name to another table.
    """
    others = [] if back or left_behind else taken(session, context, change)
    if found := [*others, *altered(session, change, left_behind=left_behind)]:
        fact, _, way_out = "; ".join(found).rpartition(": ")
        raise StateConflict(context.name, fact, way_out)
    return change


def same_name(session: Session, context: Context, looked_at: TableName) -> None:
    """Whether the table is still called as it was looked at, asked once such a look has failed.

    Raises:
        StateConflict: others renamed the table meanwhile.
    """
    entry = ledger.find(session, context.name)
    if entry is not None and entry.catalog.table != looked_at:
        raise StateConflict(
            context.name,
            f"{looked_at} is called {entry.catalog.table} since a moment ago",
            "run it again: it goes on where it stopped",
        )


def claims(session: Session, change: Change) -> Sequence[Relation]:
    """The relations of a change as the ledger claims them; what expand creates is found by its name."""
    return [
        relation if relation.oid else replace(relation, oid=session.value("catalog.oid", relation.name.sql))
        for relation in change.relations
    ]
