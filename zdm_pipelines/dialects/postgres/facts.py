"""Facts: what a kind's survey learned of a table before anything was changed; the ledger keeps them as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python


class StoredFacts:
    """The base of each kind's facts, which are a frozen dataclass."""

    _adapter: ClassVar[TypeAdapter[Any]]

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """The facts as the ledger has them, without other keys: an earlier version kept the table's beside them."""
        if "_adapter" not in cls.__dict__:  # made once for each kind: making one takes longer than reading with it
            cls._adapter = TypeAdapter(cls)
        found: Self = cls._adapter.validate_python(stored)
        return found

    def stored(self) -> dict[str, Any]:
        """The facts as JSON."""
        found: dict[str, Any] = to_jsonable_python(self)
        return found
