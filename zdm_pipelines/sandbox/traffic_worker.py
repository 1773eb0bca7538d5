"""Traffic worker: the process in which the clients run; takes commands and gives answers as lines of JSON.

A process of its own, so that work in the caller's does not show as latency.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import asdict
from typing import Any

import psycopg
from psycopg import errors

from zdm_pipelines.client.flags import Flags
from zdm_pipelines.sandbox.application import Shape
from zdm_pipelines.sandbox.application.shapes import ANY_APPLICATION
from zdm_pipelines.sandbox.traffic_client import Client, Plan
from zdm_pipelines.sandbox.traffic_report import Recorder

_DEPLOY_TIMEOUT = 30.0  # seconds until every client runs what it shall: its longest query takes 10


class Worker:
    """The clients of one traffic."""

    def __init__(self, settings: dict[str, Any]) -> None:
        url = settings["url"]

        def connect() -> psycopg.Connection[Any]:
            return psycopg.connect(url, application_name="app flags", connect_timeout=2)

        self._plan = Plan(
            url=url,
            application=ANY_APPLICATION.validate_python(settings["application"]),
            clients=settings["clients"],
            rate=settings["rate"],
            recorder=Recorder(),
            flags=Flags(connect),
        )
        self._clients = [Client(self._plan, number, settings["deployment"]) for number in range(self._plan.clients)]
        shape = self._readable()
        for client in self._clients:
            client.learn(shape)
        for client in self._clients:
            client.start()

    def _readable(self) -> Shape:
        """The old shape while there is one, else the new."""
        old, new = self._plan.application.old, self._plan.application.new
        if new is not None:
            with psycopg.connect(self._plan.url, autocommit=True) as connection:
                try:
                    connection.execute(old.read.encode(), {"keys": []})
                except (errors.UndefinedColumn, errors.UndefinedTable):
                    return new
        return old

    def report(self) -> dict[str, Any]:
        """The figures up to now."""
        return asdict(self._plan.recorder.report())

    def mark(self, label: str) -> None:
        """Begin a new section."""
        self._plan.recorder.mark(label)

    def deploy(self, deployment: str) -> None:
        """Change which versions of the code run; returns when the others are gone."""
        for client in self._clients:
            client.deployment = deployment
        deadline = time.monotonic() + _DEPLOY_TIMEOUT
        while any(client.deployed != deployment for client in self._clients):
            if time.monotonic() > deadline:
                raise TimeoutError(f"a client still runs something else than {deployment}")
            time.sleep(0.01)

    def stop(self) -> dict[str, Any]:
        """Let every client finish its request and check its rows; the final figures."""
        self._plan.stop.set()
        for client in self._clients:
            client.join()
        return self.report()


def main() -> None:
    """Answer commands until stopped, or until nobody is there to send any."""
    worker: Worker | None = None
    for line in sys.stdin:
        command, argument = json.loads(line)
        answer: Any = None
        try:
            if command == "start":
                worker = Worker(argument)
            elif worker is not None:
                arguments = [] if argument is None else [argument]
                answer = getattr(worker, command)(*arguments)
            print(json.dumps({"answer": answer}), flush=True)
        except Exception:  # noqa: BLE001 - the caller gets it, whatever it is
            print(json.dumps({"error": traceback.format_exc()}), flush=True)
        if command == "stop":
            break


if __name__ == "__main__":
    main()
