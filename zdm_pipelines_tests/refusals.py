"""Refusals: the texts with which preflight and gate refuse, read from the source, to see that a test follows each.

A case names a refusal by fragments of its message, with … between them. What is computed as it runs is no part of a
text here, but what is chosen (by a condition, from a loop over literals, by a function that returns a text) is followed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

import zdm_pipelines
from zdm_pipelines.dialects.postgres.statements import named_statements

_ROOT = Path(zdm_pipelines.__file__).parent
_ANY = "\0"  # what is computed
_MAKERS = ("Problem", "Judged", "refuse", "_refuse")
_Function = ast.FunctionDef | ast.Module
_DEEP = 6


def in_order(says: str, text: str) -> bool:
    """Whether a text has all fragments, one behind the other."""
    place = 0
    for fragment in says.split(" … "):
        if (at := text.find(fragment, place)) < 0:
            return False
        place = at + len(fragment)
    return True


@dataclass(frozen=True)
class Site:
    """A place in the source that refuses, and what it may say."""

    file: str
    line: int
    things: Sequence[str]
    facts: Sequence[str]
    ways: Sequence[str]

    def texts(self, *, fact: str | None = None, way: str | None = None) -> Iterator[str]:
        """What may be said, with one fact or one way out."""
        for thing, said, out in product(self.things, [fact] if fact else self.facts, [way] if way else self.ways):
            yield f"{thing}: {said}; {out}"

    def says(self, says: str) -> bool:
        """Whether fragments are of this place."""
        return any(in_order(says, text) for text in self.texts())

    def untold(self, said: Sequence[str]) -> list[str]:
        """The facts and the ways out that no case has."""
        told = [(f, lambda f=f: self.texts(fact=f)) for f in self.facts]
        told += [(w, lambda w=w: self.texts(way=w)) for w in self.ways]
        return [
            f"{self.file}:{self.line}: {part.replace(_ANY, '*')}"
            for part, texts in told
            if re.search("[a-z]", part) and not any(in_order(case, text) for text in texts() for case in said)
        ]


@cache
def modules() -> dict[str, ast.Module]:
    """The product's modules by their paths."""
    return {str(p.relative_to(_ROOT)): ast.parse(p.read_text(encoding="utf-8")) for p in sorted(_ROOT.rglob("*.py"))}


@cache
def _constants() -> dict[str, ast.expr]:
    """Values of the modules' own constants; of those that are a module's alone, by the module too."""
    return {
        (f"{file} {target.id}" if target.id.startswith("_") else target.id): node.value
        for file, module in modules().items()
        for node in module.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.isupper()
    }


@cache
def _functions() -> dict[str, list[ast.FunctionDef]]:
    """Functions that give a text, by name."""
    found: dict[str, list[ast.FunctionDef]] = {}
    for module in modules().values():
        for node in ast.walk(module):
            if (
                isinstance(node, ast.FunctionDef)
                and node.returns
                and ast.unparse(node.returns) in ("str", "str | None")
            ):
                found.setdefault(node.name, []).append(node)
    del found["quote"]
    return found


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


@cache
def problems() -> list[Site]:
    """Each place that makes a problem."""
    return [
        Site(file, call.lineno, *(_Texts(file, function, call)(arg) for arg in call.args))
        for file, module in modules().items()
        for function, call in _calls(module)
        if _name(call) in _MAKERS and len(call.args) == 3 and getattr(function, "name", "") not in _MAKERS
    ]


def printed(block: str) -> list[Site]:
    """The same of what a statement of the server's gives, by the parts of its UNION ALL."""
    parts = named_statements()[block].split("UNION ALL")
    return [
        Site(block, n, [""], [_ANY.join(re.findall(r"'((?:[^']|'')+)'", part))], [""])
        for n, part in enumerate(parts, 1)
    ]


def _calls(module: ast.Module) -> Iterator[tuple[_Function, ast.Call]]:
    inner: dict[ast.AST, _Function] = {}
    functions: list[_Function] = [module, *(n for n in ast.walk(module) if isinstance(n, ast.FunctionDef))]
    for function in functions:
        inner |= {node: function for node in ast.walk(function) if isinstance(node, ast.Call)}  # the innermost is last
    yield from ((function, call) for call, function in inner.items() if isinstance(call, ast.Call))


class _Texts:
    """Everything that an expression may give, as far as the source says it."""

    def __init__(self, file: str, function: _Function, at: ast.AST) -> None:
        self.file = file
        self.function = function
        self.at = at  # where it is asked for: what was given before counts

    def __call__(self, node: ast.expr, depth: int = 0) -> list[str]:
        if depth > _DEEP:
            return [_ANY]
        again = depth + 1
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                return _joined([self(value, again) for value in values])
            case ast.FormattedValue(value=value, conversion=-1):
                return self(value, again)
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return _joined([self(left, again), self(right, again)])
            case ast.IfExp(body=body, orelse=other):
                return [*self(body, again), *self(other, again)]
            case ast.NamedExpr(value=value):
                return self(value, again)
            case ast.Name(id=name):
                return [text for value in self._named(name) for text in self(value, again)] or [_ANY]
            case ast.Attribute(attr=name) if name in _constants():
                return self(_constants()[name], again)
            case ast.Call() if len(known := _functions().get(_name(node), [])) == 1:
                returned = [n for n in ast.walk(known[0]) if isinstance(n, ast.Return) and n.value is not None]
                given = [(n.value, _Texts(self.file, known[0], n)) for n in returned if not _is_none(n.value)]
                return [text for value, texts in given if value is not None for text in texts(value, again)]
        return [_ANY]

    def _named(self, name: str) -> list[ast.expr]:
        """The expressions that a name may stand for: those of the nearest place that gives it."""
        places: list[tuple[int, list[ast.expr]]] = []
        line = getattr(self.at, "lineno", 0)
        for node in ast.walk(self.function):
            match node:
                case ast.Assign(targets=[target], value=value) | ast.NamedExpr(target=target, value=value):
                    places.append((node.lineno, _matched(name, target, [value])))
                case ast.For(target=target, iter=ast.Tuple(elts=values) | ast.List(elts=values)):
                    places.append((node.lineno, _matched(name, target, values)))
                case ast.For(target=target) if name in _names(target):
                    places.append((node.lineno, [node.iter]))
                case ast.ListComp(generators=[ast.comprehension(target=target, iter=values)]) if name in _names(target):
                    # Its names are given behind where they are used.
                    if node.lineno <= line <= (node.end_lineno or 0):
                        literal = values.elts if isinstance(values, ast.Tuple | ast.List) else []
                        return _matched(name, target, literal)
        before = [(at, found) for at, found in places if found and at <= line]
        if before:
            return max(before, key=lambda place: place[0])[1]
        constant = _constants().get(f"{self.file} {name}") or _constants().get(name)
        return [constant] if constant is not None else []


def _names(target: ast.expr) -> set[str]:
    return {node.id for node in ast.walk(target) if isinstance(node, ast.Name)}


def _is_none(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _joined(parts: Iterable[list[str]]) -> list[str]:
    return ["".join(chosen) for chosen in product(*parts)]


def _matched(name: str, target: ast.expr, values: Sequence[ast.expr]) -> list[ast.expr]:
    """Of values that a target is given, what a name in it is given."""
    if isinstance(target, ast.Name):
        return list(values) if target.id == name else []
    if not isinstance(target, ast.Tuple):
        return []
    found: list[ast.expr] = []
    for place, element in enumerate(target.elts):
        own = [v.elts[place] for v in values if isinstance(v, ast.Tuple) and len(v.elts) == len(target.elts)]
        found += _matched(name, element, own)
    return found


# -- reasons of the gate ----------------------------------------------------------------------------------------------


def reasons(places: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The sentences in some functions, each with where it stands.

    Args:
        places: a module's path and the name of a function in it.
    """
    wanted, found = set(places), dict[str, str]()
    for file, name in wanted:
        functions = [n for n in ast.walk(modules()[file]) if isinstance(n, ast.FunctionDef) and n.name == name]
        assert functions, f"{file} has no function {name}"
        for function in functions:
            for node in _outermost(function):
                text = re.sub(_ANY + "+", _ANY, "".join(_flat(node)))
                if len(re.findall(r"[a-z]{2,}", text)) >= 3 and " " in text:
                    found[text] = f"{file}:{node.lineno}"
    return found


def _outermost(function: ast.FunctionDef) -> Iterator[ast.expr]:
    """The texts of a function, but for its docstring; none that is part of another one."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield node
        else:
            waiting += ast.iter_child_nodes(node)


def _flat(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.JoinedStr):
        for value in node.values:
            yield from _flat(value)
    elif isinstance(node, ast.Constant):
        yield str(node.value)
    else:
        yield _ANY
