"""Metadata: what the phases report, as Dagster shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from zdm_pipelines.model.names import in_one_line
from zdm_pipelines.model.states import Phase
from zdm_pipelines.model.values import Check, Key, KeyRange, Moved, RangeProgress, Report, Step

Metadata = dict[str, Any]

_SHORT = 160  # characters of SQL in a table's cell; the whole statement stands below


def markdown(text: str) -> dg.MarkdownMetadataValue:
    """Text that the UI renders."""
    return dg.MetadataValue.md(text)


def bullets(lines: Iterable[str]) -> dg.MarkdownMetadataValue:
    """A list in Markdown."""
    return markdown("\n".join(f"- {line}" for line in lines))


def sql(statements: Sequence[str]) -> dg.MarkdownMetadataValue:
    """Statements as code, in order."""
    return markdown("\n\n".join(_block(statement) for statement in statements))


def _block(statement: str) -> str:
    """A statement as code, between fences that are longer than any in it."""
    longest = max((len(run) for run in re.findall("`+", statement)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}sql\n{statement.strip()}\n{fence}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(statement: str) -> str:
    flat = _cell(statement)
    return "`" + (flat if len(flat) <= _SHORT else flat[: _SHORT - 1] + "…").replace("`", "'") + "`"


def plan(steps: Mapping[Phase, Sequence[Step]]) -> dg.MarkdownMetadataValue:
    """Every step as a table."""
    lines = ["| phase | step | lock | reason | SQL |", "|---|---|---|---|---|"]
    lines += [
        f"| {phase} | {_cell(step.name)} | {_cell(step.lock)} | {_cell(step.reason)} | {_code(step.sql)} |"
        for phase, of_phase in steps.items()
        for step in of_phase
    ]
    return markdown("\n".join(lines))


def statements(steps: Mapping[Phase, Sequence[Step]]) -> dg.MarkdownMetadataValue:
    """Every step's whole SQL, and what takes it back."""
    parts = []
    for phase, of_phase in steps.items():
        for step in of_phase:
            parts.append(f"**{phase}: {in_one_line(step.name)}**\n{_block(step.sql)}")
            if step.undo:
                parts.append(f"undo\n{_block(step.undo)}")
    return markdown("\n\n".join(parts))


def of_report(report: Report) -> Metadata:
    """What a phase did; only what there is."""
    found: Metadata = {
        "summary": report.summary,
        "state": str(report.state),
        "seconds": dg.MetadataValue.float(round(report.seconds, 3)),
    }
    if report.rows:
        found["rows"] = dg.MetadataValue.int(report.rows)
    if report.retries:
        found["retries"] = dg.MetadataValue.int(report.retries)
    if report.sql:
        found["sql"] = sql(report.sql)
    return found


def _bound(key: Key | None, *, otherwise: str) -> str:
    return otherwise if key is None else "/".join(key)


def of_moved(moved: Moved, bounds: KeyRange, statement: str) -> Metadata:
    """What moving a range came to."""
    per_second = moved.rows / moved.seconds if moved.rows and moved.seconds else 0.0
    return {
        "from_key": _bound(bounds.lower, otherwise="the first"),
        "to_key": "before " + bounds_end if (bounds_end := _bound(bounds.upper, otherwise="")) else "the last",
        "rows": dg.MetadataValue.int(moved.rows),
        "rows_before": dg.MetadataValue.int(moved.already),
        "seconds": dg.MetadataValue.float(round(moved.seconds, 3)),
        "rows_per_second": dg.MetadataValue.float(round(per_second, 1)),
        "batches": dg.MetadataValue.int(moved.batches),
        "retries": dg.MetadataValue.int(moved.retries),
        "wal_bytes": dg.MetadataValue.int(moved.wal_bytes),
        **_per_row(moved.rows, moved.wal_bytes, moved.hot),
        "dead_tuples_per_row": dg.MetadataValue.float(round(moved.dead / max(1, moved.rows), 3)),
        "sql": sql([statement]),
    }


def of_check(check: Check) -> Metadata:
    """What a check found: counts as numbers, keys and ranges as lists."""
    found: Metadata = {"summary": check.summary}
    for name, value in check.facts.items():
        found[name] = bullets(map(str, value)) if isinstance(value, (list, tuple)) else value
        if isinstance(value, (list, tuple)) and not value:
            del found[name]
    return found


def of_progress(known: RangeProgress) -> Metadata:
    """What the ledger remembers of a range that was moved."""
    return {
        "summary": "moved earlier; taken from the ledger",
        "rows": dg.MetadataValue.int(known.rows),
        "seconds": dg.MetadataValue.float(round(known.seconds, 3)),
        "batches": dg.MetadataValue.int(known.batches),
        "retries": dg.MetadataValue.int(known.retries),
        "wal_bytes": dg.MetadataValue.int(known.wal_bytes),
        **_per_row(known.rows, known.wal_bytes, known.hot),
    }


def _per_row(rows: int, wal_bytes: int, hot: int) -> Metadata:
    """What a row cost; `hot_ratio` is the share that moved in place and touched no index."""
    return {
        "wal_bytes_per_row": dg.MetadataValue.float(round(wal_bytes / max(1, rows), 1)),
        "hot_ratio": dg.MetadataValue.float(round(hot / max(1, rows), 3)),
    }
