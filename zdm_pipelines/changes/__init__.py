"""What can change: one package per kind, each behind the protocol `Kind`."""

from zdm_pipelines.changes.binding import bind
from zdm_pipelines.changes.protocol import Bound, Change, Kind, Retirement, Survey, Words
from zdm_pipelines.changes.registry import KINDS, kind_of, register
from zdm_pipelines.model.values import Relation

__all__ = [
    "KINDS", "Bound", "Change", "Kind", "Relation", "Retirement", "Survey", "Words", "bind", "kind_of", "register",
]  # fmt: skip
