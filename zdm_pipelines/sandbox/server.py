"""Server: one embedded Postgres server, started, stopped, killed and restarted as its own process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from zdm_pipelines.sandbox import processes
from zdm_pipelines.sandbox.processes import Account, SandboxError

_STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

_POLL = 0.02  # seconds between two looks at a server that starts; a primary is up in about 0.1 s

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "wal_level": "replica",
    "hot_standby": "on",
    "hot_standby_feedback": "off",  # a replica's queries must not pin the primary's rows
    "max_connections": "200",
    "max_wal_senders": "10",
    "shared_buffers": "64MB",
    "max_wal_size": "1GB",
    "wal_receiver_status_interval": "1s",  # so that the primary's view of the replica is fresh
    "wal_retrieve_retry_interval": "200ms",  # a replica finds its restarted primary soon
    "log_min_messages": "warning",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


class Server:
    """One Postgres server on 127.0.0.1; user `postgres`, no password.

    Args:
        data: its data folder.
        port: its TCP port, the same over restarts.
        bin_folder: the folder of its programs.
        account: the operating system user it runs as; none: ourselves.
        settings: `postgresql.conf` settings on top of the sandbox's; changes count from the next start.
    """

    def __init__(
        self, data: Path, *, port: int, bin_folder: Path, account: Account | None, settings: Mapping[str, str]
    ) -> None:
        self.data = data
        self.port = port
        self.settings = {**_SETTINGS, **settings}
        self.log = data.with_name(f"{data.name}.log")
        self._bin_folder = bin_folder
        self._account = account
        self._process: subprocess.Popen[str] | None = None

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        """The postmaster's process id.

        Raises:
            SandboxError: the server is not running.
        """
        if not self.running or self._process is None:
            raise SandboxError(str(self.data), "the server is not running", "start it")
        return self._process.pid

    def process(self, title: str, timeout: float = 10.0) -> psutil.Process:
        """One of the server's own processes, such as `walreceiver` or `startup`; waits until there is one.

        Args:
            title: the first word after `postgres:` in the process's title.
            timeout: seconds.

        Raises:
            SandboxError: there is none after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            for child in processes.descendants(self.pid):
                # By its first words: a session that is being opened has "startup" further behind in its title.
                if f"{' '.join(processes.words(child))} ".startswith(f"postgres: {title} "):
                    return child
            if time.monotonic() > deadline:
                raise SandboxError(str(self.data), f"has no process {title}", f"see {self.log}")
            time.sleep(_POLL)

    @property
    def running(self) -> bool:
        """Whether this object's postmaster is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def initialized(self) -> bool:
        """Whether its data folder holds a database cluster."""
        return (self.data / "PG_VERSION").exists()

    def initialize(self) -> None:
        """Make the data folder with initdb."""
        # --no-sync: only the machine's crash could tell the difference.
        options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync"]
        self._make_data("initdb", *options, "--no-instructions", "-D")

    def copy_from(self, primary: Server, *, slot: str) -> None:
        """Make the data folder with pg_basebackup, as a replica with a slot on its primary."""
        source = make_conninfo(host="127.0.0.1", port=primary.port, user="postgres")
        options = ["--checkpoint=fast", "--no-sync", "--wal-method=stream", "--create-slot", f"--slot={slot}"]
        self._make_data("pg_basebackup", "-d", source, *options, "-D")

    def follow(self, primary: Server, *, slot: str) -> None:
        """Be a replica of `primary` from the next start on."""
        # Written here instead of by pg_basebackup -R: the primary's port may differ when the folder is used
        # again.
        name = self.data.name
        self.settings["primary_conninfo"] = make_conninfo(
            host="127.0.0.1", port=primary.port, user="postgres", application_name=name
        )
        self.settings["primary_slot_name"] = slot
        (self.data / "standby.signal").touch()

    def start(self, timeout: float = 30.0) -> None:
        """Start it and wait until it takes connections; does nothing when it runs already.

        Raises:
            SandboxError: another process runs on this folder, or it is not ready after `timeout` seconds.
        """
        if self._own_pid() is not None:
            return
        self.await_predecessor(timeout)
        self._await_port(timeout)
        self._write_settings()
        self._process = processes.start(
            [self.binary("postgres"), "-D", self.data],
            account=self._account,
            death_signal=signal.SIGINT,
            env=_environment(),
            cwd=self.data,
            log=self.log,
        )
        deadline = time.monotonic() + timeout
        while not self._ready():
            if not self.running or time.monotonic() > deadline:
                self.kill()
                raise self._failure("did not start")
            time.sleep(_POLL)

    def stop(self, mode: str = "fast", timeout: float = 30.0) -> None:
        """Stop it and wait until all of it is gone; after `timeout` seconds it is killed.

        Args:
            mode: `smart`, `fast` or `immediate`, as pg_ctl names them.
            timeout: seconds.
        """
        if self._process is not None:
            processes.end(self._process, first=_STOP_SIGNALS[mode], grace=timeout)
            self._process = None

    def kill(self) -> None:
        """SIGKILL the postmaster and its children: a crash. All are gone when this returns."""
        if self._process is None:
            return
        # Stopped first, it makes no more children, which would be missed and hold on to its shared memory.
        self._process.send_signal(signal.SIGSTOP)
        family = processes.descendants(self._process.pid)
        self._process.kill()
        self._process.wait()
        processes.kill(family)
        self._process = None

    def restart(self, mode: str = "fast") -> None:
        """Stop and start it, on the same port."""
        self.stop(mode)
        self.start()

    def reload(self) -> None:
        """Read the settings again, without a restart."""
        self._write_settings()
        os.kill(self.pid, signal.SIGHUP)

    def binary(self, name: str) -> Path:
        """The path of one of its programs, such as `pgbench` or `pg_dump`."""
        return self._bin_folder / name

    def run(
        self,
        binary: str,
        *arguments: str,
        database: str = "postgres",
        check: bool = True,
        timeout: float | None = 300,
    ) -> subprocess.CompletedProcess[str]:
        """Run one of its client programs against it and return its output.

        Args:
            binary: such as `pgbench`.
            arguments: its arguments; the connection comes from the environment.
            database: the database it connects to.
            check: raise when it fails.
            timeout: seconds.

        Raises:
            SandboxError: it failed and `check` is set.
        """
        connection = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGDATABASE": database,
        }
        command = [str(self.binary(binary)), *arguments]
        env = _environment() | connection
        done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=timeout, check=False)
        if check and done.returncode != 0:
            raise SandboxError(binary, f"exit code {done.returncode}", done.stderr.strip()[-2000:])
        return done

    def create_database(self, name: str, template: str | None = None) -> str:
        """Create a database, perhaps as a copy of another, and return its URL."""
        # Copying files takes a fraction of the time that sending each block of the template through the WAL takes.
        statement = sql.SQL("CREATE DATABASE {} STRATEGY file_copy").format(sql.Identifier(name))
        if template is not None:
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database and whoever is connected to it."""
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    def _make_data(self, program: str, *arguments: str) -> None:
        """Fill the data folder with a program that takes it as last argument, whole or not at all."""
        building = self.data.with_name(f"{self.data.name}.new")
        for leftover in (building, self.data):
            if leftover.exists():
                shutil.rmtree(leftover)
        building.mkdir(mode=0o700)
        if self._account is not None:
            os.chown(building, self._account.uid, self._account.gid)
        command = [str(self.binary(program)), *arguments, str(building)]
        process = processes.start(command, account=self._account, env=_environment(), cwd=building.parent, log=self.log)
        if process.wait() != 0:
            raise self._failure(f"{program} failed")
        building.rename(self.data)
        with (self.data / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write("\ninclude 'sandbox.conf'\n")

    def _write_settings(self) -> None:
        # Not on the command line: there they would win over the ALTER SYSTEM of a test.
        settings = self.settings | {"port": str(self.port)}
        lines = (f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items())
        place = self.data / "sandbox.conf"
        place.write_text("".join(lines), encoding="utf-8")
        if self._account is not None:
            os.chown(place, self._account.uid, self._account.gid)

    def _ready(self) -> bool:
        lines = self._pid_file()
        return len(lines) > 7 and int(lines[0]) == self._own_pid() and lines[7].strip() == "ready"

    def _own_pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.running else None

    def _pid_file(self) -> list[str]:
        try:
            return (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return []

    def await_predecessor(self, timeout: float = 30.0) -> None:
        """Wait for the server of an earlier process on this folder: the kernel has told it to stop.

        Raises:
            SandboxError: it still runs after `timeout` seconds, so somebody uses it.
        """
        lines = self._pid_file()
        if not lines or not psutil.pid_exists(int(lines[0])):
            return
        try:
            earlier = psutil.Process(int(lines[0]))
        except psutil.NoSuchProcess:
            return
        if str(self.data) in processes.words(earlier):
            processes.await_gone([earlier, *processes.descendants(earlier.pid)], timeout)

    def _await_port(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not processes.port_is_free(self.port):
            if time.monotonic() > deadline:
                raise SandboxError(
                    f"127.0.0.1:{self.port}", "something else listens there", "end it, or change the port"
                )
            time.sleep(_POLL)

    def _failure(self, fact: str) -> SandboxError:
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:] if self.log.exists() else ""
        return SandboxError(str(self.data), fact, f"the end of {self.log} says:\n{tail}")


def _environment() -> dict[str, str]:
    """This process's environment without the PG* variables, which would redirect the programs."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}
