"""Overview: the kinds of change as a table, for the command line and for docs/kinds.md."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from zdm_pipelines.changes.protocol import Kind
from zdm_pipelines.changes.registry import KINDS
from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.lifecycle import Lifecycle, Need


@dataclass(frozen=True, kw_only=True)
class KindRow:
    """What a kind is, in short."""

    kind: str
    what: str  # one sentence
    phases: tuple[str, ...]
    rows: str  # what is done to rows, if anything
    way_back: str  # until when the change can be undone


def example_of(kind: Kind) -> ChangeSpec:
    """The change that a kind's scaffold declares."""
    return kind.spec.model_validate({"kind": kind.name, **yaml.safe_load(kind.example)})


def rows() -> list[KindRow]:
    """A row for each kind, by name."""
    return [_row(kind) for _, kind in sorted(KINDS.items())]


def _row(kind: Kind) -> KindRow:
    needs = example_of(kind).needs
    lifecycle = Lifecycle.of(needs)
    return KindRow(
        kind=kind.name,
        what=(kind.spec.__doc__ or "").strip().splitlines()[0],
        phases=tuple(phase.replace("_", " ") for phase in lifecycle.phases),
        rows=_rows(needs),
        way_back=_way_back(lifecycle),
    )


def _rows(needs: frozenset[Need]) -> str:
    if Need.ROWS not in needs:
        return ""
    return "taken away behind the gate" if Need.DESTROYS in needs else "filled or copied"


def _way_back(lifecycle: Lifecycle) -> str:
    if not lifecycle.needs & {Need.RETIRE, Need.DESTROYS}:
        return "always"
    if Need.TOMBSTONE in lifecycle.needs:
        return "until the tombstone is dropped"
    return "until the first row is gone" if Need.DESTROYS in lifecycle.needs else "until contract has run"


def markdown() -> str:
    """The table as docs/kinds.md has it."""
    lines = ["| kind | what | phases | rows | can be undone |", "|---|---|---|---|---|"]
    for row in rows():
        cells = (f"`{row.kind}`", row.what, " → ".join(row.phases), row.rows or "–", row.way_back)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
