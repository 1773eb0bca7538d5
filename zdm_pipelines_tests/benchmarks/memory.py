"""Memory: the most that a process has had."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil


def peak(pid: int) -> int:
    """Bytes of resident memory at its most; where the system does not tell, what it has now. 0: it is gone.

    `ru_maxrss` would not do: a process inherits it from the one that started it.
    """
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
