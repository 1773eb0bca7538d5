"""Fixtures: one cluster for the whole session, a fresh database for every test that asks for one."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from zdm_pipelines.phases import reads
from zdm_pipelines.sandbox import application
from zdm_pipelines.sandbox.postgres import Cluster, Server
from zdm_pipelines_tests import in_memory

# The same examples each time, or others and more of them: HYPOTHESIS_PROFILE=nightly make test ARGS="-k any_schedule"
settings.register_profile("test", max_examples=30, deadline=None, derandomize=True, database=None)
settings.register_profile("nightly", max_examples=300, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))

_FAST = {"fsync": "off", "full_page_writes": "off"}  # tests kill processes, never the machine

_numbers = count(1)

Filled = Callable[[Callable[[str], Any]], tuple[str, Any]]


def pytest_collection_finish() -> None:
    """Leave what was imported out of each garbage collection: it stays to the end."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Space the slow tests out: they mostly wait, and others can use the processors meanwhile."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    others = [item for item in items if not item.get_closest_marker("slow")]
    # All of them within the first two thirds, so that none is left at the end with nobody beside it.
    every = 2 * len(others) / (3 * max(len(slow), 1))
    placed: list[pytest.Item] = []
    for n, item in enumerate(others):
        # Between two modules: in the middle of one, what its tests share would be made anew.
        if n == 0 or item.path != others[n - 1].path:
            while slow and n >= (len(placed) - n) * every:
                placed.append(slow.pop(0))
        placed.append(item)
    items[:] = placed + slow


@pytest.fixture(autouse=True)
def _no_storage_of_an_earlier_instance() -> None:
    """Dagster keeps the current storage of definitions; instances left out of order leave one behind that is gone."""
    if (storages := sys.modules.get("dagster._core.storage.defs_state.base")) is not None:
        storages._current_storage.set(None)


@pytest.fixture(autouse=True)
def clients_see_flags_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client reads flags, so that nobody is waited for; a module with clients has a fixture of this name instead."""
    monkeypatch.setattr(reads, "FLAG_SECONDS", 0.0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT interrupts this process: a suite that a shell started in the background inherits that SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A primary with a streaming replica, shared by the session: do not stop or kill its servers."""
    shared = Cluster(in_memory.folder(tmp_path_factory.mktemp("cluster")), settings=_FAST)
    try:
        shared.start()
        yield shared
    finally:
        shared.remove()


@pytest.fixture
def server(cluster: Cluster) -> Server:
    """The shared cluster's primary."""
    return cluster.primary


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The URL of an empty database of this test's own."""
    name = f"test_{next(_numbers)}"
    yield server.create_database(name)
    server.drop_database(name)


@pytest.fixture(scope="session")
def app_template(cluster: Cluster) -> str:
    """The name of a database with 2,000 users, to copy."""
    application.load(cluster.primary.create_database("app_template"), rows=2_000)
    return "app_template"


@pytest.fixture
def app_database(server: Server, app_template: str) -> Iterator[str]:
    """The URL of a database of this test's own with 2,000 rows in `public.users`."""
    name = f"test_app_{next(_numbers)}"
    yield server.create_database(name, template=app_template)
    server.drop_database(name)


@pytest.fixture(scope="session")
def _filled_once(cluster: Cluster) -> dict[Any, tuple[str, Any]]:
    """Templates and what filling them gave, by the function that filled them."""
    return {}


@pytest.fixture
def filled(server: Server, _filled_once: dict[Any, tuple[str, Any]]) -> Iterator[Filled]:
    """Databases of this test's own that take longer to fill: a function fills one, once, and others are its copies.

    Gives the URL of a copy, and what the function gave.
    """
    names: list[str] = []

    def copy(fill: Callable[[str], Any]) -> tuple[str, Any]:
        if fill not in _filled_once:
            template = f"template_{len(_filled_once)}"
            _filled_once[fill] = (template, fill(server.create_database(template)))
        template, given = _filled_once[fill]
        names.append(f"test_{next(_numbers)}")
        return server.create_database(names[-1], template=template), given

    yield copy
    for name in names:
        server.drop_database(name)


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own, without replica: to kill, restart and configure."""
    own = Cluster(in_memory.folder(tmp_path / "own"), replica=False, settings=_FAST)
    try:
        own.start()
        yield own.primary
    finally:
        own.remove()
