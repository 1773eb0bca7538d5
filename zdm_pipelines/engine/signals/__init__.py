"""Signals: what is read where a limit is declared: from the server, or from a service of the user's own."""

from __future__ import annotations

from zdm_pipelines.dialects import server_at
from zdm_pipelines.engine.signals.http import Http
from zdm_pipelines.model.signals import DEADLINE, Measured, Signal, Surroundings
from zdm_pipelines.model.throttle import HttpLimit, Limit

__all__ = ["DEADLINE", "Measured", "Signal", "Surroundings", "signal_named"]


def signal_named(name: str, limit: Limit, around: Surroundings) -> Signal:
    """The signal of a declared limit."""
    if isinstance(limit, HttpLimit):
        return Http(limit, clock=around.clock)
    return server_at(around.url).signal(name, limit, around)
