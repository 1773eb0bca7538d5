"""Lost runs: find runs whose process is gone though Dagster shows them as started, and runs that do not come on.

The launcher reports a worker that dies under it. Nobody reports one that died with its machine, or with the server
that started it; but its session in the database is gone, and that is seen here.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import dagster as dg

from zdm_pipelines.components import continuation, dagster_internals
from zdm_pipelines.model.errors import ZdmError
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.verbs import Context, watch

_EVERY = 20  # seconds
_LOST_AFTER = 60.0  # seconds without a session: a database that restarts takes all sessions with it for a moment
_STUCK_AFTER = 600.0  # seconds without a batch while nothing stands against writing

Seen = dict[str, float]  # by run or migration: since when


def of_database(database: Database, migrations: Sequence[Migration]) -> dg.SensorDefinition:
    """The sensor of a database."""

    @dg.sensor(
        name=f"lost_runs_{database.name}",
        minimum_interval_seconds=_EVERY,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Fails backfill runs of database {database.name} whose process is gone, so that Dagster starts "
        "them again, and warns in the log of those that do not come on though nothing stands against writing.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        before: dict[str, Seen] = json.loads(context.cursor or "{}")
        after: dict[str, Seen] = {"silent": {}, "idle": {}}
        lines: list[str] = []
        for migration in migrations:
            runs = _started(context.instance, migration)
            if not runs:
                continue
            try:
                work = Context.of(migration, database.url(), database=database)
                life = watch.life(work, list(runs))
                held = bool(watch.against(work))
            except ZdmError as error:
                # Nothing is known, so nothing is done; what was seen before the database went away is void.
                lines.append(str(error))
                break
            lines += _lost(context.instance, runs, life, before.get("silent", {}), after["silent"])
            lines += _stuck(context.instance, migration, runs, life, held, before.get("idle", {}), after["idle"])
        return dg.SensorResult(cursor=json.dumps(after), skip_reason="; ".join(lines) or "every run lives")

    return sensor


def _started(instance: dg.DagsterInstance, migration: Migration) -> dict[str, dg.DagsterRun]:
    tags = {continuation.MIGRATION: migration.name, continuation.PHASE: str(migration.lifecycle.row_phase)}
    found = dagster_internals.find_runs(instance, tags, statuses=[dg.DagsterRunStatus.STARTED])
    return {run.run_id: run for run in found}


def _lost(
    instance: dg.DagsterInstance, runs: dict[str, dg.DagsterRun], life: watch.Life, before: Seen, after: Seen
) -> list[str]:
    lines, now = [], time.time()
    for run_id in life.dead:
        since = after[run_id] = before.get(run_id, now)
        if now - since >= _LOST_AFTER:
            silence = f"Its process is gone: no session of it in the database for {now - since:.0f} s."
            dagster_internals.fail_run(instance, runs[run_id], silence)
            lines.append(f"run {run_id} is lost and was failed")
        else:
            lines.append(f"run {run_id} shows no session for {now - since:.0f} s")
    return lines


def _stuck(
    instance: dg.DagsterInstance,
    migration: Migration,
    runs: dict[str, dg.DagsterRun],
    life: watch.Life,
    held: bool,
    before: Seen,
    after: Seen,
) -> list[str]:
    now = time.time()
    known, moment = f"{migration.name}:{life.batches}", f"{migration.name}:told:{life.batches}"
    if held:
        return []
    since = after[known] = before.get(known, now)
    if moment in before:
        after[moment] = before[moment]
    if now - since < _STUCK_AFTER:
        return []
    line = f"{migration.name} has written no batch for {now - since:.0f} s though nothing stands against writing"
    if moment not in before:
        after[moment] = now
        for run in runs.values():
            said = f"{line}. Its log says what it waits for; cancelled, it can be resumed."
            dagster_internals.log_in_run(instance, run, said)
    return [line]
