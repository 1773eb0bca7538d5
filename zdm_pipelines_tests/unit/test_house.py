"""House: what the linters cannot see: no SQL where a change is said, no table by state or phase but the lifecycle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import zdm_pipelines

PACKAGE = Path(zdm_pipelines.__file__).parent
# A statement begins with one of these; prose may name them in lower case, or one by one.
STATEMENT = re.compile(
    r"\b(SELECT\s.+\bFROM|INSERT INTO|UPDATE\s+\S+\s+SET|DELETE FROM|(CREATE|ALTER|DROP)\s+"
    r"(UNIQUE |OR REPLACE |TEMPORARY )*(TABLE|INDEX|VIEW|FUNCTION|TRIGGER|SCHEMA)|ADD CONSTRAINT|set_config\()",
    re.DOTALL,
)


def strings(file: Path) -> Iterator[tuple[int, str]]:
    """Every string of a module but its docstrings, with its line."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.lineno, node.value


@pytest.mark.parametrize("room", ["changes", "phases", "verbs", "ledger", "engine", "components", "cli"])
def test_sql_stands_with_the_servers_alone(room: str) -> None:
    # Alembic's scripts are the ledger's own tables; what a way out tells people to run is prose.
    files = [f for f in (PACKAGE / room).rglob("*.py") if "versions" not in f.parts]
    assert files
    found = [
        f"{file.relative_to(PACKAGE)}:{line} {text[:60]!r}"
        for file in files
        for line, text in strings(file)
        if STATEMENT.search(text)
    ]
    assert not found


def test_a_statement_is_recognised() -> None:
    assert STATEMENT.search("SELECT 1 FROM zdm.migration WHERE id = $1")
    assert STATEMENT.search("ALTER TABLE x ADD COLUMN y text")
    assert not STATEMENT.search("create the sync trigger for UPDATE")


def test_no_table_by_state_or_phase_stands_beside_the_lifecycle() -> None:
    """Questions about states go to the lifecycle: a dictionary keyed by three states or more is a second answer."""
    found = []
    for file in PACKAGE.rglob("*.py"):
        if file.name in ("lifecycle.py", "states.py") or "sandbox" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                keyed = [
                    key for key in node.keys
                    if isinstance(key, ast.Attribute) and isinstance(key.value, ast.Name) and key.value.id == "State"
                ]  # fmt: skip
                if len(keyed) >= 5:
                    found.append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    assert not found
