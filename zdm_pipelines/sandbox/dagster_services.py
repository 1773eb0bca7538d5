"""Dagster services: the web UI and the daemon as processes, for the demo and for tests of the whole.

Imports no Dagster: it starts the commands an operator would start.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from zdm_pipelines.sandbox import processes
from zdm_pipelines.sandbox.processes import SandboxError

_POLL = 0.25  # seconds between two questions to services that start; they need several

_GRACE = 10.0  # seconds a service may take to end by itself

_COMMANDS = {
    "webserver": ["dagster-webserver", "-h", "127.0.0.1", "-p", "{port}", "-w", "{workspace}"],
    "daemon": ["dagster-daemon", "run", "-w", "{workspace}"],
}

_STATUS = """
{
  workspaceOrError {
    ... on PythonError { message }
    ... on Workspace {
      locationEntries { name loadStatus locationOrLoadError { ... on PythonError { message } } }
    }
  }
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy lastHeartbeatTime } } }
}
"""


class DagsterServices:
    """`dagster-webserver` and `dagster-daemon` of this Python's environment; nothing of them outlives this
    process.

    A context manager, ready when entered.

    Args:
        home: becomes DAGSTER_HOME: made if missing, gets a copy of the `dagster.yaml` next to the workspace,
            and the
            services' logs `webserver.log` and `daemon.log`.
        storage_url: Dagster's own database, `postgresql://…`.
        workspace: the `workspace.yaml`; the services run in its folder.
        env: environment variables on top of this process's, such as the URLs of the databases to migrate.
        port: the web UI's port on 127.0.0.1; none: a free one is chosen.
    """

    def __init__(
        self,
        home: Path,
        storage_url: str,
        workspace: Path,
        env: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.home = home.absolute()
        self.port = port or processes.free_port()
        self.env = {
            **(env or {}),
            "DAGSTER_HOME": str(self.home),
            "DAGSTER_POSTGRES_URL": psycopg2_url(storage_url),
        }
        self._workspace = workspace.absolute()
        self._services: dict[str, subprocess.Popen[str]] = {}
        self._sessions: set[int] = set()  # killed services' too: their children may live on
        self._sweeper: subprocess.Popen[str] | None = None
        self._daemon_since = 0.0  # when the present daemon was started, Unix time

    @property
    def url(self) -> str:
        """Where the web UI is."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start both; `wait_ready` says when they can be used."""
        self.home.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._workspace.with_name("dagster.yaml"), self.home / "dagster.yaml")
        self._sweeper = processes.start_module("zdm_pipelines.sandbox.sweeper", death_signal=None)
        for name in _COMMANDS:
            self._start(name)

    def wait_ready(self, timeout: float = 90.0) -> None:
        """Wait until the UI answers, every code location is loaded and every daemon has given a sign of life.

        Raises:
            SandboxError: a service ended, a code location cannot be loaded, or `timeout` seconds have passed.
        """
        deadline = time.monotonic() + timeout
        while (missing := self._missing()) is not None:
            for name, service in self._services.items():
                if service.poll() is not None:
                    raise self._failure(name, f"ended with exit code {service.returncode}")
            if time.monotonic() > deadline:
                raise self._failure("daemon" if "daemon" in missing else "webserver", f"not ready: {missing}")
            time.sleep(_POLL)

    def query(self, query: str, variables: Mapping[str, Any] | None = None, timeout: float = 30.0) -> Any:
        """Ask Dagster's GraphQL and return `data`.

        Raises:
            OSError: nobody answers.
            SandboxError: the query is refused.
        """
        body = json.dumps({"query": query, "variables": dict(variables or {})}).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/graphql", body, headers)  # noqa: S310 - our own loopback
        with urllib.request.urlopen(request, timeout=timeout) as response:  # noqa: S310
            answer = json.load(response)
        if answer.get("errors"):
            raise SandboxError(self.url, f"GraphQL refused: {answer['errors'][0]['message']}", "mend the query")
        return answer["data"]

    def pid(self, name: str) -> int:
        """The process id of `webserver` or `daemon`."""
        return self._services[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL `webserver` or `daemon`: a crash. Its runs go on until `stop`, also if it is restarted."""
        service = self._services.pop(name)
        service.kill()
        service.wait()

    def restart(self, name: str) -> None:
        """End `webserver` or `daemon` with its children and start it again, without waiting until ready."""
        if service := self._services.pop(name, None):
            processes.end(service, grace=_GRACE)
            self._sweep(service.pid)
        self._start(name)

    def stop(self) -> None:
        """End both and all their children: code servers and runs."""
        for service in self._services.values():
            if service.poll() is None:
                service.send_signal(signal.SIGTERM)
        for service in self._services.values():
            processes.end(service, grace=_GRACE)
        for session in list(self._sessions):
            self._sweep(session)
        self._services.clear()
        if self._sweeper is not None:
            self._sweeper.communicate()
            self._sweeper = None

    def __enter__(self) -> DagsterServices:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, name: str) -> None:
        command = [word.format(port=self.port, workspace=self._workspace) for word in _COMMANDS[name]]
        # Not resolved: in a virtual environment the link to Python and Dagster's commands share a folder.
        command[0] = str(Path(sys.executable).with_name(command[0]))
        self._services[name] = processes.start(
            command, env=os.environ | self.env, cwd=self._workspace.parent, log=self.home / f"{name}.log"
        )
        if name == "daemon":
            self._daemon_since = time.time()
        self._sessions.add(self._services[name].pid)
        self._tell_sweeper(f"+{self._services[name].pid}")

    def _sweep(self, session: int) -> None:
        processes.kill(processes.session_members(session))
        self._sessions.discard(session)
        self._tell_sweeper(f"-{session}")

    def _tell_sweeper(self, line: str) -> None:
        if self._sweeper is not None and self._sweeper.stdin is not None:
            self._sweeper.stdin.write(f"{line}\n")
            self._sweeper.stdin.flush()

    def _missing(self) -> str | None:
        """Say what the services still lack; none: they are ready."""
        try:
            data = self.query(_STATUS, timeout=5)
        except OSError as error:
            return f"no answer from {self.url} ({error})"
        if problem := data["workspaceOrError"].get("message"):
            raise SandboxError(str(self._workspace), "cannot be loaded", problem)
        for entry in data["workspaceOrError"]["locationEntries"]:
            if entry["loadStatus"] != "LOADED":
                return f"code location {entry['name']} is being loaded"
            if problem := (entry["locationOrLoadError"] or {}).get("message"):
                raise SandboxError(entry["name"], "the code location cannot be loaded", problem)
        for daemon in data["instance"]["daemonHealth"]["allDaemonStatuses"]:
            # A heartbeat stays for a while after the daemon that gave it.
            fresh = (daemon["lastHeartbeatTime"] or 0.0) >= self._daemon_since
            if daemon["required"] and not (daemon["healthy"] and fresh):
                return f"daemon {daemon['daemonType']} gives no sign of life"
        return None

    def _failure(self, name: str, fact: str) -> SandboxError:
        log = self.home / f"{name}.log"
        tail = log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else ""
        return SandboxError(name, fact, f"the end of {log} says:\n{tail}")


def psycopg2_url(url: str) -> str:
    """Rewrite a Postgres URL so that it names the only driver Dagster's storage can use."""
    scheme, rest = url.split("://", 1)
    if scheme.partition("+")[0] not in ("postgresql", "postgres"):
        raise SandboxError("Dagster's storage", f"is no Postgres URL but {scheme}://", "give postgresql://…")
    return f"postgresql+psycopg2://{rest}"
