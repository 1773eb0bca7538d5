"""Run benchmarks and show their figures: `python -m zdm_pipelines_tests.benchmarks [NAME ...]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from zdm_pipelines_tests.benchmarks import reaction, sharing, storm
from zdm_pipelines_tests.benchmarks.case import Case, Figure, Setting

CASES: Mapping[str, Case] = {"reaction": reaction.run, "storm": storm.run, "sharing": sharing.run}

console = Console()


def main() -> None:
    """Run the cases that are named, else all."""
    parser = argparse.ArgumentParser(prog="python -m zdm_pipelines_tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which cases, of {', '.join(CASES)}; default: all")
    parser.add_argument(
        "--rounds", type=_positive, metavar="N", help="rounds of each case; default: as the case has it"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in CASES]:
        parser.error(f"no case {unknown[0]}; there are {', '.join(CASES)}")
    measured: dict[str, Any] = {"machine": _machine(), "cases": {}}
    for name in given.names or CASES:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="zdm-bench-") as folder, console.status(name) as status:
            setting = Setting(folder=Path(folder), rounds=given.rounds, tell=status.update)
            figures = CASES[name](setting)
        took = time.monotonic() - begun
        console.print(_table(name, figures, took))
        measured["cases"][name] = {"seconds": round(took, 1), "figures": [_as_json(figure) for figure in figures]}
    if given.json is not None:
        given.json.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],  # of others, before anything ran
        "python": platform.python_version(),
        "postgres": 18,
    }


def _table(name: str, figures: Sequence[Figure], took: float) -> Table:
    table = Table(title=f"{name}, {took:.0f} s", title_justify="left", title_style="bold")
    table.add_column("figure")
    table.add_column("rounds", justify="right")
    table.add_column("median", justify="right")
    table.add_column("worst", justify="right")
    table.add_column("target")
    table.add_column("met")
    for figure in figures:
        met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[figure.met]
        worst = figure.show(figure.worst) if len(figure.samples) > 1 else ""
        table.add_row(figure.name, str(len(figure.samples)), figure.show(figure.median), worst, _target(figure), met)
    return table


def _target(figure: Figure) -> str:
    target = figure.target
    if target is None:
        return ""
    if target.at_most is not None:
        return f"{target.of} at most {figure.show(target.at_most)}"
    return f"{target.of} at least {figure.show(target.at_least or 0.0)}"


def _as_json(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "samples": list(figure.samples),
        "median": figure.median,
        "worst": figure.worst,
        "target": _target(figure) or None,
        "met": figure.met,
    }


if __name__ == "__main__":
    main()
