"""Postgres's part of replace_column: survey, statements and steps."""

from zdm_pipelines.dialects.postgres.kinds.replace_column.declared import Facts
from zdm_pipelines.dialects.postgres.kinds.replace_column.sql import ReplaceColumnSql
from zdm_pipelines.dialects.postgres.kinds.replace_column.steps import ReplaceColumnSteps
from zdm_pipelines.dialects.postgres.kinds.replace_column.survey import survey
from zdm_pipelines.dialects.postgres.users import Users

__all__ = ["Facts", "ReplaceColumnSql", "ReplaceColumnSteps", "Users", "survey"]
