"""Validate: prove that the data is right, then build what must stand on the new shape."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change, kind_of
from zdm_pipelines.dialects import DatabaseError, fault, safe
from zdm_pipelines.dialects.server import Fault, Session
from zdm_pipelines.engine.context import Context, outlasting
from zdm_pipelines.engine.proof import parity, proofs
from zdm_pipelines.engine.proof.readers import readers
from zdm_pipelines.engine.schema import locks
from zdm_pipelines.ledger import ranges as known_ranges
from zdm_pipelines.model.errors import ParityMismatch, PreflightError, Problem
from zdm_pipelines.model.lifecycle import Need
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.values import Check, KeyRange, Parity, RangeProgress, Report, Statement, Step
from zdm_pipelines.phases.beginning import begin, bound, claims, unaltered

_ENFORCED = "constraints_valid"
_NAMED = 10  # ranges named in an error


def plan(context: Context, change: Change) -> list[Step]:
    """Parity as one statement per range, the kind's own verdicts, then what is enforced."""
    steps: list[Step] = []
    open_key = ("…",) * len(change.rows.over.key) if change.rows is not None else ("…",)
    if change.parity is not None:
        steps.append(
            Step(
                name="compare old and new",
                sql=change.parity.compare(open_key, open_key).sql,
                reason="once a range, unless nobody wrote to it since; the checks pass only when no row disagrees",
                lock="ACCESS SHARE: reads and writes go on",
            )
        )
    if change.rows is not None and change.rows.destroys:
        steps.append(
            Step(
                name="count the rows that will go",
                sql=change.rows.waiting(open_key, open_key).sql,
                reason="once a range: the dry run",
                lock="ACCESS SHARE: reads and writes go on",
            )
        )
    steps += [
        Step(
            name=f"check {check.check}",
            sql=check.count,
            reason="no row may stand against it",
            lock="ACCESS SHARE: reads and writes go on",
        )
        for check in change.checks
    ]
    return [*steps, *change.enforce, *_statistics(context, change)]


def _statistics(context: Context, change: Change) -> list[Step]:
    """Statistics of the tables on which something new was built."""
    if not change.enforce:
        return []
    return [context.server.gather_statistics(relation.name) for relation in change.relations]


@outlasting
def run(context: Context, *, full: bool = False, compared: Callable[[int], None] = lambda _: None) -> Report:
    """Run the checks; the report has them, passed or not. The state is `validated` only when all passed.

    Args:
        full: compare also what nobody wrote since it was compared.
        compared: called with the number of rows compared after each range, 0 for one that is not read again.

    Raises:
        StateConflict, LockNotAcquired, MappingFailed, MigrationBusy, DatabaseUnreachable, OutcomeUnknown
    """
    begun = time.monotonic()
    with context.session("validate") as session:
        entry, begins = begin(context, session, Phase.VALIDATE)
        if begins:
            assert entry is not None  # registered a moment ago
            with session.transaction():
                ledger.move(session, entry, State.BUILDING, what="began", claims=claims(session, bound(context, entry)))
        entry = ledger.require(
            session, context.migration, context.lifecycle.allowed(Phase.VALIDATE), to_do="be validated"
        )
        session.rows.prepare(entry.catalog)
        change = unaltered(session, context, bound(context, entry))
        job = _Validation(context, session, entry, change, compared)
        checks = job.examine(full=full)
        entry = _settle(context, session, job.entry, checks)
    failed = [c for c in checks if not c.passed]
    return Report(
        migration=context.name,
        phase=Phase.VALIDATE,
        state=entry.state,
        summary="; ".join(f"{c.name}: {c.summary}" for c in failed or checks),
        sql=tuple(job.done),
        rows=job.rows,
        seconds=time.monotonic() - begun,
        retries=job.retries,
        checks=tuple(checks),
        facts=job.facts,
    )


@dataclass
class _Validation:
    """One run of the checks."""

    context: Context
    session: Session
    entry: ledger.Entry
    change: Change
    compared: Callable[[int], None]
    done: list[str] = field(default_factory=list)  # statements that ran
    rows: int = 0  # compared or counted now
    retries: int = 0
    facts: dict[str, object] = field(default_factory=lambda: {"partitions_to_repeat": []})

    def examine(self, *, full: bool) -> list[Check]:
        """Every check of the kind, in order; nothing is enforced before the data is right."""
        known = known_ranges.progress(self.session, self.entry.id) if self.change.rows is not None else []
        checks: list[Check] = []
        if self.change.parity is not None:
            checks += self._parity(known, full=full)
        if self.change.rows is not None and self.change.rows.destroys:
            checks.append(self._dry_run(known))
        # Each check that the kind names has a verdict, also where this table has nothing that could stand against it.
        own = kind_of(self.context.migration).words(self.context.migration).checks
        for name in (name for name in own if name not in {_ENFORCED, *(check.name for check in checks)}):
            good = Check(name=name, passed=True, summary="no row stands against it")
            checks.append(self._verdict(name) or good)
        if Need.ENFORCE in self.context.lifecycle.needs:  # also without a step: contract asks for the check
            checks.append(self._enforce(right=all(c.passed for c in checks)))
        return checks

    # -- the data -------------------------------------------------------------------------------------------

    def _parity(self, known: Sequence[RangeProgress], *, full: bool) -> list[Check]:
        context, parity_of, sync = self.context, self.change.parity, self.change.sync
        assert parity_of is not None  # asked by `examine`
        standing = proofs.Standing()
        if sync is not None:
            standing = proofs.begin(
                self.session, self.entry, known, proofs.Proving(sync=sync, parity=parity_of), full=full,
                patience=context.migration.locks.give_up_after, tell=context.tell,
            )  # fmt: skip
        for _ in standing.proven:
            self.compared(0)
        verdict = parity.compare(
            context.server,
            context.name,
            parity_of,
            [r.range for r in known if r.range.ordinal not in standing.proven],
            parallel=context.migration.backfill.max_parallel,
            new_is_read=ledger.all_reads_are_new(self.session, self.entry.id),
            tell=self.compared,
            each=lambda which, counts: proofs.remember(self.session, self.entry.id, standing, which, counts),
            prepare=lambda session: session.rows.prepare(self.entry.catalog),
        )
        earlier = sum(p.rows for p in standing.proven.values())
        through_down = verdict.through_down + sum(p.through_down for p in standing.proven.values())
        verdict = replace(verdict, rows=verdict.rows + earlier, earlier=earlier, through_down=through_down)
        ranges_now = len(known) - len(standing.proven)
        self.done.append(parity_of.compare(None, None).sql)
        self.rows += verdict.rows - earlier
        self.facts |= {
            "partitions_to_repeat": list(verdict.partitions),
            "agree_through_down_only": verdict.through_down,
            "ranges_compared": ranges_now,
            "ranges_compared_earlier": len(standing.proven),
            "rows_compared_earlier": earlier,
        }
        if verdict.partitions and self.change.rows is not None:
            found = self.session.rows.triggers(self.change.rows.writes)
            self.facts["triggers_that_may_alter"] = [trigger.name for trigger in found if trigger.before]
        return [_parity_check(verdict, ranges_now, len(standing.proven)), _complete(verdict, known)]

    def _dry_run(self, known: Sequence[RangeProgress]) -> Check:
        """How many rows of each range will go."""
        work = self.change.rows
        assert work is not None  # asked by `examine`
        self.session.rows.prepare(work.over)  # for the verdicts that follow
        counts: dict[str, int] = {}

        def count(session: Session, _: int, which: KeyRange) -> int:
            return int(session.run(work.waiting(which.lower, which.upper))[0][0])

        with readers(
            self.context.server, self.context.name, [r.range for r in known], count,
            sessions=self.context.migration.backfill.max_parallel,
            prepare=lambda session: session.rows.prepare(work.over),
        ) as reading:  # fmt: skip
            for (_, which), found in reading.outcomes():
                counts[which.partition] = found
                self.compared(found)
        self.done.append(work.waiting(None, None).sql)
        total = sum(counts.values())
        self.rows += total
        facts: dict[str, object] = {"rows": total}
        facts["by_range"] = [f"{r.range.partition}: {counts[r.range.partition]:,}" for r in known]
        return Check(name="dry_run", passed=True, summary=f"{total:,} rows in {len(known)} ranges will go", facts=facts)

    def _verdict(self, name: str) -> Check | None:
        """The kind's own verdict under a name when it is bad."""
        for check in self.change.checks:
            if check.check == name and (count := int(self.session.run(Statement(check.count))[0][0])):
                summary = check.failed.format(count=count)
                if not check.keys:
                    return Check(name=name, passed=False, summary=summary, facts={"rows": count})
                first = ["/".join(key) for (key,) in self.session.run(Statement(check.keys))]
                return Check(
                    name=name,
                    passed=False,
                    summary=f"{summary} (first keys: {', '.join(first)})",
                    facts={"rows": count, "first_keys": first},
                )
        return None

    # -- what is enforced -----------------------------------------------------------------------------------

    def _enforce(self, *, right: bool) -> Check:
        """Run the steps that are not done; a step that the data refuses is taken back at once, for it binds writers."""
        if not right:
            return Check(name=_ENFORCED, passed=False, summary="not tried: the data is not right yet")
        if (verdict := self._verdict(_ENFORCED)) is not None:
            return verdict
        begun: list[Step] = []
        steps = list(self.change.enforce) or self._left(self._today())
        while steps:
            for step in steps:
                if locks.is_done(self.session, step):
                    continue
                self._claim()
                begun.append(step)
                try:
                    self._run_step(step)
                except DatabaseError as error:
                    if fault(error) not in (Fault.OF_DATA, Fault.TOO_LARGE, Fault.TAKEN, Fault.OTHER):
                        raise
                    if fault(error) is Fault.TAKEN:
                        begun.pop()  # what has the name is somebody else's
                    first = self._broken_by(step) if fault(error) is Fault.OF_DATA else []
                    for taken in reversed([s for s in begun if s.undo]):
                        with contextlib.suppress(DatabaseError):
                            self._run_step(taken.undoing())
                    named = f" (keys of rows that break it: {', '.join(first)})" if first else ""
                    summary, facts = f"{step.name}: {safe(error)}{named}", {"first_keys": first} if first else {}
                    return Check(name=_ENFORCED, passed=False, summary=summary, facts=facts)
                self.done.append(step.sql)
            steps = self._left(self._today())
        for step in _statistics(self.context, self.change):
            self.session.run(Statement(step.sql))
        return Check(
            name=_ENFORCED,
            passed=True,
            summary=f"{len([s for s in self.change.enforce if s.done_when])} steps in place",
            facts={"steps": [s.name for s in self.change.enforce]},
        )

    def _broken_by(self, step: Step) -> list[str]:
        """The first keys of the rows that a step failed for, where the step can tell."""
        if not step.broken_by:
            return []
        return ["/".join(key) for (key,) in self.session.run(Statement(step.broken_by))]

    def _claim(self) -> None:
        """A finished migration has given up its relations: they are claimed again before anything is built anew."""
        if self.context.lifecycle.finished(self.entry.state):
            held = claims(self.session, self.change)
            self.entry = ledger.move(self.session, self.entry, _below(self.context), what="building again", claims=held)

    def _run_step(self, step: Step) -> None:
        self.retries += locks.run_step(
            self.session, step, context=self.context, what="validate", relations=self.change.relations
        )

    def _today(self) -> Sequence[Step]:
        return self.change.today(self.session) if self.change.today else ()

    def _left(self, steps: Sequence[Step]) -> list[Step]:
        return [step for step in steps if not locks.is_done(self.session, step)]

    def take_back(self) -> None:
        """Undo everything that is enforced, and what an interrupted validate did for what was added meanwhile."""
        for step in reversed([*self.change.enforce, *self._today()]):
            if step.undo:
                self._run_step(step.undoing())


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
        triggers = report.facts.get("triggers_that_may_alter") or []
        named = ", ".join(partitions[:_NAMED]) + (", …" if len(partitions) > _NAMED else "")
        raise ParityMismatch(
            f"{report.migration} range {named}",
            failed[0].summary,
            _way_out(failed[0].facts)
            + (f"; {' and '.join(triggers)} may alter what is written, and up must give the same" if triggers else ""),
            partitions,
        )
    raise PreflightError(
        report.migration,
        [Problem(f"check {c.name}", c.summary, "mend it, then run validate") for c in failed],
    )


def _way_out(facts: Mapping[str, object]) -> str:
    ways = []
    if any(facts.get(category) for category in ("missing", "extra", "different")):
        ways.append("materialize backfill for these ranges (with repair, where rows are extra or different)")
    if facts.get("beyond_down"):
        # The newer value is the new one, which a repair would replace by an older one.
        ways.append("write rows whose new value `down` cannot give back anew, through either shape")
    return f"{'; '.join(ways)}, then validate"


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
        "beyond_down": verdict.beyond,
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


def _settle(context: Context, session: Session, entry: ledger.Entry, checks: list[Check]) -> ledger.Entry:
    """Record the verdicts and move: up when all passed, down when what had been proven is no longer so."""
    passed, proven = all(c.passed for c in checks), Phase.VALIDATE in context.lifecycle.stands(entry.state)
    with session.transaction():
        ledger.record_checks(session, entry.id, checks)
        detail = {c.name: c.summary for c in checks}
        if passed and not proven:
            return ledger.move(session, entry, State.VALIDATED, what="validated", detail=detail)
        if not passed and proven:
            return ledger.move(session, entry, _below(context), what="no longer valid", detail=detail)
        ledger.append(session, entry.id, "checks passed" if passed else "checks failed", detail=detail)
        return entry


def _below(context: Context) -> State:
    """The state of a migration whose checks do not hold any more."""
    below = context.lifecycle.undo_target(Phase.VALIDATE)
    return State.BUILDING if below == State.ROLLED_BACK else below


@outlasting
def undo(context: Context) -> None:
    """Remove what was enforced; the state goes down first, so that the state never claims too much."""
    lifecycle, first = context.lifecycle, context.lifecycle.undo_target(Phase.VALIDATE) == State.ROLLED_BACK
    with context.session("rollback", brake=True) as session:
        before = {s for s in lifecycle.states if lifecycle.undoes(Phase.VALIDATE, s)}
        entry = ledger.require(
            session, context.migration, lifecycle.allowed(Phase.VALIDATE) | before, to_do="undo validate"
        )
        change = unaltered(session, context, bound(context, entry), left_behind=True)
        with session.transaction():
            ledger.forget_checks(session, entry.id)
            proofs.forget(session, entry.id)
            ledger.set_flag(session, entry.id, 0)  # reads that were switched before the proof was void
            if Phase.VALIDATE in lifecycle.stands(entry.state):
                # A finished migration has given up its relations: they are claimed again.
                entry = ledger.move(
                    session, entry, _below(context), what="validate undone", claims=claims(session, change)
                )
        _Validation(context, session, entry, change, lambda _: None).take_back()
        if first:
            with session.transaction():
                ledger.move(session, entry, State.ROLLED_BACK, what="rolled back")
