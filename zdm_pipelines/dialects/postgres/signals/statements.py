"""Statements: what the application's own statements take, from pg_stat_statements."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from psycopg import errors

from zdm_pipelines.dialects.postgres.signals.session import THIS_DATABASE, OnPrimary, hidden
from zdm_pipelines.model.signals import Measured, Surroundings

# The statistics only ever count up, so a value needs two readings. The first reading makes both of them.
_FIRST_INTERVAL = 0.5  # seconds

# Ours name something of ours, or carry the signals' mark. Statements that only steer a session cannot be told apart
# from the application's and take no time; COMMIT stays, because it waits for the disk and for synchronous replicas.
_NOT_COUNTED = re.compile(
    r"""zdm[._]|"zdm"|^\s*(begin|start\s+transaction|savepoint|release|set|reset|show|discard)\b""", re.IGNORECASE
)

# The texts of statements are left out: they lie in a file, which would be read each time. What runs inside functions is
# part of the call.
_COUNTS = """
SELECT userid::bigint, queryid, sum(calls)::float8, sum(total_exec_time)::float8 / 1000 AS zdm_seconds
FROM {schema}.pg_stat_statements(false) WHERE dbid = {database} AND toplevel GROUP BY userid, queryid"""
_TEXTS = """
SELECT queryid, max(query) AS zdm_text FROM {schema}.pg_stat_statements(true)
WHERE dbid = {database} AND queryid = ANY ($1) GROUP BY queryid"""


class Counted(NamedTuple):
    """A statement's calls, and the seconds they took together."""

    calls: float
    seconds: float


Statement = tuple[int, int]  # user, and the server's id of the statement


def since(before: dict[Statement, Counted], now: dict[Statement, Counted]) -> dict[Statement, Counted]:
    """What was called between two readings; statistics that were reset meanwhile count from there on."""
    found: dict[Statement, Counted] = {}
    for statement, counted in now.items():
        earlier = before.get(statement, Counted(0, 0))
        if earlier.calls > counted.calls or earlier.seconds > counted.seconds:
            earlier = Counted(0, 0)
        if counted.calls > earlier.calls:
            found[statement] = Counted(counted.calls - earlier.calls, counted.seconds - earlier.seconds)
    return found


def p95(called: Iterable[Counted]) -> float:
    """The 95th percentile of all calls, in seconds, each call taking its statement's mean; 0 without calls."""
    means = sorted((each.seconds / each.calls, each.calls) for each in called)
    left = sum(calls for _, calls in means) * 0.95
    for mean, calls in means:
        left -= calls
        if left < 0:
            return mean
    return means[-1][0] if means else 0.0


class Statements(OnPrimary):
    """95th percentile, in seconds, of the calls in this database between two readings, without our own.

    A statement counts when it has ended.
    """

    every = 1.0

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        self._before: dict[Statement, Counted] | None = None
        self._ignored: dict[int, bool] = {}  # by id of the statement: whether it does not count

    def read(self) -> Measured:
        """The percentile since the last reading; the first waits half a second and looks twice."""
        schema = self._schema()
        if self._before is None:
            self._before = self._counts(schema)
            self.clock.sleep(_FIRST_INTERVAL)
            schema = self._schema()
        now = self._counts(schema)
        called = since(self._before, now)
        self._before = now
        if not called:  # not even the query that has just looked for the extension
            raise errors.ObjectNotInPrerequisiteState(
                "pg_stat_statements counts nothing: see the settings compute_query_id and pg_stat_statements.track"
            )
        self._learn(schema, {query for _, query in called}, {query for _, query in now})
        return Measured(value=p95(counted for (_, query), counted in called.items() if not self._ignored[query]))

    def _schema(self) -> str:
        found = self.session.query(
            "SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace "
            "WHERE extname = 'pg_stat_statements'"
        )
        if not found:
            raise errors.UndefinedObject(
                "pg_stat_statements is not installed in this database: CREATE EXTENSION pg_stat_statements"
            )
        return str(found[0][0])

    def _counts(self, schema: str) -> dict[Statement, Counted]:
        try:
            rows = self.session.query(_COUNTS.format(schema=schema, database=THIS_DATABASE))
        except errors.UndefinedColumn:
            raise errors.UndefinedColumn(
                "pg_stat_statements is older than the server: ALTER EXTENSION pg_stat_statements UPDATE"
            ) from None
        if any(query is None for _, query, _, _ in rows):
            raise hidden("statements of others are")
        return {(user, query): Counted(calls, seconds) for user, query, calls, seconds in rows}

    def _learn(self, schema: str, called: set[int], present: set[int]) -> None:
        """See the texts of statements that are called for the first time; forget those that the server forgot."""
        self._ignored = {query: ignored for query, ignored in self._ignored.items() if query in present}
        if unknown := called - self._ignored.keys():
            rows = self.session.query(_TEXTS.format(schema=schema, database=THIS_DATABASE), [list(unknown)])
            texts: dict[int, str | None] = dict(rows)
            # A statement without text counts: it may have been pushed out between the two queries.
            self._ignored |= {query: bool(_NOT_COUNTED.search(texts.get(query) or "")) for query in unknown}
