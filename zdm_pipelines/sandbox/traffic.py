"""Traffic: live requests of a simulated application, each answer checked."""

from __future__ import annotations

import json
import subprocess
import threading
from types import TracebackType
from typing import Any, Literal

from zdm_pipelines.sandbox import processes
from zdm_pipelines.sandbox.application import USERS, Application
from zdm_pipelines.sandbox.application.shapes import ANY_APPLICATION
from zdm_pipelines.sandbox.processes import SandboxError
from zdm_pipelines.sandbox.traffic_report import Figures, TrafficReport

__all__ = ["Deployment", "Figures", "Traffic", "TrafficReport"]

Deployment = Literal["old", "mixed", "new"]
"""Which versions of the application's code run: before, during and after a rolling deployment."""


class Traffic:
    """Clients that read and write through old and new code and know what every answer must be.

    Old code knows the application's old shape only. New code does the same until the flag exists; from then on
    new code writes the new shape, and reads it for those keys for which the flag is on. Every client has entities
    of its own that nobody else may write. The clients run in a process of their own. A context manager.

    Args:
        url: the application's database, with the tables `application.load` made.
        application: whose shapes are read and written; by default users with names.
        clients: how many, each a thread with a connection for each version of the code.
        rate: requests per second, all clients together; a request is one to six queries.
        deployment: which versions of the code run at first.
    """

    def __init__(
        self,
        url: str,
        application: Application = USERS,
        clients: int = 4,
        *,
        rate: float = 300.0,
        deployment: Deployment = "mixed",
    ) -> None:
        self._settings = {
            "url": url,
            "application": ANY_APPLICATION.dump_python(application, mode="json"),
            "clients": clients,
            "rate": rate,
            "deployment": deployment,
        }
        self._process: subprocess.Popen[str] | None = None
        self._final: TrafficReport | None = None
        self._lock = threading.Lock()

    def start(self) -> Traffic:
        """Start the clients; requests flow when this returns.

        Raises:
            SandboxError: the tables cannot be read.
        """
        self._process = processes.start_module("zdm_pipelines.sandbox.traffic_worker")
        try:
            self._ask("start", self._settings)
        except BaseException:
            self._end()
            raise
        return self

    def stop(self) -> TrafficReport:
        """Let the clients check all their rows once more, stop them, and return the whole report."""
        if self._final is None:
            try:
                self._final = TrafficReport.of(self._ask("stop"))
            finally:
                self._end()
        return self._final

    def report(self) -> TrafficReport:
        """What was seen up to now."""
        return self._final or TrafficReport.of(self._ask("report"))

    def mark(self, label: str) -> None:
        """Begin a new section of the report, such as a phase of a migration."""
        self._ask("mark", label)

    def deploy(self, deployment: Deployment) -> None:
        """Change which versions of the code run; returns when no request and no connection of another is
        left.

        Raises:
            SandboxError: a client's request did not end.
        """
        self._ask("deploy", deployment)

    def __enter__(self) -> Traffic:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        else:
            self._end()

    def _ask(self, command: str, argument: Any = None) -> Any:
        if self._process is None or self._process.stdin is None or self._process.stdout is None:
            raise SandboxError("traffic", "is not running", "start it")
        with self._lock:
            try:
                self._process.stdin.write(json.dumps([command, argument]) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            raise SandboxError("traffic", f"its process ended (exit code {self._process.poll()})", "start another")
        answer = json.loads(line)
        if "error" in answer:
            raise SandboxError("traffic", f"cannot {command}", answer["error"])
        return answer["answer"]

    def _end(self) -> None:
        if self._process is not None:
            processes.end(self._process)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
