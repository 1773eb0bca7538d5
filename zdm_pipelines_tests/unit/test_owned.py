"""Owned entities: what may be found is known after every write, also after one whose outcome nobody knows."""

from __future__ import annotations

import pytest

from zdm_pipelines.sandbox.application import EVENTS, ORDERS, SETTINGS, USERS, Application
from zdm_pipelines.sandbox.application.owned import Owned
from zdm_pipelines.sandbox.application.shapes import ANY_APPLICATION, Facts

ADA, BOB = ("Ada", 1), ("Bob", 1)
TRACE, ORDER = ("trace", "n"), ("order", "n")


def renamed(facts: Facts) -> Facts:
    return "Bob", facts[1]


@pytest.fixture
def users() -> Owned:
    owned = Owned(USERS)
    owned.add({1: ADA})
    return owned


@pytest.fixture
def events() -> Owned:
    owned = Owned(EVENTS)
    owned.add({1: TRACE, 2: ORDER})
    return owned


def test_what_was_learned_is_expected(users: Owned) -> None:
    assert users.see(1, ADA)
    assert not users.see(1, BOB)
    assert users.see(1, BOB)  # a wrong answer is counted once
    assert not users.see(1, None)
    assert users.is_gone(1)


def test_a_write_that_was_heard_of_leaves_one_state(users: Owned) -> None:
    assert users.change(1, renamed, found=True)
    assert users.states(1) == {BOB}
    assert users.certain(1) == BOB


def test_a_write_that_finds_nothing_is_wrong(users: Owned) -> None:
    assert not users.change(1, renamed, found=False)
    assert users.is_gone(1)


def test_a_write_in_doubt_leaves_both_states(users: Owned) -> None:
    users.doubt(1, renamed)
    assert users.states(1) == {ADA, BOB}
    assert users.certain(1) is None
    assert users.see(1, BOB)
    assert users.states(1) == {BOB}  # the next answer must be the same


def test_a_deletion_in_doubt_may_have_happened(users: Owned) -> None:
    users.doubt(1, lambda _: None)
    assert users.change(1, renamed, found=False)
    assert users.is_gone(1)


def test_what_was_deleted_stays_so(users: Owned) -> None:
    assert users.change(1, lambda _: None, found=True)
    assert users.see(1, None)
    assert not users.change(1, renamed, found=True)
    assert not users.see(1, ADA)


def test_an_insert_in_doubt(users: Owned) -> None:
    users.insert(2, {None, ADA})
    assert not users.is_gone(2)
    assert users.see(2, ADA)
    assert len(users) == 2


def test_only_what_is_expendable_may_go(events: Owned) -> None:
    assert events.see(1, None)
    assert not events.see(2, None)


def test_what_somebody_else_took_may_be_put_back(events: Owned) -> None:
    assert events.see(1, None)
    assert events.see(1, TRACE)
    assert events.change(1, lambda facts: ("trace", "other"), found=False)
    assert not events.see(1, ("trace", "other"))  # that write never happened


def test_what_its_owner_deleted_is_not_put_back(events: Owned) -> None:
    assert events.change(1, lambda _: None, found=True)
    assert not events.see(1, TRACE)


def test_what_is_wanted_again_may_not_go(events: Owned) -> None:
    assert events.change(1, lambda _: ORDER, found=True)
    assert not events.see(1, None)


@pytest.mark.parametrize("application", [USERS, SETTINGS, EVENTS, ORDERS], ids=lambda a: a.entity)
def test_an_application_is_data(application: Application) -> None:
    assert ANY_APPLICATION.validate_json(ANY_APPLICATION.dump_json(application)) == application
