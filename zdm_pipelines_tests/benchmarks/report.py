"""Report: the figures of a case as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from zdm_pipelines_tests.benchmarks.case import Figure

_MET = {None: "", True: "yes", False: "no"}
_COLORS = {"yes": "green", "no": "red"}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table: its first column names, the others hold what was measured."""

    title: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


def grids(case: str, figures: Sequence[Figure]) -> Iterator[Grid]:
    """What is compared side by side, medians; then figure by figure what stands alone or has a target."""
    compared = [figure for figure in figures if figure.subject]
    for group in dict.fromkeys(figure.group for figure in compared):
        title = ", ".join(filter(None, (case, group, "medians")))
        yield _side_by_side(title, [figure for figure in compared if figure.group == group])
    single = [figure for figure in figures if not figure.subject or figure.target is not None]
    if single:
        yield _one_by_one(case, single)


def target(figure: Figure) -> str:
    """The target in words."""
    wanted = figure.target
    if wanted is None:
        return ""
    if wanted.at_most is not None:
        return f"{wanted.of} at most {figure.show(wanted.at_most)}"
    return f"{wanted.of} at least {figure.show(wanted.at_least or 0.0)}"


def rendered(grid: Grid, *, took: float | None = None) -> Table:
    """For the terminal."""
    title = grid.title if took is None else f"{grid.title}, {took:.0f} s"
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, name in enumerate(grid.header):
        table.add_column(name, justify="left" if number == 0 or name in ("target", "met") else "right")
    for line in grid.lines:
        table.add_row(*(Text(cell, style=_COLORS.get(cell, "")) for cell in line))
    return table


def markdown(grid: Grid) -> str:
    """For the documentation."""
    lines = [[grid.title, *grid.header[1:]], ["---"] * len(grid.header), *grid.lines]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _side_by_side(title: str, figures: Sequence[Figure]) -> Grid:
    names = list(dict.fromkeys(figure.name for figure in figures))
    shown = {(figure.subject, figure.name): figure.show(figure.median) for figure in figures}
    subjects = dict.fromkeys(figure.subject for figure in figures)
    lines = [[subject, *(shown.get((subject, name), "") for name in names)] for subject in subjects]
    return Grid(title=title, header=["", *names], lines=lines)


def _one_by_one(title: str, figures: Sequence[Figure]) -> Grid:
    lines = []
    for figure in figures:
        worst = figure.show(figure.worst) if len(figure.samples) > 1 else ""
        rounds = str(len(figure.samples))
        lines.append([figure.label, rounds, figure.show(figure.median), worst, target(figure), _MET[figure.met]])
    return Grid(title=title, header=["figure", "rounds", "median", "worst", "target", "met"], lines=lines)
