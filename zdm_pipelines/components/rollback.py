"""Rollback: the job that undoes phases, and makes Dagster forget what is no longer true."""

from enum import StrEnum

import dagster as dg
from pydantic import Field

from zdm_pipelines.components import books, continuation, database, jobs
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.phases import rollback, status


class Target(StrEnum):
    """Where to go back to; run configuration takes the names, so they are the same as the values."""

    switched = "switched"
    validated = "validated"
    backfilled = "backfilled"
    expanded = "expanded"
    rolled_back = "rolled_back"


class RollbackConfig(dg.Config):
    """What to undo."""

    to: Target = Field(
        default=Target.rolled_back,
        description="The state to go back to; rolled_back: the table is as it was before expand.",
    )
    force: bool = Field(
        default=False,
        description="Remove the new column though new code wrote it within two minutes, which breaks that code.",
    )


def of_migration(migration: Migration) -> dg.JobDefinition:
    """The rollback job of a migration."""

    def undo(context: dg.OpExecutionContext, config: RollbackConfig) -> None:
        url = database.of(context, migration).url()
        if config.to in (Target.expanded, Target.rolled_back):  # what is paused would move the rows again
            for line in continuation.cancel(context.instance, migration):
                context.log.info("%s", line)
        state = rollback.run(migration, url, to=State(config.to.value), force=config.force, tell=context.log.info)
        ranges = status.of_ranges(migration, url) if state != State.ROLLED_BACK else []
        for line in books.correct(context.instance, migration, state, ranges):
            context.log.info(line)
        context.log.info("%s is %s", migration.name, state)

    description = (
        f"Takes {migration.name} back, phase by phase, to the state `to`. Possible until contract has dropped "
        f"`{migration.change.old}`."
    )
    return jobs.of_verb(migration, "rollback", undo, description)
