"""Facts: what a kind's survey learned of a table before anything was changed; the ledger keeps them as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python


class StoredFacts:
    """The base of each kind's facts, which are a frozen dataclass."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """The facts as the ledger has them, without other keys: an earlier version kept the table's beside them."""
        found: Self = _adapter(cls).validate_python(stored)
        return found

    def stored(self) -> dict[str, Any]:
        """The facts as JSON."""
        found: dict[str, Any] = to_jsonable_python(self)
        return found


@cache
def _adapter(facts: type[StoredFacts]) -> TypeAdapter[Any]:
    """Made once for each kind: making one takes longer than reading with it."""
    return TypeAdapter(facts)
