"""Continuation: a run that was paused hands its remaining ranges to a queued run of the same backfill.

The queued run keeps the backfill's page open, and starts when the migration's pool lets it. A continuation's id
follows from the run that it continues, so that however often and by whomever it is asked for, there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import UUID, uuid5

import dagster as dg

from zdm_pipelines.components import dagster_internals, keys
from zdm_pipelines.model.migration import Migration

MIGRATION = "zdm/migration"
PHASE = "zdm/phase"
ATTEMPT = "zdm/attempt"  # which attempt at the migration a run belongs to: a rollback ends it
ENDED = "zdm/ended"  # "paused": the run stopped before its ranges were done, and said so
LEFT = "zdm/left"  # "yes": some of the ranges that the run left are not queued yet; else "queued"
REASON = "zdm/reason"
CONTINUES = "zdm/continues"  # id of the paused run

_START = "dagster/asset_partition_range_start"
_END = "dagster/asset_partition_range_end"
_PARTITION = "dagster/partition"
_BACKFILL = "dagster/backfill"
_MAX_RETRIES = "dagster/max_retries"
_PRIORITY = "dagster/priority"

# What these tags say is true of one run only: a run that goes on with its work must not carry them.
_OWN_TAGS = (
    ENDED, REASON, LEFT, CONTINUES, _START, _END, _PARTITION,
    "dagster/will_retry", "dagster/retry_number", "dagster/auto_retry_run_id", "dagster/run_failure_reason",
    "dagster/parent_run_id", "dagster/root_run_id", ".dagster/grpc_info",
)  # fmt: skip

_RETRIES = "10"  # times that Dagster starts a run again whose process died
_LONGEST_TAG = 200  # characters


def mark(instance: dg.DagsterInstance, run: dg.DagsterRun, migration: Migration) -> None:
    """Say whose run it is, and let Dagster start it again, whole, should its process die.

    Ranges that are done are passed over then. Needs `run_retries` in dagster.yaml.
    """
    if ENDED in run.tags:  # a paused run that somebody executes again hands its tags on
        dagster_internals.tag_run(instance, run, {ENDED: "", REASON: "", LEFT: ""})
    dagster_internals.tag_run(
        instance,
        run,
        {
            MIGRATION: migration.name,
            PHASE: str(migration.lifecycle.row_phase),
            # A continuation of this run goes before runs that were queued behind this one, such as validate.
            _PRIORITY: run.tags.get(_PRIORITY, "1"),
            _MAX_RETRIES: _RETRIES,
            "dagster/retry_strategy": "ALL_STEPS",
            "dagster/retry_on_asset_or_op_failure": "false",
        },
    )


def attempt(run: dg.DagsterRun) -> int | None:
    """Which attempt at the migration a run belongs to, None for one that was just launched."""
    return int(run.tags[ATTEMPT]) if ATTEMPT in run.tags and is_second_try(run) else None


def begin_attempt(instance: dg.DagsterInstance, run: dg.DagsterRun, number: int) -> None:
    """Say which attempt it is, for those who go on with the run."""
    dagster_internals.tag_run(instance, run, {ATTEMPT: str(number)})


def is_second_try(run: dg.DagsterRun) -> bool:
    """Whether an earlier run has done some of its ranges."""
    return CONTINUES in run.tags or "dagster/retry_number" in run.tags


def can_hand_over(instance: dg.DagsterInstance) -> bool:
    """Whether this instance has a queue in which a continuation can wait."""
    return dagster_internals.has_queue(instance)


def paused(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> None:
    """Say that a run ends as paused. Should it die before it has handed over, Dagster starts it again."""
    short = reason if len(reason) <= _LONGEST_TAG else reason[: _LONGEST_TAG - 1] + "…"
    dagster_internals.tag_run(instance, run, {ENDED: "paused", REASON: short, LEFT: "yes"})


def queued(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Say that what a paused run left is queued: from here on it is not started again."""
    dagster_internals.tag_run(instance, run, {LEFT: "queued", _MAX_RETRIES: "0"})


def rolled_back(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Say that a run ends because the migration was rolled back since it was launched."""
    dagster_internals.tag_run(instance, run, {ENDED: "rolled back", _MAX_RETRIES: "0"})


def left(instance: dg.DagsterInstance, migration: Migration) -> list[dg.DagsterRun]:
    """The paused runs of a migration of which something may not be queued yet: they died while they handed over.

    What Dagster starts again, or somebody cancelled, is not gone on with.
    """
    found = dagster_internals.find_runs(instance, {MIGRATION: migration.name, LEFT: "yes"}, limit=100)
    return [
        run
        for run in found
        if run.is_finished and not (dagster_internals.will_be_retried(run) or _cancelled(instance, run))
    ]


def _cancelled(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    if run.status == dg.DagsterRunStatus.CANCELED:
        return True
    return _BACKFILL in run.tags and dagster_internals.is_backfill_cancelled(instance, run.tags[_BACKFILL])


def cancel(instance: dg.DagsterInstance, migration: Migration) -> list[str]:
    """Cancel a migration's backfills, and take their runs out of the queue; what was done, as lines.

    Before its partitions are removed: the daemon cannot even cancel a backfill whose partitions are gone.
    """
    told = []
    tags = {MIGRATION: migration.name, PHASE: str(migration.lifecycle.row_phase)}
    for run in dagster_internals.find_runs(instance, tags, statuses=[dg.DagsterRunStatus.QUEUED]):
        dagster_internals.cancel_queued_run(instance, run.run_id)
        told.append(f"run {run.run_id} is taken out of the queue")
    cancelled = dagster_internals.cancel_backfills(instance, keys.row_key(migration))
    return told + [f"backfill {backfill_id} is cancelled" for backfill_id in cancelled]


def remaining(instance: dg.DagsterInstance, run: dg.DagsterRun, partitions: Sequence[str]) -> list[str]:
    """The ranges of a run that it did not materialize, in key order.

    Args:
        partitions: every range of the migration, in key order.
    """
    if (single := run.tags.get(_PARTITION)) is not None:
        wanted = [single]
    elif _START in run.tags and {run.tags[_START], run.tags[_END]} <= set(partitions):
        wanted = list(partitions[partitions.index(run.tags[_START]) : partitions.index(run.tags[_END]) + 1])
    else:
        return []  # its ranges were cut anew
    done = dagster_internals.partitions_materialized_by(instance, run)
    return [partition for partition in wanted if partition not in done]


def continue_run(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    wanted: Sequence[str],
    *,
    partitions: Sequence[str],
    asset_graph: dagster_internals.AssetGraph,
) -> list[str]:
    """Queue what is left of a run, unless it is queued already; gives the ids of the runs that were queued.

    Args:
        run: a run that ended, or is about to end, as paused.
        wanted: the ranges that are left, in key order.
        partitions: every range of the migration, in key order.
        asset_graph: of the repository that the run belongs to.
    """
    queued = []
    for first, last in _stretches(wanted, partitions):
        run_id = str(uuid5(UUID(run.run_id), first))
        found = instance.get_run_by_id(run_id)
        if found is None:
            tags = _tags_of_continuation(run, first, last)
            found = dagster_internals.copy_run(instance, run, run_id=run_id, tags=tags, asset_graph=asset_graph)
        if found.status == dg.DagsterRunStatus.NOT_STARTED:
            dagster_internals.submit_run(instance, run_id)
            queued.append(run_id)
    return queued


def _stretches(wanted: Sequence[str], partitions: Sequence[str]) -> Iterator[tuple[str, str]]:
    """First and last of each stretch of neighbours: a run takes one stretch."""
    places = {partition: place for place, partition in enumerate(partitions)}
    stretch: list[str] = []
    for partition in wanted:
        if stretch and places[partition] != places[stretch[-1]] + 1:
            yield stretch[0], stretch[-1]
            stretch = []
        stretch.append(partition)
    if stretch:
        yield stretch[0], stretch[-1]


def _tags_of_continuation(run: dg.DagsterRun, first: str, last: str) -> dict[str, str]:
    tags = {name: value for name, value in run.tags.items() if name not in _OWN_TAGS}
    tags |= {CONTINUES: run.run_id, _MAX_RETRIES: _RETRIES}
    return tags | ({_PARTITION: first} if _PARTITION in run.tags else {_START: first, _END: last})


def missing(instance: dg.DagsterInstance, run: dg.DagsterRun, partitions: Sequence[str]) -> list[str]:
    """The ranges of a paused run that no continuation has taken."""
    left = remaining(instance, run, partitions)
    if not left:
        return []
    taken: set[str] = set()
    for other in dagster_internals.find_runs(instance, {CONTINUES: run.run_id}):
        if other.status == dg.DagsterRunStatus.NOT_STARTED:
            continue  # created, and then its creator died: to be submitted
        first = other.tags.get(_PARTITION) or other.tags[_START]
        last = other.tags.get(_PARTITION) or other.tags[_END]
        if first in partitions and last in partitions:
            taken |= set(partitions[partitions.index(first) : partitions.index(last) + 1])
    return [p for p in left if p not in taken]
