"""Parity: two equal tables compared by this project and by what others do, in turns; and one changed row found."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import psycopg
import reladiff

from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.postgres import catalog
from zdm_pipelines.dialects.postgres.connection import connected
from zdm_pipelines.dialects.postgres.pair import Compared, PairSql
from zdm_pipelines.engine.proof import pairs
from zdm_pipelines.model.names import TableName
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines_tests.benchmarks import users
from zdm_pipelines_tests.benchmarks.case import Figure, Setting, Target, seconds, times
from zdm_pipelines_tests.helpers import sql

_ROUNDS = 3
_SIZES = (1_000_000,)
_KEYS = {"bigint": "n", "uuid": "md5(n::text)::uuid"}
_DATABASE = "parity"
_PROCESSES = 2  # of the server; also reladiff's threads for each table
_COLUMNS = ("name", "email", "amount", "created", "active", "visits")  # of types that reladiff knows

OURS, CHANGED, RELADIFF, JOIN, SCANS = "ours", "ours, one row changed", "reladiff", "one FULL JOIN", "two scans"
_FASTER = 3.0  # times as fast as reladiff
_LIKE_SCANS = 1.5  # of the time of two scans

# The copy is written in the order of keys, as a backfill writes it. A uuid's old table is not.
_TABLES = """
CREATE TABLE old (id {key} PRIMARY KEY, name text NOT NULL, email text, amount numeric(12, 2), created timestamptz,
                  active boolean, visits int);
INSERT INTO old SELECT {value}, 'person ' || n, 'person' || n || '@example.com', n % 100000 / 7.0,
                       timestamptz '2020-01-01' + n * interval '61 s', n % 3 = 0, n % 1000
FROM generate_series(1, {rows}) n;
CREATE TABLE new (LIKE old INCLUDING ALL);
INSERT INTO new SELECT * FROM old ORDER BY id;
"""

_SCAN = f"SELECT count(*), sum(hash_record_extended(ROW(id, {', '.join(_COLUMNS)}), 0)) FROM {{table}}"

_JOIN = f"""
SELECT count(*) FROM old FULL JOIN new ON old.id = new.id
WHERE old.id IS NULL OR new.id IS NULL OR {" OR ".join(f"old.{c} IS DISTINCT FROM new.{c}" for c in _COLUMNS)}"""


def run(setting: Setting) -> Sequence[Figure]:
    """Every contender on the same two tables, in turns; the order is turned around each round."""
    logging.getLogger("database").setLevel(logging.ERROR)  # reladiff's warning of each text column
    figures: list[Figure] = []
    with Cluster(setting.folder / "parity", replica=False, settings=users.settings()) as cluster:
        for rows, key in product(setting.sizes or _SIZES, setting.keys or _KEYS):
            group = f"{key}, {rows:,} rows"
            setting.tell(f"parity: {group}: loading")
            url = cluster.primary.create_database(_DATABASE)
            sql(url, _TABLES.format(key=key, value=_KEYS[key], rows=rows))
            sql(url, "VACUUM (ANALYZE) old")
            sql(url, "VACUUM (ANALYZE) new")
            figures += _figures(group, _rounds(url, rows, group, setting))
            cluster.primary.drop_database(_DATABASE)
    return figures


def _rounds(url: str, rows: int, group: str, setting: Setting) -> Mapping[str, Sequence[float]]:
    contenders = {OURS: _ours, CHANGED: _ours_changed, RELADIFF: _reladiff, JOIN: _join, SCANS: _scans}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    setting.tell(f"parity: {group}: warming up")
    _ours(url, rows)
    rounds = setting.rounds or _ROUNDS
    for number in range(1, rounds + 1):
        for name in contenders if number % 2 else reversed(contenders):
            setting.tell(f"parity: {group}: round {number} of {rounds}, {name}")
            taken[name].append(contenders[name](url, rows))
    return taken


def _figures(group: str, taken: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    for name, samples in taken.items():
        yield Figure(name="time", samples=samples, show=seconds, group=group, subject=name)
        like_scans = [s / scans for s, scans in zip(samples, taken[SCANS], strict=True)]
        target = Target(at_most=_LIKE_SCANS) if name == OURS else None
        yield Figure(name="of two scans", samples=like_scans, show=times, target=target, group=group, subject=name)
    faster = [theirs / ours for ours, theirs in zip(taken[OURS], taken[RELADIFF], strict=True)]
    target = Target(at_least=_FASTER)
    yield Figure(name="times as fast as reladiff", samples=faster, show=times, target=target, group=group, subject=OURS)


# -- contenders: each gives the seconds it took, and raises when its verdict is wrong ---------------------


def _ours(url: str, rows: int, *, different: int = 0) -> float:
    """All of it: read the catalog, cut ranges, compare."""
    begun = time.monotonic()
    with connected(url, purpose="bench") as conn:
        old, new = (catalog.read(conn, TableName(schema="public", name=name)) for name in ("old", "new"))
        compared = [Compared(old=c, new=c, type=new.column(c).type) for c in _COLUMNS]
        pair = PairSql(old=old, new=new, compared=compared)
        ranges = pairs.cut(conn, pair)
    found = pairs.compare(server_at(url), "bench", pair, ranges, processes=_PROCESSES)
    took = time.monotonic() - begun
    if (found.rows, found.missing, found.extra, found.different) != (rows, 0, 0, different):
        raise RuntimeError(f"ours says: {found.describe()}")
    return took


def _ours_changed(url: str, rows: int) -> float:
    changed = "id = (SELECT id FROM old ORDER BY id LIMIT 1 OFFSET (SELECT count(*) * 2 / 3 FROM old))"
    sql(url, f"UPDATE new SET visits = visits + 1 WHERE {changed}")
    took = _ours(url, rows, different=1)
    sql(url, f"UPDATE new SET visits = visits - 1 WHERE {changed}")
    return took


def _reladiff(url: str, _rows: int) -> float:
    """Its checksums and bisection, with its own sizes; its join of two tables on one server was slower."""
    begun = time.monotonic()
    sides = [
        reladiff.connect_to_table(url, name, "id", thread_count=_PROCESSES, extra_columns=_COLUMNS)
        for name in ("old", "new")
    ]
    diff = reladiff.diff_tables(*sides, algorithm=reladiff.Algorithm.HASHDIFF, max_threadpool_size=2 * _PROCESSES)
    found = sum(1 for _ in diff)
    took = time.monotonic() - begun
    for side in sides:
        side.database.close()
    if found:
        raise RuntimeError(f"reladiff says: {found:,} rows differ")
    return took


def _join(url: str, _rows: int) -> float:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET work_mem = '256MB'")
        conn.execute("SET jit = off")
        begun = time.monotonic()
        found = conn.execute(_JOIN.encode()).fetchone()
        took = time.monotonic() - begun
    if found != (0,):
        raise RuntimeError(f"the join says: {found} rows differ")
    return took


def _scans(url: str, rows: int) -> float:
    """One after the other, each as parallel as the server likes."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("SET jit = off")
        begun = time.monotonic()
        found = [conn.execute(_SCAN.format(table=name).encode()).fetchone() for name in ("old", "new")]
        took = time.monotonic() - begun
    if found[0] != found[1] or not found[0] or found[0][0] != rows:
        raise RuntimeError(f"the scans say: {found}")
    return took
