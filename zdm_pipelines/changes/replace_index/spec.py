"""Spec: what `change:` says when an index is replaced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from zdm_pipelines.changes.add_index.spec import IndexSpec
from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.lifecycle import Need


class ReplaceIndex(ChangeSpec):
    """Build an index, then drop the one that it replaces."""

    kind: Literal["replace_index"]
    old: str = Field(min_length=1, description="Exact name of the index to be replaced.")
    new: IndexSpec

    @model_validator(mode="after")
    def _two_indexes(self) -> ReplaceIndex:
        if self.old == self.new.name:
            raise ValueError(f"old and new are both {self.old!r}: give the new index a name of its own")
        return self

    @property
    def needs(self) -> frozenset[Need]:
        """The new index must stand before the old one goes."""
        return frozenset({Need.ENFORCE, Need.RETIRE})

    def names(self) -> Mapping[str, str]:
        """The names of both indexes."""
        return {"old index": self.old, "new index": self.new.name}
