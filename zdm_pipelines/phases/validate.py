"""Validate: prove parity, then give the new shape the constraints and indexes of the old."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import psycopg
from psycopg import errors

from zdm_pipelines.changes import Change, bind
from zdm_pipelines.dialects.postgres.connection import Connection, of_data, query, safe, scalar
from zdm_pipelines.engine import ledger, locks, parity, proofs, ranges, sessions
from zdm_pipelines.model.errors import ParityMismatch, PreflightError, Problem
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Catalog, Check, Parity, RangeProgress, Report, Step

ALLOWED = frozenset({State.BACKFILLED, State.VALIDATED, State.SWITCHING, State.SWITCHED})
_HIGHER = ALLOWED - {State.BACKFILLED}


def plan(migration: Migration, catalog: Catalog) -> list[Step]:
    """Parity as one statement per range, then the constraints and indexes."""
    change = bind(migration, catalog)
    compare, _ = change.compare(("…",) * len(catalog.key), ("…",) * len(catalog.key))
    return [
        Step(
            name="compare old and new",
            sql=compare,
            reason="once a range, unless nobody wrote to it since; the checks pass only when no row disagrees",
            lock="ACCESS SHARE: reads and writes go on",
        ),
        *change.constrain(),
        _analyze(catalog),
    ]


def _analyze(catalog: Catalog) -> Step:
    return Step(
        name="gather statistics",
        sql=f"ANALYZE {catalog.table.sql}",
        reason="so that the first query on the new shape is planned as well as those on the old",
        lock="SHARE UPDATE EXCLUSIVE: reads and writes go on",
        in_transaction=False,
    )


def run(
    migration: Migration,
    url: str,
    *,
    full: bool = False,
    tell: sessions.Tell = sessions.silent,
    compared: Callable[[int], None] = lambda _: None,
) -> Report:
    """Run the checks; the report has them, passed or not. The state is `validated` only when all passed.

    Args:
        full: compare also what nobody wrote since it was compared.
        compared: called with the number of rows compared after each range, 0 for one that is not read again.

    Raises:
        StateConflict, LockNotAcquired, MappingFailed, MigrationBusy, DatabaseUnreachable, OutcomeUnknown
    """
    return sessions.resilient(lambda: _run(migration, url, full, tell, compared), thing=migration.name, tell=tell)


def _run(migration: Migration, url: str, full: bool, tell: sessions.Tell, compared: Callable[[int], None]) -> Report:
    begun = time.monotonic()
    done: list[str] = []

    with sessions.session(url, migration, purpose="validate") as conn:
        entry = ledger.require(conn, migration, ALLOWED, to_do="be validated")
        ledger.ensure(url)  # it may have been made by an earlier version
        change = bind(migration, entry.catalog, migration_id=entry.id)
        known = ranges.progress(conn, entry.id)
        standing = proofs.begin(
            conn, entry, known, change, full=full, patience=migration.locks.give_up_after, tell=tell
        )
        verdict = _compare(conn, migration, url, entry, change, known, standing, compared)
        done.append(change.compare(None, None)[0])
        ranges_now = len(known) - len(standing.proven)
        checks = [_parity_check(verdict, ranges_now, len(standing.proven)), _complete(verdict, known)]
        retries = 0
        if all(c.passed for c in checks):
            constraints, retries = _constrain(conn, migration, entry, change, tell, done)
            checks.append(constraints)
            query(conn, _analyze(entry.catalog).sql)
        else:
            checks.append(Check(name="constraints_valid", passed=False, summary="not tried: the data is not right yet"))
        entry = _settle(conn, entry, checks)
    failed = [c for c in checks if not c.passed]
    return Report(
        migration=migration.name,
        phase=Phase.VALIDATE,
        state=entry.state,
        summary="; ".join(f"{c.name}: {c.summary}" for c in failed or checks),
        sql=tuple(done),
        rows=verdict.rows - verdict.earlier,
        seconds=time.monotonic() - begun,
        retries=retries,
        checks=tuple(checks),
        facts={
            "partitions_to_repeat": list(verdict.partitions),
            "agree_through_down_only": verdict.through_down,
            "ranges_compared": ranges_now,
            "ranges_compared_earlier": len(standing.proven),
            "rows_compared_earlier": verdict.earlier,
        },
    )


def _compare(
    conn: Connection,
    migration: Migration,
    url: str,
    entry: ledger.Entry,
    change: Change,
    known: Sequence[RangeProgress],
    standing: proofs.Standing,
    compared: Callable[[int], None],
) -> Parity:
    """The verdict over all ranges; those that nobody wrote since they were proven are not read."""
    for _ in standing.proven:
        compared(0)
    verdict = parity.compare(
        url,
        migration.name,
        change,
        [r.range for r in known if r.range.ordinal not in standing.proven],
        parallel=migration.backfill.max_parallel,
        tell=compared,
        each=lambda which, counts: proofs.remember(conn, entry.id, standing, which, counts),
    )
    earlier = sum(p.rows for p in standing.proven.values())
    through_down = verdict.through_down + sum(p.through_down for p in standing.proven.values())
    return replace(verdict, rows=verdict.rows + earlier, earlier=earlier, through_down=through_down)


def raise_if_failed(report: Report) -> None:
    """Say what to do about failed checks.

    Raises:
        ParityMismatch: rows disagree; names the ranges.
        PreflightError: a constraint or index cannot be had.
    """
    failed = [c for c in report.checks if not c.passed]
    if not failed:
        return
    partitions = report.facts["partitions_to_repeat"]
    if partitions:
        named = ", ".join(partitions[:10]) + (", …" if len(partitions) > 10 else "")
        raise ParityMismatch(
            f"{report.migration} range {named}",
            failed[0].summary,
            "materialize backfill for these ranges (with repair, where rows are extra or different), then validate",
            partitions,
        )
    raise PreflightError(
        report.migration,
        [Problem(f"check {c.name}", c.summary, "mend it, then run validate") for c in failed],
    )


def _parity_check(verdict: Parity, ranges_now: int, ranges_earlier: int) -> Check:
    facts: dict[str, object] = {
        "rows": verdict.rows,
        "rows_compared": verdict.rows - verdict.earlier,
        "rows_compared_earlier": verdict.earlier,
        "ranges_compared": ranges_now,
        "ranges_compared_earlier": ranges_earlier,
        "missing": verdict.missing,
        "extra": verdict.extra,
        "different": verdict.different,
        "agree_through_down_only": verdict.through_down,
        "seconds": round(verdict.seconds, 3),
    }
    for category, keys in verdict.keys.items():
        facts[f"first_{category}_keys"] = ["/".join(k) for k in keys]
    if verdict.partitions:
        facts["ranges"] = list(verdict.partitions)
    return Check(name="parity", passed=verdict.agrees, summary=verdict.describe(), facts=facts)


def _complete(verdict: Parity, known: Sequence[RangeProgress]) -> Check:
    left, unmoved = [r.range.partition for r in known if not r.done], verdict.unmoved
    passed = not left and unmoved == 0
    summary = (
        "every range is done and no row is left"
        if passed
        else f"{len(left)} ranges are not done, {unmoved:,} rows not moved"
    )
    return Check(
        name="backfill_complete",
        passed=passed,
        summary=summary,
        facts={"rows_left": unmoved, "ranges_left": left},
    )


def _constrain(
    conn: Connection,
    migration: Migration,
    entry: ledger.Entry,
    change: Change,
    tell: sessions.Tell,
    done: list[str],
) -> tuple[Check, int]:
    """Run the steps that are not done; a step that the data refuses is taken back at once, for it binds writers."""
    name = "constraints_valid"
    if (sql := change.nulls()) and (count := int(scalar(conn, sql))):
        return Check(
            name=name,
            passed=False,
            summary=f"{count:,} rows are NULL in the new column, which is declared nullable: false",
        ), 0
    steps, retries, begun = change.constrain(), 0, []
    for step in steps:
        if step.done_when and scalar(conn, step.done_when):
            continue
        begun.append(step)
        try:
            retries += _run_step(conn, migration, entry, step, tell)
        except psycopg.Error as error:
            if not of_data(error) and not isinstance(error, errors.ProgramLimitExceeded):
                raise
            for taken in reversed([s for s in begun if s.undo]):
                with contextlib.suppress(psycopg.Error):
                    _run_step(conn, migration, entry, taken.undoing(), tell)
            return Check(name=name, passed=False, summary=f"{step.name}: {safe(error)}"), retries
        done.append(step.sql)
    return Check(
        name=name,
        passed=True,
        summary=f"{len([s for s in steps if s.done_when])} steps in place",
        facts={"steps": [s.name for s in steps]},
    ), retries


def _run_step(conn: Connection, migration: Migration, entry: ledger.Entry, step: Step, tell: sessions.Tell) -> int:
    thing = f"{migration.name} validate"
    if not step.in_transaction:
        locks.run_alone(conn, step, thing=thing, locks=migration.locks, tell=tell)
        return 0
    _, tries = locks.change_schema(
        conn,
        lambda: locks.run_steps(conn, [step], tell=tell),
        thing=thing,
        table=entry.catalog.table,
        oid=entry.catalog.oid,
        locks=migration.locks,
        tell=tell,
    )
    return tries


def _settle(conn: Connection, entry: ledger.Entry, checks: list[Check]) -> ledger.Entry:
    """Record the verdicts and move: up when all passed, down when what had been proven is no longer so."""
    passed = all(c.passed for c in checks)
    with ledger.transaction(conn):
        ledger.record_checks(conn, entry.id, checks)
        detail = {c.name: c.summary for c in checks}
        if passed and entry.state == State.BACKFILLED:
            return ledger.move(conn, entry, State.VALIDATED, what="validated", detail=detail)
        if not passed and entry.state in _HIGHER:
            return ledger.move(conn, entry, State.BACKFILLED, what="no longer valid", detail=detail)
        ledger.append(conn, entry.id, "checks passed" if passed else "checks failed", detail=detail)
        return entry


def undo(migration: Migration, url: str, *, tell: sessions.Tell = sessions.silent) -> None:
    """Remove the constraints and indexes; the state goes down first, so that it never claims too much."""
    sessions.resilient(lambda: _undo(migration, url, tell), thing=migration.name, tell=tell)


def _undo(migration: Migration, url: str, tell: sessions.Tell) -> None:
    with sessions.session(url, migration, purpose="rollback") as conn:
        entry = ledger.require(conn, migration, ALLOWED | {State.BACKFILLING}, to_do="undo validate")
        with ledger.transaction(conn):
            ledger.forget_checks(conn, entry.id)
            proofs.forget(conn, entry.id)
            ledger.set_flag(conn, entry.id, 0)  # reads that were switched before the proof was void
            if entry.state in _HIGHER:
                ledger.move(conn, entry, State.BACKFILLED, what="validate undone")
        for step in reversed(bind(migration, entry.catalog, migration_id=entry.id).constrain()):
            if step.undo:
                _run_step(conn, migration, entry, step.undoing(), tell)
