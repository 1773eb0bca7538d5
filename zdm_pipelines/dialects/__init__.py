"""All SQL: a folder per database product behind the protocol `Server`, and the doors to them."""

from __future__ import annotations

from contextlib import AbstractContextManager

import psycopg

from zdm_pipelines.dialects.postgres import connection, faults
from zdm_pipelines.dialects.postgres.server import PostgresServer
from zdm_pipelines.dialects.server import Fault, Server
from zdm_pipelines.model.errors import MissingPrivilege, ZdmError

__all__ = [
    "DatabaseError",
    "answered_since",
    "fault",
    "mapping",
    "privilege_problem",
    "read_only_problem",
    "safe",
    "server_at",
    "words",
]

# What drivers raise; `fault` says which kind one is.
DatabaseError = psycopg.Error


def server_at(url: str) -> Server:
    """The server behind a URL; connects to nothing."""
    return PostgresServer(url)


def fault(error: BaseException) -> Fault | None:
    """Which kind of failure it is; None: no driver's error."""
    return faults.fault(error)


def safe(error: psycopg.Error) -> str:
    """What went wrong; the message only where it is known to hold no value."""
    return faults.safe(error)


def words(error: psycopg.Error) -> frozenset[str]:
    """The words by which the server says where it was: functions, and what their statements name."""
    return faults.words(error)


def privilege_problem(error: psycopg.Error, thing: str) -> MissingPrivilege:
    """A privilege that is missing, in our words."""
    return faults.privilege_problem(error, thing)


def read_only_problem(thing: str) -> ZdmError:
    """Nothing may be written, in our words."""
    return faults.read_only_problem(thing)


def mapping(thing: str) -> AbstractContextManager[None]:
    """Statements that evaluate `up` or `down`: what they raise over a row is told without the row's values.

    Raises:
        MappingFailed: one of them raised.
    """
    return faults.mapping(thing)


def answered_since(thing: str, moment: float) -> bool:
    """Whether a database (`thing` of a DatabaseUnreachable) took a connection of ours after a monotonic time."""
    return connection.answered_since(thing, moment)
