"""All Dagster code: a declared migration becomes assets, checks and a rollback job."""

from zdm_pipelines.components.database import Database
from zdm_pipelines.components.migration import ZeroDowntimeMigration

__all__ = ["Database", "ZeroDowntimeMigration"]
