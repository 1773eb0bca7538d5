"""Steer: the verbs for what runs already: pause, resume, tune, flag."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from zdm_pipelines.cli import show, terminal
from zdm_pipelines.cli import tune as tune_
from zdm_pipelines.cli.options import Defs, Every, Json, Name, Owner, braking, one
from zdm_pipelines.cli.terminal import verb
from zdm_pipelines.model import holds
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.values import Hold
from zdm_pipelines.phases import switch_reads
from zdm_pipelines.verbs import pause, status
from zdm_pipelines.verbs import watch as watch_


@verb
def pause_(
    name: Name,
    reason: Annotated[
        str | None, typer.Option("--reason", help="Why, for whoever looks; default: who paused.", show_default=False)
    ] = None,
    owner: Owner = holds.OPERATOR,
    every: Every = False,
    defs: Defs = None,
    json: Json = False,
) -> None:
    """Stop a backfill at its next batch, wherever it runs; it waits until the hold is lifted."""
    context = braking(defs, name)
    standing = pause.pause(context, reason=reason or f"paused by {_user()}", owner=owner, every=every)
    _show_holds(name, standing, json=json)  # whatever else stands against writing: the hold stands


@verb
def resume(
    name: Name, owner: Owner = holds.OPERATOR, every: Every = False, defs: Defs = None, json: Json = False
) -> None:
    """Lift one owner's hold; work goes on when no other stands."""
    context = braking(defs, name)
    if not pause.resume(context, owner=owner, every=every):
        whom = f"database {context.migration.database}" if every else name
        terminal.note(f"{owner} had placed no hold on {whom}")
    _show_holds(name, watch_.against(context), json=json)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return "somebody"


def _show_holds(name: str, standing: Sequence[Hold], *, json: bool) -> None:
    if json:
        terminal.as_json({"migration": name, "holds": [asdict(h) for h in standing]})
    elif standing:
        terminal.show(show.holds(name, standing))
    else:
        terminal.out().print(Text(f"nothing holds {name}", style="green"), soft_wrap=True)


@verb
def tune(
    name: Name,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="As in defs.yaml, such as backfill.batch_rows=500, throttle.nice=1, throttle.latency_p95=null.",
            show_default=False,
        ),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Go back to what is declared.")] = False,
    defs: Defs = None,
    json: Json = False,
) -> None:
    """Change a backfill while it runs, on top of what is declared; without KEY=VALUE, show what holds now."""
    if reset and settings:
        raise typer.BadParameter("--reset goes without KEY=VALUE: it takes back everything that was tuned")
    wanted = tune_.changes(settings or [])
    context = one(defs, name)
    if reset:
        pause.reset(context)
    elif wanted:
        pause.tune(context, wanted)
    now, tuned = pause.settings(context)
    if json:
        terminal.as_json({"migration": name, "settings": now.model_dump(mode="json"), "tuned": tuned})
    else:
        terminal.show(tune_.show(context.migration, now, tuned))


@verb
def flag(
    name: Name,
    percent: Annotated[
        int | None, typer.Argument(min=0, max=100, help="Share of keys that read the new shape.", show_default=False)
    ] = None,
    defs: Defs = None,
    json: Json = False,
) -> None:
    """Show the share of keys that read the new shape, or set it."""
    context = braking(defs, name)
    if percent is not None:
        now = status.read(context).flag
        if now is None or percent > now.percent:
            context = context if percent == 0 else one(defs, name)  # only who raises reads needs a declaration
        switch_reads.run(context, percent=percent)
    found = status.read(context)
    if found.flag is None and percent == 0 and not json:
        terminal.out().print(Text(f"{name} is {found.state}: nobody reads a new shape"), soft_wrap=True)
        return
    if found.flag is None:
        raise StateConflict(
            name, f"is {found.state}: it has no flag", f"next: {show.next_step(name, found.lifecycle, found.state)}"
        )
    if json:
        terminal.as_json({"migration": name, "state": found.state, **asdict(found.flag)})
    else:
        said = f"{found.flag.name} is at {found.flag.percent} %, {name} is {found.state}"
        terminal.out().print(Text(said), soft_wrap=True)
