"""Statements: the named blocks of this folder's `.sql` files.

A block begins with a line `-- name: what it does` (the name is lower-case, without spaces), and ends where the next one
begins. Comments may follow that line. A block is called by file and name: block `find` of ledger.sql is `ledger.find`.
Values are bound as $1, $2, …
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent
_HEAD = re.compile(r"^-- ([a-z][a-z0-9_]*): \S.*(?:\n-- (?![a-z][a-z0-9_]*: ).*)*$", re.MULTILINE)


@cache
def named_statements() -> Mapping[str, str]:
    """Every block by its name.

    Raises:
        ValueError: a name is given twice.
    """
    found: dict[str, str] = {}
    for file in sorted(_FOLDER.glob("*.sql")):
        text = file.read_text(encoding="utf-8")
        heads = list(_HEAD.finditer(text))
        ends = [head.start() for head in heads[1:]] + [len(text)]
        for head, end in zip(heads, ends, strict=True):
            name = f"{file.stem}.{head[1]}"
            if name in found:
                raise ValueError(f"{file.name}: block {head[1]} is there twice")
            found[name] = text[head.end() : end].strip().removesuffix(";")
    return found
