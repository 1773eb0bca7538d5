"""Processes: start programs that cannot outlive this one, and end them with all their children."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from zdm_pipelines.model.errors import ZdmError

# Below the range from which the kernel takes ports for outgoing connections: while a server is down, no
# client's connection may take its port.
_PORTS = range(20_000, 32_000)
_reserved: list[socket.socket] = []  # bound, and never listening

_PACKAGE = Path(__file__).resolve().parents[2]  # what PYTHONPATH needs so that a program finds this package

_LAUNCHER = str(Path(__file__).with_name("_launch.py"))

# The kernel ties "signal me when my parent dies" to the *thread* that forked, so all programs are started
# from one thread that lives as long as this process.
_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-starter")


class SandboxError(ZdmError):
    """Something the sandbox needs did not start, stop or answer."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The operating system user a program runs as."""

    uid: int
    gid: int


def start(
    command: Sequence[str | Path],
    *,
    account: Account | None = None,
    death_signal: signal.Signals | None = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    pipes: bool = False,
) -> subprocess.Popen[str]:
    """Start a program in a session of its own; on Linux it dies with this process, however that ends.

    Args:
        command: the program and its arguments.
        account: run as this user instead of the present one (needs root).
        death_signal: what the program gets when this process is gone; none: nothing.
        env: the whole environment; none means this process's own.
        cwd: its working directory.
        log: a file to append its output to; none discards it.
        pipes: talk to it through its stdin and stdout instead; the log then takes stderr only.
    """
    user = (account.uid, account.gid) if account else (-1, -1)
    words = [str(os.getpid()), str(int(death_signal or 0)), str(user[0]), str(user[1]), *map(str, command)]
    sink: IO[str] | int = log.open("a", encoding="utf-8") if log else subprocess.DEVNULL
    pipe = subprocess.PIPE if pipes else None
    try:
        return _starter.submit(
            subprocess.Popen[str],
            [sys.executable, "-I", "-S", _LAUNCHER, *words],
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or sink,
            stderr=sink,
            env=None if env is None else dict(env),
            cwd=cwd,
            text=True,
            start_new_session=True,
        ).result()
    finally:
        if not isinstance(sink, int):
            sink.close()


def start_module(module: str, *, death_signal: signal.Signals | None = signal.SIGTERM) -> subprocess.Popen[str]:
    """Start a module of this package as a program to talk to through its stdin and stdout."""
    path = os.pathsep.join(filter(None, (str(_PACKAGE), os.environ.get("PYTHONPATH"))))
    env = os.environ | {"PYTHONPATH": path}
    return start([sys.executable, "-m", module], death_signal=death_signal, env=env, pipes=True)


def end(process: subprocess.Popen[str], *, grace: float = 10.0, first: signal.Signals = signal.SIGTERM) -> None:
    """End a program and its descendants: ask, kill after `grace` seconds, return when all are gone."""
    family = descendants(process.pid)
    if process.poll() is None:
        process.send_signal(first)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            family += descendants(process.pid)
            process.kill()
            process.wait()
    kill(family)


def descendants(pid: int) -> list[psutil.Process]:
    """All children, and theirs, of a process; empty when it is gone."""
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def words(process: psutil.Process) -> list[str]:
    """The command line that a process shows; empty when the process has ended, reaped or not."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:  # psutil's error for a zombie is a subclass
        return []


def session_members(session: int) -> list[psutil.Process]:
    """All live processes of a session; a program that was started here and its descendants are one."""
    members = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and is_alive(process):
                members.append(process)
        except (OSError, psutil.Error):  # the process ended while we looked, or is none of ours
            continue
    return members


def kill(processes: Sequence[psutil.Process], timeout: float = 10.0) -> None:
    """SIGKILL these processes and wait until they are gone.

    Raises:
        SandboxError: one is still there after `timeout` seconds.
    """
    left = [process for process in processes if is_alive(process)]
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    await_gone(left, timeout)


def await_gone(processes: Sequence[psutil.Process], timeout: float) -> None:
    """Wait until these processes are gone; a zombie nobody reaped counts as gone.

    Raises:
        SandboxError: one is still there after `timeout` seconds.
    """
    waited = 0.0
    while left := [process.pid for process in processes if is_alive(process)]:
        if waited >= timeout:
            raise SandboxError(f"process {left[0]}", f"still runs after {timeout:g} s", "look at what holds it up")
        psutil.wait_procs([process for process in processes if is_alive(process)], timeout=0.02)
        waited += 0.02


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; a zombie nobody reaped does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on, and that nobody else is given as long as this process lives."""
    for port in random.sample(_PORTS, 200):
        reserving = socket.socket()
        try:
            # Without SO_REUSEADDR: refused also where another process has reserved the port and no server listens yet.
            reserving.bind(("127.0.0.1", port))
        except OSError:
            reserving.close()
            continue
        if sys.platform == "linux":
            # From here on a server that sets the option, as they all do, may listen there. Others than Linux say no.
            reserving.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            _reserved.append(reserving)
        else:
            reserving.close()
        return port
    raise SandboxError("127.0.0.1", "200 ports were tried and all are taken", "end what listens on them")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
