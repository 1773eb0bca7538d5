"""Run benchmarks and show their figures: `python -m zdm_pipelines_tests.benchmarks [NAME ...]`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from zdm_pipelines_tests.benchmarks import (
    backfill,
    latency,
    options,
    overhead,
    reaction,
    report,
    sharing,
    storm,
)
from zdm_pipelines_tests.benchmarks.case import Case, Figure, Setting
from zdm_pipelines_tests.benchmarks.options import Options
from zdm_pipelines_tests.benchmarks.record import Record

CASES: Mapping[str, Case] = {
    "reaction": reaction.run,
    "storm": storm.run,
    "sharing": sharing.run,
    "backfill": backfill.run,
    "foreground": latency.run,
    "dagster": overhead.run,
}

console = Console()


def main() -> None:
    """Run the cases that are named, else all."""
    asked = options.read(None, cases=tuple(CASES), about=__doc__ or "")
    record = Record(asked.out)
    for name in asked.cases:
        begun = time.monotonic()
        figures = _run(name, asked)
        took = time.monotonic() - begun
        for grid in report.grids(name, figures):
            console.print(report.rendered(grid, took=took))
        record.add(name, figures, took)
    if asked.markdown:
        print(record.markdown())
    console.print(f"Written to {record.folder}")


def _run(name: str, asked: Options) -> Sequence[Figure]:
    with tempfile.TemporaryDirectory(prefix="zdm-bench-") as folder, console.status(name) as status:
        Path(folder).chmod(0o755)  # as root the servers run as another user; what they cannot enter they would not use
        setting = Setting(
            folder=Path(folder), rounds=asked.rounds, tell=status.update,
            sizes=asked.sizes, indexes=asked.indexes, keys=asked.keys, quiet=asked.quiet,
            contenders=asked.contenders,
        )  # fmt: skip
        return CASES[name](setting)


if __name__ == "__main__":
    main()
