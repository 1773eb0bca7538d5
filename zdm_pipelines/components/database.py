"""Database: a database that migrations name, as a Dagster resource that knows where its URL is."""

from __future__ import annotations

import dagster as dg
from pydantic import BaseModel, Field

from zdm_pipelines.components import watch
from zdm_pipelines.components.declared import component_of, where
from zdm_pipelines.components.scaffold import DatabaseScaffolder
from zdm_pipelines.model import migration as model
from zdm_pipelines.model.errors import SpecError


def resource_key(name: str) -> str:
    """The key of a declared database among Dagster's resources."""
    return f"database_{name}"


class DatabaseResource(dg.ConfigurableResource[None]):
    """Where a declared database is; its URL is read from the environment when a run needs it."""

    name: str
    url_env: str
    replicas: list[str] = Field(default_factory=list)
    max_parallel: int = 2

    def declared(self) -> model.Database:
        """As it was declared."""
        return model.Database(
            name=self.name, url_env=self.url_env, replicas=tuple(self.replicas), max_parallel=self.max_parallel
        )

    def url(self) -> str:
        """The URL.

        Raises:
            SpecError: the environment variable is not set.
        """
        return self.declared().url()


def of(context: dg.OpExecutionContext | dg.AssetExecutionContext, migration: model.Migration) -> DatabaseResource:
    """The database of a migration, among the resources of a run."""
    found: DatabaseResource = getattr(context.resources, resource_key(migration.database))
    return found


@dg.scaffold_with(DatabaseScaffolder)
class Database(dg.Component):
    """A database that migrations name. Its URL stays in the environment and is read by runs only."""

    def __init__(self, declared: model.Database) -> None:
        self.declared = declared

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The schema of `attributes`."""
        return model.Database

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """What is shown in lists of components."""
        return dg.ComponentTypeSpec(description=cls.__doc__, produces=["resource", "sensor", "schedule"])

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Database:
        """The component of a validated declaration."""
        assert isinstance(attributes, model.Database)  # the schema has required keys
        return cls(attributes)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """One resource, and what keeps watch over the database while its migrations write.

        Raises:
            SpecError: the name is taken.
        """
        if sum(d.declared.name == self.declared.name for d in component_of(context, Database)) > 1:
            raise SpecError(
                where(context, "name"),
                f"database {self.declared.name} is declared more than once",
                "give each a name of its own",
            )
        resource = DatabaseResource(
            name=self.declared.name,
            url_env=self.declared.variable,
            replicas=list(self.declared.replicas),
            max_parallel=self.declared.max_parallel,
        )
        # A migration's component looks for its database, and a database's for its migrations.
        from zdm_pipelines.components.migration import ZeroDowntimeMigration

        mine = [
            m.declared
            for m in component_of(context, ZeroDowntimeMigration)
            if m.declared.database == self.declared.name
        ]
        return dg.Definitions.merge(
            dg.Definitions(resources={resource_key(self.declared.name): resource}),
            watch.of_database(self.declared, mine),
        )
