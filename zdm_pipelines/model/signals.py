"""Signals: one measured number each, whoever measures it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from zdm_pipelines.model.clock import SYSTEM, Clock
from zdm_pipelines.model.values import Catalog

DEADLINE = 2.0  # seconds; a signal that takes longer is bad news already


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a signal says."""

    value: Any  # a number; anything else counts as unreadable
    source: str = ""  # what it is of, where that is not plain: the slowest replica's name, say


class Signal(Protocol):
    """One number of the database, read again and again by one thread.

    `read` may raise a driver's error, ZdmError, OSError or ValueError: a signal that cannot be read is bad.
    """

    every: float  # seconds between two readings inside a run
    samples: int  # readings that make a value, for those who look only now and then

    def read(self) -> Measured:
        """Measure the signal now."""
        ...

    def close(self) -> None:
        """Close what it opened."""
        ...


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Where signals are read."""

    url: str
    catalog: Catalog  # the table that is backfilled
    replicas: Mapping[str, str] = field(default_factory=dict)  # URLs by what the user calls them
    clock: Clock = SYSTEM  # the clock of those who watch, too
