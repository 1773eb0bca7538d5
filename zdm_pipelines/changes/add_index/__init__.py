"""add_index: an index is built while its table is read and written."""

from zdm_pipelines.changes.add_index.change import AddIndexKind

KIND = AddIndexKind()
