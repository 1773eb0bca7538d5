"""Contenders: ways to fill a new column of `users`, each as its users run it.

The SQL is written for this comparison. What `touch-update` does, batch by batch and row by row, is what pgroll does
when it alters a column (https://github.com/xataio/pgroll, pkg/backfill and pkg/migrations/op_alter_column.go).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from zdm_pipelines.model.migration import Migration
from zdm_pipelines_tests.benchmarks import users
from zdm_pipelines_tests.benchmarks.users import NEW, UP
from zdm_pipelines_tests.benchmarks.worker import BackfillWorker
from zdm_pipelines_tests.helpers import expanded, replaced, sql

BATCH_ROWS = 1_000

_ZERO = {"bigint": "0", "uuid": "00000000-0000-0000-0000-000000000000"}  # before every key

_PLAIN = f"UPDATE users SET {NEW} = {UP}"

# The last key is remembered, as by every script that has met a large table: without it each batch would read again all
# that was done before.
_LIMIT = f"""
WITH batch AS (
  SELECT id FROM users WHERE id > %(after)s::{{key}} AND {NEW} IS NULL ORDER BY id LIMIT {BATCH_ROWS} FOR UPDATE
), moved AS (
  UPDATE users SET {NEW} = {UP} FROM batch WHERE users.id = batch.id RETURNING users.id
)
SELECT id::text, count(*) OVER () FROM moved ORDER BY id DESC LIMIT 1"""

_TOUCH = f"""
WITH batch AS (
  SELECT id FROM users WHERE needs_backfill = true AND id > %(after)s::{{key}} ORDER BY id LIMIT {BATCH_ROWS}
  FOR NO KEY UPDATE
), moved AS (
  UPDATE users SET id = users.id FROM batch WHERE users.id = batch.id RETURNING users.id
)
SELECT id::text, count(*) OVER () FROM moved ORDER BY id DESC LIMIT 1"""

_FLAG = "ALTER TABLE users ADD COLUMN needs_backfill boolean DEFAULT true"

_TRIGGER = """
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$
{body}
$$;
CREATE TRIGGER {name} BEFORE INSERT OR UPDATE ON users FOR EACH ROW EXECUTE FUNCTION {name}();
"""

# As pgroll has it, in both directions: every column is a variable, and the session's search path, in which each version
# of the schema has a place of its own, says which code wrote the row.
_VERSIONED = """\
DECLARE
  {variables}
  search_path text;
BEGIN
  SELECT current_setting INTO search_path FROM current_setting('search_path');
  IF search_path {written_by} 'public_next' THEN
    NEW.{column} = {value};
    NEW.needs_backfill = false;
  END IF;
  RETURN NEW;
END"""

# The least that a trigger can do.
_LEAN = f"""\
BEGIN
  NEW.{NEW} := upper(NEW.full_name);
  NEW.needs_backfill := false;
  RETURN NEW;
END"""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A batch that was committed."""

    at: float  # seconds of the monotonic clock, just after its commit
    seconds: float
    rows: int


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run of a contender came to."""

    begun: float  # seconds of the monotonic clock
    ended: float
    batches: Sequence[Span] = field(default=())
    memory: int | None = None  # bytes, of the process that does it; none: it is this one

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.begun


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A way to do it.

    `prepare` makes, before the clock runs, what has to be there; `run` does it, for so many seconds at most.
    """

    name: str
    prepare: Callable[[str], object]
    run: Callable[[str, float | None], Outcome]


def plain_update() -> Contender:
    """One statement, which holds every row to its end; it cannot be stopped on the way."""

    def run(url: str, seconds: float | None) -> Outcome:
        with psycopg.connect(url, autocommit=True) as connection:
            begun = time.monotonic()
            rows = connection.execute(_PLAIN.encode()).rowcount
            ended = time.monotonic()
        return Outcome(begun=begun, ended=ended, batches=[Span(at=ended, seconds=ended - begun, rows=rows)])

    return Contender(name="plain UPDATE", prepare=_add_column, run=run)


def limit_batches(key: str) -> Contender:
    """The common script: the next rows by key that have no value yet, in a statement of its own."""
    return Contender(name=f"LIMIT {BATCH_ROWS}", prepare=_add_column, run=_batched(_LIMIT, key))


def touch_update(key: str, *, lean: bool = False) -> Contender:
    """Rows are touched, batch by batch, and a trigger computes the value; a flag column tells which are left.

    Args:
        lean: with a trigger that does nothing else; default: with two, as pgroll has them.
    """

    def prepare(url: str) -> None:
        _add_column(url)
        sql(url, _FLAG)
        if lean:
            sql(url, _TRIGGER.format(name="fill", body=_LEAN))
        else:
            sql(url, _versioned("up", "!=", NEW, UP, users.COLUMNS))
            sql(url, _versioned("down", "=", "full_name", f"initcap({NEW})", (*users.COLUMNS, NEW)))

    name = "touch-update, lean trigger" if lean else "touch-update"
    return Contender(name=name, prepare=prepare, run=_batched(_TOUCH, key))


def _versioned(name: str, written_by: str, column: str, value: str, columns: Sequence[str]) -> str:
    variables = "\n  ".join(f"{each} users.{each}%TYPE := NEW.{each};" for each in columns)
    body = _VERSIONED.format(variables=variables, written_by=written_by, column=column, value=value)
    return _TRIGGER.format(name=name, body=body)


def ours(name: str, section: Mapping[str, Any]) -> Contender:
    """This project, with the `backfill` section declared like this; expand comes before the clock runs."""
    declared = migration(section)

    def run(url: str, seconds: float | None) -> Outcome:
        with BackfillWorker(declared, url) as worker:
            begun = worker.begin()
            worker.join(seconds)
        if worker.finished is None:
            raise RuntimeError(worker.error or "the backfill's process ended without a word")
        spans = [Span(at=batch.at, seconds=batch.seconds, rows=batch.rows) for batch in worker.batches]
        return Outcome(begun=begun, ended=worker.finished, batches=spans, memory=worker.memory)

    return Contender(name=name, prepare=lambda url: expanded(declared, url), run=run)


def migration(section: Mapping[str, Any]) -> Migration:
    """The change, without any signal that could hold it."""
    return replaced(
        name="users_display_name",
        table="public.users",
        new={"name": NEW, "type": "text", "nullable": False},
        up=UP,
        down=f"initcap({NEW})",
        backfill={"batch_rows": BATCH_ROWS, "range_rows": 100_000, **section},
    )


def _add_column(url: str) -> None:
    sql(url, f"ALTER TABLE users ADD COLUMN {NEW} text")


def _batched(statement: str, key: str) -> Callable[[str, float | None], Outcome]:
    query = statement.format(key=key).encode()

    def run(url: str, seconds: float | None) -> Outcome:
        spans: list[Span] = []
        after: str = _ZERO[key]
        with psycopg.connect(url, autocommit=True) as connection:
            begun = at = time.monotonic()
            while seconds is None or at < begun + seconds:
                found = connection.execute(query, {"after": after}).fetchone()
                if found is None:
                    break
                after, was, at = found[0], at, time.monotonic()
                spans.append(Span(at=at, seconds=at - was, rows=found[1]))
            return Outcome(begun=begun, ended=time.monotonic(), batches=spans)

    return run
