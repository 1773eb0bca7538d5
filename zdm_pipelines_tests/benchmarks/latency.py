"""Foreground: what an application feels of a backfill that nothing holds back, and how long it waits for its rows."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests.benchmarks import contenders, users
from zdm_pipelines_tests.benchmarks.case import Figure, Setting, Target, milliseconds, number, per_second, times
from zdm_pipelines_tests.benchmarks.contenders import Contender, Outcome
from zdm_pipelines_tests.benchmarks.foreground import Foreground, percentile

_ROUNDS = 3
_ROWS = 1_000_000
_INDEXES = 2
_CLIENTS, _RATE = 4, 400  # and transactions per second, which leave the server mostly idle
_WARM_UP = 1.0  # seconds of foreground before the backfill begins
_SECONDS = 10.0  # measured, from the moment the backfill begins; less where it is done before
_LEAST = 2.0  # seconds; what is over sooner tells nothing
_TEMPLATE = "bench_template"

# A request: a row is read, another is written.
_SCRIPT = """
\\set id random(1, {rows})
\\set other random(1, {rows})
SELECT full_name, balance FROM users WHERE id = :id;
UPDATE users SET balance = balance + 1, updated_at = now() WHERE id = :other;
"""

# Each wait for a lock of a millisecond and more, as the server itself times it, with the name of who waited.
_TELL_WAITS = {"log_lock_waits": "on", "deadlock_timeout": "1ms", "log_line_prefix": "%a|"}
# Whoever waits for a row waits for the transaction that wrote it; behind another that waits, for the row's own lock.
_WAITED = re.compile(
    r"^pgbench\|LOG:  process \d+ acquired \w+ on (?:transaction|tuple) .*? after (\d+\.\d+) ms", re.MULTILINE
)

NOTHING, SCRIPT = "no backfill", f"LIMIT {contenders.BATCH_ROWS}"
# Ours, and the plain batches of as many sessions: on a machine with few cores those alone make a difference.
OURS = {"ours strided": "ours plain", "ours strided, 2 at once": "ours plain, 2 at once"}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was seen in one round of one contender."""

    latencies: Sequence[float]  # seconds, of each transaction from when it was due
    waits: Sequence[float]  # seconds that statements waited for rows, of a millisecond and more
    batch: float  # seconds of the longest batch
    speed: float  # rows per second


def run(setting: Setting) -> Sequence[Figure]:
    """The application alone, beside a script's batches, and beside ours, in turns."""
    rows, rounds = setting.rows or _ROWS, setting.rounds or _ROUNDS
    entered: list[Contender | None] = [
        None,
        contenders.limit_batches("bigint"),
        contenders.ours("ours plain", {"passes": 1, "max_parallel": 1}),
        contenders.ours("ours strided", {"max_parallel": 1}),
        contenders.ours("ours plain, 2 at once", {"passes": 1}),
        contenders.ours("ours strided, 2 at once", {}),
    ]
    seen: dict[str, list[Seen]] = {contender.name if contender else NOTHING: [] for contender in entered}
    settings = users.settings(quiet=setting.quiet) | _TELL_WAITS
    with Cluster(setting.folder / "foreground", replica=False, settings=settings) as cluster:
        setting.tell(f"foreground: loading {rows:,} rows")
        users.build(cluster.primary, _TEMPLATE, rows=rows, indexes=_INDEXES, key="bigint")
        for turn in range(1, rounds + 1):
            for contender in entered if turn % 2 else reversed(entered):
                name = contender.name if contender else NOTHING
                setting.tell(f"foreground: round {turn} of {rounds}, {name}")
                seen[name].append(_beside(cluster.primary, contender, rows))
    return list(figures(seen))


def _beside(server: Server, contender: Contender | None, rows: int) -> Seen:
    prepare = contender.prepare if contender else lambda _: None
    with users.fresh(server, _TEMPLATE, prepare=prepare) as url:
        logged = server.log.stat().st_size
        foreground = Foreground(
            server, url.rsplit("/", 1)[1], clients=_CLIENTS, seconds=_WARM_UP + _SECONDS + 1, rate=_RATE,
            script=_SCRIPT.format(rows=rows),
        )  # fmt: skip
        time.sleep(_WARM_UP)
        now = time.monotonic()
        outcome = contender.run(url, _SECONDS) if contender else Outcome(begun=now, ended=now + _SECONDS)
        if outcome.seconds < _LEAST:
            raise RuntimeError(f"done in {outcome.seconds:.1f} s: give more --rows")
        latencies = foreground.latencies(outcome.begun, min(outcome.ended, outcome.begun + _SECONDS))
    return Seen(
        latencies=latencies,
        waits=waits(_since(server.log, logged)),
        batch=max((batch.seconds for batch in outcome.batches), default=0.0),
        speed=sum(batch.rows for batch in outcome.batches) / outcome.seconds,
    )


def _since(log: Path, offset: int) -> str:
    with log.open("rb") as file:
        file.seek(offset)
        return file.read().decode(errors="replace")


def waits(log: str) -> list[float]:
    """Seconds of each wait of the application for a row that the server's log tells."""
    return [float(found) / 1000 for found in _WAITED.findall(log)]


def figures(seen: dict[str, list[Seen]]) -> Iterator[Figure]:
    """Percentiles of each contender; ours against the script's, and what waited against what was waited for."""
    for name, rounds in seen.items():
        for share in (50, 95, 99):
            samples = [percentile(each.latencies, share) for each in rounds]
            yield Figure(name=f"p{share}", samples=samples, show=milliseconds, subject=name)
        if name in OURS:
            for other, said in ((SCRIPT, SCRIPT), (OURS[name], "plain")):
                samples = [
                    percentile(each.latencies, 99) / percentile(beside.latencies, 99)
                    for each, beside in zip(rounds, seen[other], strict=True)
                ]
                better = Target(at_most=1.0)
                yield Figure(name=f"p99 against {said}", samples=samples, show=times, target=better, subject=name)
        if name == NOTHING:
            continue
        longest = [max(each.waits, default=0.0) for each in rounds]
        batch = [each.batch for each in rounds]
        target = Target(at_most=1.0, of="worst") if name in OURS else None
        against = [wait / held for wait, held in zip(longest, batch, strict=True)]
        yield Figure(name="rows/s", samples=[each.speed for each in rounds], show=per_second, subject=name)
        yield Figure(name="waits for rows", samples=[len(each.waits) for each in rounds], show=number, subject=name)
        yield Figure(name="longest wait", samples=longest, show=milliseconds, subject=name)
        yield Figure(name="longest batch", samples=batch, show=milliseconds, subject=name)
        yield Figure(name="wait against batch", samples=against, show=times, target=target, subject=name)
