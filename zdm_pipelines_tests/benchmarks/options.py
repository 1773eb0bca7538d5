"""Options: what `python -m zdm_pipelines_tests.benchmarks` is asked to do."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KEYS = ("bigint", "uuid")
MOST_INDEXES = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    """One call's wishes; an empty one leaves it to the case."""

    cases: tuple[str, ...]
    rounds: int | None
    sizes: tuple[int, ...]
    indexes: tuple[int, ...]
    keys: tuple[str, ...]
    out: Path
    markdown: bool
    quiet: bool
    contenders: tuple[str, ...]


def read(arguments: Sequence[str] | None, *, cases: Sequence[str], about: str) -> Options:
    """Read the command line; what is wrong ends the program with a line that says so."""
    parser = argparse.ArgumentParser(prog="python -m zdm_pipelines_tests.benchmarks", description=about)
    known = ", ".join(cases)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which cases, of {known}; default: all")
    parser.add_argument("--only", action="extend", type=_listed, default=[], metavar="NAME[,NAME]", help="the same")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="of each case; default: as the case has it")
    parser.add_argument(
        "--rows", type=_counts, default=(), metavar="N[,N]",
        help="of the table, for the cases that say so; some take several sizes",
    )  # fmt: skip
    parser.add_argument(
        "--indexes",
        type=_indexes,
        default=(),
        metavar="N[,N]",
        help=f"secondary indexes, 0 to {MOST_INDEXES}: backfill",
    )
    parser.add_argument("--keys", type=_keys, default=(), metavar="TYPE[,TYPE]", help=f"of {', '.join(KEYS)}: backfill")
    parser.add_argument(
        "--out", type=Path, default=Path(".zdm/bench"), metavar="FOLDER",
        help="figures, tables and plots go into a new folder in it; default: .zdm/bench",
    )  # fmt: skip
    parser.add_argument(
        "--quiet", action="store_true", help="no autovacuum and no checkpoint in the middle: backfill, foreground"
    )
    parser.add_argument(
        "--contender", action="append", dest="contenders", default=[], metavar="NAME",
        help="one beside the plain UPDATE, and more of them: backfill; default: all",
    )  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown at the end")
    given = parser.parse_args(arguments)
    named = tuple(dict.fromkeys([*given.names, *given.only]))
    if unknown := [name for name in named if name not in cases]:
        parser.error(f"no case {unknown[0]}; there are {known}")
    return Options(
        cases=named or tuple(cases), rounds=given.rounds, sizes=given.rows, indexes=given.indexes, keys=given.keys,
        out=given.out, markdown=given.markdown, quiet=given.quiet,
        contenders=tuple(given.contenders),
    )  # fmt: skip


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _positive(text: str) -> int:
    # 1_000_000 reads better than 1000000, and a comma would part two numbers.
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({_positive(part) for part in _listed(text)}))


def _indexes(text: str) -> tuple[int, ...]:
    found = tuple(sorted({int(part) for part in _listed(text)}))
    if any(not 0 <= count <= MOST_INDEXES for count in found):
        raise argparse.ArgumentTypeError(f"0 to {MOST_INDEXES}")
    return found


def _keys(text: str) -> tuple[str, ...]:
    given = _listed(text)
    if unknown := [each for each in given if each not in KEYS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KEYS)}")
    return tuple(dict.fromkeys(given))
