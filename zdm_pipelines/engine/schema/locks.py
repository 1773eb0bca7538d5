"""Locks: change the schema without making the application wait."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_random,
    wait_random_exponential,
)

from zdm_pipelines.dialects import DatabaseError, fault
from zdm_pipelines.dialects.server import Fault, Session
from zdm_pipelines.engine.context import Context
from zdm_pipelines.engine.sessions import Tell, silent
from zdm_pipelines.model.errors import LockNotAcquired, StateConflict
from zdm_pipelines.model.values import Relation, Statement, Step

T = TypeVar("T")

# A schema change that holds its locks must not be able to keep them: neither by working nor by freezing.
_HOLD_SECONDS = 5.0
_FREEZE_SECONDS = 2.0
_LONGEST_BACKOFF = 10.0
# Longer than deadlock_timeout, after which the server cancels an autovacuum that somebody waits for.
_HARMLESS_SECONDS = 3.0


class _HeldForLong(Exception):
    """A transaction older than a try may wait holds the table."""


def _passes(error: BaseException) -> bool:
    """Whether a try failed for somebody else's locks."""
    return isinstance(error, _HeldForLong) or fault(error) in (Fault.LOCK_BUSY, Fault.CONFLICT)


def holders(conn: Session, oid: int | None = None, *, named: Iterable[str] = ()) -> str:
    """Who holds locks on a table, longest transaction first, for messages.

    Args:
        named: all tables of these names besides.
    """
    rows = conn.named("locks.holders", oid, list(named))
    return (
        "; ".join(f"pid {pid} {app} (role {login}, open {secs or 0} s)" for pid, app, login, secs in rows)
        or "nobody any more"
    )


def change_schema(
    conn: Session,
    work: Callable[[], T],
    *,
    context: Context,
    what: str,
    relations: Sequence[Relation],
    before: Callable[[], object] = lambda: None,
) -> tuple[T, int]:
    """Run one short DDL transaction; when its lock is not had in time, let the application pass and try again.

    The queue behind a waiting ACCESS EXCLUSIVE request is the application. So a try first takes a lock that only
    maintenance waits for, which sends autovacuum away; then it looks whether an old transaction holds the table, and if
    so does not even ask; then it waits `locks.timeout` at most, and longer from try to try in between.

    Args:
        what: is done, for people: a phase's name.
        relations: the tables whose locks the work takes, in the order in which every migration takes them.
        before: what makes the time under the lock short; run before each try, without any lock.
        work: the statements; run inside a transaction with its time-outs set, again from the start at each try.

    Returns:
        What work gave, and how many tries failed.

    Raises:
        LockNotAcquired: `locks.give_up_after` passed; names who holds the table.
    """
    thing, locks = f"{context.name} {what}", context.migration.locks
    tables = [relation for relation in relations if relation.oid]
    failed = 0
    blocked_by = ""

    def attempt() -> T:
        nonlocal failed, blocked_by
        before()
        try:
            with conn.transaction():
                _limit(conn, lock=_HARMLESS_SECONDS)
                for table in tables:
                    conn.locks.send_maintenance_away(table.name)
                if any(conn.value("locks.old_holder", table.oid, locks.timeout) for table in tables):
                    raise _HeldForLong
                _limit(conn, lock=locks.timeout)
                return work()
        except (DatabaseError, _HeldForLong) as error:
            if _passes(error):
                failed += 1
                with contextlib.suppress(DatabaseError):
                    by = dict.fromkeys(holders(conn, table.oid) for table in tables)
                    blocked_by = "; ".join(by) or "somebody"
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
            context.tell(f"{thing}: the table is held by {blocked_by}; trying again")

    retrying = Retrying(
        retry=retry_if_exception(_passes),
        wait=pause,
        stop=stop_after_delay(locks.give_up_after),
        reraise=True,
        before_sleep=report,
    )
    try:
        return retrying(attempt), failed
    except (DatabaseError, _HeldForLong) as error:
        if not _passes(error):
            raise
        raise LockNotAcquired(
            thing,
            f"no lock within {locks.give_up_after:g} s and {failed} tries; held by {blocked_by}",
            "end or wait for those transactions, then run it again; nothing was changed",
        ) from None


def _limit(conn: Session, *, lock: float) -> None:
    """Time-outs of the present transaction, which waits so many seconds for a lock."""
    conn.locks.limit(lock=lock, statement=lock + _HOLD_SECONDS, idle=_FREEZE_SECONDS)


def lock_exclusively(conn: Session, relation: Relation) -> None:
    """Keep everybody else away from a table until the transaction ends."""
    if relation.oid:
        conn.locks.exclude(relation.name)


def is_done(conn: Session, step: Step) -> bool:
    """Whether a step that can tell says that it is done already."""
    return bool(step.done_when and conn.run(Statement(step.done_when))[0][0])


def run_alone(conn: Session, step: Step, *, context: Context, what: str) -> bool:
    """Run a step that stands outside a transaction, unless it is done; true when it ran.

    Such steps take SHARE UPDATE EXCLUSIVE at most, which no read or write waits for: they may queue for long.
    """
    if is_done(conn, step):
        return False
    context.tell(step.sql)
    patience = context.migration.locks.give_up_after
    try:
        conn.locks.run_queueing(Statement(step.sql), wait=patience)
    except DatabaseError as error:
        if fault(error) is not Fault.LOCK_BUSY:
            raise
        raise LockNotAcquired(
            f"{context.name} {what}",
            f"{step.name} waited {patience:g} s for older transactions",
            "end them, then run it again",
        ) from None
    _require_done(conn, step)
    return True


def run_steps(conn: Session, steps: Sequence[Step], *, tell: Tell = silent) -> None:
    """Run transactional steps in the caller's transaction."""
    for step in steps:
        if is_done(conn, step):
            continue
        tell(step.sql)
        conn.run(Statement(step.sql))
        _require_done(conn, step)


def run_step(conn: Session, step: Step, *, context: Context, what: str, relations: Sequence[Relation]) -> int:
    """Run one step by itself, in a short transaction of its own where the step allows one; how many tries failed.

    See `change_schema` for the arguments and for what is raised.
    """
    if not step.in_transaction:
        run_alone(conn, step, context=context, what=what)
        return 0
    _, failed = change_schema(
        conn, lambda: run_steps(conn, [step], tell=context.tell), context=context, what=what, relations=relations
    )
    return failed


def _require_done(conn: Session, step: Step) -> None:
    """A statement that found nothing to do, as DROP … IF EXISTS of what was renamed meanwhile, has done nothing.

    Raises:
        StateConflict: the step ran and says that it is not done.
    """
    if step.done_when and not is_done(conn, step):
        raise StateConflict(
            step.name,
            "the statement ran, and what it is for is still not so: somebody renamed or changed it at the same time",
            "look at it, put back what was changed, then run it again",
        )
