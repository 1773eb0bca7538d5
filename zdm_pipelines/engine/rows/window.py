"""Windows: the intervals of keys that a range is walked in, and where a range ends that is open."""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.values import Catalog, Key, KeyRange

# How long a batch waits for a lock: a schema change of others, or what a trigger of the application's wants for a row.
# Rows are passed over. It waits no longer while it holds rows, since who wants those may hold what is waited for.
LOCK_SECONDS = 0.2
_FILLED = 0.9  # of a batch's size: what a pass of a window finds on average


@dataclass(kw_only=True)
class Window:
    """An interval of keys whose rows are moved in so many passes."""

    lower: Key | None
    passes: int
    upper: Key | None = None  # None: it was not measured, or it is the last one of a range that is open
    last: bool = False  # the range ends with it
    span: int = 0  # rows, when it was measured; 0: it was not

    def rows(self, size: int) -> int:
        """How many rows it spans, for batches of a size. A pass stays below it, though rows spread unevenly."""
        return size if self.passes == 1 else max(1, int(size * self.passes * _FILLED))


class Bounds:
    """Where a range ends for one run: at its upper bound, or with the highest key that stood when the run began.

    An open range would not end otherwise while the application inserts behind it as fast as we walk.
    """

    def __init__(self, conn: Session, table: Catalog, wanted: KeyRange) -> None:
        self.lower = wanted.lower
        self._conn = conn
        self._table = table
        self._upper = wanted.upper
        self._looked = wanted.upper is not None
        self._highest: Key | None = None  # of a range that is open, once it was looked for

    def key_after(self, lower: Key | None, rows: int, *, wait: float | None = None) -> Key | None:
        """The key so many rows on, None when the range ends before.

        Args:
            wait: seconds that somebody's lock on the table is waited for; default: until it is free.
        """
        self._look(wait)
        if self._upper is None and self._highest is None:
            return None  # no row stood in the range
        return self._conn.rows.key_after(self._table, lower, self._upper, rows=rows, last=self._highest, wait=wait)

    def end(self, *, wait: float | None = None) -> Key | None:
        """The first key behind the range, None when there is none at present."""
        self._look(wait)
        if self._upper is not None or self._highest is None:
            return self._upper
        return self._conn.rows.key_after(self._table, self._highest, None, rows=1, wait=wait)

    def _look(self, wait: float | None) -> None:
        if not self._looked:
            self._highest = self._conn.rows.last_key(self._table, self.lower, wait=wait)
            self._looked = True
