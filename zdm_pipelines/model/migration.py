"""A migration as it is declared in `defs.yaml`: every key, its default and its bounds."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.names import TableName, too_long

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*$"


def seconds(value: object) -> float:
    """Read a duration such as `250ms`, `5s`, `10m`, `25h` or `7d` as seconds.

    Raises:
        ValueError: the value has no unit that is known.
    """
    match = re.match(_DURATION, value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"{value!r} is not a duration: write a number and ms, s, m, h or d, as 250ms or 7d")
    return float(match[1]) * _UNITS[match[2]]


def written(default: str) -> Any:
    """A default as a user would write it; it is read like any other value."""
    return default


Duration = Annotated[
    float,
    BeforeValidator(seconds),
    PlainSerializer(lambda value: f"{value:g}s", when_used="json"),  # so that it can be read again
    WithJsonSchema({"type": "string", "pattern": _DURATION, "examples": ["250ms", "5s", "7d"]}),
]
Percent = Annotated[int, Field(ge=1, le=100, strict=True)]
Rows = Annotated[int, Field(gt=0, strict=True)]
Expression = Annotated[str, Field(min_length=1)]


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NewColumn(_Declared):
    """The column that takes over."""

    name: str = Field(min_length=1, description="Exact name of the new column.")
    type: str = Field(min_length=1, description="SQL type of the new column, as text or numeric(12,2).")
    nullable: bool = Field(default=True, strict=True, description="false: NOT NULL is set once parity is proven.")
    default: str | None = Field(
        default=None, description="SQL default of the new column; set when the old column is renamed away."
    )


class ReplaceColumn(_Declared):
    """Replace one column by another, keeping both in sync until nobody uses the old one."""

    kind: Literal["replace_column"]
    old: str = Field(min_length=1, description="Exact name of the column to be replaced.")
    new: NewColumn
    up: Expression = Field(description="SQL over the row that gives the new value from the old shape.")
    down: Expression = Field(
        description="SQL over the row that gives the old value from the new shape: keeps rollback open."
    )

    @model_validator(mode="after")
    def _two_columns(self) -> ReplaceColumn:
        if self.old == self.new.name:
            raise ValueError(f"old and new are both {self.old!r}: give the new column a name of its own")
        return self


class Backfill(_Declared):
    """How the old rows are moved."""

    range_rows: Rows = Field(default=100_000, description="Rows of one range, which is one Dagster partition.")
    batch_rows: Rows = Field(default=1_000, description="Most rows that one transaction moves.")
    batch_target: Duration = Field(
        default=written("250ms"),
        gt=0,
        description="Batches shrink when they take longer than this and grow back up to batch_rows.",
    )
    max_parallel: Annotated[int, Field(gt=0, le=32, strict=True)] = Field(
        default=2, description="Ranges moved at once, over all runs and machines."
    )


class Limit(_Declared):
    """Pause above one value, go on below another, so that a signal near its limit does not flap."""

    pause_above: Duration = Field(gt=0)
    resume_below: Duration = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Limit:
        if self.resume_below > self.pause_above:
            raise ValueError("resume_below is above pause_above: writing would never go on")
        return self


class Throttle(_Declared):
    """When the backfill waits for the database."""

    replication_lag: Limit | None = Field(
        default=Limit(pause_above=written("5s"), resume_below=written("1s")),
        description="Replay lag of the slowest replica; null: not watched.",
    )
    latency_p95: Limit | None = Field(
        default=Limit(pause_above=written("250ms"), resume_below=written("100ms")),
        description="95th percentile of a one-row query on the table; null: not watched.",
    )
    max_wait: Duration = Field(
        default=written("10m"), gt=0, description="Longest wait inside a run before the range gives up."
    )


class Locks(_Declared):
    """How schema changes ask for their locks."""

    timeout: Duration = Field(
        default=written("500ms"), gt=0, description="Longest that a statement of ours may queue for a lock."
    )
    give_up_after: Duration = Field(
        default=written("10m"), gt=0, description="Total time of trying before the phase fails."
    )


class Reads(_Declared):
    """How reads move to the new shape."""

    flag: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="Name of the flag in the ledger; default: read_ and the name.",
    )
    ramp: tuple[Percent, ...] = Field(
        default=(1, 10, 50, 100),
        min_length=1,
        description="Percentages that switch_reads walks, one per materialization.",
    )

    @field_validator("ramp")
    @classmethod
    def _rises_to_all(cls, ramp: tuple[int, ...]) -> tuple[int, ...]:
        if list(ramp) != sorted(set(ramp)) or ramp[-1] != 100:
            raise ValueError(f"{list(ramp)} must rise and end at 100")
        return ramp


class Contract(_Declared):
    """How long the old shape is kept."""

    confidence_window: Duration = Field(
        default=written("7d"),
        description="All reads must have been on the new shape this long before the old one is renamed away.",
    )
    tombstone_window: Duration = Field(
        default=written("1d"), description="How long the renamed old column is kept before it is dropped."
    )
    straggler_window: Duration = Field(
        default=written("25h"),
        description="No write through the old shape for this long; 25h catches a daily job.",
    )


class Migration(_Declared):
    """One change to one table."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$",
        max_length=40,
        description="Lower-case name; the Dagster group and the ledger use it.",
    )
    database: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Name of a declared database.")
    table: str = Field(min_length=1, description="schema.table; parts that hold a dot or quote in double quotes.")
    change: ReplaceColumn
    backfill: Backfill = Backfill()
    throttle: Throttle = Throttle()
    locks: Locks = Locks()
    reads: Reads = Reads()
    contract: Contract = Contract()

    @field_validator("table")
    @classmethod
    def _is_a_table_name(cls, text: str) -> str:
        TableName.parse(text)
        return text

    @model_validator(mode="after")
    def _names_fit(self) -> Migration:
        parsed = TableName.parse(self.table)
        for what, name in (
            ("schema", parsed.schema),
            ("table", parsed.name),
            ("old column", self.change.old),
            ("new column", self.change.new.name),
        ):
            if too_long(name):
                raise ValueError(
                    f"{what} {name!r} is {len(name.encode())} bytes and Postgres keeps 63: give it a shorter name"
                )
        return self

    @property
    def table_name(self) -> TableName:
        """The table, parsed."""
        return TableName.parse(self.table)

    @property
    def flag(self) -> str:
        """The flag that reads ask."""
        return self.reads.flag or f"read_{self.name}"


class Database(_Declared):
    """A database that migrations name; its URL stays in the environment."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="What migrations call it.")
    url_env: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable with its URL; default: ZDM_<NAME>_URL.",
    )

    @property
    def variable(self) -> str:
        """The environment variable that holds the URL."""
        return self.url_env or f"ZDM_{self.name.upper()}_URL"

    def url(self) -> str:
        """The URL, read now and never kept.

        Raises:
            SpecError: the variable is not set.
        """
        found = os.environ.get(self.variable, "")
        if not found:
            raise SpecError(
                f"database {self.name}",
                f"environment variable {self.variable} is not set",
                f"export {self.variable}=postgresql://user:password@host:5432/dbname",
            )
        return found
