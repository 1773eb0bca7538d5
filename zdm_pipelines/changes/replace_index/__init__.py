"""replace_index: an index takes over from another one on the same table."""

from zdm_pipelines.changes.replace_index.change import ReplaceIndexKind

KIND = ReplaceIndexKind()
