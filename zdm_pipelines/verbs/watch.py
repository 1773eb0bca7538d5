"""Watch: look at a migration's signals from outside its runs, and place or lift their holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from zdm_pipelines import ledger
from zdm_pipelines.dialects import DatabaseError, safe, server_at
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine import sessions, tuning, watch
from zdm_pipelines.engine.context import Context
from zdm_pipelines.engine.signals import DEADLINE, Surroundings
from zdm_pipelines.ledger import holds
from zdm_pipelines.ledger import ranges as known_ranges
from zdm_pipelines.model import windows
from zdm_pipelines.model.errors import ZdmError
from zdm_pipelines.model.holds import WINDOW, is_signal, signal_owner
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.tuning import Settings, declared_settings
from zdm_pipelines.model.values import Hold, Verdict


@dataclass(frozen=True, kw_only=True)
class Look:
    """One look at a migration."""

    state: State
    verdicts: tuple[Verdict, ...] = ()
    against: tuple[Hold, ...] = ()  # what stands against writing, after the look


@contextmanager
def _asking(context: Context) -> Iterator[Session]:
    """A connection that nobody can hang, with every failure as one that can be shown.

    Raises:
        ZdmError
    """
    try:
        with context.looking("watch", deadline=DEADLINE) as session:
            yield session
    except DatabaseError as error:
        raise ZdmError(context.name, f"the ledger cannot be read ({safe(error)})", "see zdm doctor") from None
    except ValidationError:
        raise ZdmError(
            context.name, "the ledger was written by another version of this software", "upgrade zdm_pipelines here"
        ) from None


def states(url: str, names: Collection[str]) -> dict[str, State]:
    """Where migrations stand, with one question.

    Raises:
        ZdmError
    """
    try:
        with server_at(url).connect(purpose="watch", deadline=DEADLINE) as session:
            return ledger.states(session, names)
    except DatabaseError as error:
        raise ZdmError("the ledger", f"cannot be read ({safe(error)})", "see zdm doctor") from None


def look(context: Context, *, only: Collection[str] | None = None) -> Look:
    """Read signals, place the holds of those that are bad, lift the holds of those that recovered.

    Args:
        only: names of signals; default: every one that is declared.

    Raises:
        ZdmError: nothing could be learned.
    """
    migration = context.migration
    with _asking(context) as session:
        entry = ledger.find(session, migration.name)
        if entry is None:
            return Look(state=State.PLANNED)
        if not holds.exist(session):
            ledger.ensure(context.server)
        if entry.lifecycle.active(entry.state):
            _tidy(context, session, entry)
        if entry.state not in entry.lifecycle.watched:
            found = _against(session, migration, tuning.effective(session, migration))
            may_move = entry.state in entry.lifecycle.moving_allowed
            return Look(state=entry.state, against=tuple(found) if may_move else ())
        tuning.publish(session, migration)
        settings = tuning.effective(session, migration)
        limits = settings.throttle.watched(replicas=bool(context.database.replicas))
        wanted = {name: limit for name, limit in limits.items() if only is None or name in only}
        around = Surroundings(url=context.server.url, catalog=entry.catalog, replicas=context.database.replica_urls())
        readings = watch.once(wanted, around)
        standing = {h.owner for h in holds.standing(session, migration.name)}
        verdicts = tuple(
            watch.judge(limit, readings[name], paused=signal_owner(name) in standing) for name, limit in wanted.items()
        )
        _note(session, migration, verdicts, standing)
        for owner in standing - {signal_owner(name) for name in limits}:
            if is_signal(owner):  # of a signal that is no longer declared
                holds.lift(session, migration.name, owner)
        return Look(state=entry.state, verdicts=verdicts, against=tuple(_against(session, migration, settings)))


def _tidy(context: Context, session: Session, entry: ledger.Entry) -> None:
    """What the application's writes leave in the ledger must not grow without end while nobody runs a phase."""
    ledger.tidy_writes(session, entry.id)
    # Keys that a contract that died left behind: while nobody works on the migration, nobody asks for them.
    lock = f"zdm:migration:{context.name}"
    if ledger.are_touched(session, entry.id) and sessions.take(session, lock, wait=0):
        ledger.forget_touched(session, entry.id)
        sessions.leave(session, lock)


def _note(session: Session, migration: Migration, verdicts: Collection[Verdict], standing: Collection[str]) -> None:
    for verdict in verdicts:
        owner = signal_owner(verdict.reading.signal)
        if verdict.bad:
            holds.place(session, migration.name, owner, verdict.reason, seconds=holds.SIGNAL_SECONDS)
        elif owner in standing:
            holds.lift(session, migration.name, owner)


def _against(session: Session, migration: Migration, settings: Settings) -> list[Hold]:
    return holds.standing(session, migration.name) + _closed(migration, settings)


def _closed(migration: Migration, settings: Settings) -> list[Hold]:
    reason = windows.closed(settings.allowed)
    return [Hold(migration=migration.name, owner=WINDOW, reason=reason, since=datetime.now(UTC))] if reason else []


def against(context: Context) -> list[Hold]:
    """What stands against writing now, without reading a signal.

    Raises:
        ZdmError: nothing could be learned.
    """
    migration = context.migration
    with _asking(context) as session:
        if not holds.exist(session):  # no ledger, or one of an earlier version
            return _closed(migration, declared_settings(migration))
        return _against(session, migration, tuning.effective(session, migration))


@dataclass(frozen=True, kw_only=True)
class Life:
    """Whether runs live, and whether their work goes on."""

    dead: frozenset[str]  # runs that no session in the database belongs to
    batches: int  # of the migration, over all its ranges


def life(context: Context, runs: Collection[str]) -> Life:
    """Ask the database which of some runs live: a run keeps a session there as long as its process is.

    Raises:
        ZdmError: nothing could be learned.
    """
    with _asking(context) as session:
        entry = ledger.find(session, context.name)
        return Life(
            dead=frozenset(run for run in runs if not sessions.run_lives(session, run)),
            batches=sum(r.batches for r in known_ranges.progress(session, entry.id)) if entry else 0,
        )
