"""Traffic client: one user of the application, at a given pace, through the versions of the code that are deployed."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import dataclass, field
from functools import partial

import psycopg

from zdm_pipelines.client.flags import Flags
from zdm_pipelines.sandbox.application import Application, Shape
from zdm_pipelines.sandbox.application.requests import Requests
from zdm_pipelines.sandbox.application.session import Failed, Session
from zdm_pipelines.sandbox.application.shapes import Key
from zdm_pipelines.sandbox.traffic_report import Recorder

VERSIONS = {"old": ("old",), "mixed": ("old", "new"), "new": ("new",)}
"""Which versions of the code run in which deployment."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all clients of one traffic have in common."""

    url: str
    application: Application
    clients: int
    rate: float  # requests per second, all clients together
    recorder: Recorder
    flags: Flags
    stop: threading.Event = field(default_factory=threading.Event)


class Client(threading.Thread):
    """One user: sends requests until told to stop, then looks at all its entities once more."""

    def __init__(self, plan: Plan, number: int, deployment: str) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.deployment = deployment  # what it shall run
        self.deployed = deployment  # what it runs: no connection of another version is open
        self._plan = plan
        self._random = random.Random(number)
        self._requests = Requests(plan.application, client=number, recorder=plan.recorder)
        self._sessions: dict[str, Session] = {}

    def learn(self, shape: Shape) -> None:
        """Own a share of the entities that are there, as this shape says them, before anybody writes."""
        with psycopg.connect(self._plan.url, autocommit=True) as connection:
            self._requests.learn(connection, shape, clients=self._plan.clients)

    def run(self) -> None:
        """Send requests until told to stop; a mistake in this code counts, too: traffic never just goes quiet."""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            recorder = self._plan.recorder
            recorder.failed(recorder.section, VERSIONS[self.deployment][0], f"{self.name} ended: {error!r}")

    def _run(self) -> None:
        pace = self._plan.clients / self._plan.rate
        due = time.monotonic()
        while not self._plan.stop.is_set():
            self._deploy()
            version = self._random.choice(VERSIONS[self.deployed])
            with contextlib.suppress(Failed):
                reads, writes = partial(self._reads, version), partial(self._writes, version)
                self._requests.send(self._session(version), reads=reads, writes=writes)
            due = max(due + pace * self._random.uniform(0.5, 1.5), time.monotonic() - 1)
            self._plan.stop.wait(max(0.0, due - time.monotonic()))
        self._deploy()
        for version in VERSIONS[self.deployed]:
            with contextlib.suppress(Failed):
                self._requests.verify(self._session(version), partial(self._reads, version))
        for session in self._sessions.values():
            session.close()

    def _deploy(self) -> None:
        wanted = self.deployment
        for version in set(self._sessions) - set(VERSIONS[wanted]):
            self._sessions.pop(version).close()
        self.deployed = wanted

    def _session(self, version: str) -> Session:
        if version not in self._sessions:
            self._sessions[version] = Session(self._plan.url, version=version, recorder=self._plan.recorder)
        return self._sessions[version]

    # What a version of the code knows. Old code knows the old shape only; new code asks the flag.

    def _reads(self, version: str, key: Key) -> Shape:
        application, flags = self._plan.application, self._plan.flags
        new, flag = application.new, application.flag
        if version == "old" or new is None or flag is None or not flags.is_on(flag, key):
            return application.old
        return new

    def _writes(self, version: str, key: Key) -> Shape:
        application, flags = self._plan.application, self._plan.flags
        new, flag = application.new, application.flag
        if application.writes_follow_reads:
            return self._reads(version, key)
        if version == "old" or new is None or flag is None or flags.percent(flag) is None:
            return application.old
        return new
