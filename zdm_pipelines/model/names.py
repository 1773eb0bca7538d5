"""Names of database objects: parsed once, kept exact, quoted part by part."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

NAME_BYTES = 63  # NAMEDATALEN - 1: Postgres silently cuts longer names, so we refuse them
_PART = r'"(?:[^"]|"")+"|[^."\s]+(?:[^."]*[^."\s])?'
_TABLE = re.compile(rf"^\s*(?:(?P<schema>{_PART})\.)?(?P<name>{_PART})\s*$")


def quote(identifier: str) -> str:
    """The identifier as SQL, always in double quotes."""
    return '"' + identifier.replace('"', '""') + '"'


def _unquote(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part


def in_one_line(text: str) -> str:
    """Text without control characters: in a comment of SQL it ends nothing, and on a terminal it moves nothing."""
    return "".join(c if c.isprintable() else "�" for c in text)


@dataclass(frozen=True, kw_only=True)
class TableName:
    """A table's exact name, as the catalog has it (no case folding)."""

    schema: str
    name: str

    @classmethod
    def parse(cls, text: str) -> TableName:
        """Read `schema.table`; a part that holds a dot or a quote is written in double quotes.

        Raises:
            ValueError: the text is not one or two names.
        """
        match = _TABLE.match(text)
        if match is None:
            raise ValueError(
                f"{text!r} is not a table name: write schema.table, "
                'and a part that holds a dot or a quote in double quotes, as "Order Items"."weird ""name"'
            )
        schema = match["schema"]
        return cls(schema=_unquote(schema) if schema else "public", name=_unquote(match["name"]))

    @property
    def sql(self) -> str:
        """Both parts quoted, each on its own."""
        return f"{quote(self.schema)}.{quote(self.name)}"

    def __str__(self) -> str:
        return ".".join(p if re.fullmatch(r"[a-z_][a-z0-9_$]*", p) else quote(p) for p in (self.schema, self.name))


def too_long(name: str) -> bool:
    """Whether Postgres would cut this name."""
    return len(name.encode()) > NAME_BYTES


def fitted(name: str) -> str:
    """The name, shortened with a digest when it is over 63 bytes; the same input gives the same output."""
    if not too_long(name):
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    kept = name.encode()[: NAME_BYTES - 9].decode(errors="ignore")
    return f"{kept}_{digest}"
