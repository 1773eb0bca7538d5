"""extract_table: columns of a table move into a table of their own."""

from zdm_pipelines.changes.extract_table.change import ExtractTableKind

KIND = ExtractTableKind()
