"""replace_column: a new column takes over from an old one in the same table."""

from zdm_pipelines.changes.replace_column.change import ReplaceColumnKind

KIND = ReplaceColumnKind()
