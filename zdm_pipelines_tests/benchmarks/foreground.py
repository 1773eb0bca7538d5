"""Foreground: pgbench as the application, and the latency of each of its transactions."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from zdm_pipelines.sandbox import processes
from zdm_pipelines.sandbox.server import Server

_PREFIX = "transactions"


class Foreground:
    """pgbench, begun at once; by itself TPC-B.

    Args:
        seconds: how long.
        rate: transactions per second, at random moments; none: each client begins its next when the last has ended.
        script: a transaction of its own, in pgbench's language.
    """

    def __init__(
        self,
        server: Server,
        database: str,
        *,
        clients: int,
        seconds: float,
        rate: int | None = None,
        script: str | None = None,
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="zdm-bench-"))
        self._seconds = seconds
        arguments = f"-h 127.0.0.1 -p {server.port} -U postgres -n -M prepared -c {clients} -j 2 -T {round(seconds)} -l"
        options = [f"--log-prefix={self._folder / _PREFIX}"]
        if rate is not None:
            options.append(f"--rate={rate}")
        if script is not None:
            (self._folder / "script").write_text(script, encoding="utf-8")
            options.append(f"--file={self._folder / 'script'}")
        self._process = processes.start(
            [server.binary("pgbench"), *arguments.split(), *options, database],
            log=self._folder / "log",
        )
        # The transactions' log has the clock of the day.
        self._day = time.time() - time.monotonic()

    def latencies(self, since: float, until: float) -> list[float]:
        """Wait for its end; the seconds that each transaction took which began between two monotonic moments.

        At a given rate a transaction counts from the moment at which it was due: what waits because its client was
        held up by the one before has waited, too.

        Raises:
            RuntimeError: a transaction failed.
        """
        try:
            status = self._process.wait(self._seconds + 60)
            if status != 0:
                raise RuntimeError(f"pgbench: {(self._folder / 'log').read_text()[-2000:]}")
            found = []
            for file in self._folder.glob(f"{_PREFIX}.*"):
                for line in file.read_text().splitlines():
                    # client, number, latency in µs (from when it was due), script, end in s and µs
                    fields = [int(field) for field in line.split()]
                    ended = fields[4] + fields[5] / 1e6 - self._day
                    took = fields[2] / 1e6
                    if since <= ended - took < until:
                        found.append(took)
            return found
        finally:
            processes.end(self._process)
            shutil.rmtree(self._folder)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The sample that so many percent of all are not above."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
