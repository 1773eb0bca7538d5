"""Tuning: the part of a declaration that may change while its backfill runs."""

from __future__ import annotations

from zdm_pipelines.model.migration import Backfill, Migration
from zdm_pipelines.model.throttle import Throttle
from zdm_pipelines.model.units import Declared
from zdm_pipelines.model.windows import Windows


class Settings(Declared):
    """What holds for a backfill that runs."""

    backfill: Backfill
    throttle: Throttle
    allowed: Windows


def declared_settings(migration: Migration) -> Settings:
    """The settings as the code has them."""
    return Settings(backfill=migration.backfill, throttle=migration.throttle, allowed=migration.allowed)
