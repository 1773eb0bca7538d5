"""Sessions: keep our own processes apart, and outlast a database that goes away and comes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from psycopg import errors
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from zdm_pipelines.dialects.postgres.connection import (
    Connection,
    answered_since,
    connected,
    lost,
    privilege_problem,
    query,
    safe,
    scalar,
)
from zdm_pipelines.model.errors import DatabaseUnreachable, MigrationBusy, OutcomeUnknown, ZdmError
from zdm_pipelines.model.migration import Migration

T = TypeVar("T")
Tell = Callable[[str], None]

# A worker that was killed leaves its session to the server for about a second (client_connection_check_interval).
BUSY_SECONDS = 15.0
# How long a phase outlasts a database that restarts or fails over.
LOST_SECONDS = 120.0
# A statement of ours that ends the server each time must not be sent for ever.
_LOSSES = 5


def silent(_: str) -> None:
    """Tell nobody."""


def _try_advisory(conn: Connection, name: str, *, shared: bool) -> bool:
    function = "pg_try_advisory_lock_shared" if shared else "pg_try_advisory_lock"
    return bool(scalar(conn, f"SELECT {function}(hashtextextended($1, 0))", [name]))


def take(conn: Connection, name: str, *, shared: bool = False, wait: float = BUSY_SECONDS) -> bool:
    """Take a session's advisory lock, trying for `wait` seconds; true when it was had."""
    deadline = time.monotonic() + wait
    while not _try_advisory(conn, name, shared=shared):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def leave(conn: Connection, name: str) -> None:
    """Give an advisory lock back before the session ends."""
    query(conn, "SELECT pg_advisory_unlock(hashtextextended($1, 0))", [name])


def _run_lock(run: str) -> str:
    return f"zdm:run:{run}"


def hold_run(conn: Connection, run: str) -> None:
    """Show that a run lives, as long as this session does.

    Raises:
        MigrationBusy: somebody asks for it all the time.
    """
    # Shared: the same run may be back before the server noticed that its last session is gone. Whoever asks
    # `run_lives` holds it for a moment.
    if not take(conn, _run_lock(run), shared=True, wait=1.0):
        raise MigrationBusy(f"run {run}", "cannot show that it lives", "it tries again")


def run_lives(conn: Connection, run: str) -> bool:
    """Whether some session shows that a run lives."""
    if not _try_advisory(conn, _run_lock(run), shared=False):
        return True
    leave(conn, _run_lock(run))
    return False


@contextmanager
def session(url: str, migration: Migration, *, purpose: str, shared: bool = False) -> Iterator[Connection]:
    """A connection that holds the migration's lock: phases exclusively, range workers shared.

    Raises:
        MigrationBusy: another process holds it.
    """
    with connected(url, purpose=f"{migration.name} {purpose}") as conn:
        if not take(conn, f"zdm:migration:{migration.name}", shared=shared):
            others = query(
                conn,
                "SELECT a.pid, a.application_name FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid "
                "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_backend_pid() "
                "AND ((l.classid::bigint << 32) | l.objid::bigint) = hashtextextended($1, 0)",
                [f"zdm:migration:{migration.name}"],
            )
            by = ", ".join(f"{app} (pid {pid})" for pid, app in others) or "another process"
            raise MigrationBusy(migration.name, f"is being worked on by {by}", "wait for it, or cancel it")
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
        except errors.InsufficientPrivilege as error:
            raise privilege_problem(error, thing) from None
        except errors.QueryCanceled as error:
            raise ZdmError(thing, f"a statement was cancelled ({safe(error)})", "run it again: it goes on") from None
        except psycopg.Error as error:
            if lost(error):
                reached, away_since, losses = True, time.monotonic(), losses + 1
            raise

    def enough(_: RetryCallState) -> bool:
        return losses > _LOSSES or time.monotonic() - away_since > give_up_after

    retrying = Retrying(
        retry=retry_if_exception(lambda e: reached and lost(e)),
        wait=wait_random_exponential(multiplier=0.2, max=5),
        stop=enough,
        reraise=True,
        before_sleep=lambda s: tell(
            f"database lost, looking again in {s.next_action.sleep if s.next_action else 0:.1f} s"
        ),
    )
    try:
        return retrying(attempt)
    except (psycopg.Error, DatabaseUnreachable) as error:
        if not (reached and lost(error)):
            raise
        fact = f"the database was lost {losses} times or did not come back within {give_up_after:.0f} s"
        raise OutcomeUnknown(thing, fact, "run it again: it finds out what was done") from None
