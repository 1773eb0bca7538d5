"""Folders in memory for the data of servers: on a disk, files that come and go take half of a test's time."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

_MEMORY = Path("/dev/shm")  # Linux: a file system in memory
_ROOM = 4 * 2**30  # bytes that must be free there; containers may have very little
_NAME = "zdm-test-"


def folder(otherwise: Path) -> Path:
    """A new folder in memory where there is room, else the given one; a cluster removes it with its data."""
    if not os.access(_MEMORY, os.W_OK) or shutil.disk_usage(_MEMORY).free < _ROOM:
        return otherwise
    for left in _MEMORY.glob(f"{_NAME}*"):  # by a process that was killed
        if not psutil.pid_exists(int(left.name.removeprefix(_NAME).partition("-")[0])):
            shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{_NAME}{os.getpid()}-", dir=_MEMORY))
    made.chmod(0o755)  # the server's user walks through
    return made
