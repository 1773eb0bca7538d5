"""Worker: a backfill in a process of its own, which tells of each batch when it is committed.

A process of its own, as Dagster would have it: the benchmark's threads take no time from it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from unittest.mock import patch

from zdm_pipelines.engine.throttle import Governor
from zdm_pipelines.model.migration import Database, Migration
from zdm_pipelines.model.values import Moved
from zdm_pipelines.phases import backfill, row_work
from zdm_pipelines.sandbox import processes
from zdm_pipelines.verbs import Context
from zdm_pipelines_tests.benchmarks import memory


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch that was committed."""

    at: float  # seconds of the machine's monotonic clock, which all processes share
    rows: int
    seconds: float
    size: int  # rows that the next may take


class BackfillWorker:
    """A backfill, made ready at once and begun when it is told to; a context manager that ends it.

    Args:
        places: the database's `max_parallel`.
    """

    def __init__(self, migration: Migration, url: str, *, places: int = 2) -> None:
        self.batches: list[Batch] = []
        self.waits: list[tuple[float, float]] = []  # (end, seconds) of the times a worker was held
        self.said: list[str] = []
        self.error = ""
        self.begun = 0.0
        self.finished: float | None = None  # the moment at which it had nothing left to do, or had stopped
        self.memory: int | None = None  # bytes, at its most
        self._ready = threading.Event()
        self._process = processes.start_module("zdm_pipelines_tests.benchmarks.worker")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._send({"migration": json.loads(migration.model_dump_json()), "url": url, "places": places})
        if not self._ready.wait(30):
            raise RuntimeError("the worker process does not start")

    def begin(self) -> float:
        """Begin; gives the moment."""
        self.begun = time.monotonic()
        self._send("begin")
        return self.begun

    def join(self, seconds: float | None = None) -> None:
        """Wait until it has nothing left to do, or for so long."""
        self._reader.join(seconds)

    def end(self) -> None:
        """End it at its next batch.

        Raises:
            RuntimeError: it failed.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._reader.join(60)
        processes.end(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        if self.error:
            raise RuntimeError(self.error)

    @property
    def ended(self) -> bool:
        """Whether it has nothing left to do, or failed."""
        return not self._reader.is_alive()

    def rows(self, since: float, until: float) -> int:
        """Rows moved by batches committed between two moments."""
        return sum(batch.rows for batch in list(self.batches) if since <= batch.at < until)

    def held(self, since: float, until: float) -> float:
        """Seconds between two moments for which workers were held, all workers together."""
        return sum(max(0.0, min(end, until) - max(end - took, since)) for end, took in list(self.waits))

    def __enter__(self) -> BackfillWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            what, *values = json.loads(line)
            if what == "batch":
                self.batches.append(Batch(at=values[0], rows=values[1], size=values[2], seconds=values[3]))
            elif what == "waited":
                self.waits.append((values[0], values[1]))
            elif what == "said":
                self.said.append(values[0])
            elif what == "finished":
                self.finished, self.memory = values
            elif what == "error":
                self.error = values[0]
            elif what == "ready":
                self._ready.set()


_saying = threading.Lock()  # lines of several threads stay whole


def _say(*what: Any) -> None:
    with _saying:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


class _TellingGovernor(Governor):
    def wait(self, stop: threading.Event) -> float:
        waited = super().wait(stop)
        if waited:
            _say("waited", time.monotonic(), waited)
        return waited


def _batch(moved: Moved) -> None:
    _say("batch", time.monotonic(), moved.rows, moved.batch_rows, moved.seconds)


def _finished() -> None:
    _say("finished", time.monotonic(), memory.peak(os.getpid()))


def main() -> None:
    """Run one backfill until it is done, or interrupted."""
    order = json.loads(sys.stdin.readline())
    migration = Migration.model_validate(order["migration"])
    database = Database(name=migration.database, max_parallel=order["places"])
    _say("ready")
    sys.stdin.readline()
    try:
        with patch.object(row_work, "Governor", _TellingGovernor):
            moving = backfill.run(
                Context.of(migration, order["url"], database=database, tell=lambda said: _say("said", said)),
                batch=_batch,
            )
            for _ in moving:
                pass
        _finished()
    except KeyboardInterrupt:
        _finished()
    except Exception as error:
        _say("error", f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
