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
from zdm_pipelines.changes import kind_of, overview
from zdm_pipelines.cli import dev as dev_
from zdm_pipelines.cli import doctor as doctor_
from zdm_pipelines.cli import show, steer, terminal
from zdm_pipelines.cli.options import Defs, Json, MaybeName, Name, Yes, braking, one, read
from zdm_pipelines.cli.run import Walk
from zdm_pipelines.cli.terminal import DONE, FAILED, INTERRUPTED, verb
from zdm_pipelines.model.errors import SpecError, StateConflict, ZdmError
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Status
from zdm_pipelines.phases import contract
from zdm_pipelines.verbs import Context, rollback, status
from zdm_pipelines.verbs import doctor as examination
from zdm_pipelines.verbs import plan as plan_
from zdm_pipelines.verbs import watch as watch_

app = typer.Typer(
    help="Zero-downtime database migrations: the verbs of a migration without Dagster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # pretty tracebacks show local variables, and passwords may be among these
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
    """Where a run without --phase may stop."""

    EXPAND = "expand"
    BACKFILL = "backfill"
    VALIDATE = "validate"


def main() -> None:
    """Run the command `zdm`."""
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
def kinds(
    markdown: Annotated[bool, typer.Option("--markdown", help="The table as docs/kinds.md has it.")] = False,
    json: Json = False,
) -> None:
    """What can be changed: every kind, its phases, and until when it can be undone. Touches no database."""
    if markdown:
        typer.echo(overview.markdown(), nl=False)
    elif json:
        terminal.as_json([asdict(row) for row in overview.rows()])
    else:
        terminal.show(show.kinds(overview.rows()))


@app.command()
@verb
def plan(
    name: Name,
    sql: Annotated[bool, typer.Option("--sql", help="The statements alone.")] = False,
    defs: Defs = None,
    json: Json = False,
) -> None:
    """The dry run: every statement of every phase, with its lock and its reason. Changes nothing."""
    context = one(defs, name)
    if status.read(context).state == State.CONTRACTED:
        raise StateConflict(name, "is contracted", "it is finished: there is nothing left to plan")
    found = plan_.read(context)
    if sql:
        typer.echo(show.plain_sql(found.phases))
    elif json:
        terminal.as_json(
            {
                "migration": name,
                "state": found.state,
                "table": str(found.catalog.table),
                "rows": found.rows,
                "bytes": found.catalog.bytes,
                "ranges": found.ranges,
                "environment": found.catalog.environment,
                "warnings": found.warnings,
                "phases": {phase: [asdict(step) for step in listed] for phase, listed in found.phases.items()},
            }
        )
    else:
        terminal.show(show.plan(context.migration, found))


@app.command()
@verb
def doctor(name: MaybeName = None, defs: Defs = None, json: Json = False) -> None:
    """Look at everything a migration needs: variables, role, privileges, table, ledger, signals. Changes nothing."""
    found = read(defs)
    migrations = [found.migration(name)] if name else list(found.migrations.values())
    findings = [] if name else [examination.problem(p) for p in found.problems]
    for database in found.databases.values():
        mine = [m for m in migrations if m.database == database.name]
        if mine or not name:
            findings += examination.examine(database, mine)
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


def _stands(context: Context) -> Status:
    """Where it stands; while rows are to be moved, a maintenance window that is closed is a hold like any other."""
    found = status.read(context)
    if found.lifecycle.finished(found.state):
        return replace(found, holds=())
    waits = found.lifecycle.watched | {State.PLANNED, State.ROLLED_BACK}
    return replace(found, holds=tuple(watch_.against(context))) if found.state in waits else found


def _against(context: Context, found: Status) -> list[str] | None:
    """What stands against contract; None: there is no contract to come."""
    if not found.lifecycle.has(Phase.CONTRACT) or found.lifecycle.finished(found.state):
        return None
    return contract.refusals(context)


def _unseen(context: Context, found: Status) -> list[str]:
    """What is not known of who uses the old shape, when contract is what comes next."""
    return contract.unseen(context) if found.lifecycle.awaits_contract(found.state) else []


def _document(found: Status) -> dict[str, Any]:
    """A status for scripts; the lifecycle is a rule of ours, and no fact of the migration."""
    return {key: value for key, value in asdict(found).items() if key != "lifecycle"}


def _status_of_one(defs: Path | None, name: str, *, json: bool) -> Iterator[tuple[RenderableType, Any]]:
    context = braking(defs, name)
    while True:
        found = _stands(context)
        against = _against(context, found)
        unseen, following = _unseen(context, found), show.next_step(name, found.lifecycle, found.state)
        yield (
            "" if json else show.status(context.migration, found, against, unseen),
            {**_document(found), "against_contract": against or [], "unseen": unseen, "next": following},
        )


def _status_of_all(defs: Path | None, *, json: bool) -> Iterator[tuple[RenderableType, Any]]:
    declared = read(defs)
    if declared.problems:
        terminal.note(f"{len(declared.problems)} declarations are wrong: zdm list says what")
    while True:
        rows: list[tuple[Migration, Status | str]] = []
        for migration in declared.migrations.values():
            try:
                rows.append((migration, _stands(declared.context(migration))))
            except ZdmError as error:
                rows.append((migration, str(error)))
        document = [{"migration": m.name, "error": s} if isinstance(s, str) else _document(s) for m, s in rows]
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
    # Whoever brings reads back needs no declaration.
    context = braking(defs, name) if percent == 0 else one(defs, name)
    phases = _phases(context, phase.phase if phase else None, Phase(str(to)) if to else None)
    if phase is PhaseName.CONTRACT:
        _before_contract(context, yes=yes)
    walk = Walk(context, partitions=partition or None, repair=repair, percent=percent, full=full, quiet=json)
    try:
        walk.run(phases)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if json:
            terminal.as_json([asdict(r) for r in walk.reports])
    if not json:
        last = walk.reports[-1].state
        terminal.out().print(Text(f"Next: {show.next_step(name, context.lifecycle, last)}", style="green"))


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


def _phases(context: Context, phase: Phase | None, to: Phase | None) -> list[Phase]:
    """The phases to walk: the one that is named, or those that need no word of their own.

    Raises:
        StateConflict: the change has no such phase.
    """
    known, unattended = context.lifecycle.phases, context.lifecycle.unattended
    if (named := phase or to) is not None and named not in known:
        has = ", ".join(p.replace("_", "-") for p in known)
        kind = context.migration.change.kind
        raise StateConflict(context.name, f"is a {kind}, which has no phase {named.replace('_', '-')}", f"it has {has}")
    if phase is not None:
        return [phase]
    if not unattended:
        first = known[0].replace("_", "-")
        raise StateConflict(context.name, f"begins with {first}, which runs only when named", f"say --phase {first}")
    return list(unattended[: unattended.index(to) + 1] if to else unattended)


def _before_contract(context: Context, *, yes: bool) -> None:
    """What takes something away for good cannot be undone."""
    now = status.read(context).state
    if context.lifecycle.takes_for_good(now) and not contract.refusals(context):
        _ask(kind_of(context.migration).words(context.migration).last, yes=yes)


def _ask(question: str, *, yes: bool) -> None:
    """Ask on a terminal; a script says --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise SpecError(question, "there is no terminal to ask at", "say --yes")
    if not typer.confirm(f"{question}. Go on?", err=True):
        terminal.note("nothing was changed")
        raise typer.Exit(FAILED)


@app.command("rollback")
@verb
def rollback_(
    name: Name,
    to: Annotated[State, typer.Option("--to", help="The state to go back to.", metavar="STATE")],
    force: Annotated[
        bool, typer.Option("--force", help="Also while new code writes the new shape, which breaks that code.")
    ] = False,
    yes: Yes = False,
    defs: Defs = None,
    json: Json = False,
) -> None:
    """Undo phases, back to an earlier state; rolled_back leaves the schema as it was before."""
    context = status.as_begun(braking(defs, name))
    now, target = status.read(context).state, State(str(to))
    steps = rollback.undone(context, now, target)
    if steps:
        listed = Group(Text(f"{name} is {now}. On the way to {target}:"), *(Text(f"  - {step}") for step in steps))
        terminal.err().print(listed, soft_wrap=True)
        _ask(f"{name} is rolled back to {target}", yes=yes)
    reached = rollback.run(context.telling(terminal.statements()), to=target, force=force)
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
