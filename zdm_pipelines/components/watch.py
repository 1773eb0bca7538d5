"""Watch: a database's sensors and its resume schedule, which keep watch while nobody looks.

Runs look after themselves: their governors stop them within a second. What stands here makes it visible, keeps new
runs from starting while a hold stands, and lets them start again when none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dagster as dg

from zdm_pipelines.components import continuation, keys, lost_runs, pools
from zdm_pipelines.model.errors import ZdmError
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.model.values import Verdict
from zdm_pipelines.verbs import Context, watch

_SENSOR_SECONDS = 10  # a plot worth looking at; runs themselves look twice a second


def of_database(database: Database, migrations: Sequence[Migration]) -> dg.Definitions:
    """One sensor for each signal that some migration declares, one for lost runs, and the schedule that resumes."""
    if not migrations:
        return dg.Definitions()
    watched = {
        name: limit.unit
        for migration in migrations
        for name, limit in migration.throttle.watched(replicas=bool(database.replicas)).items()
        if migration.lifecycle.row_phase is not None
    }
    return dg.Definitions(
        assets=[_spec(database, name, str(unit)) for name, unit in watched.items()],
        sensors=[
            *(_sensor(database, name, migrations) for name in watched),
            lost_runs.of_database(database, migrations),
        ],
        schedules=[_resume(database, migrations)],
    )


def _context(database: Database, migration: Migration) -> Context:
    return Context.of(migration, database.url(), database=database)


def signal_key(database: Database, signal: str) -> dg.AssetKey:
    """The asset whose observations are a signal's readings."""
    return dg.AssetKey([database.name, signal])


def _spec(database: Database, signal: str, unit: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        signal_key(database, signal),
        group_name=f"{database.name}_signals",
        description=f"Readings of `{signal}`{f' in {unit}' if unit else ''} while a backfill moves rows in "
        f"`{database.name}`. Above its limit, the backfill is held.",
        kinds={"postgres"},
    )


def _sensor(database: Database, signal: str, migrations: Sequence[Migration]) -> dg.SensorDefinition:
    mine = [m for m in migrations if signal in m.throttle.watched(replicas=bool(database.replicas))]

    @dg.sensor(
        name=f"{database.name}_{signal}",
        minimum_interval_seconds=_SENSOR_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Reads {signal} of database {database.name} while a backfill moves rows; places and lifts its "
        "hold, and lets runs of a migration start only while nothing stands against writing.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        events: list[dg.AssetObservation | dg.AssetMaterialization | dg.AssetCheckEvaluation] = []
        lines: list[str] = []
        for migration, state in _begun(context.instance, database, mine, lines):
            if state not in migration.lifecycle.watched:
                continue
            try:
                look = watch.look(_context(database, migration), only=[signal])
            except ZdmError as error:
                pools.shut(context.instance, migration)
                lines.append(f"{migration.name} is held: {error}")
                continue
            if look.state == migration.lifecycle.moving:
                events += [_observation(database, migration, verdict) for verdict in look.verdicts]
            if look.state in migration.lifecycle.watched:
                lines.append(follow(context.instance, migration, look))
        for line in lines:
            context.log.info("%s", line)
        return dg.SensorResult(asset_events=events, skip_reason="; ".join(lines) or "no backfill is under way")

    return sensor


def _begun(
    instance: dg.DagsterInstance, database: Database, migrations: Sequence[Migration], lines: list[str]
) -> list[tuple[Migration, State]]:
    """The migrations that were begun in this Dagster, and where they stand, asked with one question.

    A database that does not answer is not asked again for each of them: nothing more is let through.
    """
    known = [m for m in migrations if pools.limit(instance, m) is not None]
    if not known:
        return []
    try:
        states = watch.states(database.url(), [m.name for m in known])
    except ZdmError as error:
        for migration in known:
            pools.shut(instance, migration)
        lines.append(f"nothing is let through: {error}")
        return []
    return [(m, states.get(m.name, State.PLANNED)) for m in known]


def _observation(database: Database, migration: Migration, verdict: Verdict) -> dg.AssetObservation:
    reading = verdict.reading
    facts: dict[str, Any] = {"held": "yes" if verdict.bad else "no", "migration": migration.name}
    if reading.value is not None:
        facts["value"] = dg.MetadataValue.float(round(reading.value, 6))
    if reading.source:
        facts["of"] = reading.source
    return dg.AssetObservation(signal_key(database, reading.signal), description=verdict.reason, metadata=facts)


def follow(instance: dg.DagsterInstance, migration: Migration, look: watch.Look) -> str:
    """Let runs start, or not, as the holds say; what that came to, as a line."""
    if look.against:
        pools.shut(instance, migration)
        return f"{migration.name} is held: " + "; ".join(f"{h.reason} ({h.owner})" for h in look.against)
    widened = pools.widen(instance, migration)
    told = f"; {pools.limit(instance, migration)} runs at once" if widened else ""
    return f"{migration.name}: {', '.join(v.reason for v in look.verdicts) or 'nothing stands against writing'}{told}"


def _resume(database: Database, migrations: Sequence[Migration]) -> dg.ScheduleDefinition:
    # Dagster wants a target, of assets that are partitioned alike; this schedule launches nothing itself.
    plans = [keys.asset_key(migration, keys.PLAN) for migration in migrations]

    @dg.schedule(
        name=f"resume_{database.name}",
        cron_schedule="* * * * *",
        target=dg.AssetSelection.assets(*plans),
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Lets paused backfills of database {database.name} go on once nothing stands against writing: "
        "each from its checkpoints, as part of the backfill it belongs to.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> dg.SkipReason:
        lines: list[str] = []
        for migration, state in _begun(context.instance, database, migrations, lines):
            if not migration.lifecycle.active(state):
                pools.widen(context.instance, migration)  # what holds a backfill must not keep expand from running
                continue
            try:
                look = watch.look(_context(database, migration))
            except ZdmError as error:
                pools.shut(context.instance, migration)
                lines.append(f"{migration.name} is held: {error}")
                continue
            if look.against or state in migration.lifecycle.watched:
                lines.append(follow(context.instance, migration, look))
            else:
                pools.widen(context.instance, migration)
            # Also while the migration is held: the queue keeps the backfill open, and the pool keeps the queue shut.
            lines += _continue(context, migration)
        return dg.SkipReason("; ".join(lines) or "no backfill is under way")

    return schedule


def _continue(context: dg.ScheduleEvaluationContext, migration: Migration) -> list[str]:
    """Queue what paused runs left and nobody took: their process may have died while it handed over."""
    instance, graph = context.instance, context.repository_def.asset_graph
    partitions = instance.get_dynamic_partitions(keys.partitions_name(migration))
    queued = []
    for run in continuation.left(instance, migration):
        if missing := continuation.missing(instance, run, partitions):
            queued += continuation.continue_run(instance, run, missing, partitions=partitions, asset_graph=graph)
        continuation.queued(instance, run)
    return [f"{migration.name} goes on as run {', '.join(queued)}"] if queued else []
