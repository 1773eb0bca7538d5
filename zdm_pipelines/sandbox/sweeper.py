"""Sweeper: ends the programs of a process that is gone, with everything they started.

Some programs outlive the signal the kernel sends them for that: a Dagster code server waits for its runs. The
sweeper reads `+SESSION` and `-SESSION` lines, and when its input ends it ends all processes of the sessions
that are left.
"""

from __future__ import annotations

import signal
import sys
import time

import psutil

from zdm_pipelines.sandbox import processes

_GRACE = 3.0  # seconds the programs have to end by themselves: the kernel told them the same moment


def main() -> None:
    """Wait for the end of the input, then sweep."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    started: dict[int, float] = {}  # when each session's first process started
    for line in sys.stdin:
        session = int(line[1:])
        if line[0] == "-":
            started.pop(session, None)
        elif (born := _born(session)) is not None:
            started[session] = born
    deadline = time.monotonic() + _GRACE
    while time.monotonic() < deadline and any(processes.session_members(session) for session in started):
        time.sleep(0.1)
    for session, born in started.items():
        # A number can be given out again once its whole session is gone.
        if _born(session) in (None, born):
            processes.kill(processes.session_members(session))


def _born(pid: int) -> float | None:
    """When the process with this number started; none: there is no such process."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


if __name__ == "__main__":
    main()
