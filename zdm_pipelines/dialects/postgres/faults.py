"""Faults: which kind of failure an error of the driver is, and what may be told of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psycopg
from psycopg import errors

from zdm_pipelines.dialects.postgres.urls import unquoted
from zdm_pipelines.dialects.server import Fault
from zdm_pipelines.model.errors import DatabaseUnreachable, MappingFailed, MissingPrivilege, ZdmError

# admin shutdown, crash shutdown, cannot connect now, database dropped, idle for too long, idle in a transaction or in
# one for too long
_ENDED = ("57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04")
_FAULTS: Mapping[Fault, tuple[type[psycopg.Error], ...]] = {
    Fault.LOCK_BUSY: (errors.LockNotAvailable,),
    # The latter: a BEFORE trigger wrote another row of the same statement; of fewer rows it has not.
    Fault.CANCELLED: (errors.QueryCanceled, errors.TriggeredDataChangeViolation),
    Fault.CONFLICT: (errors.DeadlockDetected, errors.SerializationFailure, errors.TransactionRollback),
    Fault.PRIVILEGE: (errors.InsufficientPrivilege,),
    Fault.READ_ONLY: (errors.ReadOnlySqlTransaction,),
    Fault.TOO_LARGE: (errors.ProgramLimitExceeded,),
    Fault.TAKEN: (errors.DuplicateTable, errors.DuplicateObject),
}
# What an expression raises over a row's values: several rows from a subquery, data, constraints, a function's own
# exceptions.
_OF_DATA = ("21", "22", "23", "38", "P0")
# Classes whose messages name objects, settings and files, but never a value of a row.
_OF_NAMES = (
    "08", "0A", "0L", "0P", "25", "28", "2B", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "F0",
)  # fmt: skip
# Where the server says the same wherever it was: rights, time-outs and requests to end, deadlocks.
_SAY_NO_VALUE = ("aclchk.c", "postgres.c", "deadlock.c")
# Where code of the application raises what it likes, under whatever SQLSTATE it likes.
_RAISE = ("plpy_elog.c", "plpy_plpymodule.c", "plperl.c", "pltcl.c")
# Classes that neither the standard nor the server has.
_OF_NOBODY = re.compile(r"(?!53|54|55|57|58|72|P0|XX)[5-9I-Z]")


def raised(error: psycopg.Error) -> bool:
    """Whether it is a function of the application's that says this: then neither text nor SQLSTATE are the server's."""
    if error.diag.source_function == "exec_stmt_raise" or error.diag.source_file in _RAISE:
        return not _ours(error)
    return _OF_NOBODY.match(error.sqlstate or "") is not None


def _ours(error: psycopg.Error) -> bool:
    """Whether a block of ours raised it: one that was sent as a statement, and is not run by a function or trigger."""
    context = error.diag.context or ""
    return "inline_code_block" in context and "\n" not in context.strip()


def lost(error: BaseException) -> bool:
    """Whether the connection is gone, so that the outcome of what ran on it must be looked up."""
    if isinstance(error, DatabaseUnreachable):
        return True
    if not isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)):
        return False
    return error.sqlstate is None or (error.sqlstate.startswith(("08", *_ENDED)) and not raised(error))


def fault(error: BaseException) -> Fault | None:
    """Which kind of failure it is; None: no error of the driver, nor a server that cannot be reached."""
    if lost(error):
        return Fault.LOST
    if not isinstance(error, psycopg.Error):
        return None
    if raised(error):
        return Fault.OF_DATA
    for kind, classes in _FAULTS.items():
        if isinstance(error, classes):
            return kind
    return Fault.OF_DATA if of_data(error) else Fault.OTHER


def of_data(error: psycopg.Error) -> bool:
    """Whether it is the row's values that the server complains about, or what a function makes of them."""
    state = error.sqlstate or ""
    inside = bool(error.diag.context) and state.startswith(("0A", "2F", "39", "42", "XX"))
    return state.startswith(_OF_DATA) or inside or raised(error)


def safe(error: psycopg.Error) -> str:
    """What went wrong; the message only where it is known to hold no value: else the kind of error and its SQLSTATE.

    What a function says, or the server of a statement inside of one, may hold whatever the function had in hand.
    """
    state, said = error.sqlstate or "", error.diag.message_primary
    if said is None:  # of the driver; or of ours, where it has a state
        told = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)) or state
        return unquoted(str(error)).strip() if told else type(error).__name__
    alone = (not error.diag.context and not error.diag.internal_query) or (
        error.diag.source_function == "exec_stmt_raise" and _ours(error)
    )
    if not raised(error) and state.startswith(_OF_NAMES) and (alone or error.diag.source_file in _SAY_NO_VALUE):
        return said.strip()
    at = f", {error.diag.source_file}:{error.diag.source_line}" if state.startswith("XX") else ""
    return f"{type(error).__name__} (SQLSTATE {state}{at})"


def stated(error: psycopg.Error) -> str:
    """What the server says of a statement that reads no rows: it quotes nothing then but what was declared."""
    said = error.diag.message_primary
    return said.strip() if said and not raised(error) and not error.diag.context else safe(error)


def words(error: psycopg.Error) -> frozenset[str]:
    """The words by which the server says where it was: functions, and what their statements name.

    They are compared with names, in whatever language the server speaks, and never shown: a statement may hold values.
    """
    return frozenset(re.findall(r"[\w$]+", error.diag.context or ""))


def privilege_problem(error: psycopg.Error, thing: str) -> MissingPrivilege:
    """`permission denied` in our words."""
    return MissingPrivilege(
        thing,
        f"the role may not do this ({safe(error)})",
        "let the owner of the table run the migration, or grant what docs/production.md lists",
    )


def read_only_problem(thing: str) -> ZdmError:
    """Nothing may be written, in our words."""
    why = "it is a replica, or default_transaction_read_only is on for our role"
    return ZdmError(thing, f"the database takes no writes: {why}", "zdm doctor says which, and what to do")


@contextmanager
def mapping(thing: str) -> Iterator[None]:
    """Statements that evaluate `up` or `down`: what they raise over a row is told without the row's values.

    Raises:
        MappingFailed: one of them raised.
    """
    try:
        yield
    except psycopg.Error as error:
        if not of_data(error):
            raise
        fact = f"a declared expression fails for a row: {safe(error)}"
        raise MappingFailed(thing, fact, "correct that row, or the expression after a rollback") from None
