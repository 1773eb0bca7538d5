"""Helpers: what tests rely on holds also at the moments when processes come and go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import psutil
import psycopg
import pytest

from zdm_pipelines.sandbox import processes
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.processes import SandboxError
from zdm_pipelines_tests.helpers import Worker, people, replaced, statements

M = replaced()


def test_a_worker_that_ends_before_its_report_says_how_many_statements_it_ran(database: str) -> None:
    people(database, 10)
    worker = Worker("expand", M, database, report_at=100_000)
    assert not worker.wait_for_report()
    killed, count = worker.end()
    assert not killed
    assert count > 10


def test_a_worker_reports_and_goes_on(database: str) -> None:
    people(database, 10)
    worker = Worker("expand", M, database, report_at=3)
    assert worker.wait_for_report()
    killed, count = worker.end()
    assert not killed
    assert count > 3


def test_a_worker_that_fails_says_why(database: str) -> None:
    worker = Worker("expand", M, database)  # there is no such table
    with pytest.raises(AssertionError, match="people"):
        worker.end()


def test_statements_are_counted_alike_here_and_in_a_worker(server, database: str) -> None:
    other = server.create_database(f"{database.rsplit('/', 1)[1]}_twin")
    try:
        for url in (database, other):
            people(url, 10)
        assert Worker("expand", M, database).end() == (False, statements("expand", M, other))
    finally:
        server.drop_database(other.rsplit("/", 1)[1])


@pytest.fixture
def sessions_that_come_and_go(cluster: Cluster) -> Iterator[None]:
    """A new session of the replica every few milliseconds: some are zombies when somebody looks."""
    ended = threading.Event()

    def come_and_go() -> None:
        while not ended.is_set():
            psycopg.connect(cluster.replica.url()).close()

    other = threading.Thread(target=come_and_go, daemon=True)
    other.start()
    yield
    ended.set()
    other.join()


@pytest.mark.usefixtures("sessions_that_come_and_go")
@pytest.mark.parametrize("title", ["walreceiver", "startup"])
def test_a_process_of_a_server_is_found_among_sessions_that_end(cluster: Cluster, title: str) -> None:
    found = {cluster.replica.process(title).pid for _ in range(50)}
    assert len(found) == 1
    assert psutil.Process(found.pop()).ppid() == cluster.replica.pid


def test_a_process_that_a_server_has_not(cluster: Cluster) -> None:
    with pytest.raises(SandboxError, match="has no process walreceiver"):
        cluster.primary.process("walreceiver", timeout=0.1)


def test_a_zombie_is_not_alive_and_shows_no_words() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    zombie = psutil.Process(process.pid)
    assert not processes.is_alive(zombie)
    assert processes.words(zombie) == []
    process.wait()
    assert not processes.is_alive(zombie)
    assert processes.words(zombie) == []


def test_a_program_ends_at_sigint_though_this_process_ignores_the_signal() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = processes.start(["sh", "-c", "echo started; exec sleep 600"], pipes=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        processes.end(process, first=signal.SIGINT, grace=10)
    finally:
        signal.signal(signal.SIGINT, before)
    process.communicate()
    assert process.returncode == -signal.SIGINT
