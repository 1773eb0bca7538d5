"""ZeroDowntimeMigration: one declared migration becomes a chain of assets and the jobs that steer it."""

from __future__ import annotations

import dagster as dg

from zdm_pipelines.components import assets, operate, rollback
from zdm_pipelines.components.dagster_internals import place_of
from zdm_pipelines.components.declared import DeclaredComponent, declarations
from zdm_pipelines.components.scaffold import MigrationScaffolder
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.migration import Database, Migration


@dg.scaffold_with(MigrationScaffolder)
class ZeroDowntimeMigration(DeclaredComponent[Migration]):
    """One change to one table, made while the application reads and writes it.

    The declaration becomes the asset plan, one asset for each phase that its kind of change has, and the jobs
    pause_<name>, resume_<name>, tune_<name> and rollback_<name>.
    """

    produces = ["asset", "asset_check", "job"]  # noqa: RUF012 - declared as a class variable in the base

    @classmethod
    def get_model_cls(cls) -> type[Migration]:
        """The schema of `attributes`."""
        return Migration

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets and the job; asks no database.

        Raises:
            SpecError: the database is not declared, or the name is taken.
        """
        if sum(migration.name == self.declared.name for migration in declarations(context, Migration)) > 1:
            raise SpecError(
                place_of(context, "name"),
                f"migration {self.declared.name} is declared more than once",
                "give each a name of its own",
            )
        databases = sorted(database.name for database in declarations(context, Database))
        if self.declared.database not in databases:
            raise SpecError(
                place_of(context, "database"),
                f"database {self.declared.database} is not declared (declared: {', '.join(databases) or 'none'})",
                f"correct the name, or declare it: dg scaffold defs zdm_pipelines.Database {self.declared.database}",
            )
        return dg.Definitions(
            assets=assets.of_migration(self.declared),
            jobs=[rollback.of_migration(self.declared), *operate.of_migration(self.declared)],
        )
