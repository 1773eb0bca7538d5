"""Assets: one per phase, in the order a migration walks them."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import dagster as dg
from pydantic import Field

from zdm_pipelines.components import books, continuation, database, describe, keys, metadata, pools, reasons
from zdm_pipelines.components.database import resource_key
from zdm_pipelines.components.failures import readable
from zdm_pipelines.components.progress import Progress
from zdm_pipelines.engine.batches import Moved
from zdm_pipelines.engine.gate import CHECKS
from zdm_pipelines.model.errors import DatabaseUnreachable, OutcomeUnknown, RolledBack, StateConflict, Throttled
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.phases import backfill, contract, expand, preflight, status, switch_reads, validate

# Partitions a run takes from a backfill: starting a run costs about as much as ten empty partitions.
_PARTITIONS_PER_RUN = 100

_CHAIN: tuple[Phase | str, ...] = (keys.PLAN, *Phase)


class BackfillConfig(dg.Config):
    """How rows are moved."""

    repair: bool = Field(
        default=False, description="Take rows that disagree from the old column, also in ranges that are done."
    )


class ValidateConfig(dg.Config):
    """What is compared."""

    full: bool = Field(
        default=False, description="Compare every row, also of ranges that nobody wrote since they were compared."
    )


class SwitchReadsConfig(dg.Config):
    """How far reads are switched."""

    percent: int | None = Field(
        default=None,
        description="Share of keys that read the new column, 0 to 100; default: the next stage of the ramp.",
    )


def of_migration(migration: Migration) -> list[dg.AssetsDefinition]:
    """The chain of assets of a migration."""
    return [
        _plan(migration),
        _expand(migration),
        _backfill(migration),
        _validate(migration),
        _switch_reads(migration),
        _contract(migration),
    ]


def _spec(migration: Migration, phase: Phase | str, **more: Any) -> dg.AssetSpec:
    place = _CHAIN.index(phase)
    return dg.AssetSpec(
        keys.asset_key(migration, phase),
        deps=[keys.asset_key(migration, _CHAIN[place - 1])] if place else [],
        description=describe.asset(migration, phase),
        group_name=migration.name,
        kinds={"postgres"},
        tags={"zdm/migration": migration.name, "zdm/phase": str(phase)},
        metadata={"dagster/table_name": f"{migration.database}.{migration.table_name}"},
        skippable=True,  # a phase that did not come true is not materialized
        **more,
    )


def _common(migration: Migration, phase: Phase | str) -> dict[str, Any]:
    return {
        "name": keys.op_name(migration, phase),
        "required_resource_keys": {resource_key(migration.database)},
    }


def _plan(migration: Migration) -> dg.AssetsDefinition:
    @dg.multi_asset(specs=[_spec(migration, keys.PLAN)], **_common(migration, keys.PLAN))
    def plan(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        with readable():
            url = database.of(context, migration).url()
            now = status.read(migration, url).state
            if now == State.CONTRACTED:
                raise StateConflict(migration.name, "is contracted", "there is nothing left to plan")
            catalog = preflight.catalog_of(url, migration)
            steps = preflight.plan(migration, catalog)
            rows = preflight.size(url, catalog)
        found: metadata.Metadata = {
            "plan": metadata.plan(steps),
            "sql": metadata.statements(steps),
            "state": str(now),
            "rows_estimated": rows,
            "table_bytes": catalog.bytes,
        }
        if catalog.warnings:
            found["warnings"] = metadata.bullets(catalog.warnings)
        yield dg.MaterializeResult(asset_key=keys.asset_key(migration, keys.PLAN), metadata=found)

    return plan


def _expand(migration: Migration) -> dg.AssetsDefinition:
    @dg.multi_asset(
        specs=[_spec(migration, Phase.EXPAND)], pool=keys.pool(migration), **_common(migration, Phase.EXPAND)
    )
    def expand_(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        pools.begin(context.instance, migration)
        with readable():
            url = database.of(context, migration).url()
            report = expand.run(migration, url, look=preflight.look, tell=context.log.info)
            ranges = status.of_ranges(migration, url)
            steps = preflight.plan(migration, preflight.catalog_of(url, migration))
        for line in books.correct(context.instance, migration, report.state, ranges):
            context.log.info(line)
        for warning in report.facts["warnings"]:
            context.log.warning(warning)
        found = metadata.of_report(report) | {
            "ranges": report.facts["ranges"],
            "rows_estimated": report.facts["rows_estimated"],
            "plan": metadata.plan(steps),
        }
        if report.facts["warnings"]:
            found["warnings"] = metadata.bullets(report.facts["warnings"])
        yield dg.MaterializeResult(asset_key=keys.asset_key(migration, Phase.EXPAND), metadata=found)

    return expand_


def _backfill(migration: Migration) -> dg.AssetsDefinition:
    key = keys.asset_key(migration, Phase.BACKFILL)

    @dg.multi_asset(
        specs=[_spec(migration, Phase.BACKFILL, partitions_def=keys.partitions(migration))],
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=_PARTITIONS_PER_RUN),
        pool=keys.pool(migration),
        **_common(migration, Phase.BACKFILL),
    )
    def backfill_(context: dg.AssetExecutionContext, config: BackfillConfig) -> Iterator[dg.AssetMaterialization]:
        continuation.mark(context.instance, context.run, migration)
        pools.begin(context.instance, migration)  # expanded from the command line, it has none yet
        done: set[str] = set()

        def line(rows: int, seconds: float, detail: str) -> str:
            speed = f"{rows:,} rows in {seconds:.0f} s ({rows / seconds:,.0f}/s)"
            return f"{speed}, {len(done)} of {len(wanted)} ranges done; {detail}"

        progress = Progress(context.log.info, line)

        def batch(moved: Moved) -> None:
            progress.add(moved.rows, f"range {moved.partition}, batches of {moved.batch_rows:,} rows")

        wanted = list(context.partition_keys)
        with readable(), _handing_over(context, migration, wanted, done):
            url = database.of(context, migration).url()
            attempt = continuation.attempt(context.run)
            if attempt is None:
                attempt = backfill.attempt_of(migration, url)
                continuation.begin_attempt(context.instance, context.run, attempt)
            ranges = status.of_ranges(migration, url)
            if continuation.is_second_try(context.run) and not config.repair:
                missing = set(books.missing_ranges(context.instance, migration, ranges))
                missing |= {r.range.partition for r in ranges if not r.done}
                wanted[:] = [partition for partition in wanted if partition in missing]
            bounds = {r.range.partition: r.range for r in ranges}
            moving = backfill.run(
                migration,
                url,
                database=database.of(context, migration).declared(),
                partitions=wanted,
                repair=config.repair,
                run_id=context.run.run_id,
                attempt=attempt,
                tell=context.log.info,
                batch=batch,
            )
            statement = backfill.plan(migration, preflight.catalog_of(url, migration))[0].sql
            # An interrupted run closes the generator, which ends the workers at their next batch.
            with closing(moving):
                for moved in moving:
                    yield dg.AssetMaterialization(
                        key,
                        partition=moved.partition,
                        metadata=metadata.of_moved(moved, bounds[moved.partition], statement),
                    )
                    done.add(moved.partition)

    return backfill_


@contextmanager
def _handing_over(
    context: dg.AssetExecutionContext, migration: Migration, wanted: Sequence[str], done: Collection[str]
) -> Iterator[None]:
    """End a run that was held for too long as paused: what is left of it waits in the queue."""
    instance = context.instance
    try:
        yield
    except RolledBack as error:
        # Nobody asked for it any more: no failure.
        if not continuation.is_second_try(context.run):
            raise
        continuation.rolled_back(instance, context.run)
        context.log.warning("%s", error)
    except (Throttled, OutcomeUnknown, DatabaseUnreachable) as error:
        left = [partition for partition in wanted if partition not in done]
        # A database that cannot be reached at first is somebody's mistake, unless an earlier run did reach it. What
        # became of a batch when it was lost is looked up by whoever moves the range next.
        known = not isinstance(error, DatabaseUnreachable) or continuation.is_second_try(context.run)
        run = instance.get_run_by_id(context.run.run_id)
        # One that was found lost meanwhile is started again by others.
        if not known or not left or run is None or run.is_finished or not continuation.can_hand_over(instance):
            raise
        pools.shut(instance, migration)  # opened again when nothing stands against writing
        continuation.paused(instance, context.run, error.fact)
        queued = continuation.continue_run(
            instance,
            run,
            left,
            partitions=instance.get_dynamic_partitions(keys.partitions_name(migration)),
            asset_graph=context.repository_def.asset_graph,
        )
        continuation.queued(instance, run)
        told = (
            f"paused: {error.fact}. {len(left)} ranges go on from their checkpoints when nothing stands "
            f"against writing, as run {', '.join(queued) or 'queued already'}"
        )
        context.log.info("%s", told)
        context.log_event(dg.AssetObservation(keys.asset_key(migration, Phase.BACKFILL), description=told))


def _validate(migration: Migration) -> dg.AssetsDefinition:
    key = keys.asset_key(migration, Phase.VALIDATE)

    @dg.multi_asset(
        specs=[_spec(migration, Phase.VALIDATE)],
        check_specs=[
            dg.AssetCheckSpec(name, asset=key, description=describe.CHECKS[name], blocking=True) for name in CHECKS
        ],
        pool=keys.pool(migration),
        **_common(migration, Phase.VALIDATE),
    )
    def validate_(
        context: dg.AssetExecutionContext, config: ValidateConfig
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        with readable():
            report = validate.run(
                migration,
                database.of(context, migration).url(),
                full=config.full,
                tell=context.log.info,
                compared=_comparing(context),
            )
        results = [
            dg.AssetCheckResult(
                asset_key=key,
                check_name=check.name,
                passed=check.passed,
                description=check.summary,
                metadata=metadata.of_check(check),
            )
            for check in report.checks
        ]
        if all(check.passed for check in report.checks):
            # Handed over together, so that the evaluations speak of this materialization.
            yield dg.MaterializeResult(asset_key=key, metadata=metadata.of_report(report), check_results=results)
            return
        yield from results
        with readable():
            validate.raise_if_failed(report)

    return validate_


def _comparing(context: dg.AssetExecutionContext) -> Callable[[int], None]:
    return Progress(context.log.info, lambda rows, seconds, _: f"{rows:,} rows compared in {seconds:.0f} s").add


def _switch_reads(migration: Migration) -> dg.AssetsDefinition:
    # In no pool: bringing reads back must not wait.
    @dg.multi_asset(specs=[_spec(migration, Phase.SWITCH_READS)], **_common(migration, Phase.SWITCH_READS))
    def switch_reads_(
        context: dg.AssetExecutionContext, config: SwitchReadsConfig
    ) -> Iterator[dg.MaterializeResult[None]]:
        with readable():
            report = switch_reads.run(
                migration, database.of(context, migration).url(), percent=config.percent, tell=context.log.info
            )
        yield dg.MaterializeResult(
            asset_key=keys.asset_key(migration, Phase.SWITCH_READS),
            metadata=metadata.of_report(report)
            | {
                "percent": dg.MetadataValue.int(report.facts["percent"]),
                "percent_before": dg.MetadataValue.int(report.facts["percent_before"]),
                "flag": report.facts["flag"],
            },
        )

    return switch_reads_


def _contract(migration: Migration) -> dg.AssetsDefinition:
    key = keys.asset_key(migration, Phase.CONTRACT)

    @dg.multi_asset(
        specs=[_spec(migration, Phase.CONTRACT)], pool=keys.pool(migration), **_common(migration, Phase.CONTRACT)
    )
    def contract_(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetObservation]:
        with readable():
            url = database.of(context, migration).url()
            report = contract.run(
                migration,
                url,
                more_reasons=reasons.against_contract(context.instance, migration, status.of_ranges(migration, url)),
                tell=context.log.info,
                compared=_comparing(context),
            )
        context.log.info(report.summary)
        if report.state == State.CONTRACTED:
            yield dg.MaterializeResult(asset_key=key, metadata=metadata.of_report(report))
        else:
            # The asset means: dropped. What is only out of sight is observed.
            yield dg.AssetObservation(key, description=report.summary, metadata=metadata.of_report(report))

    return contract_
