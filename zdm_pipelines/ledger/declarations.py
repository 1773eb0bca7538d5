"""Declarations: what was stored as a migration began, read with today's models and compared with today's files.

A key that was added to a kind since then has its default, so that a newer version strands no migration. What a newer
version stored may hold a kind or a key that is not known here: that is said when somebody asks for the declaration.
Whoever pauses, brings reads back or asks for a state does not ask.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from zdm_pipelines.model.change import ChangeSpec, Unquoted
from zdm_pipelines.model.errors import StateConflict
from zdm_pipelines.model.lifecycle import Lifecycle, Need
from zdm_pipelines.model.migration import Migration, stored_change
from zdm_pipelines.model.names import TableName
from zdm_pipelines.model.states import State

_TABLE = "table"

# Of a change that is not known here: the first of these that has the state tells what may follow.
_ANY = (
    Lifecycle.of(set(Need) - {Need.DESTROYS, Need.CHECKS}),
    Lifecycle.of(Need),
    Lifecycle.of({Need.ENFORCE, Need.READS, Need.RETIRE}),
    Lifecycle.of({Need.RETIRE, Need.TOMBSTONE}),
)


def to_store(migration: Migration) -> dict[str, Any]:
    """The part of a declaration that may not change once the migration began."""
    return {_TABLE: migration.table, **migration.change.model_dump(mode="json")}


def read_change(name: str, stored: Mapping[str, Any]) -> ChangeSpec:
    """The change of a stored declaration.

    Raises:
        StateConflict: a newer version stored it.
    """
    try:
        return stored_change({key: value for key, value in stored.items() if key != _TABLE})
    except ValidationError as error:
        # A union puts the kind in front of where it stands; without a kind that is known, it says nowhere.
        kind = stored.get("kind")
        places = [[part for part in one["loc"] if part != kind] for one in error.errors()]
        keys = sorted({".".join(str(part) for part in place) or "kind" for place in places})
        raise StateConflict(
            name,
            f"was begun by another version of this software, whose {', '.join(keys)} is not understood here",
            "upgrade zdm_pipelines here",
        ) from None


def read_table(stored: Mapping[str, Any]) -> TableName:
    """The table of a stored declaration."""
    return TableName.parse(stored[_TABLE])


def lifecycle_of(name: str, stored: Mapping[str, Any], state: State) -> Lifecycle:
    """The lifecycle of a stored declaration; of one that is not understood here, a lifecycle that has the state."""
    try:
        known = [Lifecycle.of(read_change(name, stored).needs)]
    except StateConflict:
        known = []
    before = (State.PLANNED, State.ROLLED_BACK)
    return next(life for life in (*known, *_ANY) if state in (*before, *life.states))


def understood(name: str, stored: Mapping[str, Any]) -> bool:
    """Whether a stored declaration can be read by this version."""
    try:
        read_change(name, stored)
    except StateConflict:
        return False
    return True


def differences(stored: Mapping[str, Any], migration: Migration) -> list[str]:
    """What a file declares otherwise than what was stored: dotted keys, with both values where no SQL is in them.

    Raises:
        StateConflict: a newer version stored it.
    """
    before, now = read_change(migration.name, stored), migration.change
    found = []
    if (table := read_table(stored)) != migration.table_name:
        found.append(f"table ({table}, now {migration.table_name})")
    if type(before) is not type(now):
        return [*found, f"kind ({before.kind}, now {now.kind})"]
    return [*found, *_differing(before, now)]


def _differing(before: BaseModel, now: BaseModel, prefix: str = "") -> Iterator[str]:
    for key, field in type(now).model_fields.items():
        old, new = getattr(before, key), getattr(now, key)
        if old == new:
            continue
        if isinstance(old, BaseModel) and isinstance(new, BaseModel) and type(old) is type(new):
            yield from _differing(old, new, f"{prefix}{key}.")
        elif _quotable(field) and not isinstance(old, BaseModel) and not isinstance(new, BaseModel):
            yield f"{prefix}{key} ({_shown(old)}, now {_shown(new)})"
        else:
            yield f"{prefix}{key}"


def _quotable(field: FieldInfo) -> bool:
    return not any(isinstance(mark, Unquoted) for mark in field.metadata)


def _shown(value: object) -> str:
    return "nothing" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
