"""Throttle as it is declared: which signals are watched, and from where on they hold the backfill."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from zdm_pipelines.model.units import Declared, Duration, Size, Unit, for_people, written

SignalName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=40)]


class Limit(Declared):
    """Pause above one value, go on at another, so that a signal near its limit does not flap."""

    unit: ClassVar[Unit] = Unit.COUNT

    pause_above: float = Field(ge=0, description="Writing pauses above this.")
    resume_below: float | None = Field(
        default=None, ge=0, description="Writing goes on at or below this; default: half of pause_above."
    )
    critical_above: float | None = Field(
        default=None, ge=0, description="Above this a run gives up its place at once instead of waiting."
    )

    @model_validator(mode="after")
    def _ordered(self) -> Limit:
        if self.resume_at > self.pause_above:
            raise ValueError("resume_below is above pause_above: writing would never go on")
        if self.critical_above is not None and self.critical_above < self.pause_above:
            raise ValueError("critical_above is below pause_above: it would never be asked")
        if not math.isfinite(self.pause_above):
            raise ValueError("pause_above is no finite number: write null to not watch the signal")
        return self

    @property
    def resume_at(self) -> float:
        """From where on writing goes on."""
        return self.resume_below if self.resume_below is not None else self.pause_above / 2

    def show(self, value: float) -> str:
        """A value of this signal for people."""
        return for_people(value, self.unit)

    def same_signal(self, other: Limit) -> bool:
        """Whether both are limits of the same number."""
        bounds = set(Limit.model_fields)
        return type(self) is type(other) and self.model_dump(exclude=bounds) == other.model_dump(exclude=bounds)


class DurationLimit(Limit):
    """Limits in time, as 5s."""

    unit: ClassVar[Unit] = Unit.SECONDS

    pause_above: Duration = Field(ge=0, description="Writing pauses above this.")
    resume_below: Duration | None = Field(
        default=None, ge=0, description="Writing goes on at or below this; default: half of pause_above."
    )
    critical_above: Duration | None = Field(
        default=None, ge=0, description="Above this a run gives up its place at once instead of waiting."
    )


class SizeLimit(Limit):
    """Limits in bytes, as 64MB."""

    unit: ClassVar[Unit] = Unit.BYTES

    pause_above: Size = Field(ge=0, description="Writing pauses above this.")
    resume_below: Size | None = Field(
        default=None, ge=0, description="Writing goes on at or below this; default: half of pause_above."
    )
    critical_above: Size | None = Field(
        default=None, ge=0, description="Above this a run gives up its place at once instead of waiting."
    )


class RateLimit(SizeLimit):
    """Limits in bytes per second, as 64MB."""

    unit: ClassVar[Unit] = Unit.BYTES_PER_SECOND


class NamedLimit(Limit):
    """Limits of a signal of the user's own."""

    name: SignalName = Field(description="What the signal is called.")


class SqlLimit(NamedLimit):
    """Limits of what a query returns."""

    query: str = Field(min_length=1, description="SQL that returns one number; asked twice a second.")


class HttpLimit(NamedLimit):
    """Limits of what a web service answers."""

    url: str = Field(
        pattern=r"^https?://[^@\s]+$",
        description="Where to ask; with query: the root of a Prometheus server. No user or password in it.",
    )
    query: str | None = Field(
        default=None, min_length=1, description="PromQL; of several series the largest value counts."
    )
    field: str | None = Field(
        default=None, min_length=1, description="Without query: where in a JSON answer the number is, as data.0.value."
    )
    token_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable with a bearer token.",
    )

    @field_validator("url")
    @classmethod
    def _has_a_host(cls, url: str) -> str:
        try:
            host = urlsplit(url).hostname
        except ValueError:
            host = None
        if not host:
            raise ValueError("it names no host: write http://host:port/path")
        return url


class Throttle(Declared):
    """When the backfill waits for the database."""

    replication_lag: DurationLimit | None = Field(
        default=DurationLimit(pause_above=written("5s"), resume_below=written("1s")),
        description="How long ago the slowest replica's last replayed WAL was written; null: not watched.",
    )
    replication_lag_bytes: SizeLimit | None = Field(
        default=None, description="WAL that the slowest replica has not replayed."
    )
    heartbeat_lag: DurationLimit | None = Field(
        default=DurationLimit(pause_above=written("5s"), resume_below=written("1s")),
        description="Age of the newest heartbeat seen on each of the database's declared replicas; without any: "
        "not watched.",
    )
    latency_p95: DurationLimit | None = Field(
        default=DurationLimit(pause_above=written("250ms"), resume_below=written("100ms")),
        description="95th percentile of a one-row query on the table and a commit; null: not watched. Batches take no "
        "longer than its pause_above.",
    )
    statements_p95: DurationLimit | None = Field(
        default=None,
        description="95th percentile of all calls by their statement's mean time, from pg_stat_statements.",
    )
    active_sessions: Limit | None = Field(default=None, description="Sessions of others that run a statement.")
    waiting_sessions: Limit | None = Field(default=None, description="Sessions of others that wait for a lock.")
    lock_waits: Limit | None = Field(
        default=None, description="Sessions that wait for a lock on the table, or for one of our sessions."
    )
    wal_rate: RateLimit | None = Field(default=None, description="WAL written per second, by everybody.")
    archive_backlog: Limit | None = Field(default=None, description="WAL files that wait to be archived.")
    slot_retention: SizeLimit | None = Field(
        default=None, description="WAL kept for the replication slot that is furthest behind."
    )
    autovacuum: Limit | None = Field(
        default=None, description="Vacuums at work on the table; {pause_above: 0} lets them finish first."
    )
    oldest_transaction: DurationLimit | None = Field(
        default=None, description="Age of the oldest open transaction of others, prepared ones included."
    )
    disk_used: SizeLimit | None = Field(
        default=None,
        description="All databases and WAL of the server; the disk's size less the room that must stay.",
    )
    sql: tuple[SqlLimit, ...] = Field(default=(), description="Signals of your own: any SQL that returns a number.")
    http: tuple[HttpLimit, ...] = Field(
        default=(), description="Signals of your own: a number over HTTP, or from Prometheus."
    )
    max_wait: Duration = Field(
        default=written("10m"), gt=0, description="Longest wait inside a run; then it ends as paused."
    )
    nice: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="Rest after each batch, in times of what the batch took; 1 halves the load.",
    )

    @model_validator(mode="after")
    def _names_are_free(self) -> Throttle:
        names = [limit.name for limit in self._own()]
        taken = [name for name in names if names.count(name) > 1 or name in type(self).model_fields]
        if taken:
            raise ValueError(f"signal {taken[0]} is there already: give each a name of its own")
        return self

    def limits(self) -> Iterator[tuple[str, Limit]]:
        """Every signal that is watched, by name."""
        for name in type(self).model_fields:
            declared = getattr(self, name)
            if isinstance(declared, Limit):
                yield name, declared
        for limit in self._own():
            yield limit.name, limit

    def watched(self, *, replicas: bool) -> dict[str, Limit]:
        """The signals that are watched, by name.

        Args:
            replicas: whether the database declares replicas; without any there is no heartbeat to see.
        """
        return {name: limit for name, limit in self.limits() if replicas or name != "heartbeat_lag"}

    def _own(self) -> tuple[NamedLimit, ...]:
        return (*self.sql, *self.http)
