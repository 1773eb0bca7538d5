"""Assets: one per phase, in the order a migration walks them."""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import dagster as dg
from pydantic import Field

from zdm_pipelines.changes import kind_of
from zdm_pipelines.components import books, continuation, describe, keys, metadata, pools, reasons
from zdm_pipelines.components.failures import readable
from zdm_pipelines.components.progress import Progress
from zdm_pipelines.components.resources import context_of, resource_key
from zdm_pipelines.model.errors import DatabaseUnreachable, OutcomeUnknown, RolledBack, StateConflict, Throttled
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Moved
from zdm_pipelines.phases import backfill, contract, expand, switch_reads, validate
from zdm_pipelines.verbs import plan as plan_
from zdm_pipelines.verbs import status

# Partitions a run takes from a backfill: starting a run costs about as much as ten empty partitions.
_PARTITIONS_PER_RUN = 100


class BackfillConfig(dg.Config):
    """How a run works on rows."""

    repair: bool = Field(
        default=False, description="Take rows that disagree from the old shape, also in ranges that are done."
    )


class ValidateConfig(dg.Config):
    """What a run of validate compares."""

    full: bool = Field(
        default=False, description="Compare every row, also of ranges that nobody wrote since they were compared."
    )


class SwitchReadsConfig(dg.Config):
    """How far reads are switched."""

    percent: int | None = Field(
        default=None,
        description="Share of keys that read the new shape, 0 to 100; default: the next stage of the ramp.",
    )


def of_migration(migration: Migration) -> list[dg.AssetsDefinition]:
    """The chain of assets of a migration: the plan, and one for each phase that its kind has."""
    return [_BUILDERS[phase](migration) for phase in keys.chain(migration)]


def _spec(migration: Migration, phase: Phase | str, **more: Any) -> dg.AssetSpec:
    chain = keys.chain(migration)
    place = chain.index(phase)
    return dg.AssetSpec(
        keys.asset_key(migration, phase),
        deps=[keys.asset_key(migration, chain[place - 1])] if place else [],
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
            work = context_of(context, migration)
            if status.read(work).state == State.CONTRACTED:
                raise StateConflict(migration.name, "is contracted", "there is nothing left to plan")
            read = plan_.read(work)
        found: metadata.Metadata = {
            "plan": metadata.plan(read.phases),
            "sql": metadata.statements(read.phases),
            "state": str(read.state),
            "rows_estimated": read.rows,
            "table_bytes": read.catalog.bytes,
        }
        if read.warnings:
            found["warnings"] = metadata.bullets(read.warnings)
        yield dg.MaterializeResult(asset_key=keys.asset_key(migration, keys.PLAN), metadata=found)

    return plan


def _expand(migration: Migration) -> dg.AssetsDefinition:
    @dg.multi_asset(
        specs=[_spec(migration, Phase.EXPAND)], pool=keys.pool(migration), **_common(migration, Phase.EXPAND)
    )
    def expand_(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[None]]:
        pools.begin(context.instance, migration)
        with readable():
            work = context_of(context, migration)
            report = expand.run(work)
            ranges = status.read_ranges(work)
            steps = plan_.read(work).phases
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
    return _row_work(migration, Phase.BACKFILL, backfill.run)


def _row_work(migration: Migration, phase: Phase, work_on: Callable[..., Generator[Moved]]) -> dg.AssetsDefinition:
    """The asset of the phase that works on rows: one partition per range.

    Args:
        work_on: gives one outcome per range; closed, it stops at the next batch.
    """
    key = keys.asset_key(migration, phase)

    @dg.multi_asset(
        specs=[_spec(migration, phase, partitions_def=keys.partitions(migration))],
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=_PARTITIONS_PER_RUN),
        pool=keys.pool(migration),
        **_common(migration, phase),
    )
    def row_work(context: dg.AssetExecutionContext, config: BackfillConfig) -> Iterator[dg.AssetMaterialization]:
        continuation.mark(context.instance, context.run, migration)
        pools.begin(context.instance, migration)  # a migration that was expanded from the command line has no pool yet
        done: set[str] = set()

        def line(rows: int, seconds: float, detail: str) -> str:
            speed = f"{rows:,} rows in {seconds:.0f} s ({rows / seconds:,.0f}/s)"
            return f"{speed}, {len(done)} of {len(wanted)} ranges done; {detail}"

        progress = Progress(context.log.info, line)

        def batch(moved: Moved) -> None:
            progress.add(moved.rows, f"range {moved.partition}, batches of {moved.batch_rows:,} rows")

        wanted = list(context.partition_keys)
        with readable(), _handing_over(context, migration, wanted, done):
            work = context_of(context, migration)
            attempt = continuation.attempt(context.run)
            if attempt is None:
                attempt = backfill.attempt_of(work)
                continuation.begin_attempt(context.instance, context.run, attempt)
            ranges = status.read_ranges(work)
            if continuation.is_second_try(context.run) and not config.repair:
                missing = set(books.missing_ranges(context.instance, migration, ranges))
                missing |= {r.range.partition for r in ranges if not r.done}
                wanted[:] = [partition for partition in wanted if partition in missing]
            bounds = {r.range.partition: r.range for r in ranges}
            statement = plan_.read(work).phases[phase][0].sql
            against = {}
            if phase is Phase.CONTRACT:
                against["more_reasons"] = reasons.against_contract(context.instance, migration, ranges)
            moving = work_on(
                work,
                **against,
                partitions=wanted,
                repair=config.repair,
                run_id=context.run.run_id,
                attempt=attempt,
                batch=batch,
            )
            # An interrupted run closes the generator, which ends the workers at their next batch.
            with closing(moving):
                for moved in moving:
                    yield dg.AssetMaterialization(
                        key,
                        partition=moved.partition,
                        metadata=metadata.of_moved(moved, bounds[moved.partition], statement),
                    )
                    done.add(moved.partition)

    return row_work


@contextmanager
def _handing_over(
    context: dg.AssetExecutionContext, migration: Migration, wanted: Sequence[str], done: Collection[str]
) -> Iterator[None]:
    """End a run that was held for too long as paused: what is left of it waits in the queue."""
    instance = context.instance
    try:
        yield
    except RolledBack as error:
        # Nobody asks for the rest of the run any more, so the run did not fail.
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
        # A run that was found lost meanwhile is started again by others.
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
        context.log_event(dg.AssetObservation(keys.row_key(migration), description=told))


def _validate(migration: Migration) -> dg.AssetsDefinition:
    key = keys.asset_key(migration, Phase.VALIDATE)

    @dg.multi_asset(
        specs=[_spec(migration, Phase.VALIDATE)],
        check_specs=[
            dg.AssetCheckSpec(name, asset=key, description=text, blocking=True)
            for name, text in kind_of(migration).words(migration).checks.items()
        ],
        pool=keys.pool(migration),
        **_common(migration, Phase.VALIDATE),
    )
    def validate_(
        context: dg.AssetExecutionContext, config: ValidateConfig
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
        with readable():
            report = validate.run(context_of(context, migration), full=config.full, compared=_comparing(context))
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
            # Materialization and results are yielded together, so that the evaluations speak of this materialization.
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
            report = switch_reads.run(context_of(context, migration), percent=config.percent)
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
    if migration.lifecycle.row_phase is Phase.CONTRACT:
        return _row_work(migration, Phase.CONTRACT, contract.destroy)
    return _last(migration, Phase.CONTRACT)


def _drop(migration: Migration) -> dg.AssetsDefinition:
    """What is left after row work that destroys: the tombstone goes, in a run of its own."""
    return _last(migration, keys.DROP)


def _last(migration: Migration, phase: Phase | str) -> dg.AssetsDefinition:
    key = keys.asset_key(migration, phase)

    @dg.multi_asset(specs=[_spec(migration, phase)], pool=keys.pool(migration), **_common(migration, phase))
    def contract_(
        context: dg.AssetExecutionContext,
    ) -> Iterator[dg.MaterializeResult[None] | dg.AssetObservation]:
        with readable():
            work = context_of(context, migration)
            report = contract.run(
                work,
                more_reasons=reasons.against_contract(context.instance, migration, status.read_ranges(work)),
                compared=_comparing(context),
            )
        context.log.info(report.summary)
        if report.state == State.CONTRACTED:
            yield dg.MaterializeResult(asset_key=key, metadata=metadata.of_report(report))
        else:
            # The asset means: dropped. What is only out of sight is observed.
            yield dg.AssetObservation(key, description=report.summary, metadata=metadata.of_report(report))

    return contract_


_BUILDERS: dict[Phase | str, Callable[[Migration], dg.AssetsDefinition]] = {
    keys.PLAN: _plan,
    Phase.EXPAND: _expand,
    Phase.BACKFILL: _backfill,
    Phase.VALIDATE: _validate,
    Phase.SWITCH_READS: _switch_reads,
    Phase.CONTRACT: _contract,
    keys.DROP: _drop,
}
