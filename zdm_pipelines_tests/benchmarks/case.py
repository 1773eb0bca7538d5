"""Case: what a benchmark is given, and the figures that it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a figure should be."""

    at_most: float | None = None
    at_least: float | None = None
    of: Literal["median", "worst"] = "median"  # which of the samples is held against it

    def worst(self, samples: Sequence[float]) -> float:
        """The sample furthest from the target."""
        return min(samples) if self.at_least is not None else max(samples)

    def met(self, samples: Sequence[float]) -> bool:
        """Whether the samples are as they should be."""
        value = median(samples) if self.of == "median" else self.worst(samples)
        return (self.at_most is None or value <= self.at_most) and (self.at_least is None or value >= self.at_least)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One thing that was measured, once in each round.

    Figures with a subject make a table: a line for each subject of a group, a column for each name.
    """

    name: str
    samples: Sequence[float]
    show: Callable[[float], str]
    target: Target | None = None
    group: str = ""  # under what circumstances, as "uuid, 2 indexes"
    subject: str = ""  # whose it is, of those that are compared

    @property
    def label(self) -> str:
        """All that it is of."""
        return ": ".join(filter(None, (self.group, self.subject, self.name)))

    @property
    def median(self) -> float:
        """The middle sample."""
        return median(self.samples)

    @property
    def worst(self) -> float:
        """The sample furthest from the target; without a target the largest."""
        return (self.target or Target()).worst(self.samples)

    @property
    def met(self) -> bool | None:
        """Whether it is as it should be; None without a target."""
        return None if self.target is None else self.target.met(self.samples)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a case works, and how long."""

    folder: Path  # its own, empty
    rounds: int | None  # None: as many as the case thinks right
    tell: Callable[[str], None]  # what it is at
    sizes: Sequence[int] = ()  # rows of its tables, one measurement each; none: as many as the case thinks right
    indexes: Sequence[int] = ()  # secondary indexes of its tables; none: as the case thinks right
    keys: Sequence[str] = ()  # types of its tables' keys; none: as the case thinks right
    contenders: Sequence[str] = ()  # beside the yardstick; none: all
    quiet: bool = False  # neither autovacuum nor a checkpoint comes in the middle

    @property
    def rows(self) -> int | None:
        """Rows of its table, for a case that measures one size."""
        return self.sizes[0] if self.sizes else None


Case = Callable[[Setting], Sequence[Figure]]


def seconds(value: float) -> str:
    """1.23 s."""
    return f"{value:.2f} s"


def milliseconds(value: float) -> str:
    """Seconds as 1.2 ms."""
    return f"{value * 1000:.1f} ms"


def times(value: float) -> str:
    """1.23 x."""
    return f"{value:.2f} x"


def megabytes(value: float) -> str:
    """Bytes as 12.3 MB."""
    return f"{value / 1e6:,.1f} MB" if value < 1e8 else f"{value / 1e6:,.0f} MB"


def percent(value: float) -> str:
    """0.5 as 50 %."""
    return f"{value:.0%}".replace("%", " %")


def per_second(value: float) -> str:
    """12,345 /s."""
    return f"{value:,.0f} /s"


def number(value: float) -> str:
    """2."""
    return f"{value:,.0f}"


# What a sample is in, as it is stored: how it is shown is another matter.
UNITS: Mapping[Callable[[float], str], str] = {
    seconds: "s",
    milliseconds: "s",
    times: "ratio",
    percent: "ratio",
    per_second: "1/s",
    megabytes: "bytes",
    number: "",
}
