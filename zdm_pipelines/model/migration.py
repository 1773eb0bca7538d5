"""A migration as it is declared in `defs.yaml`: every key, its default and its bounds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, field_validator, model_validator

from zdm_pipelines.model.change import ChangeSpec
from zdm_pipelines.model.errors import SpecError
from zdm_pipelines.model.lifecycle import Lifecycle
from zdm_pipelines.model.names import TableName, too_long
from zdm_pipelines.model.throttle import Throttle
from zdm_pipelines.model.units import Declared, Duration, written
from zdm_pipelines.model.windows import Windows

_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"
Percent = Annotated[int, Field(ge=1, le=100, strict=True)]
Rows = Annotated[int, Field(gt=0, strict=True)]


class Backfill(Declared):
    """How the old rows are moved."""

    range_rows: Rows = Field(default=100_000, description="Rows of one range, which is one Dagster partition.")
    batch_rows: Rows = Field(default=1_000, description="Most rows that one transaction moves.")
    batch_target: Duration = Field(
        default=written("250ms"),
        gt=0,
        description="Batches shrink when they take longer than this and grow back up to batch_rows.",
    )
    passes: Literal[1, 2, 4, 8, 16] | None = Field(
        default=None,
        description="Passes in which the rows of neighbouring pages are moved, so that later ones find room in their "
        "page: 2, 4, 8 or 16; 1: plain batches; default: by the table's statistics.",
    )
    max_parallel: Annotated[int, Field(gt=0, le=32, strict=True)] = Field(
        default=2, description="Ranges moved at once, over all runs and machines."
    )
    max_runs: Annotated[int, Field(gt=0, le=100, strict=True)] = Field(
        default=1, description="Runs of this migration that Dagster starts at once: the limit of its pool."
    )


class Locks(Declared):
    """How schema changes ask for their locks."""

    timeout: Duration = Field(
        default=written("500ms"), gt=0, description="Longest that a statement of ours may queue for a lock."
    )
    give_up_after: Duration = Field(
        default=written("10m"), gt=0, description="Total time of trying before the phase fails."
    )


class Reads(Declared):
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


class Contract(Declared):
    """How long the old shape is kept."""

    confidence_window: Duration = Field(
        default=written("7d"),
        description="All reads must have been on the new shape this long before the old one is renamed away.",
    )
    tombstone_window: Duration = Field(
        default=written("1d"), description="How long the old shape is kept out of sight before it is dropped."
    )
    straggler_window: Duration = Field(
        default=written("25h"),
        description="No write through the old shape for this long; 25h catches a daily job.",
    )
    unaffected: tuple[str, ...] = Field(
        default=(),
        description="What people know to be unaffected, as preflight and the gate call it: functions whose text "
        "names what goes and means something else, publications whose subscribers are ready.",
    )


class Migration(Declared):
    """One change to one table."""

    name: str = Field(
        pattern=r"^[a-z][a-z0-9_]*$",
        max_length=40,
        description="Lower-case name; the Dagster group and the ledger use it.",
    )
    database: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Name of a declared database.")
    table: str = Field(min_length=1, description="schema.table; parts that hold a dot or quote in double quotes.")
    change: ChangeSpec  # at run time the union of all kinds, see `set_kinds`
    backfill: Backfill = Backfill()
    throttle: Throttle = Throttle()
    allowed: Windows = Field(
        default=(), description="When the backfill may write, as 22:00-06:00 Europe/Berlin; default: always."
    )
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
            *self.change.names().items(),
        ):
            if too_long(name):
                raise ValueError(
                    f"{what} {name!r} is {len(name.encode())} bytes and Postgres keeps 63: give it a shorter name"
                )
        return self

    @property
    def lifecycle(self) -> Lifecycle:
        """The phases and states of this migration, from what its change needs.

        Never kept: a copy with another change has another lifecycle.
        """
        return Lifecycle.of(self.change.needs)

    @property
    def table_name(self) -> TableName:
        """The name of the table, parsed."""
        return TableName.parse(self.table)

    @property
    def flag(self) -> str:
        """The flag that reads ask."""
        return self.reads.flag or f"read_{self.name}"


_changes: dict[str, TypeAdapter[ChangeSpec]] = {}  # under one key: the union of all kinds


def set_kinds(specs: Sequence[type[ChangeSpec]]) -> None:
    """Say which kinds of change there are: `Migration.change` is their union, told apart by `kind`."""
    arms: Any = reduce(or_, specs)
    field = Migration.model_fields["change"]
    field.annotation, field.discriminator = arms, "kind" if len(specs) > 1 else None
    Migration.model_rebuild(force=True)
    tagged: Any = Annotated[arms, Field(discriminator="kind")]
    _changes["union"] = TypeAdapter(tagged if len(specs) > 1 else arms)


def stored_change(values: Mapping[str, Any]) -> ChangeSpec:
    """A change as the ledger keeps it, read with today's models: keys that were added since have their defaults.

    Raises:
        pydantic.ValidationError: it was stored by a version that knows more than this one.
    """
    return _changes["union"].validate_python(values)


class Database(Declared):
    """A database that migrations name; its URL stays in the environment."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="What migrations call it.")
    url_env: str | None = Field(
        default=None,
        pattern=_VARIABLE,
        description="Environment variable with its URL; default: ZDM_<NAME>_URL.",
    )
    replicas: tuple[Annotated[str, Field(pattern=_VARIABLE)], ...] = Field(
        default=(),
        description="Environment variables with the URLs of replicas: their heartbeat is watched, and they are asked "
        "who reads an index that goes.",
    )
    max_parallel: Annotated[int, Field(gt=0, le=32, strict=True)] = Field(
        default=2, description="Batches at once, over all its migrations, which take turns."
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
        return self._from(self.variable)

    def replica_urls(self) -> dict[str, str]:
        """The replicas' URLs by their variables.

        Raises:
            SpecError: a variable is not set.
        """
        return {variable: self._from(variable) for variable in self.replicas}

    def _from(self, variable: str) -> str:
        found = os.environ.get(variable, "")
        if not found:
            raise SpecError(
                f"database {self.name}",
                f"environment variable {variable} is not set",
                f"export {variable}=postgresql://user:password@host:5432/dbname",
            )
        return found
