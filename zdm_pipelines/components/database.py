"""Database: a database that migrations name, as a Dagster resource that knows where its URL is."""

from __future__ import annotations

import dagster as dg

from zdm_pipelines.components import watch
from zdm_pipelines.components.dagster_internals import place_of
from zdm_pipelines.components.declared import DeclaredComponent, declarations
from zdm_pipelines.components.resources import DatabaseResource, resource_key
from zdm_pipelines.components.scaffold import DatabaseScaffolder
from zdm_pipelines.model import migration as model
from zdm_pipelines.model.errors import SpecError


@dg.scaffold_with(DatabaseScaffolder)
class Database(DeclaredComponent[model.Database]):
    """A database that migrations name. Its URL stays in the environment and is read by runs only."""

    produces = ["resource", "sensor", "schedule"]  # noqa: RUF012 - declared as a class variable in the base

    @classmethod
    def get_model_cls(cls) -> type[model.Database]:
        """The schema of `attributes`."""
        return model.Database

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """One resource, and what keeps watch over the database while its migrations write.

        Raises:
            SpecError: the name is taken.
        """
        name = self.declared.name
        if sum(database.name == name for database in declarations(context, model.Database)) > 1:
            raise SpecError(
                place_of(context, "name"),
                f"database {name} is declared more than once",
                "give each a name of its own",
            )
        migrations = [m for m in declarations(context, model.Migration) if m.database == name]
        return dg.Definitions.merge(
            dg.Definitions(resources={resource_key(name): DatabaseResource.of_declared(self.declared)}),
            watch.of_database(self.declared, migrations),
        )
