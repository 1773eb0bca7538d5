"""Windows: the intervals of keys that a range is walked in, and where a range ends that is open."""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.values import Catalog, Key, KeyRange

# How long a batch waits for a lock: a schema change of others, or what a trigger of the application's wants for a row.
# Rows are passed over. It waits no longer while it holds rows, since who wants those may hold what is waited for.
LOCK_SECONDS = 0.2
_MOST = 20_000  # rows that a window of a batch that finds few of them spans: reading them takes no longer than writing
_FILLED = 0.9  # of a batch's size: what a pass of a window finds on average


@dataclass(kw_only=True)
class Window:
    """An interval of keys whose rows are moved in so many passes."""

    lower: Key | None
    passes: int
    reach: int = 1  # how many times as many rows as a batch takes: few of them wait
    fixed: bool = False  # its end is given, and is not measured
    upper: Key | None = None  # None: it was not measured, or it is the last one of a range that is open
    last: bool = False  # the range ends with it
    span: int = 0  # rows, when it was measured; 0: it was not
    moved: int = 0  # rows

    def rows(self, size: int) -> int:
        """How many rows it spans, for batches of a size. A pass stays below it, though rows spread unevenly."""
        if self.passes > 1:
            return max(1, int(size * self.passes * _FILLED))
        return max(size, min(size * self.reach, _MOST))

    @property
    def limited(self) -> bool:
        """Whether it may hold more rows that wait than a batch takes."""
        return self.passes > 1 or self.reach > 1 or self.fixed

    def next_reach(self, size: int) -> int:
        """The reach of the window behind it, so that batches are full though few of the rows wait.

        What the application inserts in the middle of a range, by random keys, needs no move: it is walked over faster
        than it comes, or the range would not end.
        """
        if self.moved * 2 <= size:
            return self.reach * 2 if size * self.reach < _MOST else self.reach
        return max(1, self.reach // 2) if self.moved > size else self.reach


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
