"""Doctor: the list of findings on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from zdm_pipelines.verbs.doctor import Finding

_MARKS = {"ok": Text("✔", style="green"), "warning": Text("!", style="yellow"), "problem": Text("✘", style="red")}


def show(findings: Sequence[Finding]) -> RenderableType:
    """The list, with ways out below what is wrong."""
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        text = Text.assemble((finding.thing, "bold"), f": {finding.fact}")
        if finding.way_out:
            text.append(f"\n→ {finding.way_out}", style="yellow")
        table.add_row(_MARKS[finding.verdict], text)
    return table
