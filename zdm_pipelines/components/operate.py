"""Operate: the jobs that pause, resume and tune a migration from the UI, with one click."""

from typing import Any

import dagster as dg
import yaml
from pydantic import Field

from zdm_pipelines.components import jobs, pools
from zdm_pipelines.components.resources import context_of
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.holds import EVERY
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Hold
from zdm_pipelines.verbs import pause, watch


class PauseConfig(dg.Config):
    """Why the migration is paused, and by whom."""

    reason: str = Field(default="paused in the UI", description="Shown wherever the hold is shown.")
    owner: str = Field(default="operator", description="Whose hold it is: the same owner lifts it.")
    database: bool = Field(default=False, description="Pause every migration of the database.")


class ResumeConfig(dg.Config):
    """Whose hold is lifted."""

    owner: str = Field(default="operator", description="Lifts the hold of this owner, and no other.")
    database: bool = Field(default=False, description="Lift a hold on every migration of the database.")


class TuneConfig(dg.Config):
    """What to change while it runs."""

    settings: str = Field(
        default="",
        description="YAML as in defs.yaml: backfill: {batch_rows: 500}, throttle: {nice: 1}. It stays until reset.",
    )
    reset: bool = Field(default=False, description="First go back to what is declared.")


def of_migration(migration: Migration) -> list[dg.JobDefinition]:
    """The jobs pause_<name>, resume_<name> and tune_<name>; none without row work, whose batches alone heed a hold."""
    if migration.lifecycle.row_phase is None:
        return []

    def pause_(context: dg.OpExecutionContext, config: PauseConfig) -> None:
        work = context_of(context, migration)
        standing = pause.pause(work, reason=config.reason, owner=config.owner, every=config.database)
        pools.shut(context.instance, migration)
        for hold in standing:
            context.log.info("held by %s%s: %s", hold.owner, _scope(hold), hold.reason)

    def resume(context: dg.OpExecutionContext, config: ResumeConfig) -> None:
        work = context_of(context, migration)
        pause.resume(work, owner=config.owner, every=config.database)
        against = watch.against(work)
        for hold in against:
            context.log.warning("still held by %s%s: %s", hold.owner, _scope(hold), hold.reason)
        if not against:
            pools.widen(context.instance, migration)
            context.log.info("nothing stands against writing any more")

    def tune(context: dg.OpExecutionContext, config: TuneConfig) -> None:
        work = context_of(context, migration)
        if config.reset:
            pause.reset(work)
        if config.settings.strip():
            pause.tune(work, _parsed(migration, config.settings))
        settings, tuned = pause.settings(work)
        context.log.info("tuned: %s", yaml.safe_dump(tuned) if tuned else "nothing")
        # Of signals of one's own only the limits are for the log.
        shown = settings.model_dump(mode="json", exclude={"throttle": {"sql": {"__all__": {"query"}}, "http": _ASKED}})
        context.log.info("what holds now:\n%s", yaml.safe_dump(shown, sort_keys=False))

    name = migration.name
    return [
        jobs.of_verb(
            migration, "pause", pause_, f"Stops the row work of {name} at its next batch, until it is resumed."
        ),
        jobs.of_verb(migration, "resume", resume, f"Lifts an operator's hold on {name}; others, of signals say, stay."),
        jobs.of_verb(migration, "tune", tune, f"Changes batch size, rest and limits of {name} while it works."),
    ]


_ASKED = {"__all__": {"url", "query", "token_env"}}


def _scope(hold: Hold) -> str:
    return " on the whole database" if hold.migration == EVERY else ""


def _parsed(migration: Migration, text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{migration.name} settings", f"are no YAML ({error})", "write as in defs.yaml") from None
    if not isinstance(found, dict):
        raise SpecError(f"{migration.name} settings", "are no sections", "write as backfill: {batch_rows: 500}")
    return found
