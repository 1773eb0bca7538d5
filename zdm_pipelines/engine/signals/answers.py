"""Answers: the number that a web service's answer gives: text, a field of JSON, or what Prometheus says."""

from __future__ import annotations

import json
import math
from typing import Any

from zdm_pipelines.model.signals import Measured

_SOURCE = 100  # characters of a series' labels


def _finite(value: object) -> float:
    """A number from JSON, or from text.

    Raises:
        ValueError: it is none, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"the answer is {type(value).__name__}, which is no number")
    try:
        number = math.nan if isinstance(value, str) and "_" in value else float(value)
    except (ValueError, OverflowError):
        raise ValueError("the answer is no number") from None
    if not math.isfinite(number):
        raise ValueError("the answer is no finite number")
    return number


def _json(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ValueError("the answer is no JSON") from None


def read_text(body: str) -> Measured:
    """A body that is a number and nothing else.

    Raises:
        ValueError: there is more, or no finite number.
    """
    return Measured(value=_finite(body.strip()))


def read_field(body: str, field: str) -> Measured:
    """The number at a dotted path of a JSON answer; in a list, the path names the position, from 0."""
    found = _json(body)
    for name in field.split("."):
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isascii() and name.isdigit() and int(name) < len(found):
            found = found[int(name)]
        else:
            raise ValueError(f"the answer has no {field}")
    if isinstance(found, str):
        raise ValueError(f"{field} of the answer is text, which is no number")
    return Measured(value=_finite(found), source=field)


def read_prometheus(body: str) -> Measured:
    """The largest sample of an instant query's answer, and the labels of its series."""
    answer = _json(body)
    try:
        if answer["status"] != "success":
            raise ValueError("Prometheus refuses the query")
        kind, result = answer["data"]["resultType"], answer["data"]["result"]
        if kind == "scalar":
            return Measured(value=_finite(result[1]))
        if kind != "vector":
            raise ValueError("the query gives neither a vector nor a scalar")
        samples = [(_finite(series["value"][1]), _labels(series.get("metric", {}))) for series in result]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ValueError("the answer is none of Prometheus") from None
    if not samples:
        raise ValueError("the query has no result")
    value, labels = max(samples)
    return Measured(value=value, source=labels)


def _labels(metric: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in metric.items())[:_SOURCE]
