"""Named statements: every block says what it does and is called, and every name that is called is there."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import zdm_pipelines
from zdm_pipelines.dialects import postgres
from zdm_pipelines.dialects.postgres.statements import named_statements

_PACKAGE = Path(zdm_pipelines.__file__).parent
_FILES = sorted(Path(postgres.__file__).parent.glob("*.sql"))


def _texts() -> Iterator[str]:
    """Every string of the package's modules."""
    for file in _PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _called() -> Iterator[str]:
    """The names that sessions are asked to run, and servers to print."""
    for file in _PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not node.args:
                continue
            name = node.args[0]
            if node.func.attr not in ("named", "value", "text") or not isinstance(name, ast.Constant):
                continue
            if isinstance(name.value, str) and re.fullmatch(r"[a-z_]+\.[a-z0-9_]+", name.value):
                yield name.value


def test_there_are_files() -> None:
    assert "ledger" in {file.stem for file in _FILES}


def test_every_block_is_used() -> None:
    assert sorted(set(named_statements()) - set(_texts())) == []


def test_every_name_exists() -> None:
    assert sorted(set(_called()) - set(named_statements())) == []


def test_every_block_is_described_and_stands_once() -> None:
    """No statement stands before a block's first line, and none behind another's semicolon."""
    for file in _FILES:
        text = file.read_text(encoding="utf-8")
        heads = re.findall(r"^-- ([a-z][a-z0-9_]*): (\S.*(?:\n-- (?![a-z][a-z0-9_]*: ).*)*)$", text, re.MULTILINE)
        assert heads, file.name
        assert text.startswith(f"-- {heads[0][0]}: "), file.name
        assert [name for name, count in Counter(name for name, _ in heads).items() if count > 1] == [], file.name
        assert [name for name, words in heads if len(words.split()) < 4] == [], file.name
    for name, statement in named_statements().items():
        code = re.sub(r"^--.*$", "", statement, flags=re.MULTILINE).strip()
        assert code, name
        assert ";" not in re.sub(r"'[^']*'", "", code), name
