"""Watch: look at a migration's signals from outside its runs, and place or lift their holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import psycopg
from pydantic import ValidationError

from zdm_pipelines.dialects.postgres.connection import Connection, connected, safe
from zdm_pipelines.engine import holds, ledger, ranges, sessions, signals, tuning, watch
from zdm_pipelines.engine.signals import DEADLINE, Surroundings
from zdm_pipelines.engine.throttle import WINDOW
from zdm_pipelines.model import windows
from zdm_pipelines.model.errors import ZdmError
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Hold, Verdict
from zdm_pipelines.phases import backfill

# While rows are moved, or are about to be. In other states nobody is held.
WATCHED = frozenset({State.EXPANDED, State.BACKFILLING})


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a migration."""

    state: State
    verdicts: tuple[Verdict, ...] = ()
    against: tuple[Hold, ...] = ()  # what stands against writing, after the look


@contextmanager
def _asking(migration: Migration, url: str) -> Iterator[Connection]:
    """A connection that nobody can hang, with every failure as one that can be shown.

    Raises:
        ZdmError
    """
    try:
        with connected(url, purpose=f"{migration.name} watch", deadline=DEADLINE) as conn:
            yield conn
    except psycopg.Error as error:
        raise ZdmError(migration.name, f"the ledger cannot be read ({safe(error)})", "see zdm doctor") from None
    except ValidationError:
        raise ZdmError(
            migration.name, "the ledger was written by another version of this software", "upgrade zdm_pipelines here"
        ) from None


def states(url: str, names: Collection[str]) -> dict[str, State]:
    """Where migrations stand, with one question.

    Raises:
        ZdmError
    """
    try:
        with connected(url, purpose="watch", deadline=DEADLINE) as conn:
            return ledger.states(conn, names)
    except psycopg.Error as error:
        raise ZdmError("the ledger", f"cannot be read ({safe(error)})", "see zdm doctor") from None


def look(migration: Migration, url: str, database: Database, *, only: Collection[str] | None = None) -> Look:
    """Read signals, place the holds of those that are bad, lift the holds of those that recovered.

    Args:
        only: names of signals; default: every one that is declared.

    Raises:
        ZdmError: nothing could be learned.
    """
    with _asking(migration, url) as conn:
        entry = ledger.find(conn, migration.name)
        if entry is None:
            return Look(state=State.PLANNED)
        if not holds.exist(conn):
            ledger.ensure(url)
        if entry.state not in WATCHED:
            found = _against(conn, migration, tuning.effective(conn, migration))
            return Look(state=entry.state, against=tuple(found) if entry.state in backfill.ALLOWED else ())
        tuning.publish(conn, migration)
        settings = tuning.effective(conn, migration)
        limits = signals.declared(settings.throttle, replicas=bool(database.replicas))
        wanted = {name: limit for name, limit in limits.items() if only is None or name in only}
        around = Surroundings(url=url, catalog=entry.catalog, replicas=database.replica_urls())
        readings = watch.once(wanted, around)
        standing = {h.owner for h in holds.standing(conn, migration.name)}
        verdicts = tuple(
            watch.judge(limit, readings[name], paused=holds.of_signal(name) in standing)
            for name, limit in wanted.items()
        )
        _note(conn, migration, verdicts, standing)
        for owner in standing - {holds.of_signal(name) for name in limits}:
            if holds.is_signal(owner):  # of a signal that is no longer declared
                holds.lift(conn, migration.name, owner)
        return Look(state=entry.state, verdicts=verdicts, against=tuple(_against(conn, migration, settings)))


def _note(conn: Connection, migration: Migration, verdicts: Collection[Verdict], standing: Collection[str]) -> None:
    for verdict in verdicts:
        owner = holds.of_signal(verdict.reading.signal)
        if verdict.bad:
            holds.place(conn, migration.name, owner, verdict.reason, seconds=holds.SIGNAL_SECONDS)
        elif owner in standing:
            holds.lift(conn, migration.name, owner)


def _against(conn: Connection, migration: Migration, settings: tuning.Settings) -> list[Hold]:
    return holds.standing(conn, migration.name) + _closed(migration, settings)


def _closed(migration: Migration, settings: tuning.Settings) -> list[Hold]:
    reason = windows.closed(settings.allowed)
    return [Hold(migration=migration.name, owner=WINDOW, reason=reason, since=datetime.now(UTC))] if reason else []


def against(migration: Migration, url: str) -> list[Hold]:
    """What stands against writing now, without reading a signal.

    Raises:
        ZdmError: nothing could be learned.
    """
    with _asking(migration, url) as conn:
        if not holds.exist(conn):  # no ledger, or one of an earlier version
            return _closed(migration, tuning.declared(migration))
        return _against(conn, migration, tuning.effective(conn, migration))


@dataclass(frozen=True, kw_only=True)
class Life:
    """Whether runs live, and whether their work goes on."""

    dead: frozenset[str]  # runs that no session in the database belongs to
    batches: int  # of the migration, over all its ranges


def life(migration: Migration, url: str, runs: Collection[str]) -> Life:
    """Ask the database which of some runs live: a run keeps a session there as long as its process is.

    Raises:
        ZdmError: nothing could be learned.
    """
    with _asking(migration, url) as conn:
        entry = ledger.find(conn, migration.name)
        return Life(
            dead=frozenset(run for run in runs if not sessions.run_lives(conn, run)),
            batches=sum(r.batches for r in ranges.progress(conn, entry.id)) if entry else 0,
        )
