"""Strides: the facts of a table that say how its rows may move in place, and the predicates of a pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.server import Heap
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Catalog, Column, Key

if TYPE_CHECKING:
    from zdm_pipelines.dialects.postgres.connection import Connection

_INTEGERS = ("bigint", "integer", "smallint")
_DENSE = 2  # numbers for each row, up to which the index is asked for the numbers of a pass
_LARGEST = 2**62  # numbers beyond this one might, added to, be too large for their type

Among = Callable[[str], str]  # from a predicate over a row to the same over the rows of a pass


def heap(conn: Connection, catalog: Catalog, column: str) -> Heap:
    """How the rows of a table lie.

    Args:
        column: the one that is written.
    """
    found = conn.named("strides.heap", catalog.oid, catalog.key[0].name, column)
    pages, per_page, page, width, correlation, indexed, unique = found[0]
    known = per_page is not None and per_page > 0 and width is not None
    return Heap(
        pages=pages,
        rows_per_page=per_page if known else None,
        free=max(0.0, 1 - per_page * width / page) if known else None,
        correlation=correlation,
        indexed=indexed,
        unique=unique,
    )


def among(key: Sequence[Column], passes: int, number: int, lower: Key | None, upper: Key | None, *, rows: int) -> Among:
    """The rows of a pass, spread evenly over the pages.

    Args:
        passes: a power of two.
        lower, upper: the window, whose bounds are the statement's first parameters; see `keys.between`.
        rows: that it spans.
    """
    if len(key) == 1 and key[0].type in _INTEGERS and lower is not None and upper is not None:
        first, last = int(lower[0]), int(upper[0])
        if last - first <= rows * _DENSE and abs(last) < _LARGEST:
            # Numbers with few gaps: the index gives those of the pass, and no other row is read.
            start = f"{keys.bound(key, 1)} + ({number} - {keys.bound(key, 1)} & {passes - 1})"
            series = f"generate_series({start}::bigint, {keys.bound(key, 2)}::bigint - 1, {passes})"
            picked = f"{quote(key[0].name)} = ANY (ARRAY(SELECT zdm_n::{key[0].type} FROM {series} AS zdm_n))"
            return lambda wanted: f"{picked} AND {wanted}"
    # Hashed, since numbers may all be multiples of something. Without one, the row's place decides: of a page, a pass
    # then takes about its share.
    name = next((column.name for column in reversed(key) if column.type in _INTEGERS), None)
    spread = f"pg_catalog.hashint8({quote(name)})" if name is not None else "pg_catalog.hashtid(ctid)"
    # The number is asked first: it costs less than the mapping, which is then evaluated once for each row.
    return lambda wanted: f"CASE WHEN ({spread} & {passes - 1}) = {number} THEN {wanted} END"
