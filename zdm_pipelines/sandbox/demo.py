"""Demo: a whole migration through Dagster, under live traffic, on an embedded Postgres with a replica."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from zdm_pipelines.model.errors import ZdmError
from zdm_pipelines.sandbox import application, demo_project
from zdm_pipelines.sandbox.dagster_client import DagsterClient
from zdm_pipelines.sandbox.dagster_services import DagsterServices
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.processes import SandboxError
from zdm_pipelines.sandbox.traffic import Traffic, TrafficReport

NAME = demo_project.NAME
_LOOK_AROUND = 1.5  # seconds of traffic between two stages, so that each is seen working
_GATE_PATIENCE = 120.0  # seconds that contract may go on refusing; its windows are some seconds

console = Console()


@dataclass
class Outcome:
    """What the demo measured."""

    rows: int
    seconds: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    traffic: TrafficReport | None = None
    parity: dict[str, Any] = field(default_factory=dict)
    state: str = "planned"
    moved: int = 0

    @property
    def right(self) -> bool:
        """Whether everything went as it must."""
        seen = self.traffic
        quiet = seen is not None and seen.failed_queries == 0 and seen.wrong_answers == 0
        return quiet and not self.problems and self.state == "contracted" and bool(self.parity.get("agrees"))

    def as_json(self) -> dict[str, Any]:
        """The figures for scripts."""
        seen = self.traffic
        return {
            "rows": self.rows,
            "rows_moved": self.moved,
            "seconds": {phase: round(value, 3) for phase, value in self.seconds.items()},
            "failed_queries": seen.failed_queries if seen else None,
            "wrong_answers": seen.wrong_answers if seen else None,
            "queries": seen.queries if seen else None,
            "p95_ms": seen.p95_ms if seen else None,
            "p99_ms": seen.p99_ms if seen else None,
            "max_latency_ms": seen.max_latency_ms if seen else None,
            "worst_by_phase_ms": {s.label: s.max_latency_ms for s in seen.sections} if seen else {},
            "parity": self.parity,
            "state": self.state,
            "problems": self.problems + (list(seen.errors) + list(seen.wrong) if seen else []),
            "ok": self.right,
        }


class Demo:
    """The migration, driven as a user would."""

    def __init__(
        self, url: str, dagster: DagsterClient, traffic: Traffic, progress: Progress, outcome: Outcome
    ) -> None:
        self.url = url
        self.dagster = dagster
        self.traffic = traffic
        self.progress = progress
        self.outcome = outcome

    def run(self) -> None:
        """Run all phases of the demo."""
        time.sleep(_LOOK_AROUND)
        with self.phase("plan"):
            self.materialize("plan")
        with self.phase("expand"):
            self.materialize("expand")
        self.backfill()
        with self.phase("validate"):
            self.materialize("validate")
        with self.phase("switch_reads", total=4) as task:
            for stage in range(4):
                self.materialize("switch_reads")
                self.progress.update(task, completed=stage + 1)
                time.sleep(_LOOK_AROUND)
                if stage == 1:
                    self.too_early()
        console.print("  new code is deployed everywhere: nobody writes the old column any more")
        self.traffic.deploy("new")
        with self.phase("contract", total=2) as task:
            self.contract("tombstoned")
            self.progress.update(task, completed=1)
            time.sleep(_LOOK_AROUND)
            self.contract("contracted")
            self.progress.update(task, completed=2)
        self.traffic.mark("after")
        time.sleep(_LOOK_AROUND)

    @contextmanager
    def phase(self, name: str, total: int | None = 1) -> Iterator[Any]:
        """One bar, one section of the traffic's report, one time."""
        self.traffic.mark(name)
        task = self.progress.add_task(name, total=total)
        begun = time.monotonic()
        yield task
        self.outcome.seconds[name] = time.monotonic() - begun
        done = self.progress.tasks[task].total or 1
        self.progress.update(task, total=done, completed=done)

    def materialize(self, phase: str) -> None:
        """Launch one asset and wait.

        Raises:
            SandboxError: the run failed.
        """
        outcome = self.dagster.wait(self.dagster.launch([NAME, phase]))
        if outcome.status != "SUCCESS":
            raise SandboxError(f"{NAME}/{phase}", f"ended {outcome.status}", outcome.problem or "look at the run")

    def backfill(self) -> None:
        """Launch all ranges as one backfill; its bar counts rows."""
        partitions = self.dagster.partitions([NAME, "backfill"])
        with self.phase("backfill", total=self.outcome.rows) as task:
            backfill = self.dagster.launch_backfill([NAME, "backfill"], partitions)
            status = self.dagster.wait_backfill(
                backfill, tick=lambda: self.progress.update(task, completed=min(self.moved(), self.outcome.rows))
            )
            if status != "COMPLETED_SUCCESS":
                raise SandboxError(f"backfill {backfill}", f"ended {status}", "look at its page")
        self.outcome.moved = self.moved()
        console.print(
            f"  {len(partitions)} ranges, {self.outcome.moved:,} rows moved; the others came with live writes"
        )

    def too_early(self) -> None:
        """Try contract while reads are still being switched: the gate must refuse."""
        outcome = self.dagster.wait(self.dagster.launch([NAME, "contract"]))
        if outcome.status != "FAILURE":
            raise SandboxError(f"{NAME}/contract", "was not refused though reads are at 10 %", "do not trust this gate")
        reasons = [line.strip(" -") for line in outcome.problem.splitlines() if line.strip().startswith("-")]
        console.print("  contract, tried too early, is refused: " + (reasons[0] if reasons else outcome.problem))

    def contract(self, wanted: str) -> None:
        """Launch contract until its windows have passed."""
        deadline = time.monotonic() + _GATE_PATIENCE
        while True:
            outcome = self.dagster.wait(self.dagster.launch([NAME, "contract"]))
            if self.state() == wanted:
                return
            if time.monotonic() > deadline or outcome.status != "FAILURE":
                raise SandboxError(f"{NAME}/contract", f"ended {outcome.status}", outcome.problem)
            time.sleep(_LOOK_AROUND)

    def moved(self) -> int:
        """Rows that the backfill has moved."""
        return int(self._ask("SELECT coalesce(sum(rows), 0) FROM zdm.range") or 0)

    def state(self) -> str:
        """The state that the ledger says."""
        return str(self._ask("SELECT state FROM zdm.migration") or "planned")

    def parity(self) -> dict[str, Any]:
        """The last verdict on the data."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute("SELECT passed, summary FROM zdm.check_result WHERE name = 'parity'").fetchone()
        return {"agrees": bool(row[0]), "summary": row[1]} if row else {"agrees": False, "summary": "never compared"}

    def _ask(self, query: str) -> Any:
        with psycopg.connect(self.url) as connection:
            row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


def main(arguments: list[str] | None = None) -> int:
    """Run the demo; 0 when everything went as it must."""
    options = _options(arguments)
    # SIGINT too: a shell hands it to background jobs as ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    outcome = Outcome(rows=options.rows)
    try:
        with ExitStack() as stack:
            url = _demonstrate(options, outcome, stack)
            _summary(outcome, url)
            if options.json:
                options.json.write_text(json.dumps(outcome.as_json(), indent=2) + "\n", encoding="utf-8")
            if not options.exit:
                console.print(f"\nDagster stays at [bold]{url}[/] with its database; Ctrl-C ends both.")
                _stay()
    except KeyboardInterrupt:
        console.print("ended")
        return 0 if outcome.right else 130
    except ZdmError as error:
        console.print(f"[red]{error}[/]", highlight=False, markup=True, soft_wrap=True)
        return 1
    return 0 if outcome.right else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the sample table (default 200,000)")
    parser.add_argument("--clients", type=int, default=4, help="clients of the live traffic (default 4)")
    parser.add_argument("--exit", action="store_true", help="end after the summary")
    parser.add_argument("--json", type=Path, help="write the summary to this file")
    parser.add_argument("--port", type=int, help="port of Dagster's UI (default: a free one)")
    parser.add_argument("--folder", type=Path, default=Path(".zdm/demo"), help="where the data lives")
    options = parser.parse_args(arguments)
    if options.rows < 1 or options.clients < 1:
        parser.error("--rows and --clients take a number above 0")
    return options


def _demonstrate(options: argparse.Namespace, outcome: Outcome, stack: ExitStack) -> str:
    """Start everything, migrate, stop the traffic; the servers go on until the stack closes. Gives the UI's address."""
    progress = stack.enter_context(
        Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
    )
    starting = progress.add_task("Postgres and replica", total=1)
    cluster = stack.enter_context(Cluster(options.folder / "postgres", fresh=True))
    progress.update(starting, completed=1)

    loading = progress.add_task("sample rows", total=options.rows)
    url = cluster.primary.create_database("shop")
    application.load(url, options.rows, progress=lambda done, _: progress.update(loading, completed=done))
    cluster.wait_caught_up(timeout=120)

    starting = progress.add_task("Dagster", total=1)
    instance = Path(__file__).with_name("dagster.yaml")
    workspace = demo_project.write(options.folder / "project", rows=options.rows, instance=instance)
    services = stack.enter_context(
        DagsterServices(
            options.folder / "dagster_home",
            cluster.primary.create_database("dagster"),
            workspace,
            env={"ZDM_APP_URL": url},
            port=options.port,
        )
    )
    progress.update(starting, completed=1)
    console.print(f"  watch it at {services.url}/asset-groups", highlight=False)

    traffic = stack.enter_context(Traffic(url, clients=options.clients))
    demo = Demo(url, DagsterClient(services), traffic, progress, outcome)
    try:
        demo.run()
    finally:
        outcome.traffic = traffic.stop()
        outcome.state, outcome.parity = demo.state(), demo.parity()
        progress.stop()
    return services.url


def _summary(outcome: Outcome, url: str) -> None:
    seen = outcome.traffic
    assert seen is not None  # set before the summary, also after a failure
    phases = Table(
        "phase",
        "seconds",
        "queries",
        "failed",
        "wrong",
        "p95 ms",
        "worst ms",
        title="The migration, and what the application saw of it",
    )
    for column in phases.columns[1:]:
        column.justify = "right"
    for part in seen.sections:
        took = outcome.seconds.get(part.label)
        phases.add_row(
            part.label,
            f"{took:.1f}" if took is not None else "",
            f"{part.queries:,}",
            str(part.failed_queries),
            str(part.wrong_answers),
            f"{part.p95_ms:.1f}",
            f"{part.max_latency_ms:.1f}",
        )
    console.print(phases)
    console.print(f"rows in the table       {outcome.rows:,} at the start, {outcome.moved:,} moved by the backfill")
    console.print(f"failed queries          {seen.failed_queries} of {seen.queries:,}")
    console.print(f"wrong answers           {seen.wrong_answers}")
    console.print(
        f"worst latency           {seen.max_latency_ms:.1f} ms ({seen.slowest.strip()[:60]})", highlight=False
    )
    console.print(f"parity                  {outcome.parity['summary']}")
    console.print(f"state                   {outcome.state}")
    console.print(f"Dagster                 {url}", highlight=False)
    for line in (*seen.errors[:5], *seen.wrong[:5], *outcome.problems):
        console.print(f"[red]{line}[/]", highlight=False)
    console.print("[green]all is well[/]" if outcome.right else "[red]something is wrong: see above[/]")


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _stay() -> None:
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    sys.exit(main())
