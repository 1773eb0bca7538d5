"""Traffic report: what the clients saw, counted by section and by version of their code."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

SLOW = 1.0  # seconds from which a query counts as slow

_SAMPLES = 20  # texts kept of errors and of wrong answers

# Latencies are counted in classes that grow by 2 %: hours of traffic fit, and a percentile is at most 2 %
# off.
_STEP = math.log(1.02)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Counts and latencies (milliseconds) of some part of the traffic."""

    label: str
    queries: int
    failed_queries: int
    wrong_answers: int
    slow_queries: int  # longer than SLOW
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_latency_ms: float
    slowest: str  # the statement that took longest


@dataclass(frozen=True, kw_only=True)
class TrafficReport(Figures):
    """The whole traffic, and its parts."""

    sections: tuple[Figures, ...]  # one for each label of `Traffic.mark`, in order
    versions: tuple[Figures, ...]  # one for each version of the code, `old` and `new`
    errors: tuple[str, ...]  # the first failed queries
    wrong: tuple[str, ...]  # the first wrong answers

    @staticmethod
    def of(values: Mapping[str, Any]) -> TrafficReport:
        """The report that `dataclasses.asdict` made these values of."""
        parts = {
            "sections": tuple(Figures(**figures) for figures in values["sections"]),
            "versions": tuple(Figures(**figures) for figures in values["versions"]),
            "errors": tuple(values["errors"]),
            "wrong": tuple(values["wrong"]),
        }
        return TrafficReport(**{**values, **parts})


@dataclass
class _Tally:
    """Running counts of one version's queries in one section."""

    failed: int = 0
    wrong: int = 0
    slow: int = 0
    longest: float = 0.0
    slowest: str = ""
    classes: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: float, statement: str) -> None:
        self.classes[round(math.log(max(seconds, 1e-6)) / _STEP)] += 1
        self.slow += seconds > SLOW
        if seconds > self.longest:
            self.longest, self.slowest = seconds, statement


class Recorder:
    """Collects what the clients see; safe to share between threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sections = ["start"]
        self._tallies: dict[tuple[int, str], _Tally] = {}
        self._errors: list[str] = []
        self._wrong: list[str] = []

    @property
    def section(self) -> int:
        """The number of the present section."""
        return len(self._sections) - 1

    def mark(self, label: str) -> None:
        """Begin a new section."""
        with self._lock:
            self._sections.append(label)

    def query(self, section: int, version: str, seconds: float, statement: str) -> None:
        """Record a query, failed ones too, in the section in which it was sent."""
        with self._lock:
            self._tally(section, version).add(seconds, statement)

    def failed(self, section: int, version: str, error: str) -> None:
        """Record that a query failed."""
        with self._lock:
            self._tally(section, version).failed += 1
            if len(self._errors) < _SAMPLES:
                self._errors.append(f"{self._sections[section]}, {version} code: {error}")

    def wrong(self, version: str, what: str) -> None:
        """Record a wrong answer."""
        with self._lock:
            self._tally(self.section, version).wrong += 1
            if len(self._wrong) < _SAMPLES:
                self._wrong.append(f"{self._sections[-1]}, {version} code: {what}")

    def report(self) -> TrafficReport:
        """All figures up to now."""
        with self._lock:
            tallies = self._tallies
            sections = [
                _figures(label, (tally for key, tally in tallies.items() if key[0] == number))
                for number, label in enumerate(self._sections)
            ]
            versions = [
                _figures(version, (tally for key, tally in tallies.items() if key[1] == version))
                for version in sorted({key[1] for key in tallies})
            ]
            return TrafficReport(
                **vars(_figures("all", tallies.values())),
                sections=tuple(sections),
                versions=tuple(versions),
                errors=tuple(self._errors),
                wrong=tuple(self._wrong),
            )

    def _tally(self, section: int, version: str) -> _Tally:
        return self._tallies.setdefault((section, version), _Tally())


def _figures(label: str, tallies: Iterable[_Tally]) -> Figures:
    parts = list(tallies)
    classes = sum((tally.classes for tally in parts), Counter[int]())
    worst = max(parts, key=lambda tally: tally.longest, default=_Tally())
    return Figures(
        label=label,
        queries=classes.total(),
        failed_queries=sum(tally.failed for tally in parts),
        wrong_answers=sum(tally.wrong for tally in parts),
        slow_queries=sum(tally.slow for tally in parts),
        p50_ms=_percentile(classes, 0.50),
        p95_ms=_percentile(classes, 0.95),
        p99_ms=_percentile(classes, 0.99),
        max_latency_ms=round(worst.longest * 1000, 2),
        slowest=worst.slowest,
    )


def _percentile(classes: Counter[int], share: float) -> float:
    """The latency in milliseconds below which this share of the queries lies."""
    wanted, seen = share * classes.total(), 0
    for number in sorted(classes):
        seen += classes[number]
        if seen >= wanted:
            return round(math.exp(number * _STEP) * 1000, 2)
    return 0.0
