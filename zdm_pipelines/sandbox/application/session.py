"""Session: one connection of one version of the application; latencies and failures are recorded."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from zdm_pipelines.sandbox.traffic_report import Recorder

Parameters = dict[str, Any]
Step = tuple[str, Parameters]
"""A statement and its parameters."""

# An application's own limit: a query that waits longer is a failed one, not a forgotten one.
_OPTIONS = "-c statement_timeout=10s"

_AWAY = 0.1  # seconds of rest after a connection was lost: a server that is down is not hammered


class Failed(Exception):
    """A query failed; the failure is already recorded."""

    def __init__(self, *, lost: bool, unknown: bool) -> None:
        super().__init__()
        self.lost = lost  # the connection is gone
        self.unknown = unknown  # what was written may have taken effect or not


class Session:
    """Connects when first used, and again after the connection was lost."""

    def __init__(self, url: str, *, version: str, recorder: Recorder) -> None:
        self._url = url
        self.version = version
        self._recorder = recorder
        self._connection: psycopg.Connection[Any] | None = None

    def query(self, statement: str, parameters: Parameters | None = None) -> psycopg.Cursor[Any]:
        """Run a statement by itself.

        Raises:
            Failed: the statement failed, or the connection was lost.
        """
        section, started, text = self._recorder.section, time.perf_counter(), " ".join(statement.split())
        try:
            connection = self._connection or self._connect()
            started = time.perf_counter()  # connecting is not the query's latency
            return connection.execute(statement.encode(), parameters)
        except psycopg.Error as error:
            self._recorder.failed(section, self.version, f"{type(error).__name__}: {error} ({text})")
            lost = self._connection is None or self._connection.broken
            if lost:
                self.close()
                time.sleep(_AWAY)
            raise Failed(lost=lost, unknown=lost) from error
        finally:
            self._recorder.query(section, self.version, time.perf_counter() - started, text)

    def write(self, steps: Sequence[Step], *, think: float = 0.0) -> list[int]:
        """Run statements, all or none; gives how many rows each touched.

        Args:
            steps: a value that a statement returns is put into its parameters by the name of the column.
            think: seconds to wait after the first statement, holding its locks.

        Raises:
            Failed: a statement failed, or the connection was lost.
        """
        if len(steps) == 1:
            return [self._run(steps[0])]
        try:
            self.query("BEGIN")
            counts = [self._run(steps[0])]
            time.sleep(think)
            counts += [self._run(step) for step in steps[1:]]
        except Failed as failed:
            if not failed.lost:  # the connection lives, so the transaction must be ended
                with contextlib.suppress(Failed):
                    self.query("ROLLBACK")
            raise Failed(lost=failed.lost, unknown=False) from failed.__cause__
        self.query("COMMIT")
        return counts

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _run(self, step: Step) -> int:
        statement, parameters = step
        cursor = self.query(statement, parameters)
        if cursor.description and (row := cursor.fetchone()):
            parameters |= {column.name: value for column, value in zip(cursor.description, row, strict=True)}
        return cursor.rowcount

    def _connect(self) -> psycopg.Connection[Any]:
        self._connection = psycopg.connect(
            self._url,
            autocommit=True,
            application_name=f"app {self.version}",
            connect_timeout=5,
            options=_OPTIONS,
        )
        return self._connection
