"""Pairs: compare two tables, exactly, at about the speed of reading them.

Two tables that lie in the order of their key are read along it and joined by merging: nothing is sorted or kept, and
to compare two values costs no more than to hash both. A table that lies in another order, such as one with a random
uuid as key, would be fetched a page for each row that way. Of such a pair, checksums say first which rows need the
join: they take rows in any order. Each range then reads most of the table's pages, so ranges are few and large, and the
server works in parallel on each.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg

from zdm_pipelines.dialects.postgres.connection import Connection, connected, mapping, query
from zdm_pipelines.dialects.postgres.pair import BUCKETS, PairSql, Side
from zdm_pipelines.engine import ranges
from zdm_pipelines.engine.parity import CATEGORIES
from zdm_pipelines.model.values import Key, KeyRange, Parity

_RANGE_ROWS = 100_000  # a twentieth of a second
_SCATTERED_ROWS = 8_000_000  # of a range that reads about the whole table: some seconds
_SCATTERED_RANGES = 8  # at most: so often is the table read
_WALK_ROWS = 400  # by which the order of a table is told
_WALKS = 5
_GRACE = 0.1  # seconds for a worker to end by itself
_CANCEL_SECONDS = 2.0
_DETOUR = 4  # times the pages that the rows fill: more, and a walk by the key's index is a detour

_ALWAYS = {"jit": "off", "work_mem": "64MB"}  # compiling takes longer than a range
_ALONG = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_hashjoin": "off"}
# The planner takes the buckets for as many as there are rows, and would sort them.
_BY_CHECKSUMS = {"enable_sort": "off"}


def cut(conn: Connection, pair: PairSql, *, range_rows: int = _RANGE_ROWS) -> list[KeyRange]:
    """Ranges over the keys of both tables, cut from the larger one; few and large where a table is scattered."""
    rows, side = max(((ranges.estimate_rows(conn, s.table), s) for s in pair.sides), key=lambda found: found[0])
    lowers = ranges.cut(conn, side.table, range_rows=range_rows)
    if scattered(conn, pair, lowers):
        lowers = ranges.cut(conn, side.table, range_rows=max(_SCATTERED_ROWS, -(-rows // _SCATTERED_RANGES)))
    bounds = [None, *lowers, None]
    return [
        KeyRange(ordinal=n, partition=ranges.partition_key(n, bounds[n - 1]), lower=bounds[n - 1], upper=bounds[n])
        for n in range(1, len(bounds))
    ]


def scattered(conn: Connection, pair: PairSql, starts: Sequence[Key]) -> bool:
    """Whether one of the tables lies in another order than its key's: some walks from these keys tell."""
    spread = [None, *starts[:: max(1, len(starts) // _WALKS)]][:_WALKS]
    return any(_detours(conn, side, spread) for side in pair.sides)


def _detours(conn: Connection, side: Side, starts: Sequence[Key | None]) -> bool:
    met = [query(conn, *side.walk(start, rows=_WALK_ROWS))[0] for start in starts]
    rows, visited = sum(m[0] for m in met), sum(m[1] for m in met)
    filled = rows * met[0][2] / max(1, ranges.estimate_rows(conn, side.table))
    return bool(visited > _DETOUR * max(filled, len(starts)))


def compare(
    url: str,
    name: str,
    pair: PairSql,
    wanted: Sequence[KeyRange],
    *,
    processes: int = 2,
    first_keys: int = 5,
    tell: Callable[[int], None] = lambda _: None,
) -> Parity:
    """Compare ranges, each in a snapshot of its own, so that no snapshot stays open for long.

    Args:
        name: what errors and sessions call it.
        processes: how many of the server's work at once: on ranges of their own, or in parallel on a large one.
        first_keys: of each category, enough to look at.
        tell: called with the number of rows after each range.

    Raises:
        MappingFailed: an expression raises for some row.
        DatabaseUnreachable: a connection cannot be had.
    """
    begun = time.monotonic()
    with connected(url, purpose=f"{name} parity") as conn:
        along = not scattered(conn, pair, [r.lower for r in wanted if r.lower is not None])
    comparison = _Comparison(url, name, pair, wanted, along=along, first_keys=first_keys, processes=processes)
    seen: dict[int, _Seen] = {}
    for at, found in comparison.run():
        seen[at] = found
        tell(found.rows)
    ordered = [seen[at] for at in range(len(wanted))]
    keys = {c: tuple(key for s in ordered for key in s.keys.get(c, ()))[:first_keys] for c in CATEGORIES}
    return Parity(
        rows=sum(s.rows for s in ordered),
        seconds=time.monotonic() - begun,
        keys={c: k for c, k in keys.items() if k},
        partitions=tuple(r.partition for r, s in zip(wanted, ordered, strict=True) if s.counts),
        **{c: sum(s.counts.get(c, 0) for s in ordered) for c in CATEGORIES},
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What one range came to."""

    rows: int
    counts: Mapping[str, int] = field(default_factory=dict)  # by category, those with rows
    keys: Mapping[str, Sequence[Key]] = field(default_factory=dict)


class _Comparison:
    """The workers of one comparison, each with a connection of its own."""

    def __init__(
        self,
        url: str,
        name: str,
        pair: PairSql,
        wanted: Sequence[KeyRange],
        *,
        along: bool,
        first_keys: int,
        processes: int,
    ) -> None:
        self._url = url
        self._name = name
        self._pair = pair
        self._wanted = wanted
        self._along = along  # the key's index, on both sides
        self._first_keys = first_keys
        self._sessions = min(processes if along else 1, len(wanted))
        helpers = {"max_parallel_workers_per_gather": str(0 if along else processes - 1)}
        self._settings = _ALWAYS | helpers | (_ALONG if along else _BY_CHECKSUMS)
        self._todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for at in range(len(wanted)):
            self._todo.put(at)
        self._outcomes: queue.SimpleQueue[tuple[int, _Seen] | BaseException] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._conns: list[Connection] = []
        self._found: dict[str, dict[int, int]] = {c: {} for c in CATEGORIES}  # keys had, by the range's place

    def run(self) -> Iterator[tuple[int, _Seen]]:
        """Each range's place and what it came to, as they come; ends its sessions whatever happens."""
        workers = [threading.Thread(target=self._work, name="zdm parity", daemon=True) for _ in range(self._sessions)]
        try:
            for worker in workers:
                worker.start()
            for _ in self._wanted:
                outcome = self._outcomes.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
        finally:
            self._stop.set()
            for worker in workers:
                self._await(worker)

    def _await(self, worker: threading.Thread) -> None:
        """Its statement is cancelled until it has none: a cancel may come between two."""
        while worker.ident is not None:
            worker.join(_GRACE)
            if not worker.is_alive():
                return
            for conn in list(self._conns):
                with contextlib.suppress(psycopg.Error):
                    conn.cancel_safe(timeout=_CANCEL_SECONDS)

    def _work(self) -> None:
        try:
            with connected(self._url, purpose=f"{self._name} parity") as conn:
                self._conns.append(conn)
                for setting, value in self._settings.items():
                    query(conn, "SELECT set_config($1, $2, false)", [setting, value])
                conn.prepare_threshold = None  # a plan for any bounds would be none for these
                conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                conn.read_only = True
                while not self._stop.is_set():
                    try:
                        at = self._todo.get_nowait()
                    except queue.Empty:
                        return
                    one = self._wanted[at]
                    with mapping(f"{self._name} range {one.partition}"), conn.transaction():
                        found = self._compare(conn, at, one)
                    self._outcomes.put((at, found))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread, nothing is swallowed
            self._outcomes.put(error)

    def _compare(self, conn: Connection, at: int, one: KeyRange) -> _Seen:
        """One range, in one snapshot."""
        alike, buckets = 0, None
        if not self._along:
            alike, unlike = query(conn, *self._pair.checksums(one.lower, one.upper, by_bucket=False))[0]
            if not unlike:
                return _Seen(rows=alike)
            alike, buckets = query(conn, *self._pair.checksums(one.lower, one.upper, by_bucket=True))[0]
            if len(buckets) > BUCKETS // 2:
                alike, buckets = 0, None  # to pick rows by bucket would save little
        rows, *counts = query(conn, *self._pair.compare(one.lower, one.upper, buckets=buckets))[0]
        bad = {c: n for c, n in zip(CATEGORIES, counts, strict=True) if n}
        keys: dict[str, list[Key]] = {}
        for category in bad:
            if self._enough_before(category, at):
                continue
            statement = self._pair.mismatched_keys(
                category, one.lower, one.upper, limit=self._first_keys, buckets=buckets
            )
            keys[category] = [tuple(key) for (key,) in query(conn, *statement)]
            self._found[category][at] = len(keys[category])
        return _Seen(rows=alike + rows, counts=bad, keys=keys)

    def _enough_before(self, category: str, at: int) -> bool:
        """Whether the ranges before have given all the keys that are wanted."""
        return sum(n for place, n in list(self._found[category].items()) if place < at) >= self._first_keys
