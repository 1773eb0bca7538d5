"""Literals: text and function bodies as SQL from which nothing breaks out."""

from __future__ import annotations


def text(value: str) -> str:
    """A value as an SQL string."""
    return "'" + value.replace("'", "''") + "'"


def body(source: str, tag: str) -> str:
    """A function's body between dollar quotes of a tag that it holds nowhere, a name or literal of the user's included.

    Args:
        tag: what it is called where it may be.
    """
    while f"${tag}" in source:  # without its end, which may be the beginning of the quote
        tag += "_"
    return f"${tag}${source}${tag}$"
