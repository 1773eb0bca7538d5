"""Gate: every reason why contract may not touch anything, asked of the database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

from zdm_pipelines import ledger
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine.schema import locks
from zdm_pipelines.engine.schema.sync import sync_reasons
from zdm_pipelines.ledger import ranges
from zdm_pipelines.model.capabilities import Sync
from zdm_pipelines.model.errors import DatabaseUnreachable, SpecError
from zdm_pipelines.model.lifecycle import Lifecycle, Need
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.model.units import Unit, for_people
from zdm_pipelines.model.values import Step

_NAMED = 5  # ranges named in a reason; status lists the rest
_ANSWERS_SECONDS = 10.0  # a replica that needs longer for a look at its counts is taken for one that cannot be asked


def reasons(
    session: Session,
    entry: ledger.Entry | None,
    migration: Migration,
    *,
    checks: Sequence[str],
    old: str,
    dependents: Sequence[str],
    sync: Sync | None,
    constraints: Sequence[Step],
) -> list[str]:
    """Everything that stands against contract but the data itself, which is compared under the lock.

    Args:
        checks: those of validate, which must have passed.
        old: what contract takes away, as a sentence's subject.
        dependents: what still stands on that, or that somebody else took it away.
        constraints: steps of validate; each that tells when it is done must say so.
    """
    lifecycle = migration.lifecycle
    if not lifecycle.has(Phase.CONTRACT):
        return [f"{migration.name} takes nothing away: it has no contract"]
    state = entry.state if entry else State.PLANNED
    begins = lifecycle.begins(Phase.CONTRACT, state)
    if entry is None:
        first = lifecycle.next_step(state).sentence
        return [] if begins else [f"{migration.name} is planned: it never began; {first}"]
    found = declaration_reasons(entry, migration) if not begins else []
    if not begins and state not in lifecycle.allowed(Phase.CONTRACT):
        found.insert(0, f"{migration.name} is {state}, contract begins from {_before(lifecycle)}")
    if not begins and not lifecycle.active(state):
        return found
    before = lifecycle.undo_target(Phase.CONTRACT)
    again = f"; roll back to {before} first" if state == State.TOMBSTONED else ""
    found += [
        reason + again
        for reason in (*_progress_reasons(session, entry, lifecycle), *_check_reasons(session, entry, checks))
    ]
    if Need.READS in lifecycle.needs:
        found += _window_reasons(session, entry, migration)
    found += _old_shape_reasons(session, entry, migration, old)
    found += dependents
    found += sync_reasons(session, sync)
    found += [
        f"not in place: {step.name} ({step.reason}); run validate"
        for step in constraints
        if step.done_when and not locks.is_done(session, step)
    ]
    return found


def _before(lifecycle: Lifecycle) -> State:
    """The state from which contract begins."""
    return State.PLANNED if lifecycle.phases[0] is Phase.CONTRACT else lifecycle.undo_target(Phase.CONTRACT)


def uses(
    session: Session, database: Database, in_use: Callable[[Session, Mapping[str, Session]], list[str]] | None
) -> list[str]:
    """Who uses what goes, here and on the declared replicas; what a replica does not tell counts as used."""
    if in_use is None:
        return []
    with contextlib.ExitStack() as stack:
        try:
            replicas = {
                called: stack.enter_context(server_at(url).connect(purpose="gate", deadline=_ANSWERS_SECONDS))
                for called, url in database.replica_urls().items()
            }
        except (SpecError, DatabaseUnreachable) as error:
            return [f"what is read on replicas is not known: {error}"]
        return in_use(session, replicas)


def _age(session: Session, since: object) -> float:
    return float(session.value("sync.seconds_since", since))


def declaration_reasons(entry: ledger.Entry, migration: Migration) -> list[str]:
    """The reason that a file which declares otherwise than the migration was begun with is against contract."""
    conflict = entry.conflict(migration)
    return [f"it {conflict.fact}: {conflict.way_out}"] if conflict else []


def _progress_reasons(session: Session, entry: ledger.Entry, lifecycle: Lifecycle) -> list[str]:
    """Ranges that the row work before contract left; work that contract does itself is behind the gate."""
    if Need.ROWS not in lifecycle.needs:
        return []
    known = ranges.progress(session, entry.id)
    if not known:
        return ["no range was ever planned: run expand"]
    left = [r.range.partition for r in known if not r.done]
    if not left or lifecycle.row_phase is Phase.CONTRACT:
        return []
    named = ", ".join(left[:_NAMED]) + (", …" if len(left) > _NAMED else "")
    return [f"{len(left)} of {len(known)} ranges are not backfilled: {named}; run backfill, then validate"]


def _check_reasons(session: Session, entry: ledger.Entry, checks: Sequence[str]) -> list[str]:
    verdicts = ledger.verdicts(session, entry.id)
    reasons = []
    for name in checks:
        if name not in verdicts:
            reasons.append(f"check {name} never ran on this data: run validate")
        elif not verdicts[name][0]:
            reasons.append(f"check {name} failed: {verdicts[name][1]}; mend it, then run validate")
    return reasons


def _window_reasons(session: Session, entry: ledger.Entry, migration: Migration) -> list[str]:
    """What is not so about reads: all on the new shape, for as long as is declared."""
    flag = ledger.flag(session, entry.id)
    reasons = []
    if flag is None or flag.percent < 100:
        reasons.append(f"reads are at {flag.percent if flag else 0} % of the new shape, not 100 %: run switch_reads")
    # The flag's own time, which the database keeps, whoever moves the flag; an earlier ledger has the state's only.
    since = flag.full_since or entry.switched_at if flag else None
    if entry.switched_at is None or since is None:
        reasons.append("reads were never fully switched: run switch_reads")
    elif (left := migration.contract.confidence_window - _age(session, since)) > 0:
        reasons.append(
            f"reads are fully switched since {since:%Y-%m-%d %H:%M:%S %Z}; "
            f"the confidence window ends in {for_people(left, Unit.SECONDS)}"
        )
    return reasons


def _old_shape_reasons(session: Session, entry: ledger.Entry, migration: Migration, old: str) -> list[str]:
    """The time for which a tombstone is kept, and before there is one, who still writes the old shape."""
    if entry.state == State.TOMBSTONED:
        assert entry.tombstoned_at is not None  # entered together with the state
        left = migration.contract.tombstone_window - _age(session, entry.tombstoned_at)
        since = f"{entry.tombstoned_at:%Y-%m-%d %H:%M:%S %Z}"
        kept = f"{old} is out of sight since {since}; it is kept for {for_people(left, Unit.SECONDS)} more"
        return [kept] if left > 0 else []
    if Need.SYNC not in migration.lifecycle.needs:
        return []
    late = ledger.late_writers(session, entry.id, window=migration.contract.straggler_window)
    return [f"straggler: {who}; deploy new code there" for who in late]
