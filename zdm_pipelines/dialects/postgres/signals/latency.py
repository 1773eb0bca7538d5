"""Latency: what a one-row query on the table and a commit take, as an application would see it."""

from __future__ import annotations

from collections import deque

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.signals.session import OnPrimary
from zdm_pipelines.model.signals import Measured, Surroundings

_WINDOW = 50  # canaries kept: the last five seconds

# A commit that has something to flush: under a flood of WAL reads stay quick while commits queue for the disk. The lock
# stands in nobody's way, changes no value, and is nothing to a logical subscriber.
_WITH_COMMIT = "SELECT ({read}) FROM zdm.schema_version FOR KEY SHARE"


def p95(values: list[float]) -> float:
    """The 95th percentile of some values."""
    return sorted(values)[int(len(values) * 0.95)]


class Latency(OnPrimary):
    """95th percentile, in seconds, of the latest canary queries."""

    every = 0.1
    samples = 20

    def __init__(self, around: Surroundings) -> None:
        super().__init__(around)
        # By the key's index: at the front of the heap a backfill leaves pages full of dead rows.
        self._read = f"SELECT 1 FROM {self.catalog.table.sql} ORDER BY {keys.columns(self.catalog.key)} LIMIT 1"
        self._took: deque[float] = deque(maxlen=_WINDOW)

    def read(self) -> Measured:
        """One more canary, and the percentile with it."""
        # Before the ledger is made only a look can ask. A connection that has to be made is no latency.
        made = self.session.query("SELECT to_regclass('zdm.schema_version') IS NOT NULL")[0][0]
        canary = _WITH_COMMIT.format(read=self._read) if made else self._read
        begun = self.clock.monotonic()
        self.session.query(canary)
        self._took.append(self.clock.monotonic() - begun)
        return Measured(value=p95(list(self._took)))
