"""Plot: the figures of a case as pictures, a bar for each median and a dot for each sample."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter

from zdm_pipelines_tests.benchmarks.case import UNITS, Figure

_COLUMNS = 3  # panels side by side
_WIDTH, _BAR, _FRAME = 4.6, 0.28, 0.9  # inches: of a panel; of height for each bar, and around all of them


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Figures that one axis can show."""

    title: str
    bars: Sequence[tuple[str, Figure]]


def draw(folder: Path, case: str, figures: Sequence[Figure]) -> list[Path]:
    """Write a PNG for each group of figures; gives their paths."""
    drawn = []
    for group in dict.fromkeys(figure.group for figure in figures):
        name = re.sub(r"[^a-z0-9]+", "-", f"{case} {group}".lower()).strip("-")
        shown = list(panels([figure for figure in figures if figure.group == group]))
        drawn.append(_picture(folder / f"{name}.png", ", ".join(filter(None, (case, group))), shown))
    return drawn


def panels(figures: Sequence[Figure]) -> Iterator[Panel]:
    """What is compared: a panel for each name. What stands alone: one for each way to show it."""
    compared = [figure for figure in figures if figure.subject]
    for name in dict.fromkeys(figure.name for figure in compared):
        yield Panel(title=name, bars=[(figure.subject, figure) for figure in compared if figure.name == name])
    single = [figure for figure in figures if not figure.subject]
    for show in dict.fromkeys(figure.show for figure in single):
        title = UNITS.get(show, "") or show.__name__
        yield Panel(title=title, bars=[(figure.name, figure) for figure in single if figure.show == show])


def _picture(path: Path, title: str, shown: Sequence[Panel]) -> Path:
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    height = sum(
        _FRAME + _BAR * max(len(panel.bars) for panel in shown[at : at + columns])
        for at in range(0, len(shown), columns)
    )
    picture = Picture(figsize=(_WIDTH * columns, height + 0.4), layout="constrained")
    FigureCanvasAgg(picture)  # draws without a display
    picture.suptitle(title)
    axes = picture.subplots(rows, columns, squeeze=False).ravel()
    for panel, axis in zip(shown, axes, strict=False):
        _panel(axis, panel)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    picture.savefig(path, dpi=110)
    return path


def _panel(axis: Axes, panel: Panel) -> None:
    at = range(len(panel.bars))
    show = panel.bars[0][1].show
    axis.barh(at, [figure.median for _, figure in panel.bars], color="#9ecae1")
    for number, (_, figure) in enumerate(panel.bars):
        axis.plot(figure.samples, [number] * len(figure.samples), "o", color="#08519c", markersize=3)
        for limit in (figure.target.at_most, figure.target.at_least) if figure.target else ():
            if limit is not None:
                axis.plot([limit, limit], [number - 0.4, number + 0.4], color="#cb181d")
    axis.set_yticks(at, [label for label, _ in panel.bars], fontsize=8)
    axis.invert_yaxis()  # first on top
    axis.set_title(panel.title, fontsize=9)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axis.tick_params(axis="x", labelsize=7)
    axis.locator_params(axis="x", nbins=5)
