"""drop_index: an index that nobody uses is dropped while its table is read and written."""

from zdm_pipelines.changes.drop_index.change import DropIndexKind

KIND = DropIndexKind()
