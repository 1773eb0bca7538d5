"""Rollback: the job that undoes phases, and makes Dagster forget what is no longer true."""

import dagster as dg
from pydantic import Field

from zdm_pipelines.changes import kind_of
from zdm_pipelines.components import books, continuation, jobs
from zdm_pipelines.components.resources import context_of
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.verbs import rollback, status


class RollbackConfig(dg.Config):
    """How far a rollback goes."""

    to: str = Field(
        default=State.ROLLED_BACK.value,
        description="The state to go back to; rolled_back: the database is as it was before the migration began.",
    )
    force: bool = Field(
        default=False,
        description="Remove the new shape though new code wrote it within two minutes, which breaks that code.",
    )


def of_migration(migration: Migration) -> dg.JobDefinition:
    """The rollback job of a migration."""

    def undo(context: dg.OpExecutionContext, config: RollbackConfig) -> None:
        work = status.as_begun(context_of(context, migration))
        begun = work.migration  # whatever the file declares by now
        to = target(begun, config.to)
        if begun.lifecycle.forgets_rows(to):  # what is paused would move the rows again
            for line in continuation.cancel(context.instance, begun):
                context.log.info("%s", line)
        state = rollback.run(work, to=to, force=config.force)
        ranges = status.read_ranges(work) if state != State.ROLLED_BACK else []
        for line in books.correct(context.instance, begun, state, ranges):
            context.log.info(line)
        context.log.info("%s is %s", begun.name, state)

    targets = ", ".join(f"`{to}`" for to in migration.lifecycle.targets)
    description = f"Takes {migration.name} back, phase by phase, to the state `to`: {targets}."
    if migration.lifecycle.has(Phase.CONTRACT):
        description += f" Possible until {kind_of(migration).words(migration).old} is gone for good."
    return jobs.of_verb(migration, "rollback", undo, description)


def target(migration: Migration, given: str) -> State:
    """The state that is meant.

    Raises:
        StateConflict: a rollback does not lead to a state of that name.
    """
    for to in migration.lifecycle.targets:
        if to == given:
            return to
    known = ", ".join(migration.lifecycle.targets)
    raise StateConflict(migration.name, f"cannot be rolled back to {given}", f"choose one of {known}")
