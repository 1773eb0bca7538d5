"""Workers: how threads share a list, how they fail, and how they are left."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest

from zdm_pipelines.engine.workers import Workers
from zdm_pipelines.model.errors import DatabaseUnreachable


class Desk:
    """A connection whose work ends when it is interrupted, or only when it is cut."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.deaf = deaf
        self.ended = threading.Event()
        self.requests = 0

    def interrupt(self, cut: bool) -> None:
        self.requests += 1
        if cut or not self.deaf:
            self.ended.set()


def pool(items: list[Any], work: Any, **given: Any) -> Workers[Any, Any, Any]:
    usual: dict[str, Any] = {"name": "test worker", "desk": nullcontext, "parallel": lambda: 2}
    return Workers(items, work=work, **{**usual, **given})


@pytest.fixture(autouse=True)
def leaving_nothing() -> Iterator[None]:
    yield
    assert not [t for t in threading.enumerate() if t.name == "test worker"]


def test_every_item_comes_out_once() -> None:
    with pool(list(range(50)), lambda _, n: n * n) as workers:
        assert sorted(workers.outcomes()) == [(n, n * n) for n in range(50)]


def test_without_items_no_thread_is_begun() -> None:
    with pool([], lambda _, __: pytest.fail("nothing to do")) as workers:
        assert list(workers.outcomes()) == []


def test_what_others_finished_is_given_before_the_failure() -> None:
    """The other worker is in the middle of its item: it ends there, and begins no further one."""
    begun, begin = threading.Event(), threading.Event()

    def work(_: Any, n: int) -> int:
        if n == 1:
            assert begun.wait(10)
            begin.set()
            raise ValueError("first")
        begun.set()
        assert begin.wait(10)
        time.sleep(0.1)
        return n

    given = []
    with pool([0, 1, 2, 3], work) as workers, pytest.raises(ValueError, match="first"):  # noqa: PT012
        for item, _ in workers.outcomes():
            given.append(item)
    assert given == [0]


def test_as_many_work_as_may_at_present() -> None:
    allowed, at_once, most = 1, 0, 0
    lock = threading.Lock()

    def work(_: Any, n: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        return n

    with pool(list(range(120)), work, parallel=lambda: allowed) as workers:
        outcomes = workers.outcomes()
        [next(outcomes) for _ in range(10)]
        assert most == 1
        allowed = 3
        [next(outcomes) for _ in range(60)]
        assert most == 3
        allowed = 1
        [next(outcomes) for _ in range(10)]
        most = 0
        assert len(list(outcomes)) == 40
        assert most == 1


def test_whose_connection_cannot_be_had_leaves_work_to_the_others() -> None:
    numbers = iter(range(100))

    @contextmanager
    def desk() -> Iterator[int]:
        if (number := next(numbers)) > 0:
            raise DatabaseUnreachable("database", "has no room for more", "wait")
        yield number

    with pool(list(range(20)), lambda _, n: n, desk=desk, parallel=lambda: 4) as workers:
        assert sorted(n for n, _ in workers.outcomes()) == list(range(20))


def test_a_connection_that_nobody_can_have_is_a_failure() -> None:
    def desk() -> Any:
        raise DatabaseUnreachable("database", "is away", "wait")

    with pool([1, 2, 3], lambda _, n: n, desk=desk) as workers, pytest.raises(DatabaseUnreachable, match="is away"):
        list(workers.outcomes())


def test_a_database_that_is_lost_under_an_item_is_its_failure() -> None:
    def work(_: Any, n: int) -> int:
        raise DatabaseUnreachable("database", f"was lost under {n}", "wait")

    with pool([1], work) as workers, pytest.raises(DatabaseUnreachable, match="lost under 1"):
        list(workers.outcomes())


@pytest.mark.parametrize(("deaf", "least"), [(False, 1), (True, 11)])
def test_who_leaves_early_interrupts_what_is_under_way(deaf: bool, least: int) -> None:
    desks: list[Desk] = []

    @contextmanager
    def desk() -> Iterator[Desk]:
        desks.append(Desk(deaf=deaf))
        yield desks[-1]

    def work(desk: Desk, n: int) -> int:
        if n:
            assert desk.ended.wait(30)
        return n

    with pool([0, 1], work, desk=desk, interrupt=lambda d, cut: d.interrupt(cut)) as workers:
        assert next(workers.outcomes()) == (0, 0)
    assert max(d.requests for d in desks) >= least


def test_work_that_writes_is_asked_to_stop_and_waited_for() -> None:
    stop, begun, done = threading.Event(), threading.Event(), []

    def work(_: Any, n: int) -> int:
        if n:
            begun.set()
            assert stop.wait(10)
            time.sleep(0.1)  # its batch
            done.append(n)
        return n

    with pool([0, 1, 2], work, stop=stop, parallel=lambda: 1) as workers:
        assert next(workers.outcomes()) == (0, 0)
        assert begun.wait(10)
    assert done == [1]


def test_an_interrupt_of_the_caller_ends_the_workers() -> None:
    def work(_: Any, n: int) -> int:
        time.sleep(0.01)
        return n

    with pytest.raises(KeyboardInterrupt), pool(list(range(1000)), work) as workers:  # noqa: PT012
        for number, _ in enumerate(workers.outcomes()):
            if number == 3:
                raise KeyboardInterrupt
