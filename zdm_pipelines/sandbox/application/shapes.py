"""Shapes: what one version of an application knows of its data, as statements, and what the answers must be.

All statements but those of `Tables.create` and `Tables.finish` take parameters by name (`%(key)s`); a percent sign of
SQL's is therefore written twice in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import TypeAdapter

Key = int
Value = str | int | bool | None
Facts = tuple[Value, ...]
"""What an entity says, in the order of `Application.facts`, the same in every shape."""

State = Facts | None
"""What a key may be found to hold; none: there is no such entity."""


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One thing that the application knows of each entity, such as a user's name."""

    name: str  # of its parameter in the statements
    one_of: tuple[Value, ...] = ()  # the values it may get; empty: texts, each of them new


@dataclass(frozen=True, kw_only=True)
class Write:
    """One way to change an entity, which must be there."""

    sql: tuple[str, ...]  # of one transaction, over %(key)s and the new values of facts by their names
    sets: tuple[str, ...] = ()  # the facts that get new values
    adds: tuple[str, ...] = ()  # the facts, numbers, that grow by one
    share: int = 1  # how often, beside the other writes of its shape


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How one version of the code reads and writes entities.

    A transaction has found its entity when one of its statements touched a row. What a statement returns is a
    parameter of the statements behind it, by the name of the column: `RETURNING id AS key` names a new entity.
    """

    name: str  # as a wrong answer calls what was read
    read: str  # gives key and facts of the entities %(keys)s
    insert: tuple[str, ...]  # makes an entity of all its facts; %(unique)s is a text that no other insert gets
    delete: tuple[str, ...]  # of the entity %(key)s
    writes: tuple[Write, ...]
    rekey: tuple[str, ...] = ()  # gives the entity %(key)s the key %(new_key)s; empty: keys never change
    lock: str | None = None  # locks the entities %(keys)s, in the order of keys
    find: str | None = None  # gives key and facts of the entities that have these facts, by another column than the key


@dataclass(frozen=True, kw_only=True)
class Tables:
    """The database before the migration."""

    create: str
    fill: str  # rows %(first)s to %(last)s
    finish: tuple[str, ...] = ()  # once all rows are there: indexes, statistics


@dataclass(frozen=True, kw_only=True)
class Application:
    """An application in the midst of a migration: old code knows the old shape only, new code knows both."""

    entity: str  # what one of them is called
    facts: tuple[Fact, ...]
    tables: Tables
    mine: str  # gives at most %(rows)s keys for client %(client)s of %(clients)s, none of them another client's
    old: Shape
    new: Shape | None = None  # none: the migration changes nothing that the code sees
    flag: str | None = None  # the flag that switches the reads of new code to the new shape
    # Whether new code writes the new shape only where the flag is on: elsewhere its row may not be there yet.
    # Otherwise new code writes the new shape once there is the flag.
    writes_follow_reads: bool = False
    returns_keys: bool = False  # whether the server chooses a new entity's key and the insert returns it
    # Entities that have all of these facts may be gone at any time, and may be back as they were.
    expendable: Mapping[str, Value] = field(default_factory=dict)

    def may_go(self, state: State) -> bool:
        """Whether somebody else may delete an entity in this state."""
        if state is None or not self.expendable:
            return False
        said = dict(zip((fact.name for fact in self.facts), state, strict=True))
        return all(said[name] == value for name, value in self.expendable.items())


ANY_APPLICATION = TypeAdapter(Application)
"""An application as plain values, on its way to another process."""
