"""Database: a database that migrations name, as a Dagster resource that knows where its URL is."""

from __future__ import annotations

import dagster as dg
from pydantic import BaseModel

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

    def url(self) -> str:
        """The URL.

        Raises:
            SpecError: the environment variable is not set.
        """
        return model.Database(name=self.name, url_env=self.url_env).url()


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
        return dg.ComponentTypeSpec(description=cls.__doc__, produces=["resource"])

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> Database:
        """The component of a validated declaration."""
        assert isinstance(attributes, model.Database)  # the schema has required keys
        return cls(attributes)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """One resource.

        Raises:
            SpecError: the name is taken.
        """
        if sum(d.declared.name == self.declared.name for d in component_of(context, Database)) > 1:
            raise SpecError(
                where(context, "name"),
                f"database {self.declared.name} is declared more than once",
                "give each a name of its own",
            )
        resource = DatabaseResource(name=self.declared.name, url_env=self.declared.variable)
        return dg.Definitions(resources={resource_key(self.declared.name): resource})
