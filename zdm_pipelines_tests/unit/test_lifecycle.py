"""Lifecycle: what follows from the needs of a change."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zdm_pipelines.model.lifecycle import Lifecycle, Need
from zdm_pipelines.model.states import Phase, State

REPLACED = Lifecycle.of(set(Need) - {Need.DESTROYS, Need.CHECKS})
INDEX = Lifecycle.of({Need.ENFORCE})
DROP = Lifecycle.of({Need.RETIRE})
SWAP = Lifecycle.of({Need.ENFORCE, Need.RETIRE})
PURGE = Lifecycle.of({Need.ROWS, Need.DESTROYS})
ARCHIVE = Lifecycle.of({Need.EXPAND, Need.ROWS, Need.DESTROYS, Need.CHECKS, Need.TOMBSTONE})
ONE_STEP = Lifecycle.of({Need.EXPAND})
EVERY = [Lifecycle.of(needs) for n in range(1, 4) for needs in combinations(Need, n) if needs != (Need.TOMBSTONE,)
         and set(needs) - {Need.TOMBSTONE}]  # fmt: skip

_S = State


def test_a_column_that_is_replaced_moves_as_it_always_did() -> None:
    assert {state: REPLACED.transitions(state) for state in (_S.PLANNED, *REPLACED.states, _S.ROLLED_BACK)} == {
        _S.PLANNED: {_S.EXPANDED},
        _S.EXPANDED: {_S.BACKFILLING, _S.BACKFILLED, _S.ROLLED_BACK},
        _S.BACKFILLING: {_S.BACKFILLED, _S.EXPANDED, _S.ROLLED_BACK},
        _S.BACKFILLED: {_S.BACKFILLING, _S.VALIDATED, _S.EXPANDED, _S.ROLLED_BACK},
        _S.VALIDATED: {_S.SWITCHING, _S.SWITCHED, _S.BACKFILLED, _S.BACKFILLING, _S.EXPANDED, _S.ROLLED_BACK},
        _S.SWITCHING: {_S.SWITCHED, _S.VALIDATED, _S.BACKFILLED, _S.BACKFILLING, _S.EXPANDED, _S.ROLLED_BACK},
        _S.SWITCHED: {
            _S.TOMBSTONED, _S.SWITCHING, _S.VALIDATED, _S.BACKFILLED, _S.BACKFILLING, _S.EXPANDED, _S.ROLLED_BACK,
        },
        _S.TOMBSTONED: {_S.CONTRACTED, _S.SWITCHED},
        _S.CONTRACTED: set(),
        _S.ROLLED_BACK: {_S.EXPANDED},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lifecycle", "phases", "states"),
    [
        (INDEX, [Phase.VALIDATE], [_S.BUILDING, _S.VALIDATED]),
        (DROP, [Phase.CONTRACT], [_S.CONTRACTING, _S.CONTRACTED]),
        (SWAP, [Phase.VALIDATE, Phase.CONTRACT], [_S.BUILDING, _S.VALIDATED, _S.CONTRACTING, _S.CONTRACTED]),
        (
            PURGE,
            [Phase.EXPAND, Phase.VALIDATE, Phase.CONTRACT],
            [_S.EXPANDED, _S.VALIDATED, _S.CONTRACTING, _S.CONTRACTED],
        ),
        (
            ARCHIVE,
            [Phase.EXPAND, Phase.VALIDATE, Phase.CONTRACT],
            [_S.EXPANDED, _S.VALIDATED, _S.CONTRACTING, _S.TOMBSTONED, _S.CONTRACTED],
        ),
        (ONE_STEP, [Phase.EXPAND], [_S.EXPANDED]),
    ],
)
def test_what_a_change_does_not_need_has_no_phase_and_no_state(
    lifecycle: Lifecycle, phases: list[Phase], states: list[State]
) -> None:
    assert list(lifecycle.phases) == phases
    assert list(lifecycle.states) == states


def test_a_change_that_needs_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="at least one phase"):
        Lifecycle.of(set())


def test_a_contract_that_destroys_can_be_ended_where_it_stands() -> None:
    assert PURGE.transitions(_S.CONTRACTING) == {_S.CONTRACTED, _S.VALIDATED}
    assert PURGE.undo_path(_S.CONTRACTING, _S.ROLLED_BACK) == (Phase.CONTRACT, Phase.VALIDATE, Phase.EXPAND)
    assert not PURGE.can_go_back(_S.CONTRACTED)
    assert ARCHIVE.can_go_back(_S.CONTRACTING)
    assert ARCHIVE.undo_path(_S.TOMBSTONED, _S.VALIDATED) == (Phase.CONTRACT,)


def test_a_validate_that_was_killed_is_undone_with_the_backfill() -> None:
    assert REPLACED.undo_path(_S.BACKFILLED, _S.BACKFILLED) == (Phase.VALIDATE,)
    assert REPLACED.undo_path(_S.BACKFILLED, _S.EXPANDED) == (Phase.VALIDATE, Phase.BACKFILL)
    assert INDEX.undo_path(_S.BUILDING, _S.ROLLED_BACK) == (Phase.VALIDATE,)


@given(st.sampled_from(EVERY), st.data())
def test_every_walk_ends_and_every_way_back_leads_there(lifecycle: Lifecycle, data: st.DataObject) -> None:
    """Walk phase by phase to the end; from wherever one stands, a rollback passes only through states that follow."""
    state, walked = State.PLANNED, []
    while (phase := lifecycle.next_phase(state)) is not None:
        following = lifecycle.completed(phase)
        for under_way in [s for s in lifecycle.states if lifecycle.phase_of(s) == phase]:
            assert under_way in lifecycle.transitions(state) or state == under_way
            state = under_way
        assert state == following
        walked.append(state)
        assert len(walked) <= len(lifecycle.phases)
    assert lifecycle.finished(state)
    begun = data.draw(st.sampled_from(lifecycle.states))
    if lifecycle.can_go_back(begun):
        to = data.draw(st.sampled_from(lifecycle.targets))
        path, past = lifecycle.undo_path(begun, to), lifecycle.is_past(begun, to)
        for phase in path:
            target = lifecycle.undo_target(phase)
            assert target == begun or target in lifecycle.transitions(begun)
            begun = target
        assert begun == to if past else path == ()


@pytest.mark.parametrize("lifecycle", EVERY, ids=lambda one: "+".join(sorted(one.needs)))
def test_a_state_is_stored_and_read_by_its_lifecycle(lifecycle: Lifecycle) -> None:
    assert len(set(lifecycle.states)) == len(lifecycle.states)
    assert not lifecycle.active(lifecycle.end)
    for state in lifecycle.states:
        assert state == State(str(state))
        assert lifecycle.stands(state) <= set(lifecycle.phases)
