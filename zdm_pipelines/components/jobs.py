"""Jobs: a verb of a migration as a job of one op, which the UI launches with one click."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg

from zdm_pipelines.components import keys
from zdm_pipelines.components.failures import readable
from zdm_pipelines.components.resources import resource_key
from zdm_pipelines.model.migration import Migration


def of_verb(migration: Migration, verb: str, work: Callable[..., None], description: str) -> dg.JobDefinition:
    """The job `<verb>_<name>`, which is in no pool: a verb must not wait behind the runs that it steers.

    Args:
        work: takes the op's context and its config; an annotated dg.Config.
    """

    def op_(context: dg.OpExecutionContext, config: Any) -> None:
        with readable():
            work(context, config)

    op_.__annotations__ = dict(work.__annotations__)  # by which Dagster knows the config
    op = dg.op(
        name=keys.op_name(migration, verb),
        required_resource_keys={resource_key(migration.database)},
        out=dg.Out(dg.Nothing, is_required=False),
    )(op_)

    @dg.job(
        name=f"{verb}_{migration.name}",
        description=description,
        tags={"zdm/migration": migration.name},
        executor_def=dg.in_process_executor,
    )
    def job() -> None:
        op()

    return job
