"""Doctor: everything that a migration needs, looked at one by one; changes nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from zdm_pipelines import ledger
from zdm_pipelines.dialects import DatabaseError, fault, safe, server_at
from zdm_pipelines.dialects.server import Fault, Session
from zdm_pipelines.engine import watch
from zdm_pipelines.engine.context import Context
from zdm_pipelines.engine.rows.ranges import estimate_rows
from zdm_pipelines.engine.schema.sync import sync_reasons
from zdm_pipelines.engine.signals import Surroundings
from zdm_pipelines.ledger import holds
from zdm_pipelines.model.errors import PreflightError, ZdmError
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.throttle import HttpLimit, Limit, SqlLimit
from zdm_pipelines.model.values import Catalog, Reading
from zdm_pipelines.phases.beginning import bound, look
from zdm_pipelines.verbs.plan import expected_ranges

_LONG = 300  # seconds a transaction is open before it is worth a word: our locks wait behind it


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    verdict: Literal["ok", "warning", "problem"]
    thing: str
    fact: str
    way_out: str = ""


def _ok(thing: str, fact: str) -> Finding:
    return Finding(verdict="ok", thing=thing, fact=fact)


def _warning(thing: str, fact: str, way_out: str = "") -> Finding:
    return Finding(verdict="warning", thing=thing, fact=fact, way_out=way_out)


def problem(error: ZdmError) -> Finding:
    """An error as a finding."""
    return Finding(verdict="problem", thing=error.thing, fact=error.fact, way_out=error.way_out)


def examine(database: Database, migrations: Sequence[Migration]) -> Iterator[Finding]:
    """Look at one database and at what is declared for it."""
    thing = f"database {database.name}"
    try:
        url = database.url()
        server = server_at(url)
        yield _ok(thing, f"{database.variable} is set")
        with server.connect(purpose="doctor") as session:
            yield _ok(thing, f"answers at {server.where}")
            yield from _server(session, thing)
            yield from _ledger(session, thing)
            replicas = yield from _replicas(database)
            for migration in migrations:
                yield from _guarded(session, Context.of(migration, url, database=database), replicas)
    except ZdmError as error:
        yield problem(error)
    except DatabaseError as error:
        yield Finding(verdict="problem", thing=thing, fact=safe(error), way_out="see the server's log")


def _server(session: Session, thing: str) -> Iterator[Finding]:
    version, role, superuser, monitor, wal_level, replicas = session.named("catalog.about_server")[0]
    yield _ok(thing, f"Postgres {version}, wal_level {wal_level}")
    for fact, way_out in (refuses := session.named("catalog.refuses_writes")):
        yield Finding(verdict="problem", thing=thing, fact=fact, way_out=way_out)
    if not refuses:
        yield _ok(thing, "is a primary")
    if superuser:
        yield _warning(f"role {role}", "is a superuser, which is not needed", "see docs/production.md")
    if monitor:
        yield _ok(f"role {role}", f"sees replication and other sessions; {replicas} replicas are connected")
    elif replicas:
        yield Finding(
            verdict="problem",
            thing=f"role {role}",
            fact=f"may not see the lag of the {replicas} replicas, so the throttle cannot watch it",
            way_out=f"GRANT pg_monitor TO {quote(role)}",
        )
    else:
        yield _warning(
            f"role {role}",
            "sees neither replication nor who blocks whom",
            f"GRANT pg_monitor TO {quote(role)}, or set throttle.replication_lag: null if there is no replica",
        )
    for pid, application, login, seconds in session.named("catalog.long_transactions", _LONG):
        yield _warning(
            thing,
            f"pid {pid} {application} (role {login}) has a transaction open for {seconds:,} s",
            "schema changes wait behind it if it touched the table, and dead rows cannot be cleaned up",
        )


def _ledger(session: Session, thing: str) -> Iterator[Finding]:
    found, known = ledger.known_versions(session)
    if found is None:
        yield _ok(thing, "has no ledger yet: a migration's first phase makes it")
    elif found == known:
        yield _ok(thing, f"ledger is at version {found}")
    elif found < known:
        yield _warning(thing, f"ledger is at version {found}, the next phase that runs brings it to {known}")
    else:
        yield Finding(
            verdict="problem",
            thing=thing,
            fact=f"ledger is at version {found}, this software knows {known}",
            way_out="upgrade zdm_pipelines here",
        )


def _replicas(database: Database) -> Generator[Finding, None, dict[str, str]]:
    """Look at the declared replicas; gives their URLs, as far as they are set."""
    urls: dict[str, str] = {}
    for variable in database.replicas:
        thing = f"replica {variable}"
        try:
            urls |= database.model_copy(update={"replicas": (variable,)}).replica_urls()
            server = server_at(urls[variable])
            with server.connect(purpose="doctor") as session:
                if session.value("catalog.is_replica"):
                    yield _ok(thing, f"answers at {server.where}")
                else:
                    yield _warning(thing, f"at {server.where} is no replica", "point it at a standby")
        except ZdmError as error:
            yield Finding(verdict="problem", thing=thing, fact=error.fact, way_out=error.way_out)
        except DatabaseError as error:
            yield Finding(verdict="problem", thing=thing, fact=safe(error), way_out="see the server's log")
    return urls


def _guarded(session: Session, context: Context, replicas: Mapping[str, str]) -> Iterator[Finding]:
    """One migration; what is wrong with it does not keep the others from being looked at."""
    migration = context.migration
    try:
        catalog = yield from _migration(session, context)
        made = holds.exist(session)
        if catalog is not None and Need.ROWS in context.lifecycle.needs:
            around = Surroundings(url=context.server.url, catalog=catalog, replicas=replicas)
            yield from _signals(migration, around, made=made)
        if catalog is not None and made:
            yield from _holds(session, migration)
    except PreflightError as error:
        yield from (problem(p) for p in error.problems)
    except DatabaseError as error:
        if fault(error) is not Fault.PRIVILEGE:
            raise
        yield Finding(
            verdict="problem",
            thing=f"migration {migration.name}",
            fact=f"the role may not do this ({safe(error)})",
            way_out="let the owner of the table run the migration, or grant what docs/production.md lists",
        )
    except ZdmError as error:
        yield problem(error)


def _holds(session: Session, migration: Migration) -> Iterator[Finding]:
    for hold in holds.standing(session, migration.name):
        way_out = f"zdm status {migration.name} says who ends it"
        yield _warning(f"migration {migration.name}", f"is held by {hold.owner}: {hold.reason}", way_out)


def _signals(migration: Migration, around: Surroundings, *, made: bool) -> Iterator[Finding]:
    """Every declared signal, read once.

    Args:
        made: the ledger is there, and with it the table of heartbeats.
    """
    limits = migration.throttle.watched(replicas=bool(around.replicas))
    for name, reading in watch.once(limits, around).items():
        thing = f"migration {migration.name}"
        if not made and "zdm.heartbeat" in reading.problem:
            yield _ok(thing, f"signal {name} is read once the migration has begun")
            continue
        verdict = watch.judge(limits[name], reading, paused=False)
        if reading.value is None:
            way_out = _way_out(name, limits[name], reading)
            yield Finding(verdict="problem", thing=thing, fact=f"signal {verdict.reason}", way_out=way_out)
        elif verdict.bad:
            yield _warning(thing, f"signal {verdict.reason}", "a backfill would wait now")
        else:
            yield _ok(thing, f"signal {verdict.reason}")


def _way_out(name: str, limit: Limit, reading: Reading) -> str:
    """What to do about a signal that cannot be read: a backfill would wait for it."""
    if isinstance(limit, SqlLimit):
        return "correct its query, or take it out of throttle.sql"
    if isinstance(limit, HttpLimit):
        return "see that the service answers, or take it out of throttle.http"
    mend = "" if "GRANT" in reading.problem else "mend that (docs/production.md lists the grants), or "
    return f"{mend}set throttle.{name}: null to not watch it"


def _migration(session: Session, context: Context) -> Generator[Finding, None, Catalog | None]:
    """The table and the ledger; gives the table, unless the migration is finished."""
    thing = f"migration {context.name}"
    entry = ledger.find(session, context.name)
    if entry is not None and entry.finished:
        yield _ok(thing, f"is {entry.state}: finished")
        return None
    if entry is None or not entry.begun:
        survey = look(session, context)
        rows = estimate_rows(session, survey.catalog)
        key = ", ".join(c.name for c in survey.catalog.key)
        ranges = f", about {expected_ranges(context, rows):,} ranges" if Need.ROWS in context.lifecycle.needs else ""
        yield _ok(thing, f"fits {survey.catalog.table}: about {rows:,} rows, key {key or 'none'}{ranges}")
        yield from (_warning(thing, w) for w in survey.warnings)
        return survey.catalog
    yield _ok(thing, f"is {entry.state}")
    if (conflict := entry.conflict(context.migration)) is not None:
        yield problem(conflict)
        return entry.catalog
    yield from _sync(session, context, entry)
    if Need.RETIRE in context.lifecycle.needs and context.lifecycle.awaits_contract(entry.state):
        old = ledger.late_writers(session, entry.id, window=context.migration.contract.straggler_window)
        yield from (_warning(thing, who, "deploy new code there") for who in old)
    return entry.catalog


def _sync(session: Session, context: Context, entry: ledger.Entry) -> Iterator[Finding]:
    """Whether the sync stands, and for which rows it failed."""
    thing, sync = f"migration {context.name}", bound(context, entry).sync
    if sync is None:
        return
    broken = sync_reasons(session, sync)
    yield from (Finding(verdict="problem", thing=thing, fact=reason) for reason in broken)
    if not broken:
        yield _ok(thing, "sync triggers stand, fire in every session and run last")
    for code, application, at in ledger.failures(session, entry.id):
        yield _warning(
            thing,
            f"up or down failed (SQLSTATE {code}) for a row written by {application or 'an unnamed application'}, "
            f"last at {at:%Y-%m-%d %H:%M:%S %Z}",
            "validate finds the rows; correct them",
        )
