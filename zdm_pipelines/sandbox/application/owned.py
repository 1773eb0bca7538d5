"""Owned: the entities that one client of an application owns, and the states that each may be found in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from zdm_pipelines.sandbox.application.shapes import Application, Facts, Key, State

Change = Callable[[Facts], State]
"""What a write makes of an entity."""


class Owned:
    """What one client knows of its entities, which nobody else may write.

    A key has more than one state while the outcome of a write is unknown.
    """

    def __init__(self, application: Application) -> None:
        self._may_go = application.may_go
        self._states: dict[Key, set[State]] = {}

    def __len__(self) -> int:
        return len(self._states)

    @property
    def keys(self) -> list[Key]:
        """The keys of all entities that were ever owned; what is deleted must stay so."""
        return list(self._states)

    def states(self, key: Key) -> set[State]:
        """What the key may be found to hold now."""
        known = self._states[key]
        return known | {None} if any(map(self._may_go, known)) else set(known)

    def certain(self, key: Key) -> Facts | None:
        """What the entity says if only one thing is possible; none: the entity is gone, or nobody can know."""
        known = self._states[key]
        return next(iter(known)) if len(known) == 1 else None

    def is_gone(self, key: Key) -> bool:
        """Whether there can be no such entity."""
        return self._states[key] == {None}

    def add(self, found: Mapping[Key, Facts]) -> None:
        """Own these entities, which say this."""
        self._states |= {key: {facts} for key, facts in found.items()}

    def insert(self, key: Key, states: Iterable[State]) -> None:
        """An entity was made under a new key, or perhaps was."""
        self._states[key] = set(states)

    def see(self, key: Key, seen: State) -> bool:
        """An entity was read: whether the answer is right; the next one must be the same."""
        right = seen in self.states(key)
        self._states[key] = self._left(key) if right and seen is None else {seen}
        return right

    def change(self, key: Key, change: Change, *, found: bool) -> bool:
        """An entity was written: whether the write found what it should."""
        before = self.states(key)
        after = {change(state) for state in before if state is not None}
        if found and after:
            self._states[key] = after
            return True
        self._states[key] = self._left(key)
        return not found and None in before

    def doubt(self, key: Key, change: Change) -> None:
        """An entity was perhaps written."""
        self._states[key] |= {change(state) for state in self._states[key] if state is not None}

    def _left(self, key: Key) -> set[State]:
        """The states of an entity that is not there: what went by another's hand may be put back by it."""
        return {state for state in self._states[key] if self._may_go(state)} | {None}
