"""Postgres behind the protocol `Server`: a connection that runs named statements, and the groups that make others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from zdm_pipelines.dialects.postgres import upgrade as upgrades
from zdm_pipelines.dialects.postgres.builds import HARMLESS
from zdm_pipelines.dialects.postgres.connection import Connection, connect, connected, set_deadline
from zdm_pipelines.dialects.postgres.signals import signal_named
from zdm_pipelines.dialects.postgres.statements import named_statements
from zdm_pipelines.dialects.postgres.urls import where
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.signals import Signal, Surroundings
from zdm_pipelines.model.throttle import Limit
from zdm_pipelines.model.values import Step

_KINDS = "zdm_pipelines.dialects.postgres.kinds"


class PostgresServer:
    """See `Server` for what each member is."""

    def __init__(self, url: str) -> None:
        self.url = url

    @contextmanager
    def connect(self, *, purpose: str, deadline: float | None = None) -> Iterator[Connection]:
        """A connection for one block, always closed."""
        with connected(self.url, purpose=purpose, deadline=deadline) as conn:
            yield conn

    def open(self, *, purpose: str, deadline: float | None = None) -> Connection:
        """A connection that the caller closes."""
        conn = connect(self.url, purpose=purpose)
        if deadline is not None:
            try:
                set_deadline(conn, deadline)
            except BaseException:
                conn.close()
                raise
        return conn

    def signal(self, name: str, limit: Limit, around: Surroundings) -> Signal:
        """A signal that Postgres gives."""
        return signal_named(name, limit, around)

    @property
    def where(self) -> str:
        """host:port/database, for messages; never user or password."""
        return where(self.url)

    def text(self, name: str) -> str:
        """The text of a named block, to be printed."""
        return named_statements()[name]

    def gather_statistics(self, table: TableName) -> Step:
        """The step after which queries on what is new are planned as well as others."""
        return Step(
            name="gather statistics",
            sql=f"ANALYZE {table.sql}",
            reason="so that the first query on the new shape is planned as well as those on the old",
            lock=HARMLESS,
            in_transaction=False,
        )

    def kind(self, name: str) -> Any:
        """The part of a kind of change that Postgres has."""
        try:
            return importlib.import_module(f"{_KINDS}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{_KINDS}.{name}":
                raise
            raise SpecError(f"kind {name}", "cannot be done on Postgres", "see docs/configuration.md") from None

    def upgrade_ledger(self, upgrade: Callable[[Any], None], *, head: str) -> None:
        """Bring the ledger's tables to a version, in one transaction."""
        upgrades.upgrade_ledger(self.url, upgrade, head=head)
