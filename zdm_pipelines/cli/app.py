"""App: what can be said to `zdm`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from zdm_pipelines import project
from zdm_pipelines.cli import dev as dev_
from zdm_pipelines.cli import doctor as doctor_
from zdm_pipelines.cli import show, steer, terminal
from zdm_pipelines.cli.options import Defs, Json, MaybeName, Name, Yes, one, read
from zdm_pipelines.cli.run import UNATTENDED, Walk
from zdm_pipelines.cli.terminal import DONE, FAILED, INTERRUPTED, verb
from zdm_pipelines.model.errors import SpecError, StateConflict, ZdmError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Status
from zdm_pipelines.phases import contract, preflight, rollback, status
from zdm_pipelines.phases import watch as watch_

app = typer.Typer(
    help="Zero-downtime database migrations: the verbs of a migration without Dagster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # they show local variables, and with them what must not be shown
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class PhaseName(StrEnum):
    """Phases as they are typed."""

    EXPAND = "expand"
    BACKFILL = "backfill"
    VALIDATE = "validate"
    SWITCH_READS = "switch-reads"
    CONTRACT = "contract"

    @property
    def phase(self) -> Phase:
        """The phase that is meant."""
        return Phase(self.value.replace("-", "_"))


class Last(StrEnum):
    """Where a run without --phase may stop; `UNATTENDED`, as they are typed."""

    EXPAND = "expand"
    BACKFILL = "backfill"
    VALIDATE = "validate"


class Target(StrEnum):
    """States that a rollback leads to; `rollback.TARGETS`, as they are typed."""

    SWITCHED = "switched"
    VALIDATED = "validated"
    BACKFILLED = "backfilled"
    EXPANDED = "expanded"
    ROLLED_BACK = "rolled_back"


def main() -> None:
    """The command."""
    terminal.stop_when_told()
    app()


# -- looking ----------------------------------------------------------------------------------------------------------


@app.command("list")
@verb
def list_(defs: Defs = None, json: Json = False) -> None:
    """What is declared, and what is wrong with it. Touches no database."""
    found = read(defs)
    if json:
        terminal.as_json(
            {
                "defs": str(found.folder),
                "migrations": [
                    {**m.model_dump(), "declared_at": str(found.places[name])} for name, m in found.migrations.items()
                ],
                "databases": [{"name": d.name, "variable": d.variable} for d in found.databases.values()],
                "problems": [str(p) for p in found.problems],
            }
        )
    else:
        terminal.show(show.project(found) if found.migrations else "no migration is declared")
        for database in found.databases.values():
            terminal.out().print(f"database {database.name}: URL in {database.variable}", style="dim")
    found.require_sound()


@app.command()
@verb
def plan(
    name: Name,
    sql: Annotated[bool, typer.Option("--sql", help="The statements alone.")] = False,
    defs: Defs = None,
    json: Json = False,
) -> None:
    """The dry run: every statement of every phase, with its lock and its reason. Changes nothing."""
    _, migration, url = one(defs, name)
    now = status.read(migration, url).state
    if now == State.CONTRACTED:
        raise StateConflict(name, "is contracted", "it is finished: there is nothing left to plan")
    catalog = preflight.catalog_of(url, migration)
    steps = preflight.plan(migration, catalog)
    rows = preflight.size(url, catalog)
    if sql:
        typer.echo(show.plain_sql(steps))
    elif json:
        terminal.as_json(
            {
                "migration": name,
                "state": now,
                "table": str(catalog.table),
                "rows": rows,
                "bytes": catalog.bytes,
                "ranges": show.expected_ranges(migration, rows),
                "warnings": catalog.warnings,
                "phases": {phase: [asdict(step) for step in listed] for phase, listed in steps.items()},
            }
        )
    else:
        terminal.show(show.plan(migration, catalog, rows, now, steps))


@app.command()
@verb
def doctor(name: MaybeName = None, defs: Defs = None, json: Json = False) -> None:
    """Look at everything a migration needs: variables, role, privileges, table, ledger, signals. Changes nothing."""
    found = read(defs)
    migrations = [found.migration(name)] if name else list(found.migrations.values())
    findings = [] if name else [doctor_.problem(p) for p in found.problems]
    for database in found.databases.values():
        mine = [m for m in migrations if m.database == database.name]
        if mine or not name:
            findings += doctor_.examine(database, mine)
    if not findings:
        raise SpecError(str(found.folder), "declares nothing", "see docs/configuration.md")
    if json:
        terminal.as_json([asdict(f) for f in findings])
    else:
        terminal.show(doctor_.show(findings))
    if bad := sum(f.verdict == "problem" for f in findings):
        terminal.fail(f"{bad} {'problem' if bad == 1 else 'problems'} found", status=FAILED)


@app.command("status")
@verb
def status_(
    name: MaybeName = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every second, until Ctrl-C.")] = False,
    defs: Defs = None,
    json: Json = False,
) -> None:
    """Where a migration stands, and what stands against contract; without a name, one line for each."""
    if watch and json:
        raise typer.BadParameter("--watch is for people, --json for scripts")
    look = _status_of_all(defs, json=json) if name is None else _status_of_one(defs, name, json=json)
    if not watch:
        shown, document = next(look)
        if json:
            terminal.as_json(document)
        else:
            terminal.show(shown)
        if name is None and any("error" in one for one in document):
            raise typer.Exit(FAILED)
    else:
        try:
            with Live(next(look)[0], console=terminal.out(), auto_refresh=False) as live:
                for shown, _ in look:
                    time.sleep(1)
                    live.update(shown, refresh=True)
        except KeyboardInterrupt:
            raise typer.Exit(DONE) from None


_UNMOVED = {State.PLANNED, State.EXPANDED, State.BACKFILLING, State.ROLLED_BACK}


def _stands(migration: Migration, url: str) -> Status:
    """Where it stands; while rows are to be moved, a maintenance window that is closed is a hold like any other."""
    found = status.read(migration, url)
    if found.state == State.CONTRACTED:
        return replace(found, holds=())
    return replace(found, holds=tuple(watch_.against(migration, url))) if found.state in _UNMOVED else found


def _status_of_one(defs: Path | None, name: str, *, json: bool) -> Iterator[tuple[RenderableType, Any]]:
    _, migration, url = one(defs, name)
    while True:
        found = _stands(migration, url)
        against = [] if found.state == State.CONTRACTED else contract.refusals(migration, url)
        yield (
            "" if json else show.status(migration, found, against),
            {**asdict(found), "against_contract": against, "next": show.next_step(name, found.state)},
        )


def _status_of_all(defs: Path | None, *, json: bool) -> Iterator[tuple[RenderableType, Any]]:
    declared = read(defs)
    if declared.problems:
        terminal.note(f"{len(declared.problems)} declarations are wrong: zdm list says what")
    while True:
        rows: list[tuple[Migration, Status | str]] = []
        for migration in declared.migrations.values():
            try:
                rows.append((migration, _stands(migration, declared.url(migration))))
            except ZdmError as error:
                rows.append((migration, str(error)))
        document = [{"migration": m.name, "error": s} if isinstance(s, str) else asdict(s) for m, s in rows]
        yield "" if json else show.overview(rows), document


# -- doing ------------------------------------------------------------------------------------------------------------


@app.command()
@verb
def run(
    name: Name,
    phase: Annotated[
        PhaseName | None,
        typer.Option("--phase", help="This phase alone; default: expand, backfill and validate, in this order."),
    ] = None,
    to: Annotated[Last | None, typer.Option("--to", help="Without --phase: the last phase to run.")] = None,
    partition: Annotated[
        list[str] | None,
        typer.Option("--partition", help="With --phase backfill: this range, done or not; repeatable."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --phase backfill: rows that disagree are taken from the old shape.")
    ] = False,
    full: Annotated[
        bool,
        typer.Option("--full", help="With --phase validate: compare also what nobody wrote since it was compared."),
    ] = False,
    percent: Annotated[
        int | None,
        typer.Option("--percent", min=0, max=100, help="With --phase switch-reads; default: the next of the ramp."),
    ] = None,
    yes: Yes = False,
    defs: Defs = None,
    json: Json = False,
) -> None:
    """Run phases. Running again goes on where it stopped; reads and contract only run when named."""
    _check_options(phase, to=to, partition=partition, repair=repair, full=full, percent=percent)
    found, migration, url = one(defs, name)
    if phase is PhaseName.CONTRACT:
        _before_contract(migration, url, yes=yes)
    phases = [phase.phase] if phase else list(UNATTENDED[: UNATTENDED.index(Phase(str(to))) + 1] if to else UNATTENDED)
    walk = Walk(
        migration, url, found.databases[migration.database],
        partitions=partition or None, repair=repair, percent=percent, full=full, quiet=json,
    )  # fmt: skip
    try:
        walk.run(phases)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if json:
            terminal.as_json([asdict(r) for r in walk.reports])
    if not json:
        last = walk.reports[-1].state
        terminal.out().print(Text(f"Next: {show.next_step(name, last)}", style="green"))


def _check_options(
    phase: PhaseName | None,
    *,
    to: object,
    partition: Sequence[str] | None,
    repair: bool,
    full: bool,
    percent: int | None,
) -> None:
    if phase and to:
        raise typer.BadParameter("--to goes without --phase: it says where to stop")
    if (partition or repair) and phase is not PhaseName.BACKFILL:
        raise typer.BadParameter("--partition and --repair need --phase backfill")
    if full and phase is not PhaseName.VALIDATE:
        raise typer.BadParameter("--full needs --phase validate")
    if percent is not None and phase is not PhaseName.SWITCH_READS:
        raise typer.BadParameter("--percent needs --phase switch-reads")


def _before_contract(migration: Migration, url: str, *, yes: bool) -> None:
    """The drop is the one thing that cannot be undone."""
    if status.read(migration, url).state == State.TOMBSTONED and not contract.refusals(migration, url):
        _ask(f"Column {migration.change.old} of {migration.table_name} is dropped now, for good", yes=yes)


def _ask(question: str, *, yes: bool) -> None:
    """Ask on a terminal; a script says --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise SpecError(question, "there is no terminal to ask at", "say --yes")
    if not typer.confirm(f"{question}. Go on?", err=True):
        terminal.note("nothing was changed")
        raise typer.Exit(FAILED)


_UNDONE = {
    State.SWITCHED: "the old column {old} comes back under its name",
    State.VALIDATED: "all reads go back to the old shape (flag {flag} to 0 %)",
    State.BACKFILLED: "constraints and indexes on {new} are removed",
    State.EXPANDED: "the progress of the backfill is forgotten; the values stay, and stay in sync",
    State.ROLLED_BACK: "column {new} is dropped with its values, and the sync triggers and the flag with it",
}
_FIRST_UNDO = {
    State.TOMBSTONED: State.SWITCHED,
    State.SWITCHED: State.VALIDATED,
    State.SWITCHING: State.VALIDATED,
    State.VALIDATED: State.BACKFILLED,
    State.BACKFILLED: State.BACKFILLED,
    State.BACKFILLING: State.EXPANDED,
    State.EXPANDED: State.ROLLED_BACK,
}


def undone(migration: Migration, now: State, to: State) -> list[str]:
    """What a rollback takes back, in order; empty when there is nothing, or it cannot be."""
    names = {"old": migration.change.old, "new": migration.change.new.name, "flag": migration.flag}
    targets = list(rollback.TARGETS)
    if now not in _FIRST_UNDO:
        return []
    return [_UNDONE[t].format(**names) for t in targets[targets.index(_FIRST_UNDO[now]) : targets.index(to) + 1]]


@app.command("rollback")
@verb
def rollback_(
    name: Name,
    to: Annotated[Target, typer.Option("--to", help="The state to go back to.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also while new code writes the new shape, which breaks that code.")
    ] = False,
    yes: Yes = False,
    defs: Defs = None,
    json: Json = False,
) -> None:
    """Undo phases, back to an earlier state; rolled_back leaves the schema as it was before."""
    _, migration, url = one(defs, name)
    now, target = status.read(migration, url).state, State(str(to))
    steps = undone(migration, now, target)
    if steps:
        listed = Group(Text(f"{name} is {now}. On the way to {target}:"), *(Text(f"  - {step}") for step in steps))
        terminal.err().print(listed, soft_wrap=True)
        _ask(f"{name} is rolled back to {target}", yes=yes)
    reached = rollback.run(migration, url, to=target, force=force, tell=terminal.statements())
    if json:
        terminal.as_json({"migration": name, "before": now, "state": reached, "undone": steps})
    else:
        done = f"{name} is {reached}" + ("" if steps else ": there was nothing to undo")
        terminal.out().print(Text(done, style="green"), soft_wrap=True)


for _name, _verb in (("pause", steer.pause_), ("resume", steer.resume), ("tune", steer.tune), ("flag", steer.flag)):
    app.command(_name)(_verb)


@app.command()
@verb
def dev(
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=1, max=65535, help="Of the web UI; default: 3000, or a free one.", show_default=False
        ),
    ] = None,
    storage_url: Annotated[
        str | None,
        typer.Option(
            "--storage-url",
            envvar="DAGSTER_POSTGRES_URL",
            show_envvar=True,
            show_default=False,
            help="Dagster's own Postgres database; default: an embedded one in .zdm/dev.",
        ),
    ] = None,
    defs: Defs = None,
) -> None:
    """Dagster's web UI and daemon with your migrations, until Ctrl-C."""
    dev_.serve(project.find(defs), port=port, storage_url=storage_url)
