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

from zdm_pipelines.changes import kind_of
from zdm_pipelines.changes.overview import KindRow
from zdm_pipelines.cli import terminal
from zdm_pipelines.model import holds as holds_
from zdm_pipelines.model.lifecycle import Lifecycle
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.names import in_one_line
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.units import Unit, as_declared, for_people
from zdm_pipelines.model.values import Hold, Report, Status, Step
from zdm_pipelines.project import Project
from zdm_pipelines.verbs.plan import Plan

_COLOUR = {
    State.PLANNED: "dim",
    State.CONTRACTED: "green",
    State.ROLLED_BACK: "yellow",
    State.TOMBSTONED: "magenta",
}


def next_step(name: str, lifecycle: Lifecycle, now: State) -> str:
    """What to do now with a migration."""
    run = f"zdm run {name}"
    phase = lifecycle.next_phase(now)
    if phase is None:
        return "nothing: it is finished; the declaration may be removed"
    named = "" if phase in (Phase.EXPAND, Phase.BACKFILL) else f" --phase {phase.replace('_', '-')}"
    if now == State.PLANNED:
        return f"zdm plan {name}, then {run}{'' if lifecycle.unattended else named}"
    if now == State.ROLLED_BACK:
        return f"{run}{'' if lifecycle.unattended else named} to begin anew"
    if phase is Phase.SWITCH_READS and now != State.SWITCHING:
        return f"{run}{named}, once code that asks the flag is deployed"
    return f"{run}{named}" + (", once nothing stands against it" if phase is Phase.CONTRACT else "")


def state(which: State) -> Text:
    """A state in its colour."""
    return Text(str(which), style=_COLOUR.get(which, "cyan"))


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
    """The declared migrations as a table."""
    table = Table("migration", "database", "table", "change", "declared at", box=None, pad_edge=False)
    for name, one in found.migrations.items():
        change = f"{one.change.kind} {kind_of(one).words(one).summary}"
        table.add_row(name, one.database, Text(str(one.table_name)), Text(change), Text(str(found.places[name])))
    return table


def kinds(rows: Sequence[KindRow]) -> Table:
    """What can be changed."""
    table = Table("kind", "what", "phases", "can be undone", box=None, pad_edge=False)
    for row in rows:
        table.add_row(Text(row.kind, style="bold"), row.what, " → ".join(row.phases), row.way_back)
    return table


def plan(migration: Migration, found: Plan) -> RenderableType:
    """The dry run: each statement with its lock and its reason."""
    catalog, size = found.catalog, for_people(found.catalog.bytes, Unit.BYTES)
    rows: list[tuple[str, RenderableType]] = [
        ("migration", Text(migration.name, style="bold")),
        ("state", state(found.state)),
        (
            "table",
            Text(f"{catalog.table}, about {found.rows:,} rows, {size} without indexes"),
        ),
        ("primary key", Text(", ".join(f"{c.name} {c.type}" for c in catalog.key) or "none")),
    ]
    if found.ranges:
        rows.append(("ranges", f"about {found.ranges:,}, which are {found.ranges:,} Dagster partitions"))
    rows += [(name, Text(value)) for name, value in found.told]
    if migration.lifecycle.has(Phase.SWITCH_READS):
        ramp = " → ".join(f"{p} %" for p in migration.reads.ramp)
        rows.append(("reads ask", f"flag {migration.flag}: {ramp}"))
    if catalog.environment:
        settings = "; ".join(f"{name} {value or 'empty'}" for name, value in catalog.environment.items())
        rows.append(("expressions see", Text(settings)))
    head = facts([*rows, *(("warning", Text(w, style="yellow")) for w in found.warnings)])
    parts: list[RenderableType] = [head]
    printed: set[str] = set()
    for phase, listed in found.phases.items():
        parts.append(Text(f"\n{phase}", style="bold underline"))
        for number, step in enumerate(listed, 1):
            parts.append(Text.assemble((f"{number:>3}. ", "dim"), (step.name, "bold")))
            about: list[tuple[str, RenderableType]] = [("lock", Text(step.lock)), ("why", Text(step.reason))]
            if step.undo and "\n" not in step.undo:
                about.append(("undo", Text(step.undo)))
            if not step.in_transaction:
                about.append(("", Text("stands alone, outside a transaction")))
            parts.append(Padding(Group(facts(about), terminal.sql(_once(step.sql, printed))), (0, 0, 1, 5)))
    following = next_step(migration.name, migration.lifecycle, found.state)
    if found.state == State.PLANNED:
        following = following.rpartition(", then ")[2]
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
_AS_PLANNED = ("SET standard_conforming_strings = on;",)  # else a backslash in a literal would hold it open
_BOUND = ("-- $1, $2: bounds of the keys, bound as values: psql stops here", r"\set ON_ERROR_STOP on")


def plain_sql(steps: Mapping[Phase, Sequence[Step]]) -> str:
    """The statements alone, each with what it is; what reads them does nothing that the plan has not.

    It ends before the first whose keys are bound: nothing is taken away behind a batch that nobody ran.
    """
    lines = [*_AS_PLANNED, ""]
    for phase, listed in steps.items():
        for step in listed:
            bound = _BOUND if "($1::text[])" in step.sql else ()
            # A name may hold the end of a line, and a statement end in a comment.
            end = "\n;" if "--" in step.sql.rpartition("\n")[2] else ";"
            lines += [f"-- {phase}: {in_one_line(step.name)}", *bound, f"{step.sql}{end}", ""]
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
        numbers.append(f"{done.batches:,} batches, {done.rows_per_second:,.0f} rows/s")
        numbers.append(f"{for_people(done.wal_bytes, Unit.BYTES)} WAL")
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
    owner = "" if holds_.is_signal(one.owner) else f"{one.owner}: "  # a signal's reason names the signal
    text = Text.assemble((owner, "bold"), one.reason, style="yellow")
    if one.owner == holds_.WINDOW:
        return text
    whose = ", holds every migration of the database" if one.migration == holds_.EVERY else ""
    since = max(0.0, (datetime.now(UTC) - one.since).total_seconds())
    text.append(f" (for {for_people(since, Unit.SECONDS)}{whose})", style="dim")
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


def status(
    migration: Migration, found: Status, against: Sequence[str] | None, unseen: Sequence[str] = ()
) -> RenderableType:
    """Where a migration stands.

    Args:
        against: what stands against contract; none: no contract is to come.
        unseen: what is not known of who uses the old shape.
    """
    rows: list[tuple[str, RenderableType]] = [
        ("migration", Text(migration.name, style="bold")),
        ("table", Text(f"{migration.table_name} in database {migration.database}")),
        *(
            [("renamed", Text(f"it is called {found.called} now, and goes on under that name", "yellow"))]
            if found.called
            else []
        ),
        ("state", state(found.state)),
        *([("declaration", Text(found.conflict, style="red"))] if found.conflict else []),
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
        retired = f", retired: {kind_of(migration).words(migration).old} is gone" if found.flag.retired else ""
        rows.append(
            ("reads", Text(f"{found.flag.percent} % of keys read the new shape (flag {found.flag.name}{retired})"))
        )
    if found.switched_at is not None:
        kept = as_declared(migration.contract.confidence_window, Unit.SECONDS)
        rows.append(("switched", f"{found.switched_at:%Y-%m-%d %H:%M:%S %Z}, confidence window {kept}"))
    if found.tombstoned_at is not None:
        kept = as_declared(migration.contract.tombstone_window, Unit.SECONDS)
        rows.append(("tombstoned", f"{found.tombstoned_at:%Y-%m-%d %H:%M:%S %Z}, kept for {kept}"))
    rows += [("writes old", Text(who, style="yellow")) for who in found.stragglers]
    if against is not None:
        if against:
            rows += [("contract: no" if not i else "", Text(why)) for i, why in enumerate(against)]
        else:
            rows.append(("contract", Text("nothing stands against it but the comparison of rows", style="green")))
    rows += [("not seen" if not i else "", Text(what, style="dim")) for i, what in enumerate(unseen)]
    rows += [("events" if not i else "", Text(line, style="dim")) for i, line in enumerate(found.events)]
    rows.append(("next", Text(next_step(migration.name, found.lifecycle, found.state))))
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
            owners = ", ".join(holds_.short_owner(one.owner) for one in found.holds)
            stands.append(f", held: {owners}", style="yellow")
        table.add_row(
            migration.name,
            stands,
            f"{found.ranges_done}/{found.ranges}",
            f"{found.rows_moved:,}",
            f"{found.flag.percent} %" if found.flag else "",
            Text(next_step(migration.name, found.lifecycle, found.state)),
        )
    return table
