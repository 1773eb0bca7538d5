"""Locks: change the schema without making the application wait."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TypeVar

import psycopg
from psycopg import errors
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random,
    wait_random_exponential,
)

from zdm_pipelines.dialects.postgres.connection import (
    Connection,
    query,
    scalar,
)
from zdm_pipelines.engine.sessions import Tell, silent
from zdm_pipelines.model.errors import (
    LockNotAcquired,
)
from zdm_pipelines.model.migration import Locks
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.values import Step

T = TypeVar("T")

# A schema change that holds its locks must not be able to keep them: neither by working nor by freezing.
_HOLD_SECONDS = 5.0
_FREEZE_SECONDS = 2.0
_LONGEST_BACKOFF = 10.0
# Longer than deadlock_timeout, after which the server cancels an autovacuum that somebody waits for.
_HARMLESS_SECONDS = 3.0

_HOLDERS = """
SELECT DISTINCT a.pid, coalesce(nullif(a.application_name, ''), 'unnamed application'), a.usename,
       round(extract(epoch FROM clock_timestamp() - a.xact_start))::int
FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = $1 AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY 4 DESC NULLS LAST LIMIT 3"""


# Foreign keys are added and dropped under locks on the table they refer to, too.
# Whoever holds the table for longer than a try may wait will most likely still hold it then. What other roles do is
# hidden from a role without pg_read_all_stats: then only the lock time-out tells.
_OLD_HOLDER = """
SELECT EXISTS (SELECT 1 FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
  WHERE l.granted AND l.pid <> pg_backend_pid()
    AND (l.relation = $1 OR l.relation IN (SELECT confrelid FROM pg_constraint WHERE conrelid = $1 AND contype = 'f'))
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND a.xact_start < clock_timestamp() - make_interval(secs => $2))"""


class _HeldForLong(Exception):
    """A transaction older than a try may wait holds the table."""


_TRY_AGAIN = (errors.LockNotAvailable, errors.DeadlockDetected, _HeldForLong)


def holders(conn: Connection, oid: int) -> str:
    """Who holds locks on a table, longest transaction first, for messages."""
    rows = query(conn, _HOLDERS, [oid])
    return (
        "; ".join(f"pid {pid} {app} (role {login}, open {secs or 0} s)" for pid, app, login, secs in rows)
        or "nobody any more"
    )


def change_schema(
    conn: Connection,
    work: Callable[[], T],
    *,
    thing: str,
    table: TableName,
    oid: int,
    locks: Locks,
    before: Callable[[], object] = lambda: None,
    tell: Tell = silent,
) -> tuple[T, int]:
    """Run one short DDL transaction; when its lock is not had in time, let the application pass and try again.

    The queue behind a waiting ACCESS EXCLUSIVE request is the application. So a try first takes a lock that only
    maintenance waits for, which sends autovacuum away; then it looks whether an old transaction holds the table, and if
    so does not even ask; then it waits `locks.timeout` at most, and longer from try to try in between.

    Args:
        before: what makes the time under the lock short; run before each try, without any lock.
        work: the statements; run inside a transaction with its time-outs set, again from the start at each try.

    Returns:
        What work gave, and how many tries failed.

    Raises:
        LockNotAcquired: `locks.give_up_after` passed; names who holds the table.
    """
    failed = 0
    blocked_by = ""

    def attempt() -> T:
        nonlocal failed, blocked_by
        before()
        try:
            with conn.transaction():
                _limit(conn, lock=_HARMLESS_SECONDS, statement=_HARMLESS_SECONDS + _HOLD_SECONDS)
                conn.execute(f"LOCK TABLE {table.sql} IN SHARE UPDATE EXCLUSIVE MODE".encode())
                if scalar(conn, _OLD_HOLDER, [oid, locks.timeout]):
                    raise _HeldForLong
                _limit(conn, lock=locks.timeout, statement=locks.timeout + _HOLD_SECONDS)
                return work()
        except _TRY_AGAIN:
            failed += 1
            with contextlib.suppress(psycopg.Error):
                blocked_by = holders(conn, oid)
            raise

    # At least four times as long apart as a try may block: the application is held up a fifth of the time at most.
    apart = locks.timeout * 4
    backoff = wait_random_exponential(multiplier=apart, min=apart, max=max(_LONGEST_BACKOFF, apart))
    look_again = wait_random(0.2, 0.5)  # looking holds nobody up

    def pause(state: RetryCallState) -> float:
        looked = state.outcome is not None and isinstance(state.outcome.exception(), _HeldForLong)
        return look_again(state) if looked else backoff(state)

    told: list[str] = []

    def report(state: RetryCallState) -> None:
        if told != [blocked_by]:  # a holder that stays is told once
            told[:] = [blocked_by]
            tell(f"{thing}: the table is held by {blocked_by}; trying again")

    retrying = Retrying(
        retry=retry_if_exception(lambda e: isinstance(e, _TRY_AGAIN)),
        wait=pause,
        stop=stop_after_delay(locks.give_up_after),
        reraise=True,
        before_sleep=report,
    )
    try:
        return retrying(attempt), failed
    except _TRY_AGAIN:
        raise LockNotAcquired(
            thing,
            f"no lock within {locks.give_up_after:g} s and {failed} tries; held by {blocked_by}",
            "end or wait for those transactions, then run it again; nothing was changed",
        ) from None


def _limit(conn: Connection, *, lock: float, statement: float) -> None:
    """Time-outs of the present transaction, in seconds."""
    limits = {
        "lock_timeout": lock,
        "statement_timeout": statement,
        "idle_in_transaction_session_timeout": _FREEZE_SECONDS,
    }
    for name, seconds in limits.items():
        query(conn, "SELECT set_config($1, $2, true)", [name, f"{max(1, round(seconds * 1000))}ms"])


def run_alone(conn: Connection, step: Step, *, thing: str, locks: Locks, tell: Tell = silent) -> bool:
    """Run a step that stands outside a transaction, unless it is done; true when it ran.

    Such steps take SHARE UPDATE EXCLUSIVE at most, which no read or write waits for: they may queue for long.
    """
    if step.done_when and scalar(conn, step.done_when):
        return False
    tell(step.sql)
    query(conn, "SELECT set_config('lock_timeout', $1, false)", [f"{round(locks.give_up_after * 1000)}ms"])
    try:
        conn.execute(step.sql.encode())
    except errors.LockNotAvailable:
        raise LockNotAcquired(
            thing,
            f"{step.name} waited {locks.give_up_after:g} s for older transactions",
            "end them, then run it again",
        ) from None
    finally:
        with contextlib.suppress(psycopg.Error):
            query(conn, "SELECT set_config('lock_timeout', '0', false)")
    return True


def run_steps(conn: Connection, steps: Sequence[Step], *, tell: Tell = silent) -> None:
    """Run transactional steps in the caller's transaction."""
    for step in steps:
        if step.done_when and scalar(conn, step.done_when):
            continue
        tell(step.sql)
        conn.execute(step.sql.encode())
