"""Run: walk phases with progress on the terminal; Ctrl-C stops at the next batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from zdm_pipelines.cli import show, terminal
from zdm_pipelines.model.errors import Throttled
from zdm_pipelines.model.states import Phase
from zdm_pipelines.model.values import Moved, Report
from zdm_pipelines.phases import backfill, contract, expand, switch_reads, validate
from zdm_pipelines.verbs import Context, plan, status

Work = Callable[[Callable[[int], None]], Report]
_EVERY = 5.0  # seconds between two lines of progress where there is no terminal


@dataclass
class Walk:
    """One call of `zdm run`."""

    context: Context
    partitions: Sequence[str] | None = None
    repair: bool = False
    percent: int | None = None
    full: bool = False  # validate compares also what nobody wrote since it was compared
    quiet: bool = False  # reports are printed by the caller, as JSON
    reports: list[Report] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.console: Console = terminal.err()
        # The console of the bars, which move out of its way.
        self.context = self.context.telling(terminal.statements(self.console))

    def run(self, phases: Sequence[Phase]) -> None:
        """Run phases in order.

        Raises:
            ZdmError: what stopped it; the phases before it are in `reports`.
            KeyboardInterrupt: after the batch in progress, with how to go on said.
        """
        runners = {
            Phase.EXPAND: self._expand,
            Phase.BACKFILL: self._backfill,
            Phase.VALIDATE: self._validate,
            Phase.SWITCH_READS: self._switch,
            Phase.CONTRACT: self._contract,
        }
        for phase in phases:
            try:
                self._keep(runners[phase]())
            except KeyboardInterrupt:
                self._stopped(phase)
                raise
            except Throttled as error:
                raise self._throttled(phase, error) from None
            if phase is Phase.VALIDATE:
                validate.raise_if_failed(self.reports[-1])

    def _keep(self, report: Report) -> None:
        self.reports.append(report)
        if not self.quiet:
            terminal.show(show.report(report))

    def _stopped(self, phase: Phase) -> None:
        rows = self.context.lifecycle.row_phase
        facts = {
            rows: "the batch in progress was ended first, and every batch before it is kept",
            Phase.VALIDATE: "an index whose build was interrupted is built anew",
        }
        fact = facts.get(phase, "what was not committed did not happen")
        terminal.note(f"{phase} was stopped: {fact}. To go on: {self._again(phase)}")

    def _again(self, phase: Phase) -> str:
        """The command that goes on with a phase."""
        named = phase not in self.context.lifecycle.unattended
        return f"zdm run {self.context.name}" + (f" --phase {phase.replace('_', '-')}" if named else "")

    def _throttled(self, phase: Phase, error: Throttled) -> Throttled:
        against = f"zdm status {self.context.name} shows what stands against it"
        way_out = f"every batch before is kept: {self._again(phase)} goes on, {against}"
        return Throttled(error.thing, error.fact, way_out, error.reasons)

    def _progress(self, unit: str) -> Progress:
        return Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit + " {task.fields[speed]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )

    # -- phases -------------------------------------------------------------------------------------------------------

    def _expand(self) -> Report:
        return expand.run(self.context)

    def _backfill(self) -> Report:
        return self._row_work(backfill.run)

    def _row_work(self, work_on: Callable[..., Generator[Moved]]) -> Report:
        known = status.read_ranges(self.context)
        wanted = [
            r for r in known if (r.range.partition in self.partitions if self.partitions else self.repair or not r.done)
        ]
        with self._progress("rows") as progress:
            bar = _Bar(self, progress, ranges=len(wanted), rows=self._expected_rows(len(known), len(wanted)))
            moving = work_on(
                self.context.telling(bar.told), partitions=self.partitions, repair=self.repair, batch=bar.batch
            )
            return backfill.reported(self.context, _watched(moving, bar))

    def _expected_rows(self, known: int, wanted: int) -> int:
        return round(plan.read(self.context).rows * wanted / max(known, 1))

    def _validate(self) -> Report:
        return self._compared(lambda compared: validate.run(self.context, full=self.full, compared=compared))

    def _switch(self) -> Report:
        return switch_reads.run(self.context, percent=self.percent)

    def _contract(self) -> Report:
        lifecycle = self.context.lifecycle
        if lifecycle.row_phase is Phase.CONTRACT and status.read(self.context).state in lifecycle.watched:
            return self._row_work(contract.destroy)
        return self._compared(lambda compared: contract.run(self.context, compared=compared))

    def _compared(self, work: Work) -> Report:
        """Run what compares old and new, range by range."""
        ranges = status.read(self.context).ranges
        with self._progress("ranges,") as progress:
            task = progress.add_task("compare old and new", total=ranges or None, speed="")
            rows = 0

            def compared(count: int) -> None:
                nonlocal rows
                rows += count
                progress.update(task, advance=1, speed=f"{rows:,} rows")

            return work(compared)


def _watched(moving: Generator[Moved], bar: _Bar) -> Iterator[Moved]:
    """Row work whose progress shows; closed, it stops at the next batch."""
    with closing(moving):
        for done, moved in enumerate(moving, 1):
            bar.range_done(done)
            yield moved


class _Bar:
    """Progress of row work: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, walk: Walk, progress: Progress, *, ranges: int, rows: int) -> None:
        self.console = walk.console
        self.phase = walk.context.lifecycle.row_phase
        self.say = terminal.remarks(walk.console)
        self.progress = progress
        self.ranges = ranges
        self.begun = self.said = time.monotonic()
        self.rows = 0
        self.task: TaskID = progress.add_task(self._title(0), total=rows, speed="")

    def _title(self, done: int) -> str:
        return f"{self.phase}, range {done} of {self.ranges} done"

    def batch(self, moved: Moved) -> None:
        """Called from the workers."""
        self.rows += moved.rows
        speed = f"{self.rows / max(time.monotonic() - self.begun, 0.001):,.0f}/s, batches of {moved.batch_rows:,}"
        self.progress.update(self.task, advance=moved.rows, speed=speed)

    def told(self, text: str) -> None:
        """What the row work says, such as why it waits; the bar shows that until the next batch."""
        self.say(text)
        if text.startswith("waiting"):
            self.progress.update(self.task, speed="waiting")

    def range_done(self, done: int) -> None:
        """Called as each range is proven done."""
        self.progress.update(self.task, description=self._title(done))
        if not self.console.is_terminal and time.monotonic() - self.said > _EVERY:
            self.said = time.monotonic()
            self.console.print(f"  {self._title(done)}, {self.rows:,} rows")
