"""Spec: what `change:` says when an index is dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.units import Duration, written


class DropIndex(ChangeSpec):
    """Drop an index that nobody uses."""

    kind: Literal["drop_index"]
    name: str = Field(min_length=1, description="Exact name of the index; it stands in the schema of its table.")
    unused_for: Duration | None = Field(
        default=written("7d"),
        description="So long nobody must have scanned the index; null: drop it though it is used.",
    )

    @property
    def needs(self) -> frozenset[Need]:
        """Something goes, and nothing else happens."""
        return frozenset({Need.RETIRE})

    def names(self) -> Mapping[str, str]:
        """The name of the index that goes."""
        return {"index": self.name}
