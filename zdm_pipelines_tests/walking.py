"""Walking: survey, bind and run the steps of a change without its phases, on a real server."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg

from zdm_pipelines.changes import Change, Survey, bind, kind_of
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.capabilities import ALL, RowWork
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Catalog, Key, Statement, Step


def sql(url: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    """Run a statement (or, without parameters, several) in autocommit and return its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, params or None)
        return cursor.fetchall() if cursor.description else []


def one(url: str, statement: str, *params: Any) -> Any:
    """The first column of the first row."""
    return sql(url, statement, *params)[0][0]


def migration(table: str, change: Mapping[str, Any]) -> Migration:
    """A migration of one table, as it is declared."""
    return Migration.model_validate({"name": "walked", "database": "app", "table": table, "change": change})


def survey(url: str, declared: Migration) -> Survey:
    """What the server says before anything is changed."""
    server = server_at(url)
    with server.connect(purpose="test") as session:
        return kind_of(declared).survey(session, declared, server)


def change(url: str, declared: Migration, found: Survey | None = None, **more: Any) -> Change:
    """The change over what the survey found, which must be without problems."""
    found = found or survey(url, declared)
    assert not found.problems, [str(problem) for problem in found.problems]
    return bind(declared, server_at(url), found.catalog, found.facts, **more)


def planned(declared: Migration, catalog: Catalog, facts: Mapping[str, Any], **more: Any) -> Change:
    """The change over facts made by hand; connects to nothing."""
    return bind(declared, server_at("postgresql://nowhere/none"), catalog, facts, **more)


def printed(steps: Iterable[Step]) -> str:
    """Steps as text, with what says that they are done."""
    lines = []
    for step in steps:
        lines.append(f"-- {step.name} [{step.lock}{'' if step.in_transaction else '; alone'}]\n{step.sql}")
        lines += [f"-- {what}: {text}" for what, text in (
            ("done when", step.done_when), ("undo", step.undo), ("undone when", step.undone_when)) if text]  # fmt: skip
    return "\n".join(lines) + "\n"


def run(url: str, steps: Sequence[Step]) -> list[str]:
    """Run the steps that are not done, as a phase does; the names of those that ran."""
    ran = []
    with server_at(url).connect(purpose="test") as session:
        for step in steps:
            if step.done_when and session.run(Statement(step.done_when))[0][0]:
                continue
            session.run(Statement(step.sql))
            ran.append(step.name)
    return ran


def undo(url: str, steps: Sequence[Step]) -> list[str]:
    """Take steps back, the last one first."""
    return run(url, [step.undoing() for step in reversed(steps) if step.undo])


def validate(url: str, bound: Change) -> list[str]:
    """Run what is enforced, and what only the server can tell then."""
    ran = run(url, bound.enforce)
    while more := run(url, today(url, bound)):
        ran += more
    return ran


def today(url: str, bound: Change) -> Sequence[Step]:
    """What is enforced, as the server calls for it now."""
    if bound.today is None:
        return ()
    with server_at(url).connect(purpose="test") as session:
        return bound.today(session)


def indexes(url: str, table: str) -> dict[str, tuple[bool, str]]:
    """The indexes of a table by name: valid, and everything behind ON."""
    rows = sql(
        url,
        "SELECT indexrelid::regclass::text, indisvalid, split_part(pg_get_indexdef(indexrelid), ' ON ', 2) "
        "FROM pg_index WHERE indrelid = to_regclass(%s) ORDER BY 1",
        table,
    )
    return {name: (valid, definition) for name, valid, definition in rows}


# -- row work ---------------------------------------------------------------------------------------------------------

_LIKE_A_WORKER = (
    "SELECT set_config('lock_timeout', '2s', true), set_config('enable_seqscan', 'off', true), "
    "set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true)"
)


def batch(session: Session, statements: Sequence[Statement]) -> int:
    """One transaction as a worker runs it: the last statement becomes part of another one, which counts its rows."""
    *first, last = statements
    counted = f"WITH zdm_moved AS ({last.sql} RETURNING 1) SELECT count(*) FROM zdm_moved"
    with session.transaction():
        session.run(Statement(_LIKE_A_WORKER))
        for statement in first:
            session.run(statement)
        return int(session.run(Statement(counted, last.values))[0][0])


def work(url: str, rows: RowWork, *, bounds: Sequence[Key | None] = (None, None)) -> int:
    """Batch by batch over neighbouring intervals; how many rows."""
    with server_at(url).connect(purpose="test") as session:
        return sum(batch(session, rows.batch(low, up, pick=ALL)) for low, up in itertools.pairwise(bounds))


def waiting(url: str, rows: RowWork) -> int:
    """How many rows wait."""
    with server_at(url).connect(purpose="test") as session:
        return int(session.run(rows.waiting(None, None))[0][0])
