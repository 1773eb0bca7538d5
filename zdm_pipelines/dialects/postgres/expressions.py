"""Expressions: how the user's SQL is set into ours, and when two values of a type are the same."""

from __future__ import annotations

import re

# Compared by their own `=`. All others as text: their `=` is missing (json, xml, point), or calls unlike strings alike
# (citext, collations, and domains over either).
_EQUALITY = frozenset((
    "smallint", "integer", "bigint", "numeric", "real", "double precision", "money", "oid", "boolean", "bytea", "uuid",
    "date", "time without time zone", "time with time zone", "timestamp without time zone", "timestamp with time zone",
    "interval", "jsonb", "inet", "cidr", "macaddr", "macaddr8", "bit", "bit varying",
    # As people write them.
    "int2", "int4", "int8", "int", "decimal", "dec", "float4", "float8", "float", "bool", "time", "timetz", "timestamp",
    "timestamptz", "varbit",
))  # fmt: skip
# What our batches say of themselves: `on`, or `watched` where a BEFORE trigger of the application's may alter the rows
# that they write.
BACKFILL_SETTING = "zdm.backfill"
BATCH = f"coalesce(current_setting('{BACKFILL_SETTING}', true), '')"
TRIGGER_PREFIX = "zzz_zdm_"  # BEFORE triggers run in the order of their names
# In a handler of plpgsql: what says nothing about the row (a conflict, a lock, resources, the server) goes on.
RAISE_ON = "IF SQLSTATE ~ '^(40|53|55|57|58|XX)' THEN RAISE; END IF;"


def expression(sql: str) -> str:
    """The user's SQL in parentheses; the line end closes a trailing comment."""
    return f"({sql.strip()}\n)" if "--" in sql else f"({sql.strip()})"


def same(column: str, computed: str, type_name: str) -> str:
    """Predicate: a column holds what was computed for it."""
    base = re.sub(r"\([^)]*\)", "", type_name).strip().lower().removesuffix("[]")
    if base in _EQUALITY:
        return f"{column} IS NOT DISTINCT FROM {computed}::{type_name}"
    # ::text of character(n) drops the padding, which is not part of its value
    return f'{column}::text COLLATE "C" IS NOT DISTINCT FROM ({computed}::{type_name})::text COLLATE "C"'
