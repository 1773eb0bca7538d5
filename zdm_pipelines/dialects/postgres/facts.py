"""Facts: what a survey found out, kept in the ledger as JSON from a kind's first phase on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import TypeAdapter


class Stored:
    """Base of a frozen dataclass that the ledger keeps."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """The facts as the ledger has them."""
        found: Self = TypeAdapter(cls).validate_python(stored)
        return found

    def stored(self) -> dict[str, Any]:
        """The facts as JSON."""
        found: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return found
