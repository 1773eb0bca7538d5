"""Sessions: keep our own processes apart, and outlast a database that goes away and comes back."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from zdm_pipelines.dialects import DatabaseError, answered_since, fault, privilege_problem, read_only_problem, safe
from zdm_pipelines.dialects.server import Fault, Server, Session
from zdm_pipelines.ledger import restored
from zdm_pipelines.model.errors import (
    DatabaseUnreachable,
    MigrationBusy,
    OutcomeUnknown,
    PreflightError,
    Problem,
    ZdmError,
)
from zdm_pipelines.model.migration import Migration

T = TypeVar("T")
Tell = Callable[[str], None]

# A worker that was killed leaves its session to the server for about a second (client_connection_check_interval).
BUSY_SECONDS = 15.0
_GRACE_SECONDS = 2.0  # what ends by itself in this time need not be ended by a brake
# How long a phase outlasts a database that restarts or fails over.
LOST_SECONDS = 120.0
# A statement of ours that ends the server each time must not be sent for ever.
_LOSSES = 5


def silent(_: str) -> None:
    """Take a line and tell nobody."""


def take(conn: Session, name: str, *, shared: bool = False, wait: float = BUSY_SECONDS) -> bool:
    """Take a session's advisory lock, trying for `wait` seconds; true when it was had."""
    deadline = time.monotonic() + wait
    while not conn.locks.take(name, shared=shared):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def leave(conn: Session, name: str) -> None:
    """Give an advisory lock back before the session ends."""
    conn.locks.leave(name)


def _run_lock(run: str) -> str:
    return f"zdm:run:{run}"


def hold_run(conn: Session, run: str) -> None:
    """Show that a run lives, as long as this session does.

    Raises:
        MigrationBusy: somebody asks for it all the time.
    """
    # Shared: the same run may be back before the server noticed that its last session is gone. Whoever asks
    # `run_lives` holds the lock for a moment.
    if not take(conn, _run_lock(run), shared=True, wait=1.0):
        raise MigrationBusy(f"run {run}", "cannot show that it lives", "it tries again")


def run_lives(conn: Session, run: str) -> bool:
    """Whether some session shows that a run lives."""
    if not conn.locks.take(_run_lock(run)):
        return True
    leave(conn, _run_lock(run))
    return False


@contextmanager
def session(
    server: Server, migration: Migration, *, purpose: str, shared: bool = False, tell: Tell | None = None
) -> Iterator[Session]:
    """A connection that holds the migration's lock: phases exclusively, range workers shared.

    Args:
        tell: given by a brake, which waits for nobody's work: whoever holds the lock is ended, and this is told of it.

    Raises:
        MigrationBusy: another process holds it.
        PreflightError: nothing can be written here.
    """
    lock = f"zdm:migration:{migration.name}"
    with server.connect(purpose=f"{migration.name} {purpose}") as conn:
        for fact, way_out in conn.named("catalog.refuses_writes"):
            raise PreflightError(migration.name, [Problem("database", fact, way_out)])
        had = take(conn, lock, shared=shared, wait=BUSY_SECONDS if tell is None else _GRACE_SECONDS)
        if not had and tell is not None:
            # Any phase, ended anywhere, is finished by running it again; but two brakes do not end each other.
            with contextlib.suppress(DatabaseError):  # of another role: then the refusal says who it is
                for pid, application in conn.named("locks.end_owners", lock, f"zdm {migration.name} {purpose}"[:63]):
                    tell(f"ended what was at work: {application} (pid {pid})")
            had = take(conn, lock, shared=shared, wait=BUSY_SECONDS)
        if not had:
            others = conn.named("locks.owners", lock)
            by = ", ".join(f"{app} (pid {pid})" for pid, app in others) or "another process"
            raise MigrationBusy(migration.name, f"is being worked on by {by}", "wait for it, or cancel it")
        restored.settle(conn, migration.name)
        yield conn


def resilient(
    work: Callable[[], T],
    *,
    thing: str,
    tell: Tell = silent,
    reached: bool = False,
    give_up_after: float = LOST_SECONDS,
) -> T:
    """Do work that is safe to do again, again when the database was lost under it.

    The work reads from the ledger what happened, so an outcome is looked up and never assumed.

    Args:
        reached: the database answered a moment ago, so that waiting for it makes sense; else a server that does not
            answer at first is told at once.

    Raises:
        DatabaseUnreachable: it could not be reached at all.
        OutcomeUnknown: it was lost and did not come back.
    """

    begun = away_since = time.monotonic()
    losses = 0

    def attempt() -> T:
        nonlocal reached, away_since, losses
        try:
            return work()
        except DatabaseUnreachable as error:
            # A second connection of this work may be the one that finds it gone.
            reached = reached or answered_since(error.thing, begun)
            raise
        except DatabaseError as error:
            kind = fault(error)
            if kind is Fault.PRIVILEGE:
                raise privilege_problem(error, thing) from None
            if kind is Fault.READ_ONLY:
                raise read_only_problem(thing) from None
            if kind is Fault.CANCELLED:
                fact = f"a statement was cancelled ({safe(error)})"
                raise ZdmError(thing, fact, "run it again: it goes on") from None
            if kind is Fault.LOST:
                reached, away_since, losses = True, time.monotonic(), losses + 1
            raise

    def enough(_: RetryCallState) -> bool:
        return losses > _LOSSES or time.monotonic() - away_since > give_up_after

    retrying = Retrying(
        retry=retry_if_exception(lambda e: reached and fault(e) is Fault.LOST),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=enough,
        reraise=True,
        before_sleep=lambda s: tell(
            f"database lost, looking again in {s.next_action.sleep if s.next_action else 0:.1f} s"
        ),
    )
    try:
        return retrying(attempt)
    except (DatabaseError, DatabaseUnreachable) as error:
        if not (reached and fault(error) is Fault.LOST):
            raise
        fact = f"the database was lost {losses} times or did not come back within {give_up_after:.0f} s"
        raise OutcomeUnknown(thing, fact, "run it again: it finds out what was done") from None
