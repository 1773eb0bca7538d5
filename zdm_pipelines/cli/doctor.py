"""Doctor: everything that a migration needs, looked at one by one; changes nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import psycopg
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from zdm_pipelines.changes import bind
from zdm_pipelines.cli.show import expected_ranges
from zdm_pipelines.dialects.postgres.connection import (
    Connection,
    connected,
    privilege_problem,
    query,
    safe,
    scalar,
    where,
)
from zdm_pipelines.engine import gate, holds, ledger, signals, watch
from zdm_pipelines.engine.ranges import estimate_rows
from zdm_pipelines.engine.signals import Surroundings
from zdm_pipelines.model.errors import PreflightError, ZdmError
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import ACTIVE, State
from zdm_pipelines.model.throttle import HttpLimit, Limit, SqlLimit
from zdm_pipelines.model.values import Catalog, Reading
from zdm_pipelines.phases import preflight

_LONG = 300  # seconds a transaction is open before it is worth a word: our locks wait behind it

_SERVER = """
SELECT current_setting('server_version'), pg_is_in_recovery(), current_setting('transaction_read_only')::bool,
       session_user, (SELECT rolsuper FROM pg_roles WHERE rolname = session_user),
       pg_has_role('pg_monitor', 'USAGE'), current_setting('wal_level'),
       (SELECT count(*) FROM pg_stat_replication)"""

_LONG_TRANSACTIONS = """
SELECT pid, coalesce(nullif(application_name, ''), 'unnamed application'), usename,
       extract(epoch FROM clock_timestamp() - xact_start)::int
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
  AND xact_start < clock_timestamp() - make_interval(secs => $1) ORDER BY xact_start LIMIT 5"""


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
        yield _ok(thing, f"{database.variable} is set")
        with connected(url, purpose="doctor") as conn:
            yield _ok(thing, f"answers at {where(url)}")
            yield from _server(conn, thing)
            yield from _ledger(conn, thing)
            replicas = yield from _replicas(database)
            for migration in migrations:
                yield from _guarded(conn, migration, url, replicas)
    except ZdmError as error:
        yield problem(error)
    except psycopg.Error as error:
        yield Finding(verdict="problem", thing=thing, fact=safe(error), way_out="see the server's log")


def _server(conn: Connection, thing: str) -> Iterator[Finding]:
    version, replica, read_only, role, superuser, monitor, wal_level, replicas = query(conn, _SERVER)[0]
    yield _ok(thing, f"Postgres {version}, wal_level {wal_level}")
    if replica:
        yield Finding(
            verdict="problem",
            thing=thing,
            fact="is a read-only replica",
            way_out="point the URL at the primary, or at both with target_session_attrs=read-write",
        )
    elif read_only:
        yield Finding(
            verdict="problem",
            thing=thing,
            fact="default_transaction_read_only is on",
            way_out=f'ALTER ROLE "{role}" SET default_transaction_read_only = off',
        )
    else:
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
            way_out=f'GRANT pg_monitor TO "{role}"',
        )
    else:
        yield _warning(
            f"role {role}",
            "sees neither replication nor who blocks whom",
            f'GRANT pg_monitor TO "{role}", or set throttle.replication_lag: null if there is no replica',
        )
    for pid, application, login, seconds in query(conn, _LONG_TRANSACTIONS, [_LONG]):
        yield _warning(
            thing,
            f"pid {pid} {application} (role {login}) has a transaction open for {seconds:,} s",
            "schema changes wait behind it if it touched the table, and dead rows cannot be cleaned up",
        )


def _ledger(conn: Connection, thing: str) -> Iterator[Finding]:
    found, known = ledger.versions(conn)
    if found is None:
        yield _ok(thing, "has no ledger yet: the first expand makes it")
    elif found == known:
        yield _ok(thing, f"ledger is at version {found}")
    elif found < known:
        yield _warning(thing, f"ledger is at version {found}, the next expand brings it to {known}")
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
            with connected(urls[variable], purpose="doctor") as conn:
                if scalar(conn, "SELECT pg_is_in_recovery()"):
                    yield _ok(thing, f"answers at {where(urls[variable])}")
                else:
                    yield _warning(thing, f"at {where(urls[variable])} is no replica", "point it at a standby")
        except ZdmError as error:
            yield Finding(verdict="problem", thing=thing, fact=error.fact, way_out=error.way_out)
        except psycopg.Error as error:
            yield Finding(verdict="problem", thing=thing, fact=safe(error), way_out="see the server's log")
    return urls


def _guarded(conn: Connection, migration: Migration, url: str, replicas: Mapping[str, str]) -> Iterator[Finding]:
    """One migration; what is wrong with it does not keep the others from being looked at."""
    try:
        catalog = yield from _migration(conn, migration)
        if catalog is not None:
            made = holds.exist(conn)
            yield from _signals(migration, Surroundings(url=url, catalog=catalog, replicas=replicas), made=made)
            yield from _holds(conn, migration) if made else ()
    except PreflightError as error:
        yield from (problem(p) for p in error.problems)
    except psycopg.errors.InsufficientPrivilege as error:
        yield problem(privilege_problem(error, f"migration {migration.name}"))
    except ZdmError as error:
        yield problem(error)


def _holds(conn: Connection, migration: Migration) -> Iterator[Finding]:
    for hold in holds.standing(conn, migration.name):
        way_out = f"zdm status {migration.name} says who ends it"
        yield _warning(f"migration {migration.name}", f"is held by {hold.owner}: {hold.reason}", way_out)


def _signals(migration: Migration, around: Surroundings, *, made: bool) -> Iterator[Finding]:
    """Every declared signal, read once.

    Args:
        made: the ledger is there, and with it the table of heartbeats.
    """
    limits = signals.declared(migration.throttle, replicas=bool(around.replicas))
    for name, reading in watch.once(limits, around).items():
        thing = f"migration {migration.name}"
        if not made and "zdm.heartbeat" in reading.problem:
            yield _ok(thing, f"signal {name} is read once expand has run")
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


def _migration(conn: Connection, migration: Migration) -> Generator[Finding, None, Catalog | None]:
    """The table and the ledger; gives the table, unless the migration is finished."""
    thing = f"migration {migration.name}"
    entry = ledger.find(conn, migration.name)
    if entry is not None and entry.state == State.CONTRACTED:
        yield _ok(thing, "is contracted: finished")
        return None
    if entry is None or entry.state not in ACTIVE:
        catalog = preflight.look(conn, migration)
        rows = estimate_rows(conn, catalog)
        key = ", ".join(c.name for c in catalog.key)
        yield _ok(
            thing,
            f"fits {catalog.table}: about {rows:,} rows, key {key}, about {expected_ranges(migration, rows):,} ranges",
        )
        yield from (_warning(thing, w) for w in catalog.warnings)
        return catalog
    yield _ok(thing, f"is {entry.state}")
    if dict(entry.change) != ledger.declared(migration):
        yield Finding(
            verdict="problem",
            thing=thing,
            fact="was expanded with another declaration",
            way_out="put defs.yaml back as it was, or roll back first",
        )
    change = bind(migration, entry.catalog, migration_id=entry.id, tombstoned=entry.state == State.TOMBSTONED)
    broken = gate.sync_reasons(conn, entry.catalog.oid, change.sync_triggers())
    yield from (Finding(verdict="problem", thing=thing, fact=reason) for reason in broken)
    if not broken:
        yield _ok(thing, "sync triggers stand, fire in every session and run last")
    failing = query(
        conn,
        "SELECT failed, application_name, max(at) FROM zdm.writer WHERE migration_id = $1 AND failed IS NOT NULL "
        "GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 5",
        [entry.id],
    )
    for code, application, at in failing:
        yield _warning(
            thing,
            f"up or down failed (SQLSTATE {code}) for a row written by {application or 'an unnamed application'}, "
            f"last at {at:%Y-%m-%d %H:%M:%S %Z}",
            "validate finds the rows; correct them",
        )
    old = ledger.writers(conn, entry.id, ledger.OLD_SHAPE, within=migration.contract.straggler_window)
    if entry.state in (State.SWITCHED, State.TOMBSTONED):
        yield from (_warning(thing, f"{who}: wrote the old shape", "deploy new code there") for who in old)
    return entry.catalog


_MARKS = {"ok": Text("✔", style="green"), "warning": Text("!", style="yellow"), "problem": Text("✘", style="red")}


def show(findings: Sequence[Finding]) -> RenderableType:
    """The list, with ways out below what is wrong."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text.assemble((finding.thing, "bold"), f": {finding.fact}")
        if finding.way_out:
            text.append(f"\n→ {finding.way_out}", style="yellow")
        table.add_row(_MARKS[finding.verdict], text)
    return table
