"""Resources: a declared database among Dagster's resources, and how a run finds the database of its migration."""

from __future__ import annotations

import dagster as dg
from pydantic import Field

from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.verbs import Context


def resource_key(name: str) -> str:
    """The key of a declared database among Dagster's resources."""
    return f"database_{name}"


class DatabaseResource(dg.ConfigurableResource[None]):
    """Where a declared database is; its URL is read from the environment when a run needs it."""

    name: str
    url_env: str
    replicas: list[str] = Field(default_factory=list)
    max_parallel: int = 2

    @classmethod
    def of_declared(cls, database: Database) -> DatabaseResource:
        """The resource of a declaration."""
        return cls(
            name=database.name,
            url_env=database.variable,
            replicas=list(database.replicas),
            max_parallel=database.max_parallel,
        )

    def declared(self) -> Database:
        """The declaration that the resource was made of."""
        return Database(
            name=self.name, url_env=self.url_env, replicas=tuple(self.replicas), max_parallel=self.max_parallel
        )

    def url(self) -> str:
        """The URL, read from the environment now.

        Raises:
            SpecError: the environment variable is not set.
        """
        return self.declared().url()


def context_of(context: dg.OpExecutionContext | dg.AssetExecutionContext, migration: Migration) -> Context:
    """A migration in its database, which is among the resources of a run; told to the run's log."""
    found: DatabaseResource = getattr(context.resources, resource_key(migration.database))
    return Context.of(migration, found.url(), database=found.declared(), tell=context.log.info)
