"""Context: one piece of work on a migration: which one, on which server, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import update_wrapper
from typing import Concatenate, ParamSpec, TypeVar

from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.engine import sessions
from zdm_pipelines.model.lifecycle import Lifecycle
from zdm_pipelines.model.migration import Database, Migration

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every phase and verb is handed, made once by whoever calls."""

    migration: Migration
    server: Server
    database: Database  # as it is declared: its replicas, and the budget that its migrations share
    tell: sessions.Tell = sessions.silent  # takes a line for people

    @classmethod
    def of(
        cls, migration: Migration, url: str, *, database: Database | None = None, tell: sessions.Tell = sessions.silent
    ) -> Context:
        """The context of a migration in the database behind a URL; connects to nothing.

        Args:
            database: as it is declared; default: one without replicas.
        """
        declared = database or Database(name=migration.database)
        return cls(migration=migration, server=server_at(url), database=declared, tell=tell)

    @property
    def name(self) -> str:
        """The name of the migration."""
        return self.migration.name

    @property
    def lifecycle(self) -> Lifecycle:
        """The phases and states of the migration."""
        return self.migration.lifecycle

    def telling(self, tell: sessions.Tell) -> Context:
        """The same work, told to somebody else."""
        return replace(self, tell=tell)

    @contextmanager
    def session(self, purpose: str, *, shared: bool = False, brake: bool = False) -> Iterator[Session]:
        """A connection that holds the migration's lock: phases exclusively, range workers shared.

        Args:
            brake: end whoever holds the lock, instead of waiting for what they do.

        Raises:
            MigrationBusy: another process holds the lock.
        """
        tell = self.tell if brake else None
        with sessions.session(self.server, self.migration, purpose=purpose, shared=shared, tell=tell) as session:
            yield session

    @contextmanager
    def looking(self, purpose: str, *, deadline: float | None = None) -> Iterator[Session]:
        """A connection without the migration's lock.

        Args:
            deadline: seconds after which the server ends a statement; default: never.
        """
        with self.server.connect(purpose=f"{self.name} {purpose}", deadline=deadline) as session:
            yield session

    def outlast(self, work: Callable[[], T], *, reached: bool = False) -> T:
        """Do work that is safe to do again, again when the database was lost under it; see `sessions.resilient`."""
        return sessions.resilient(work, thing=self.name, tell=self.tell, reached=reached)


def outlasting(work: Callable[Concatenate[Context, P], T]) -> Callable[Concatenate[Context, P], T]:
    """A phase that is finished by running it again outlasts a database that restarts or fails over."""

    def outlast(context: Context, /, *args: P.args, **options: P.kwargs) -> T:
        return context.outlast(lambda: work(context, *args, **options))

    return update_wrapper(outlast, work)
