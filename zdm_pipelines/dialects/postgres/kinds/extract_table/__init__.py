"""Postgres's part of extract_table: survey, statements and steps."""

from zdm_pipelines.dialects.postgres.kinds.extract_table.declared import Facts
from zdm_pipelines.dialects.postgres.kinds.extract_table.sql import ExtractSql
from zdm_pipelines.dialects.postgres.kinds.extract_table.steps import ExtractSteps
from zdm_pipelines.dialects.postgres.kinds.extract_table.survey import survey
from zdm_pipelines.dialects.postgres.users import Users

__all__ = ["ExtractSql", "ExtractSteps", "Facts", "Users", "survey"]
