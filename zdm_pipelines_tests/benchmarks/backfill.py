"""Backfill: a table's rows moved by this project and by what others do, on equal copies of the table, in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests.benchmarks import contenders, users
from zdm_pipelines_tests.benchmarks.case import Figure, Setting, Target, megabytes, per_second, percent, seconds, times
from zdm_pipelines_tests.benchmarks.contenders import Contender
from zdm_pipelines_tests.helpers import eventually, one, sql

_ROUNDS = 3
_SIZES = (1_000_000,)
_INDEXES = (2, 5)
_KEYS = ("bigint", "uuid")
_TEMPLATE = "bench_template"

PLAIN, TOUCH = "plain UPDATE", "touch-update"
OURS = "ours strided"  # one session, as all others have
_STRIDED = (OURS, "ours strided, 2 at once")  # what targets are about; the second is as it comes

_LEAST_TOUCH = 2.5  # times as fast as touch-update
_WAL, _TABLE = 0.8, 0.65  # of the plain UPDATE's
_TIMES = {2: 0.95, 5: 0.85}  # of the plain UPDATE's, by the number of indexes
_TIME_SCATTERED = 1.2  # where the order of keys is not that of the rows, as with random uuids
_LINEAR = 0.85  # of the rows per second of the smaller table
_MEMORY = 250e6  # bytes


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A table that is measured."""

    rows: int
    key: str
    indexes: int
    quiet: bool = False

    @property
    def group(self) -> str:
        """What the tables of figures call it."""
        return f"{self.key}, {self.indexes} indexes, {self.rows:,} rows" + (", quiet" if self.quiet else "")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen of one run of a contender."""

    seconds: float
    speed: float  # rows per second
    wal: float  # bytes of the whole server: the checkpoint of progress is in it
    table: float  # bytes of the heap at the end
    indexes: float  # bytes
    hot: float  # share of the updates that touched no index
    dead: float  # dead rows at the end, for each row of the table
    memory: float | None


_OTHERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""

Runs = Mapping[str, Sequence[Seen]]
Show = Callable[[float], str]


def run(setting: Setting) -> Sequence[Figure]:
    """Every contender on every variant of the table, in turns; the order is turned around each round."""
    sizes, keys = setting.sizes or _SIZES, setting.keys or _KEYS
    variants = [
        Variant(rows=rows, key=key, indexes=count, quiet=setting.quiet)
        for rows, key, count in product(sizes, keys, setting.indexes or _INDEXES)
    ]
    seen: dict[Variant, Runs] = {}
    with Cluster(setting.folder / "backfill", replica=False, settings=users.settings(quiet=setting.quiet)) as cluster:
        for variant in variants:
            setting.tell(f"backfill: {variant.group}: loading")
            users.build(cluster.primary, _TEMPLATE, rows=variant.rows, indexes=variant.indexes, key=variant.key)
            seen[variant] = _rounds(cluster.primary, variant, setting)
            cluster.primary.drop_database(_TEMPLATE)
    return [*(figure for variant, runs in seen.items() for figure in figures(variant, runs)), *linearity(seen)]


def _contenders(key: str, wanted: Sequence[str]) -> list[Contender]:
    """The plain UPDATE, and those of the others that are wanted; none named: all.

    Raises:
        SystemExit: there is no contender of a name.
    """
    known = [
        contenders.plain_update(),
        contenders.limit_batches(key),
        contenders.touch_update(key),
        contenders.touch_update(key, lean=True),
        contenders.ours("ours plain", {"passes": 1, "max_parallel": 1}),
        contenders.ours(_STRIDED[0], {"max_parallel": 1}),
        contenders.ours(_STRIDED[1], {}),
    ]
    if unknown := {*wanted} - {contender.name for contender in known}:
        raise SystemExit(f"no contender {min(unknown)}; there are {', '.join(each.name for each in known)}")
    return [each for each in known if not wanted or each.name == PLAIN or each.name in wanted]


def _rounds(server: Server, variant: Variant, setting: Setting) -> Runs:
    runs: dict[str, list[Seen]] = {}
    rounds = setting.rounds or _ROUNDS
    entered = _contenders(variant.key, setting.contenders)
    setting.tell(f"backfill: {variant.group}: warming up")
    _measured(server, entered[0], variant)  # not counted: it makes the files of WAL that all others find
    for number in range(1, rounds + 1):
        for contender in entered if number % 2 else reversed(entered):
            setting.tell(f"backfill: {variant.group}: round {number} of {rounds}, {contender.name}")
            runs.setdefault(contender.name, []).append(_measured(server, contender, variant))
    return {contender.name: runs[contender.name] for contender in entered}


def _measured(server: Server, contender: Contender, variant: Variant) -> Seen:
    with users.fresh(server, _TEMPLATE, prepare=contender.prepare) as url:
        before = one(url, "SELECT pg_current_wal_insert_lsn()::text")
        outcome = contender.run(url, None)
        wal = one(url, "SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", before)
        # A session's counts arrive when it has ended, a moment after its client has gone.
        eventually(lambda: one(url, _OTHERS) == 0)
        table, indexes, updated, hot, dead = sql(
            url,
            "SELECT pg_relation_size('users'), pg_indexes_size('users'), n_tup_upd, n_tup_hot_upd, n_dead_tup "
            "FROM pg_stat_user_tables WHERE relname = 'users'",
        )[0]
        users.check(url)
    return Seen(
        seconds=outcome.seconds, speed=variant.rows / outcome.seconds, wal=float(wal), table=table, indexes=indexes,
        hot=hot / max(1, updated), dead=dead / variant.rows, memory=outcome.memory,
    )  # fmt: skip


def figures(variant: Variant, runs: Runs) -> Iterator[Figure]:
    """What was seen of each contender, a sample for each round, and what of it has a target."""
    for contender, seen in runs.items():
        targets = _targets(variant, contender)
        plain = runs[PLAIN]
        columns: dict[str, tuple[Show, list[float]]] = {
            "time": (seconds, [each.seconds for each in seen]),
            "rows/s": (per_second, [each.speed for each in seen]),
            "time ratio": (times, ratios([s.seconds for s in seen], [s.seconds for s in plain])),
            "WAL": (megabytes, [each.wal for each in seen]),
            "WAL ratio": (times, ratios([s.wal for s in seen], [s.wal for s in plain])),
            "table after": (megabytes, [each.table for each in seen]),
            "table ratio": (times, ratios([s.table for s in seen], [s.table for s in plain])),
            "indexes after": (megabytes, [each.indexes for each in seen]),
            "HOT": (percent, [each.hot for each in seen]),
            "dead/row": (times, [each.dead for each in seen]),
        }
        if contender in _STRIDED and TOUCH in runs:
            faster = ratios([s.seconds for s in runs[TOUCH]], [s.seconds for s in seen])
            columns["times as fast as touch-update"] = (times, faster)
        if memory := [each.memory for each in seen if each.memory is not None]:
            columns["memory"] = (megabytes, memory)
        for name, (show, samples) in columns.items():
            yield Figure(
                name=name, samples=samples, show=show, target=targets.get(name), group=variant.group, subject=contender
            )


def _targets(variant: Variant, contender: str) -> dict[str, Target]:
    if contender not in _STRIDED:
        return {}
    targets = {"memory": Target(at_most=_MEMORY, of="worst")}
    if variant.key == "uuid":
        return targets | {"time ratio": Target(at_most=_TIME_SCATTERED)}
    if variant.indexes in _TIMES:
        targets["time ratio"] = Target(at_most=_TIMES[variant.indexes])
    return targets | {
        "WAL ratio": Target(at_most=_WAL),
        "table ratio": Target(at_most=_TABLE),
        "times as fast as touch-update": Target(at_least=_LEAST_TOUCH),
    }


def ratios(samples: Sequence[float], to: Sequence[float]) -> list[float]:
    """Sample by sample, of the same round: what else the machine did in it met both."""
    return [sample / other for sample, other in zip(samples, to, strict=True)]


def linearity(seen: Mapping[Variant, Runs]) -> Iterator[Figure]:
    """The speed in the largest table against that in the smallest, where there are several."""
    sizes = sorted({variant.rows for variant in seen})
    if len(sizes) < 2:
        return
    for small in [variant for variant in seen if variant.rows == sizes[0]]:
        large = replace(small, rows=sizes[-1])
        for contender in [name for name in _STRIDED if name in seen[small]]:
            speeds = ([s.speed for s in seen[large][contender]], [s.speed for s in seen[small][contender]])
            yield Figure(
                name=f"{contender}: rows/s, {large.rows:,} against {small.rows:,} rows",
                samples=ratios(*speeds),
                show=times,
                target=Target(at_least=_LINEAR),
                group=f"{small.key}, {small.indexes} indexes",
            )
