"""Throttle: between batches, say how large the next one is, and when to wait because the database suffers.

A governor lives in each run. The governor reads the declared signals, the holds of the ledger and what was tuned since,
most several times a second, and counts as bad what it cannot read. Bad signals are written to the ledger as holds, so
that other runs, sensors and people know.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable

from zdm_pipelines.dialects import DatabaseError, safe, server_at
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.engine import signals, tuning
from zdm_pipelines.engine.pace import Pace
from zdm_pipelines.engine.ramp import Ramp
from zdm_pipelines.engine.sessions import hold_run
from zdm_pipelines.engine.signals import DEADLINE, Surroundings
from zdm_pipelines.engine.watch import Watch, judge
from zdm_pipelines.ledger import holds
from zdm_pipelines.model import windows
from zdm_pipelines.model.errors import Throttled, ZdmError
from zdm_pipelines.model.holds import LEDGER, WINDOW, is_signal, signal_owner
from zdm_pipelines.model.migration import Backfill, Migration
from zdm_pipelines.model.throttle import Limit
from zdm_pipelines.model.tuning import Settings, declared_settings
from zdm_pipelines.model.values import Hold, Verdict

_NUMBERS = re.compile(r"[\d.,]+")  # a figure that moved on is no news

_LOOK = 0.1  # seconds between two looks of a run that waits
_QUIET = 0.2  # seconds of waiting that are no news: a run that begins has its first readings in a moment
_BOARD = 0.5  # seconds between two looks at the ledger
_BRIEFEST = 0.01  # seconds; a batch that is to be quicker moves too few rows for its transaction
_RENEW = 5.0  # seconds after which a standing hold is written again


class Governor:
    """Says when to wait, and how large batches are; shared by the workers of a run.

    Args:
        around: where signals are read, and by which clock.
        run: what to call this run in the ledger's locks, so that others can tell whether it lives; default: nothing.
    """

    def __init__(
        self, migration: Migration, around: Surroundings, *, run: str | None = None, tell: Callable[[str], None]
    ) -> None:
        self._migration = migration
        self._around = around
        self._clock = around.clock
        self._run = run
        self._tell = tell
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._watches: dict[str, Watch] = {}
        self._limits: dict[str, Limit] = {}
        self._bad: dict[str, bool] = {}
        self._informed = False  # whether what was tuned has been read
        self.settings = declared_settings(migration)
        self.pace = Pace(_bounds(self.settings))
        self._standing: list[Hold] | str = "they are being read for the first time"
        self._looked = self._clock.monotonic()
        self._written: dict[str, float] = {}  # when a signal's hold was written last
        self._watch(self.settings)
        self._board = threading.Thread(target=self._look_at_board, name="zdm board", daemon=True)
        self._board.start()

    # -- what stands against writing ----------------------------------------------------------------------

    def _against(self) -> tuple[dict[str, str], bool]:
        """Why to wait now, by owner; and whether a signal is critical."""
        verdicts = self._verdicts()
        found = {signal_owner(v.reading.signal): v.reason for v in verdicts if v.bad}
        standing, looked = self._standing, self._looked
        if isinstance(standing, str):
            found[LEDGER] = f"the ledger cannot be followed: {standing}"
        elif self._clock.monotonic() - looked > DEADLINE + _BOARD:
            found[LEDGER] = f"the ledger has not answered for {self._clock.monotonic() - looked:.0f} s"
        else:
            # Of signals we believe our own readings: they are newer than the ledger's holds, which are for others.
            found |= {h.owner: h.reason for h in standing if not is_signal(h.owner)}
        if (reason := windows.closed(self.settings.allowed, self._clock.now())) is not None:
            found[WINDOW] = reason
        if (ramp := self.pace.ramp) is not None:
            if found:
                ramp.stops(too_fast=any(is_signal(owner) for owner in found))
            else:
                ramp.goes_on()
        # Until the ledger was read, a signal that is declared may have been tuned away.
        return found, self._informed and any(v.critical for v in verdicts)

    def _verdicts(self) -> list[Verdict]:
        standing = self._standing
        held = set() if isinstance(standing, str) else {h.owner for h in standing}
        with self._lock:
            limits = dict(self._limits)
            found = []
            for name, watch in self._watches.items():
                unread = watch.is_first
                # At first, the last verdict is the hold that others placed.
                paused = self._bad.get(name, signal_owner(name) in held)
                verdict = judge(limits[name], watch.reading(), paused=paused)
                if name in self._bad or not (unread or isinstance(standing, str)):
                    self._bad[name] = verdict.bad
                found.append(verdict)
            return found

    def clear(self) -> bool:
        """Whether nothing stands against writing."""
        return not self._against()[0]

    def wait(self, stop: threading.Event) -> float:
        """Wait until writing may go on, or `stop` is set; returns the seconds waited.

        Raises:
            Throttled: `max_wait` passed, or a signal is critical.
        """
        begun = self._clock.monotonic()
        told: set[str] = set()
        while True:
            found, critical = self._against()
            waited = self._clock.monotonic() - begun
            if not found:
                break
            if waited > _QUIET and told != (news := {_NUMBERS.sub("", reason) for reason in found.values()}):
                told = news
                self._tell(f"waiting: {_said(found)}")
            if critical or waited > self.settings.throttle.max_wait:
                why = "a signal is critical" if critical else f"waited {waited:.0f} s"
                raise Throttled(
                    self._migration.name,
                    f"{why}: {_said(found)}",
                    "these ranges go on from their checkpoints when they are materialized again",
                    list(found.values()),
                )
            if self._clock.wait(stop, _LOOK):
                break
        if told and not stop.is_set():
            self._tell(f"going on after {waited:.1f} s")
        return waited

    def rest(self, seconds: float, stop: threading.Event) -> None:
        """Rest after a batch that took so long, as `nice` and the share of full speed ask."""
        begun = self._clock.monotonic()
        # The rest is computed again and again: while a long one is under way `nice` may be tuned, and the share grows.
        while (left := seconds * self._rest_times() - (self._clock.monotonic() - begun)) > 0:
            if self._clock.wait(stop, min(left, _LOOK)):
                return

    @property
    def rests(self) -> bool:
        """Whether batches are followed by rests."""
        return self._rest_times() > 0

    def _rest_times(self) -> float:
        """The rest, in times of what the batch took."""
        return self.settings.throttle.nice + 1 / self.pace.share - 1

    def close(self) -> None:
        """Stop every thread; those that hang end with the process."""
        self._stopped.set()
        with self._lock:
            for watch in self._watches.values():
                watch.stop()
        self._board.join(DEADLINE)

    # -- threads ------------------------------------------------------------------------------------------

    def _watch(self, settings: Settings) -> None:
        limits = settings.throttle.watched(replicas=bool(self._around.replicas))
        with self._lock:
            if self._stopped.is_set():  # nobody would stop those watchers again
                return
            kept = {n: w for n, w in self._watches.items() if n in limits and limits[n].same_signal(self._limits[n])}
            # All signals are made, or none: one that cannot be made leaves everything as it is.
            made = {name: signals.signal_named(name, limits[name], self._around) for name in limits if name not in kept}
            for name in self._watches.keys() - kept.keys():
                self._watches[name].stop()
                self._bad.pop(name, None)
            self._watches = kept | {name: Watch(name, signal, clock=self._clock) for name, signal in made.items()}
            self._limits = limits
            if not limits:
                self.pace.ramp = None
            elif self.pace.ramp is None:
                self.pace.ramp = Ramp(clock=self._clock)

    def _look_at_board(self) -> None:
        conn: Session | None = None
        while not self._stopped.is_set():
            try:
                if conn is None or conn.closed:
                    conn = self._connect()
                self._write_holds(conn)
                self._retune(conn)
                self._informed = True
                self._standing = holds.standing(conn, self._migration.name)
                self._looked = self._clock.monotonic()
            except DatabaseError as error:
                self._standing = safe(error)
            except ZdmError as error:
                self._standing = str(error)
            except Exception as error:  # noqa: BLE001 - it must not end silently: what it cannot read is bad
                self._standing = f"{type(error).__name__}: {error}"
            self._clock.wait(self._stopped, _BOARD)
        if conn is not None:
            conn.close()

    def _connect(self) -> Session:
        conn = server_at(self._around.url).open(purpose=f"{self._migration.name} throttle", deadline=DEADLINE)
        try:
            if self._run is not None:
                hold_run(conn, self._run)
        except BaseException:
            conn.close()
            raise
        return conn

    def _write_holds(self, conn: Session) -> None:
        """What we see of the signals, for everybody else."""
        standing = {h.owner for h in self._standing} if not isinstance(self._standing, str) else set()
        for verdict in self._verdicts():
            owner, now = signal_owner(verdict.reading.signal), self._clock.monotonic()
            if verdict.bad and now - self._written.get(owner, -math.inf) > _RENEW:
                if self._young(verdict):
                    continue
                holds.place(conn, self._migration.name, owner, verdict.reason, seconds=holds.SIGNAL_SECONDS)
                self._written[owner] = now
            elif not verdict.bad and (owner in self._written or owner in standing):
                holds.lift(conn, self._migration.name, owner)
                self._written.pop(owner, None)
            standing.discard(owner)
        for owner in filter(is_signal, standing):  # of a signal that is no longer declared
            holds.lift(conn, self._migration.name, owner)
            self._written.pop(owner, None)

    def _young(self, verdict: Verdict) -> bool:
        """Not read even once yet: no news for others."""
        watch = self._watches.get(verdict.reading.signal)
        return watch is None or watch.is_first

    def _retune(self, conn: Session) -> None:
        # A tuned value that is not understood may be the limit that should have stopped us, so it counts as a hold.
        settings = tuning.effective(conn, self._migration)
        if settings != self.settings:
            self._watch(settings)
            self.pace.retune(_bounds(settings))
            self.settings = settings
            self._tell("settings were changed while running")


def _bounds(settings: Settings) -> Backfill:
    """How large batches are, and how long they take. Whoever needs a row of a batch waits until it is committed, which
    no canary notices: so it takes no longer than the latency that is declared to be too much.
    """
    latency, declared = settings.throttle.latency_p95, settings.backfill
    if latency is None:
        return declared
    return declared.model_copy(update={"batch_target": min(declared.batch_target, max(latency.pause_above, _BRIEFEST))})


def _said(found: dict[str, str]) -> str:
    return "; ".join(f"{reason} (hold of {owner})" if _foreign(owner) else reason for owner, reason in found.items())


def _foreign(owner: str) -> bool:
    return not is_signal(owner) and owner not in (WINDOW, LEDGER)
