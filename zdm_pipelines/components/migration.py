"""ZeroDowntimeMigration: one declared migration becomes a chain of assets and a rollback job."""

from __future__ import annotations

import dagster as dg
from pydantic import BaseModel

from zdm_pipelines.components import assets, operate, rollback
from zdm_pipelines.components.database import Database
from zdm_pipelines.components.declared import component_of, where
from zdm_pipelines.components.scaffold import MigrationScaffolder
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.migration import Migration


@dg.scaffold_with(MigrationScaffolder)
class ZeroDowntimeMigration(dg.Component):
    """One change to one table, made while the application reads and writes it.

    It becomes the assets plan, expand, backfill, validate, switch_reads and contract, and the jobs
    pause_<name>, resume_<name>, tune_<name> and rollback_<name>.
    """

    def __init__(self, declared: Migration) -> None:
        self.declared = declared

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The schema of `attributes`: the same that the command line reads."""
        return Migration

    @classmethod
    def get_spec(cls) -> dg.ComponentTypeSpec:
        """What is shown in lists of components."""
        return dg.ComponentTypeSpec(description=cls.__doc__, produces=["asset", "asset_check", "job"])

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> ZeroDowntimeMigration:
        """The component of a validated declaration."""
        assert isinstance(attributes, Migration)  # the schema has required keys
        return cls(attributes)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets and the job; asks no database.

        Raises:
            SpecError: the database is not declared, or the name is taken.
        """
        if sum(m.declared.name == self.declared.name for m in component_of(context, ZeroDowntimeMigration)) > 1:
            raise SpecError(
                where(context, "name"),
                f"migration {self.declared.name} is declared more than once",
                "give each a name of its own",
            )
        databases = sorted(d.declared.name for d in component_of(context, Database))
        if self.declared.database not in databases:
            raise SpecError(
                where(context, "database"),
                f"database {self.declared.database} is not declared (declared: {', '.join(databases) or 'none'})",
                f"correct the name, or declare it: dg scaffold defs zdm_pipelines.Database {self.declared.database}",
            )
        return dg.Definitions(
            assets=assets.of_migration(self.declared),
            jobs=[rollback.of_migration(self.declared), *operate.of_migration(self.declared)],
        )
