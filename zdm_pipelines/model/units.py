"""Units: durations and sizes as people write them, read as seconds and bytes, and shown again."""

from __future__ import annotations

import re
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$"
_BYTES = {"B": 1.0, "kB": 1024.0, "MB": 1024.0**2, "GB": 1024.0**3, "TB": 1024.0**4}
_SIZE = r"^\s*(\d+(?:\.\d+)?)\s*(B|kB|MB|GB|TB)\s*$"


def seconds(value: object) -> float:
    """Read a duration such as `250ms`, `5s`, `10m`, `25h` or `7d` as seconds.

    Raises:
        ValueError: the value has no unit that is known.
    """
    match = re.match(_DURATION, value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration: write a number and ms, s, m, h or d, as 250ms or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def size(value: object) -> float:
    """Read a size such as `64MB` as bytes; units are those of Postgres, 1024 apart.

    Raises:
        ValueError: the value has no unit that is known.
    """
    match = re.match(_SIZE, value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a size: write a number and B, kB, MB, GB or TB, as 64MB")
    return float(match[1]) * _BYTES[match[2]]


def written(default: str) -> Any:
    """A default as a user would write it; it is read like any other value."""
    return default


class Unit(StrEnum):
    """What a number counts."""

    SECONDS = "s"
    BYTES = "B"
    BYTES_PER_SECOND = "B/s"
    COUNT = ""


def for_people(value: float, unit: Unit) -> str:
    """A value as people like to read it: 0.250 s, 12 min, 25 h, 64.0 MB, 12."""
    if unit is Unit.SECONDS:
        for name, worth in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
            if value >= 2 * worth:  # 25 h says more than 1 d
                return f"{value / worth:,.1f}".removesuffix(".0") + f" {name}"
        return f"{value:.3f} s" if value < 10 else f"{value:.0f} s"
    if unit is Unit.COUNT:
        return f"{value:,.6g}"
    per = "/s" if unit is Unit.BYTES_PER_SECOND else ""
    for name in ("B", "kB", "MB", "GB"):
        if abs(value) < 1024:
            return f"{value:.0f} {name}{per}" if name == "B" else f"{value:.1f} {name}{per}"
        value /= 1024
    return f"{value:,.1f} TB{per}"


def as_declared(value: float, unit: Unit) -> str:
    """A duration or size as one would declare it: in the largest unit that gives a whole number and is read again as
    the same value.
    """
    units, smallest = (_SECONDS, "s") if unit is Unit.SECONDS else (_BYTES, "B")
    for name, worth in reversed(units.items()):
        count = round(value / worth)
        if count and count * worth == value:
            return f"{count}{name}"
    return f"{Decimal(repr(value)):f}".removesuffix(".0") + smallest


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    PlainSerializer(lambda value: as_declared(value, Unit.SECONDS), when_used="json"),  # so that it can be read again
    WithJsonSchema({"type": "string", "pattern": _DURATION, "examples": ["250ms", "5s", "7d"]}),
]
Size = Annotated[
    float,
    BeforeValidator(size),
    PlainSerializer(lambda value: as_declared(value, Unit.BYTES), when_used="json"),
    WithJsonSchema({"type": "string", "pattern": _SIZE, "examples": ["64MB", "2GB"]}),
]


class Declared(BaseModel):
    """A part of a declaration: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
