"""Ledger: where a migration stands, in the database it changes, moved by compare-and-set only."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import psycopg
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from pydantic import TypeAdapter
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from zdm_pipelines.dialects.postgres.connection import CONNECT_SECONDS, Connection, query, scalar
from zdm_pipelines.model.errors import MissingPrivilege, StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import ACTIVE, TRANSITIONS, State
from zdm_pipelines.model.values import Catalog, Check, Flag

_SCHEMA = Path(__file__).parent / "ledger_schema"
_CATALOG: TypeAdapter[Catalog] = TypeAdapter(Catalog)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A migration's row as it was read; `version` makes it the compare of a compare-and-set."""

    id: int
    name: str
    state: State
    version: int
    change: Mapping[str, Any]
    catalog: Catalog
    state_since: datetime
    switched_at: datetime | None
    tombstoned_at: datetime | None


def _alembic(connection: Any = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_SCHEMA))
    config.attributes["connection"] = connection
    return config


def exists(conn: Connection) -> bool:
    """Whether this database has a ledger."""
    return bool(scalar(conn, "SELECT to_regclass('zdm.migration') IS NOT NULL"))


def versions(conn: Connection) -> tuple[str | None, str]:
    """The version this database's ledger is at (None: it has none) and the one this software knows."""
    known = cast(str, ScriptDirectory.from_config(_alembic()).get_current_head())
    found = scalar(conn, "SELECT to_regclass('zdm.schema_version') IS NOT NULL")
    return (scalar(conn, "SELECT version_num FROM zdm.schema_version") if found else None), known


def ensure(url: str) -> None:
    """Create the ledger or bring it to this version; does nothing when it is there.

    Raises:
        MissingPrivilege: the role may not create the schema.
        StateConflict: the ledger was made by a newer version of this software.
    """
    try:
        _upgrade(url)
    except DBAPIError as error:
        if isinstance(error.orig, psycopg.Error):  # so that a lost database is known as such
            raise error.orig from None
        raise


def _upgrade(url: str) -> None:
    head = ScriptDirectory.from_config(_alembic()).get_current_head()

    def connected() -> psycopg.Connection[Any]:
        return psycopg.connect(url, application_name="zdm ledger", connect_timeout=CONNECT_SECONDS)

    engine = create_engine("postgresql+psycopg://", creator=connected, poolclass=NullPool)
    with engine.begin() as connection:
        # Two processes at once: the second waits here and then finds the work done.
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtextextended('zdm:ledger', 0))"))
        # The application's transactions write into the ledger: a version that alters its tables gives up instead.
        connection.execute(text("SET LOCAL lock_timeout = '500ms'"))
        known = connection.execute(text("SELECT to_regclass('zdm.schema_version')")).scalar()
        current = connection.execute(text("SELECT version_num FROM zdm.schema_version")).scalar() if known else None
        if current == head:
            return
        if current is not None and current > cast(str, head):
            raise StateConflict(
                "ledger", f"is at version {current}, this software knows {head}", "upgrade zdm_pipelines here"
            )
        try:
            if not connection.execute(text("SELECT to_regnamespace('zdm')")).scalar():
                connection.execute(text("CREATE SCHEMA zdm"))
            command.upgrade(_alembic(connection), "head")
        except Exception as error:
            if isinstance(getattr(error, "orig", None), psycopg.errors.InsufficientPrivilege):
                raise MissingPrivilege(
                    "ledger", "the role may not create schema zdm", "GRANT CREATE ON DATABASE to it once"
                ) from None
            raise


def find(conn: Connection, name: str) -> Entry | None:
    """A migration's row, None when it never left `planned` here."""
    if not exists(conn):
        return None
    owner = scalar(
        conn,
        "SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'zdm.migration'::regclass "
        "AND NOT pg_has_role(relowner, 'USAGE')",
    )
    if owner is not None:
        raise MissingPrivilege(
            "ledger", f"schema zdm belongs to role {owner}", f"connect as {owner}, or GRANT {owner} to our role"
        )
    rows = query(
        conn,
        "SELECT id, name, state, version, change, catalog, state_since, switched_at, tombstoned_at "
        "FROM zdm.migration WHERE name = $1",
        [name],
    )
    if not rows:
        return None
    r = rows[0]
    return Entry(
        id=r[0], name=r[1], state=State(r[2]), version=r[3], change=r[4], catalog=_CATALOG.validate_python(r[5]),
        state_since=r[6], switched_at=r[7], tombstoned_at=r[8],
    )  # fmt: skip


def state(conn: Connection, name: str) -> State:
    """Where a migration stands; `planned` when the ledger does not know it."""
    entry = find(conn, name)
    return entry.state if entry else State.PLANNED


def states(conn: Connection, names: Collection[str]) -> dict[str, State]:
    """Where each of some migrations stands; those that the ledger does not know are left out."""
    if not exists(conn):
        return {}
    rows = query(conn, "SELECT name, state FROM zdm.migration WHERE name = ANY ($1)", [list(names)])
    return {name: State(now) for name, now in rows}


def declared(migration: Migration) -> dict[str, Any]:
    """The part of a declaration that may not change once it is expanded."""
    return {"table": migration.table, **migration.change.model_dump(mode="json")}


def require(
    conn: Connection, migration: Migration, allowed: Sequence[State] | frozenset[State], *, to_do: str
) -> Entry:
    """The row of a migration that is in one of the allowed states and declared as it was expanded.

    Raises:
        StateConflict: it is not, with what to run first.
    """
    entry = find(conn, migration.name)
    if entry is None or entry.state not in allowed:
        now = entry.state if entry else State.PLANNED
        raise StateConflict(migration.name, f"is {now}, so that it cannot {to_do}", _next(now))
    if dict(entry.change) != declared(migration):
        differing = sorted(k for k, v in declared(migration).items() if entry.change.get(k) != v)
        raise StateConflict(
            migration.name,
            f"was expanded with another declaration of {', '.join(differing)}",
            "put defs.yaml back as it was; once rolled back it may change",
        )
    return entry


def _next(now: State) -> str:
    ways = {
        State.PLANNED: "run expand first",
        State.EXPANDED: "run backfill first",
        State.BACKFILLING: "run backfill until every range is done",
        State.BACKFILLED: "run validate first",
        State.VALIDATED: "run switch_reads first",
        State.SWITCHING: "run switch_reads until it reaches 100 %",
        State.SWITCHED: "run contract, or roll back",
        State.TOMBSTONED: "run contract again after the tombstone window, or roll contract back first",
        State.CONTRACTED: "it is finished: declare a new migration for a new change",
        State.ROLLED_BACK: "run expand to begin anew",
    }
    return ways[now]


def register(conn: Connection, migration: Migration, catalog: Catalog) -> Entry:
    """Write (or, after a rollback, rewrite) the row of a migration about to be expanded.

    Raises:
        StateConflict: another migration is active on this table.
    """
    other = query(
        conn,
        "SELECT name, state FROM zdm.migration WHERE table_oid = $1 AND name <> $2 AND state = ANY ($3)",
        [catalog.oid, migration.name, [str(s) for s in ACTIVE]],
    )
    if other:
        raise StateConflict(
            migration.name,
            f"table {catalog.table} is under migration {other[0][0]} ({other[0][1]})",
            "finish or roll back that one first",
        )
    query(
        conn,
        "INSERT INTO zdm.migration (name, table_oid, table_name, change, catalog, state) "
        "VALUES ($1, $2, $3, $4, $5, 'planned') ON CONFLICT (name) DO UPDATE SET table_oid = excluded.table_oid, "
        "table_name = excluded.table_name, change = excluded.change, catalog = excluded.catalog "
        "WHERE zdm.migration.state IN ('planned', 'rolled_back')",
        [
            migration.name, catalog.oid, str(catalog.table), json.dumps(declared(migration)),
            _CATALOG.dump_json(catalog).decode(),
        ],
    )  # fmt: skip
    entry = find(conn, migration.name)
    assert entry is not None  # written above, in this transaction or an earlier one
    return entry


def move(conn: Connection, entry: Entry, to: State, *, what: str, detail: Mapping[str, Any] | None = None) -> Entry:
    """Compare-and-set to another state and append the event, in the caller's transaction.

    Raises:
        StateConflict: the transition does not exist, or somebody else moved the migration meanwhile.
    """
    if to not in TRANSITIONS[entry.state]:
        raise StateConflict(entry.name, f"cannot go from {entry.state} to {to}", _next(entry.state))
    # The times belong to the states: left behind, they go.
    try:
        moved = query(
            conn,
            "UPDATE zdm.migration SET state = $1, version = version + 1, state_since = clock_timestamp(), "
            "switched_at = CASE WHEN $1 = 'switched' AND switched_at IS NULL THEN clock_timestamp() "
            "  WHEN $1 IN ('switched', 'tombstoned', 'contracted') THEN switched_at END, "
            "tombstoned_at = CASE WHEN $1 = 'tombstoned' THEN clock_timestamp() "
            "  WHEN $1 = 'contracted' THEN tombstoned_at END "
            "WHERE id = $2 AND version = $3 AND state = $4 RETURNING version",
            [str(to), entry.id, entry.version, str(entry.state)],
        )
    except psycopg.errors.UniqueViolation:
        raise StateConflict(
            entry.name,
            f"table {entry.catalog.table} came under another migration meanwhile",
            "finish or roll back that one first",
        ) from None
    if not moved:
        raise StateConflict(
            entry.name,
            f"was moved on from {entry.state} by somebody else meanwhile",
            "look at its status and run again",
        )
    append(conn, entry.id, what, from_state=entry.state, to_state=to, detail=detail)
    found = find(conn, entry.name)
    assert found is not None
    return found


def append(
    conn: Connection,
    migration_id: int,
    what: str,
    *,
    from_state: State | None = None,
    to_state: State | None = None,
    detail: Mapping[str, Any] | None = None,
) -> None:
    """Append an event; events are never changed."""
    query(
        conn,
        "INSERT INTO zdm.event (migration_id, actor, what, from_state, to_state, detail) "
        "VALUES ($1, session_user || ' via ' || current_setting('application_name'), $2, $3, $4, $5)",
        [
            migration_id,
            what,
            from_state and str(from_state),
            to_state and str(to_state),
            json.dumps(detail or {}, default=str),
        ],
    )


def began(conn: Connection, migration_id: int) -> int:
    """With which event the present attempt began; a rollback, to expanded or further, begins another."""
    return int(
        scalar(
            conn,
            "SELECT coalesce(max(id), 0) FROM zdm.event WHERE migration_id = $1 "
            "AND to_state IN ('expanded', 'rolled_back')",
            [migration_id],
        )
    )


def events(conn: Connection, migration_id: int, *, limit: int = 10) -> list[str]:
    """The latest events as lines, newest first."""
    rows = query(
        conn,
        "SELECT at, actor, what, from_state, to_state FROM zdm.event WHERE migration_id = $1 ORDER BY id DESC LIMIT $2",
        [migration_id, limit],
    )
    return [
        f"{at:%Y-%m-%d %H:%M:%S} {what}" + (f" ({a} → {b})" if b else "") + f" by {actor}"
        for at, actor, what, a, b in rows
    ]


@contextmanager
def transaction(conn: Connection) -> Iterator[None]:
    """One transaction on an autocommit connection."""
    with conn.transaction():
        yield


# -- checks, flags, stragglers ----------------------------------------------------------------------------


def record_checks(conn: Connection, migration_id: int, checks: Sequence[Check]) -> None:
    """Keep the latest verdicts of validate."""
    for check in checks:
        query(
            conn,
            "INSERT INTO zdm.check_result (migration_id, name, passed, summary) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (migration_id, name) DO UPDATE SET passed = excluded.passed, summary = excluded.summary, "
            "at = clock_timestamp()",
            [migration_id, check.name, check.passed, check.summary],
        )


def checks(conn: Connection, migration_id: int) -> dict[str, tuple[bool, str]]:
    """The latest verdict of each check: passed, summary."""
    rows = query(conn, "SELECT name, passed, summary FROM zdm.check_result WHERE migration_id = $1", [migration_id])
    return {name: (passed, summary) for name, passed, summary in rows}


def forget_checks(conn: Connection, migration_id: int) -> None:
    """Drop verdicts that no longer speak of the data."""
    query(conn, "DELETE FROM zdm.check_result WHERE migration_id = $1", [migration_id])


def flag(conn: Connection, migration_id: int) -> Flag | None:
    """The flag of a migration."""
    rows = query(conn, "SELECT name, percent, retired FROM zdm.flag WHERE migration_id = $1", [migration_id])
    return Flag(name=rows[0][0], percent=rows[0][1], retired=rows[0][2]) if rows else None


def create_flag(conn: Connection, migration_id: int, name: str) -> None:
    """A flag at 0 %.

    Raises:
        StateConflict: another migration uses that name.
    """
    taken = scalar(
        conn,
        "INSERT INTO zdm.flag (name, migration_id) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET percent = 0, "
        "retired = false, changed_at = '-infinity' WHERE zdm.flag.migration_id = $2 RETURNING name",
        [name, migration_id],
    )
    if taken is None:
        raise StateConflict(f"flag {name}", "belongs to another migration", "set reads.flag to another name")


def set_flag(conn: Connection, migration_id: int, percent: int, *, retired: bool = False) -> None:
    """Move a flag."""
    query(
        conn,
        "UPDATE zdm.flag SET percent = $2, retired = $3, changed_at = clock_timestamp() WHERE migration_id = $1 "
        "AND (percent, retired) <> ($2::int, $3)",
        [migration_id, percent, retired],
    )


def flag_settled(conn: Connection, migration_id: int, *, seconds: float) -> bool:
    """Whether every client has had `seconds` to see the flag as it is."""
    moved = scalar(
        conn,
        "SELECT changed_at > clock_timestamp() - make_interval(secs => $2) FROM zdm.flag WHERE migration_id = $1",
        [migration_id, seconds],
    )
    return not moved


def drop_flag(conn: Connection, migration_id: int) -> None:
    """Remove a flag."""
    query(conn, "DELETE FROM zdm.flag WHERE migration_id = $1", [migration_id])


# Who names the old column in a write, alone or beside the new one, fails once it is renamed; likewise the new shape.
OLD_SHAPE = "wrote IN ('old', 'both')"
NEW_SHAPE = "wrote IN ('new', 'both')"


def writers(conn: Connection, migration_id: int, shape: str, *, within: float) -> list[str]:
    """Who wrote a shape (OLD_SHAPE or NEW_SHAPE) in the last `within` seconds, latest first; by an index of its own."""
    rows = query(
        conn,
        "SELECT application_name, login, max(at), clock_timestamp() - max(at) FROM zdm.writer WHERE migration_id = $1 "
        f"AND {shape} AND at > clock_timestamp() - make_interval(secs => $2) GROUP BY 1, 2 ORDER BY 3 DESC",
        [migration_id, within],
    )
    return [
        f"{name or 'unnamed application'} (role {login}), {ago.total_seconds():.0f} s ago"
        for name, login, _, ago in rows
    ]


def forget_writes(conn: Connection, migration_id: int) -> None:
    """Forget who wrote and which keys, when a migration starts anew or ends."""
    query(conn, "DELETE FROM zdm.writer WHERE migration_id = $1", [migration_id])
    query(conn, "DELETE FROM zdm.touched WHERE migration_id = $1", [migration_id])
    if has_proofs(conn):
        query(conn, "DELETE FROM zdm.written WHERE migration_id = $1", [migration_id])


def has_proofs(conn: Connection) -> bool:
    """Whether this ledger knows proofs of ranges; one made by an earlier version does not."""
    return bool(scalar(conn, "SELECT to_regclass('zdm.written') IS NOT NULL"))
