"""Show: plans, reports and states as tables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zdm_pipelines.cli import terminal
from zdm_pipelines.engine import holds as holds_
from zdm_pipelines.engine.ranges import MAX_RANGES
from zdm_pipelines.engine.throttle import WINDOW
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Catalog, Hold, Report, Status, Step
from zdm_pipelines.project import Project

_COLOUR = {
    State.PLANNED: "dim",
    State.CONTRACTED: "green",
    State.ROLLED_BACK: "yellow",
    State.TOMBSTONED: "magenta",
}

_NEXT = {
    State.PLANNED: "zdm plan {0}, then zdm run {0}",
    State.EXPANDED: "zdm run {0}",
    State.BACKFILLING: "zdm run {0}",
    State.BACKFILLED: "zdm run {0} --phase validate",
    State.VALIDATED: "zdm run {0} --phase switch-reads, once code that asks the flag is deployed",
    State.SWITCHING: "zdm run {0} --phase switch-reads",
    State.SWITCHED: "zdm run {0} --phase contract, once nothing stands against it",
    State.TOMBSTONED: "zdm run {0} --phase contract, once nothing stands against it",
    State.CONTRACTED: "nothing: it is finished; the declaration may be removed",
    State.ROLLED_BACK: "zdm run {0} to begin anew",
}


def next_step(name: str, state: State) -> str:
    """What to do now."""
    return _NEXT[state].format(name)


def state(which: State) -> Text:
    """A state in its colour."""
    return Text(str(which), style=_COLOUR.get(which, "cyan"))


def span(seconds: float) -> str:
    """A duration for people."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"{seconds * 1000:.0f} ms"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def facts(rows: Sequence[tuple[str, RenderableType]]) -> Table:
    """Names and values, aligned."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, value)
    return grid


# -- list and plan ----------------------------------------------------------------------------------------------------


def project(found: Project) -> Table:
    """What is declared."""
    table = Table("migration", "database", "table", "change", "declared at", box=None, pad_edge=False)
    for name, one in found.migrations.items():
        change = f"{one.change.kind} {one.change.old} → {one.change.new.name}"
        table.add_row(name, one.database, Text(str(one.table_name)), Text(change), Text(str(found.places[name])))
    return table


def expected_ranges(migration: Migration, rows: int) -> int:
    """Into about how many ranges expand will cut the table."""
    return min(MAX_RANGES, max(1, -(-rows // migration.backfill.range_rows)))


def plan(
    migration: Migration, catalog: Catalog, rows: int, now: State, steps: Mapping[Phase, Sequence[Step]]
) -> RenderableType:
    """The dry run."""
    ranges = expected_ranges(migration, rows)
    head = facts(
        [
            ("migration", Text(migration.name, style="bold")),
            ("state", state(now)),
            ("table", Text(f"{catalog.table}, about {rows:,} rows, {size(catalog.bytes)} without indexes")),
            ("primary key", Text(", ".join(f"{c.name} {c.type}" for c in catalog.key))),
            ("ranges", f"about {ranges:,}, which are {ranges:,} Dagster partitions"),
            ("up reads", Text(", ".join(catalog.up_inputs) or "no column")),
            ("down reads", Text(", ".join(catalog.down_inputs) or "no column")),
            ("reads ask", Text(f"flag {migration.flag}: {' → '.join(f'{p} %' for p in migration.reads.ramp)}")),
            *(("warning", Text(w, style="yellow")) for w in catalog.warnings),
        ]
    )
    parts: list[RenderableType] = [head]
    printed: set[str] = set()
    for phase, listed in steps.items():
        parts.append(Text(f"\n{phase}", style="bold underline"))
        for number, step in enumerate(listed, 1):
            parts.append(Text.assemble((f"{number:>3}. ", "dim"), (step.name, "bold")))
            about: list[tuple[str, RenderableType]] = [("lock", Text(step.lock)), ("why", Text(step.reason))]
            if step.undo and "\n" not in step.undo:
                about.append(("undo", Text(step.undo)))
            if not step.in_transaction:
                about.append(("", Text("stands alone, outside a transaction")))
            parts.append(Padding(Group(facts(about), terminal.sql(_once(step.sql, printed))), (0, 0, 1, 5)))
    following = f"zdm run {migration.name}" if now == State.PLANNED else next_step(migration.name, now)
    parts.append(Text("Nothing was changed. ", style="green").append(f"Next: {following}"))
    return Group(*parts)


def _once(sql: str, printed: set[str]) -> str:
    """A long statement in full the first time; the same one with small differences by its first line."""
    first, *rest = sql.splitlines()
    if len(rest) > _LONG and first in printed:
        return f"{first}\n  -- and {len(rest)} more lines: zdm plan --sql prints them"
    printed.add(first)
    return sql


_LONG = 12  # lines


def plain_sql(steps: Mapping[Phase, Sequence[Step]]) -> str:
    """The statements alone, each with what it is."""
    lines: list[str] = []
    for phase, listed in steps.items():
        for step in listed:
            bound = ["-- $1, $2: bounds of the keys, bound as values"] if "($1::text[])" in step.sql else []
            lines += [f"-- {phase}: {step.name}", *bound, f"{step.sql};", ""]
    return "\n".join(lines)


# -- reports and status -----------------------------------------------------------------------------------------------


def report(done: Report) -> RenderableType:
    """What a phase did."""
    rows: list[tuple[str, RenderableType]] = [] if done.checks else [("", Text(done.summary))]
    rows.append(("state", state(done.state)))
    numbers = [f"{done.seconds:.1f} s"]
    if done.rows:
        numbers.append(f"{done.rows:,} rows")
    if done.batches:
        numbers.append(f"{done.batches:,} batches, {done.rows_per_second:,.0f} rows/s, {size(done.wal_bytes)} WAL")
        numbers.append(f"{done.facts['hot_ratio']:.0%} of the rows in place")
    if done.retries:
        numbers.append(f"{done.retries} retries")
    rows.append(("took", ", ".join(numbers)))
    rows += [("warning", Text(str(w), style="yellow")) for w in done.facts.get("warnings", [])]
    for check in done.checks:
        mark = ("✔ ", "green") if check.passed else ("✘ ", "red")
        rows.append((check.name, Text.assemble(mark, check.summary)))
    return Group(Text(str(done.phase), style="bold"), Padding(facts(rows), (0, 0, 0, 2)))


def hold(name: str, one: Hold) -> Text:
    """A hold: whose, why, since when, and who ends it."""
    owner = "" if holds_.is_signal(one.owner) else f"{one.owner}: "  # a signal's reason names it
    text = Text.assemble((owner, "bold"), one.reason, style="yellow")
    if one.owner == WINDOW:
        return text
    whose = ", holds every migration of the database" if one.migration == holds_.EVERY else ""
    text.append(f" (for {span(max(0.0, (datetime.now(UTC) - one.since).total_seconds()))}{whose})", style="dim")
    text.append(f"; {_end(name, one)}")
    return text


def _end(name: str, one: Hold) -> str:
    if holds_.is_signal(one.owner):
        return "ends when the signal recovers"
    owner = "" if one.owner == holds_.OPERATOR else f" --owner {shlex.quote(one.owner)}"
    return f"zdm resume {name}{owner}{' --database' if one.migration == holds_.EVERY else ''}"


def holds(name: str, standing: Sequence[Hold]) -> RenderableType:
    """What stands against writing."""
    return facts([("held" if not i else "", hold(name, one)) for i, one in enumerate(standing)])


def status(migration: Migration, found: Status, against: Sequence[str]) -> RenderableType:
    """Where a migration stands."""
    rows: list[tuple[str, RenderableType]] = [
        ("migration", Text(migration.name, style="bold")),
        ("table", Text(f"{migration.table_name} in database {migration.database}")),
        ("state", state(found.state)),
        *(("held" if not i else "", hold(migration.name, one)) for i, one in enumerate(found.holds)),
    ]
    if found.ranges:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=found.ranges, completed=found.ranges_done, width=30),
            f"{found.ranges_done:,} of {found.ranges:,} done, {found.rows_moved:,} rows moved",
        )
        rows.append(("ranges", bar))
    if found.flag is not None:
        retired = ", retired: the old column is gone" if found.flag.retired else ""
        rows.append(
            ("reads", Text(f"{found.flag.percent} % of keys read the new shape (flag {found.flag.name}{retired})"))
        )
    if found.switched_at is not None:
        kept = span(migration.contract.confidence_window)
        rows.append(("switched", f"{found.switched_at:%Y-%m-%d %H:%M:%S %Z}, confidence window {kept}"))
    if found.tombstoned_at is not None:
        kept = span(migration.contract.tombstone_window)
        rows.append(("tombstoned", f"{found.tombstoned_at:%Y-%m-%d %H:%M:%S %Z}, kept for {kept}"))
    rows += [("writes old", Text(who, style="yellow")) for who in found.stragglers]
    if found.state != State.CONTRACTED:
        if against:
            rows += [("contract: no" if not i else "", Text(why)) for i, why in enumerate(against)]
        else:
            rows.append(("contract", Text("nothing stands against it but the comparison of rows", style="green")))
    rows += [("events" if not i else "", Text(line, style="dim")) for i, line in enumerate(found.events)]
    rows.append(("next", Text(next_step(migration.name, found.state))))
    return facts(rows)


def overview(rows: Sequence[tuple[Migration, Status | str]]) -> Table:
    """One line for each migration; text in place of a status that could not be had."""
    table = Table("migration", "state", "ranges", "rows moved", "reads", "next", box=None, pad_edge=False)
    for migration, found in rows:
        if isinstance(found, str):
            table.add_row(migration.name, Text("unknown", style="red"), "", "", "", Text(found))
            continue
        stands = state(found.state)
        if found.holds:
            owners = ", ".join(one.owner.removeprefix(holds_.of_signal("")) for one in found.holds)
            stands.append(f", held: {owners}", style="yellow")
        table.add_row(
            migration.name,
            stands,
            f"{found.ranges_done}/{found.ranges}",
            f"{found.rows_moved:,}",
            f"{found.flag.percent} %" if found.flag else "",
            Text(next_step(migration.name, found.state)),
        )
    return table
