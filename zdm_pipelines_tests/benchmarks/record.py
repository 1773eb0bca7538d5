"""Record: a run's figures in a folder of their own, written anew after each case: JSON, CSV, Markdown, plots."""

from __future__ import annotations

import csv
import json
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zdm_pipelines_tests.benchmarks import plot, report
from zdm_pipelines_tests.benchmarks.case import UNITS, Figure

COLUMNS = ("case", "group", "subject", "figure", "unit", "round", "value")  # one line for each sample


class Record:
    """What was measured so far.

    Args:
        out: the folder in which this run gets one named by the time.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out / time.strftime("%Y-%m-%dT%H%M%S")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._machine = machine()
        self._cases: dict[str, tuple[float, Sequence[Figure]]] = {}

    def add(self, case: str, figures: Sequence[Figure], took: float) -> None:
        """Keep the figures of a case, which took so many seconds."""
        self._cases[case] = (took, figures)
        (self.folder / "figures.json").write_text(json.dumps(self._as_json(), indent=2) + "\n", encoding="utf-8")
        with (self.folder / "figures.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for name, (_, found) in self._cases.items():
                writer.writerows(lines(name, found))
        (self.folder / "tables.md").write_text(self.markdown(), encoding="utf-8")
        plot.draw(self.folder, case, figures)

    def markdown(self) -> str:
        """Every table, for the documentation."""
        grids = [grid for case, (_, figures) in self._cases.items() for grid in report.grids(case, figures)]
        return "\n".join(report.markdown(grid) for grid in grids)

    def _as_json(self) -> dict[str, Any]:
        cases = {
            name: {"seconds": round(took, 1), "figures": [_figure(figure) for figure in figures]}
            for name, (took, figures) in self._cases.items()
        }
        return {"machine": self._machine, "cases": cases}


def lines(case: str, figures: Sequence[Figure]) -> list[tuple[str | int | float, ...]]:
    """A line of the CSV for each sample."""
    return [
        (case, figure.group, figure.subject, figure.name, UNITS.get(figure.show, ""), number, value)
        for figure in figures
        for number, value in enumerate(figure.samples, 1)
    ]


def machine() -> dict[str, Any]:
    """Where it was measured."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],  # of others, before anything ran
        "python": platform.python_version(),
        "postgres": 18,
    }


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "group": figure.group,
        "subject": figure.subject,
        "name": figure.name,
        "unit": UNITS.get(figure.show, ""),
        "samples": list(figure.samples),
        "median": figure.median,
        "worst": figure.worst,
        "target": report.target(figure) or None,
        "met": figure.met,
    }
