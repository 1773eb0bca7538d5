"""Key predicates: compare primary keys of any type and any number of columns by their index."""

from __future__ import annotations

from collections.abc import Sequence

from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Column, Key


def columns(key: Sequence[Column]) -> str:
    """The key columns, comma-separated and quoted."""
    return ", ".join(quote(c.name) for c in key)


def as_text(key: Sequence[Column], *, row: str = "") -> str:
    """The key of a row as text[], in the form that `bound` reads back."""
    prefix = f"{row}." if row else ""
    return "ARRAY[" + ", ".join(f"{prefix}{quote(c.name)}::text" for c in key) + "]"


def bound(key: Sequence[Column], parameter: int) -> str:
    """Parameter number `parameter`, a text[], as a row of the key's types."""
    parts = [f"(${parameter}::text[])[{i}]::{c.type}" for i, c in enumerate(key, 1)]
    return parts[0] if len(parts) == 1 else f"ROW({', '.join(parts)})"


def row(key: Sequence[Column]) -> str:
    """The key of a row, to compare with `bound`."""
    return columns(key) if len(key) == 1 else f"ROW({columns(key)})"


def between(
    key: Sequence[Column], lower: Key | None, upper: Key | None, *, last: Key | None = None, first: int = 1
) -> tuple[str, list[list[str]]]:
    """`lower <= key < upper` as SQL and its parameters, numbered from `first`; an open side is left out.

    Args:
        last: `key <= last` besides.
    """
    parts: list[str] = []
    params: list[list[str]] = []
    for value, operator in ((lower, ">="), (upper, "<"), (last, "<=")):
        if value is not None:
            number = first + len(params)
            parts.append(f"{row(key)} {operator} {bound(key, number)}")
            if len(key) > 1:
                # This follows from the condition above, but without it the planner may read the whole table.
                parts.append(f"{columns(key[:1])} {operator.rstrip('=')}= (${number}::text[])[1]::{key[0].type}")
            params.append(list(value))
    return " AND ".join(parts) or "true", params
