"""Requests: what one client of an application asks for, through any shape, and whether the answers are right."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg

from zdm_pipelines.sandbox.application.owned import Change, Owned
from zdm_pipelines.sandbox.application.session import Failed, Parameters, Session, Step
from zdm_pipelines.sandbox.application.shapes import Application, Fact, Facts, Key, Shape, State, Value, Write
from zdm_pipelines.sandbox.traffic_report import Recorder

_ROWS = 500  # existing entities a client works on: few enough that each is read and written many times

_HELD = 0.02  # seconds a transaction thinks at most while it holds row locks

_SHARES = {"insert": 8, "read": 42, "write": 21, "write and read": 13, "transaction": 7, "delete": 7, "rekey": 2}
"""Of a hundred requests, how many are of which sort."""

_TOGETHER = 3  # entities that a transaction writes

_CLIENTS = 1_024  # the most clients whose new keys are kept apart

ShapeOf = Callable[[Key], Shape]
"""Through which shape a version of the code reads, or writes, an entity."""


def always(shape: Shape) -> ShapeOf:
    """One shape for every entity: code that no flag switches."""
    return lambda _: shape


@dataclass(frozen=True, kw_only=True)
class _Writing:
    """What a request does to one entity."""

    key: Key
    steps: Sequence[Step]
    change: Change


class Requests:
    """The requests of one client about entities of its own.

    Args:
        application: which shapes there are, and what an entity says.
        client: its number, different from those of the others; the first is 0.
        recorder: is told of wrong answers.
    """

    def __init__(self, application: Application, *, client: int, recorder: Recorder) -> None:
        self.application = application
        self.owned = Owned(application)
        self._client = client
        self._recorder = recorder
        self._random = random.Random(client)
        self._made = 0  # texts
        self._last_key: Key = 0

    def learn(self, connection: psycopg.Connection[Any], shape: Shape, *, clients: int, rows: int = _ROWS) -> None:
        """Own a share of the entities that are there, before anybody writes.

        Args:
            connection: in autocommit mode; what this method asks for is not part of the traffic.
            shape: through which the entities are read.
            clients: how many share the entities.
            rows: the most of them that this client owns.
        """
        share = {"client": self._client, "clients": clients, "rows": rows}
        keys = [row[0] for row in connection.execute(self.application.mine.encode(), share)]
        found = connection.execute(shape.read.encode(), {"keys": keys})
        self.owned.add({row[0]: row[1:] for row in found})

    def send(self, session: Session, *, reads: ShapeOf, writes: ShapeOf) -> None:
        """Send one request, of a random sort about a random entity.

        Args:
            session: whose version of the code asks.
            reads: through which shape this code reads an entity.
            writes: through which shape this code writes an entity.

        Raises:
            Failed: a query failed.
        """
        sort = self._random.choices(list(_SHARES), list(_SHARES.values()))[0]
        if sort == "insert" or not self.owned:
            self.insert(session, writes)
            return
        key = self._random.choice(self.owned.keys)
        if sort == "rekey" and not writes(key).rekey:
            sort = "read"
        if sort == "read" or self.owned.is_gone(key):
            self._look_up(session, reads(key), key)
        elif sort == "write":
            self.write(session, writes, [key])
        elif sort == "write and read":
            self.write(session, writes, [key])
            self.read(session, reads(key), [key])
        elif sort == "transaction":
            keys = self._random.sample(self.owned.keys, min(_TOGETHER, len(self.owned)))
            self.write(session, writes, sorted(keys))
        elif sort == "delete":
            self.delete(session, writes(key), key)
        else:
            self.rekey(session, writes(key), key)

    def read(self, session: Session, shape: Shape, keys: Sequence[Key]) -> None:
        """Read entities by their keys; each must say what it should."""
        rows = session.query(shape.read, {"keys": list(keys)})
        seen: dict[Key, Facts] = {row[0]: row[1:] for row in rows}
        for key in keys:
            self._compare(session, shape, key, seen.get(key))

    def find(self, session: Session, shape: Shape, key: Key) -> None:
        """Read an entity by what it says, where the shape can and one thing only is possible; it must be found."""
        facts = self.owned.certain(key)
        if shape.find is None or facts is None:
            return
        rows = session.query(shape.find, dict(zip(self._names, facts, strict=True)))
        self._compare(session, shape, key, next((row[1:] for row in rows if row[0] == key), None))

    def verify(self, session: Session, reads: ShapeOf) -> None:
        """Read every entity that was ever owned once more."""
        keys: dict[str, list[Key]] = {}
        shapes = {key: reads(key) for key in self.owned.keys}
        for key, shape in shapes.items():
            keys.setdefault(shape.name, []).append(key)
        for each in keys.values():
            self.read(session, shapes[each[0]], each)
        for key, shape in shapes.items():
            self.find(session, shape, key)

    def insert(self, session: Session, writes: ShapeOf) -> None:
        """Make one entity, in the shape of the code."""
        key = self._new_key()
        facts = tuple(map(self._value, self.application.facts))
        parameters: Parameters = dict(zip(self._names, facts, strict=True))
        parameters |= {"key": key, "unique": f"{self._client}.{self._made}.{time.time_ns()}"}
        try:
            session.write([(statement, parameters) for statement in writes(key).insert])
        except Failed as failed:
            if failed.unknown and not self.application.returns_keys:
                self.owned.insert(key, {None, facts})
            raise
        self.owned.insert(parameters["key"], {facts})

    def write(self, session: Session, writes: ShapeOf, keys: Sequence[Key]) -> None:
        """Change entities, several of them in one transaction that locks them first and thinks."""
        writings = [self._writing(writes(key), key) for key in keys]
        lock = writes(keys[0]).lock
        if len(keys) > 1 and lock is not None:
            first: Step = (lock, {"keys": list(keys)})
            self._write(session, writings, first=first, think=self._random.uniform(0, _HELD))
        else:
            self._write(session, writings)

    def delete(self, session: Session, shape: Shape, key: Key) -> None:
        """Delete an entity, which must be there."""
        steps = [(statement, {"key": key}) for statement in shape.delete]
        self._write(session, [_Writing(key=key, steps=steps, change=lambda _: None)])

    def rekey(self, session: Session, shape: Shape, key: Key) -> None:
        """Give an entity another key."""
        new = self._new_key()
        before = self.owned.states(key)
        steps = [(statement, {"key": key, "new_key": new}) for statement in shape.rekey]
        try:
            found = self._write(session, [_Writing(key=key, steps=steps, change=lambda _: None)])
        except Failed as failed:
            if failed.unknown:
                self.owned.insert(new, before | {None})
            raise
        if found:
            self.owned.insert(new, before - {None})

    def _write(
        self, session: Session, writings: Sequence[_Writing], *, first: Step | None = None, think: float = 0.0
    ) -> bool:
        """Write in one transaction; whether all entities were found."""
        steps = [first] if first else []
        steps += [step for writing in writings for step in writing.steps]
        try:
            counts = session.write(steps, think=think)
        except Failed as failed:
            if failed.unknown:
                for writing in writings:
                    self.owned.doubt(writing.key, writing.change)
            raise
        left = iter(counts[1:] if first else counts)
        touched = [sum(next(left) for _ in writing.steps) > 0 for writing in writings]
        for writing, found in zip(writings, touched, strict=True):
            if not self.owned.change(writing.key, writing.change, found=found):
                what = "a write found what was gone" if found else "a write found no row"
                self._recorder.wrong(session.version, f"{self.application.entity} {writing.key}: {what}")
        return all(touched)

    def _writing(self, shape: Shape, key: Key) -> _Writing:
        """A random one of the shape's writes."""
        write = self._random.choices(shape.writes, [each.share for each in shape.writes])[0]
        values = {fact.name: self._value(fact) for fact in self.application.facts if fact.name in write.sets}
        steps: list[Step] = [(statement, {"key": key, **values}) for statement in write.sql]
        return _Writing(key=key, steps=steps, change=partial(_changed, self._names, write, values))

    def _look_up(self, session: Session, shape: Shape, key: Key) -> None:
        if shape.find is not None and self.owned.certain(key) is not None and self._random.random() < 0.5:
            self.find(session, shape, key)
        else:
            self.read(session, shape, [key])

    def _compare(self, session: Session, shape: Shape, key: Key, seen: State) -> None:
        expected = self.owned.states(key)
        if not self.owned.see(key, seen):
            what = f"{self.application.entity} {key} read through {shape.name}"
            self._recorder.wrong(session.version, f"{what}: expected {_either(expected)}, found {_either({seen})}")

    @property
    def _names(self) -> list[str]:
        return [fact.name for fact in self.application.facts]

    def _value(self, fact: Fact) -> Value:
        if fact.one_of:
            return self._random.choice(fact.one_of)
        self._made += 1
        return f"Zoë O'Neill {self._client}-{self._made}"

    def _new_key(self) -> Key:
        """A key that no other client ever had, nor a sequence."""
        now = time.time_ns() // 1_000 * _CLIENTS + self._client
        self._last_key = max(now, self._last_key + _CLIENTS)
        return self._last_key


def _changed(names: Sequence[str], write: Write, values: dict[str, Value], facts: Facts) -> State:
    """What an entity says after a write."""
    said = dict(zip(names, facts, strict=True)) | values
    return tuple(int(value or 0) + 1 if name in write.adds else value for name, value in said.items())


def _either(states: set[State]) -> str:
    return " or ".join("no row" if state is None else repr(state) for state in states)
