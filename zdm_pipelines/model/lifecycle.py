"""Lifecycle: the phases and states of a migration, and how it may move between them, from what its change needs.

Everybody who asks where a migration may go from a state (the ledger, the phases, the rollback, the UI, the command
line) asks here; nobody else keeps a table by state or phase.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from zdm_pipelines.model.states import Phase, State


class Need(StrEnum):
    """What a change may need; a kind says which of these its changes do."""

    EXPAND = "expand"  # steps that add the new shape
    SYNC = "sync"  # both shapes are mirrored while they live
    ROWS = "rows"  # row work over ranges
    DESTROYS = "destroys"  # the row work takes rows away: the whole gate stands before its first batch
    PARITY = "parity"  # old and new shape are compared, row by row
    ENFORCE = "enforce"  # constraints and indexes that must stand
    CHECKS = "checks"  # further verdicts on the data
    READS = "reads"  # reads move from the old shape to the new one, by a flag
    RETIRE = "retire"  # something old is taken away
    TOMBSTONE = "tombstone"  # what is taken away is first kept out of sight, and can come back


_BEFORE = (State.PLANNED, State.ROLLED_BACK)  # nothing of the migration is in the application's schema


# What a phase that is under way, or may be run again, waits for.
_UNTIL = {
    State.BACKFILLING: "until every range is done",
    State.BUILDING: "again: it goes on",
    State.SWITCHING: "until it reaches 100 %",
    State.CONTRACTING: "until it is done",
    State.TOMBSTONED: "again after the tombstone window, or roll contract back first",
}


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """What to run from a state, for people."""

    phase: Phase | None  # None: the migration is finished
    anew: bool = False  # after a rollback
    until: str = ""  # how far, or from when on, a phase that began is run again; empty: it did not begin yet

    @property
    def sentence(self) -> str:
        """The way out of a refusal: run validate first."""
        if self.phase is None:
            return "it is finished: declare a new migration for a new change"
        return f"run {self.phase} {self.until or ('to begin anew' if self.anew else 'first')}"


def _states(phase: Phase, needs: frozenset[Need], *, first: bool) -> tuple[State, ...]:
    """The states that a phase goes through; the last one says that the phase is complete."""
    if phase is Phase.EXPAND:
        return (State.EXPANDED,)
    if phase is Phase.BACKFILL:
        return (State.BACKFILLING, State.BACKFILLED)
    if phase is Phase.VALIDATE:
        # A migration that begins with steps outside of transactions must say that it began, or nobody knows of a killed
        # one.
        return (State.BUILDING, State.VALIDATED) if first else (State.VALIDATED,)
    if phase is Phase.SWITCH_READS:
        return (State.SWITCHING, State.SWITCHED)
    kept = (State.TOMBSTONED,) if Need.TOMBSTONE in needs else ()
    # Where no tombstone is kept, a rollback must know that the old shape may be gone already.
    under_way = (State.CONTRACTING,) if first or Need.DESTROYS in needs or not kept else ()
    return (*under_way, *kept, State.CONTRACTED)


def _phases(needs: frozenset[Need]) -> tuple[Phase, ...]:
    wanted = {
        # The ranges of row work are cut where a migration expands, so that they can be launched.
        Phase.EXPAND: needs & {Need.EXPAND, Need.SYNC, Need.ROWS},
        Phase.BACKFILL: Need.ROWS in needs and Need.DESTROYS not in needs,
        Phase.VALIDATE: needs & {Need.PARITY, Need.ENFORCE, Need.CHECKS, Need.DESTROYS},
        Phase.SWITCH_READS: Need.READS in needs,
        Phase.CONTRACT: needs & {Need.RETIRE, Need.DESTROYS},
    }
    return tuple(phase for phase, asked in wanted.items() if asked)


@dataclass(frozen=True)
class Lifecycle:
    """What follows from the needs of a change.

    Raises:
        ValueError: the change needs nothing that has a phase.
    """

    needs: frozenset[Need]

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("a change needs at least one phase")

    @classmethod
    def of(cls, needs: Iterable[Need]) -> Lifecycle:
        """The lifecycle of a change with these needs."""
        return cls(frozenset(needs))

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the change, in the order in which a migration walks them."""
        return _phases(self.needs)

    @cached_property
    def _by_phase(self) -> dict[Phase, tuple[State, ...]]:
        return {phase: _states(phase, self.needs, first=place == 0) for place, phase in enumerate(self.phases)}

    @cached_property
    def states(self) -> tuple[State, ...]:
        """The states after `planned`, in order."""
        return tuple(state for phase in self.phases for state in self._by_phase[phase])

    @property
    def end(self) -> State:
        """The state in which the migration is finished."""
        return self.states[-1]

    def finished(self, state: State) -> bool:
        """Whether nothing is left to do, and no relation is claimed any more."""
        return state == self.end

    def active(self, state: State) -> bool:
        """Whether the migration holds its relations: it began, and is neither finished nor rolled back."""
        return state not in (*_BEFORE, self.end)

    def has(self, phase: Phase) -> bool:
        """Whether the change has a phase."""
        return phase in self.phases

    def phase_of(self, state: State) -> Phase:
        """The phase that leads to a state.

        Raises:
            KeyError: no phase of this change does.
        """
        for phase, states in self._by_phase.items():
            if state in states:
                return phase
        raise KeyError(state)

    def completed(self, phase: Phase) -> State:
        """The state that says that a phase is complete."""
        return self._by_phase[phase][-1]

    def begins(self, phase: Phase, state: State) -> bool:
        """Whether running a phase from a state begins the migration."""
        return phase == self.phases[0] and state in _BEFORE

    # -- row work ---------------------------------------------------------------------------------------------

    @property
    def row_phase(self) -> Phase | None:
        """The phase that works on rows, range by range; None: there is no row work."""
        if Need.ROWS not in self.needs:
            return None
        return Phase.CONTRACT if Need.DESTROYS in self.needs else Phase.BACKFILL

    @property
    def moving(self) -> State | None:
        """The state of a migration whose row work is under way."""
        return self._by_phase[self.row_phase][0] if self.row_phase else None

    @property
    def rows_done(self) -> State:
        """The state of a migration whose row work is done.

        Raises:
            ValueError: there is no row work.
        """
        if self.moving is None:
            raise ValueError("there is no row work")
        return self.states[self.states.index(self.moving) + 1]

    @property
    def watched(self) -> frozenset[State]:
        """The states in which rows are worked on, or are about to be: the database's signals are watched then."""
        if self.row_phase is None or self.moving is None:
            return frozenset()
        place = self.phases.index(self.row_phase)
        return frozenset({self.moving, self.completed(self.phases[place - 1])})

    @property
    def moving_allowed(self) -> frozenset[State]:
        """The states in which row work may be run: for the first time, or again."""
        return self.allowed(self.row_phase) if self.row_phase else frozenset()

    # -- forward --------------------------------------------------------------------------------------------

    def transitions(self, state: State) -> frozenset[State]:
        """The states that may follow a state."""
        if state in _BEFORE:
            return frozenset({self._by_phase[self.phases[0]][0]})
        place = self.states.index(state)
        phase = self.phase_of(state)
        contract = self._by_phase.get(Phase.CONTRACT, ())
        if state == State.CONTRACTED:
            return frozenset()
        onward = {self.states[place + 1]} if place + 1 < len(self.states) else set()
        if onward and (last := self._ahead(phase, state)) not in contract:
            onward.add(last)  # a phase may be done in one go
        if state in contract:
            again = {State.CONTRACTING} if state != State.CONTRACTING and State.CONTRACTING in contract else set()
            return frozenset(onward | again | {self._before_contract})
        return frozenset(onward | set(self.states[:place]) | {State.ROLLED_BACK})

    def _ahead(self, phase: Phase, state: State) -> State:
        """The state that completes the phase under way, or else the one after it."""
        if state != self.completed(phase):
            return self.completed(phase)
        place = self.phases.index(phase) + 1
        return self.completed(self.phases[place]) if place < len(self.phases) else state

    @property
    def _before_contract(self) -> State:
        place = self.phases.index(Phase.CONTRACT)
        return self.completed(self.phases[place - 1]) if place else State.ROLLED_BACK

    def next_phase(self, state: State) -> Phase | None:
        """The phase to run from a state, None when the migration is finished."""
        if state in _BEFORE:
            return self.phases[0]
        phase = self.phase_of(state)
        if state != self.completed(phase):
            return phase
        place = self.phases.index(phase) + 1
        return self.phases[place] if place < len(self.phases) else None

    def next_step(self, state: State) -> NextStep:
        """What to run from a state, with how far."""
        phase = self.next_phase(state)
        return NextStep(phase=phase, anew=state == State.ROLLED_BACK, until=_UNTIL.get(state, "") if phase else "")

    def allowed(self, phase: Phase) -> frozenset[State]:
        """The states of a migration that began in which a phase may be run: for the first time, again, or further."""
        place = self.phases.index(phase)
        if phase is Phase.CONTRACT:
            before = {self._before_contract} - {State.ROLLED_BACK}
            return frozenset(before | set(self._by_phase[phase][:-1]))
        first = self.states.index(self.completed(self.phases[place - 1])) if place else 0
        return frozenset(s for s in self.states[first:] if s not in self._by_phase.get(Phase.CONTRACT, ()))

    def stands(self, state: State) -> frozenset[Phase]:
        """The phases whose work stands in a state, and speaks of the data as the data is."""
        if state in _BEFORE:
            return frozenset()
        place = self.states.index(state)
        found = {p for p in self.phases if self.states.index(self.completed(p)) <= place}
        # One stage of a ramp is a result of its own.
        return frozenset(found | ({Phase.SWITCH_READS} if state == State.SWITCHING else set()))

    @property
    def unattended(self) -> tuple[Phase, ...]:
        """The phases that may be walked without asking: neither reads nor anything old is touched."""
        return tuple(p for p in self.phases if p not in (Phase.SWITCH_READS, Phase.CONTRACT))

    def awaits_contract(self, state: State) -> bool:
        """Whether contract is what comes next, for the first time or again."""
        return self.has(Phase.CONTRACT) and state in self.allowed(Phase.CONTRACT)

    def takes_for_good(self, state: State) -> bool:
        """Whether contract, run from a state, takes away what does not come back."""
        if not self.has(Phase.CONTRACT):
            return False
        if Need.TOMBSTONE in self.needs:
            return state == State.TOMBSTONED
        return state in self.allowed(Phase.CONTRACT) or self.begins(Phase.CONTRACT, state)

    # -- back -----------------------------------------------------------------------------------------------

    @cached_property
    def targets(self) -> tuple[State, ...]:
        """The states that a rollback may lead to, the nearest to the end first."""
        back = [self.completed(p) for p in reversed(self.phases[:-1])]
        return (*back, State.ROLLED_BACK)

    def undo_target(self, phase: Phase) -> State:
        """The state that undoing a phase leads to."""
        place = self.phases.index(phase)
        return self.completed(self.phases[place - 1]) if place else State.ROLLED_BACK

    def can_go_back(self, state: State) -> bool:
        """Whether a rollback from a state is possible at all.

        Where rows were taken away and not kept, it ends contract where it stands: what is gone stays gone.
        """
        return state not in (*_BEFORE, State.CONTRACTED)

    def is_past(self, state: State, target: State) -> bool:
        """Whether a rollback target lies behind a state, or is the state itself."""
        if state in _BEFORE:
            return False
        return target == State.ROLLED_BACK or self.states.index(state) >= self.states.index(target)

    def undo_path(self, state: State, to: State) -> tuple[Phase, ...]:
        """The phases to undo on the way back from a state, in the order of undoing."""
        if state in _BEFORE or not self.is_past(state, to):
            return ()
        path = []
        for phase in reversed(self.phases):
            if to != State.ROLLED_BACK and self.states.index(self.completed(phase)) <= self.states.index(to):
                break
            if self.undoes(phase, state):
                path.append(phase)
                if (state := self.undo_target(phase)) in _BEFORE:
                    break
        return tuple(path)

    def forgets_rows(self, to: State) -> bool:
        """Whether a rollback to a state takes the row work back, so that what is left of it must not go on."""
        if self.row_phase is None:
            return False
        return to == State.ROLLED_BACK or self.states.index(to) < self.states.index(self.completed(self.row_phase))

    def undoes(self, phase: Phase, state: State) -> bool:
        """Whether undoing a phase has something to take back in a state."""
        if not self.can_go_back(state):
            return False
        if state in self._by_phase[phase]:
            return True
        # A validate that was killed leaves indexes behind, and so does one whose verdict is void since.
        before = self.undo_target(phase)
        return phase is Phase.VALIDATE and before not in _BEFORE and self.phase_of(state) == self.phase_of(before)
