"""Extraction: one `extract_table` migration taken through its steps by hand, and small ways to look at a database."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from zdm_pipelines import ledger
from zdm_pipelines.changes import Change, Survey, bind, kind_of
from zdm_pipelines.dialects import server_at
from zdm_pipelines.dialects.server import Session
from zdm_pipelines.model.capabilities import ALL, Notes
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Key, Statement, Step

USERS = """
CREATE TABLE public.users (id bigint PRIMARY KEY, name text, profile jsonb);
INSERT INTO public.users SELECT n, 'u' || n, jsonb_build_object('theme', 't' || n, 'notifications', n % 2 = 0)
FROM generate_series(1, {rows}) n;
ANALYZE public.users;
"""
SETTINGS: dict[str, Any] = {
    "kind": "extract_table",
    "old": "profile",
    "new": {
        "table": "public.user_settings",
        "key": {"user_id": "id"},
        "columns": {
            "theme": {"type": "text", "up": "profile->>'theme'"},
            "notifications_enabled": {
                "type": "boolean",
                "up": "coalesce((profile->>'notifications')::boolean, true)",
                "nullable": False,
                "default": "true",
            },
        },
        "indexes": [{"name": "settings_by_theme", "definition": "(theme)"}],
    },
    "down": "jsonb_build_object('theme', theme, 'notifications', notifications_enabled)",
}
ADDRESSES: dict[str, Any] = {
    "kind": "extract_table",
    "old": "addresses",
    "each": "addresses",
    "new": {
        "table": "public.user_addresses",
        "key": {"user_id": "id"},
        "position": "nr",
        "columns": {
            "street": {"type": "text", "up": "element->>'street'", "nullable": False},
            "zip": {"type": "integer", "up": "(element->>'zip')::integer"},
        },
    },
    "down": "jsonb_agg(jsonb_build_object('street', street, 'zip', zip) ORDER BY nr)",
}


def sql(url: str, statement: str, *params: Any) -> list[tuple[Any, ...]]:
    """Run a statement (or, without parameters, several) in autocommit and return its rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement, params or None)
        return cursor.fetchall() if cursor.description else []


def one(url: str, statement: str, *params: Any) -> Any:
    """The first column of the first row."""
    return sql(url, statement, *params)[0][0]


class Extraction:
    """One migration over a database."""

    def __init__(
        self, url: str, change: dict[str, Any], *, table: str = "public.users", name: str = "settings"
    ) -> None:
        self.url = url
        self.server = server_at(url)
        self.migration = Migration.model_validate({"name": name, "database": "app", "table": table, "change": change})
        self.table = change["new"]["table"]
        self.number = 0
        self.notes = Notes()
        self.tombstoned = False
        self.surveyed = self.survey()

    def at(self, url: str) -> Extraction:
        """The same over a copy of its database."""
        found = copy.copy(self)
        found.url, found.server = url, server_at(url)
        found.notes = copy.copy(self.notes)
        return found

    def survey(self) -> Survey:
        with self.server.connect(purpose="survey") as session:
            return kind_of(self.migration).survey(session, self.migration, self.server)

    @property
    def change(self) -> Change:
        """The change as it stands now."""
        return bind(
            self.migration,
            self.server,
            self.surveyed.catalog,
            self.surveyed.facts,
            migration_id=self.number,
            tombstoned=self.tombstoned,
            notes=self.notes,
        )

    def run(self, steps: Sequence[Step]) -> int:
        """Run steps as phases do; how many had something to do."""
        ran = 0
        with self.server.connect(purpose="steps") as session, session.transaction():
            for step in steps:
                if step.in_transaction and not (step.done_when and session.run(Statement(step.done_when))[0][0]):
                    session.run(Statement(step.sql))
                    ran += 1
        with self.server.connect(purpose="steps") as session:
            for step in steps:
                if not step.in_transaction and not (step.done_when and session.run(Statement(step.done_when))[0][0]):
                    session.run(Statement(step.sql))
                    ran += 1
        return ran

    def one_by_one(self, steps: Sequence[Step]) -> int:
        """Run steps in their order, each on its own."""
        return sum(self.run([step]) for step in steps)

    def undo(self, steps: Sequence[Step]) -> None:
        """Take steps back."""
        self.one_by_one([step.undoing() for step in reversed(steps) if step.undo])

    def expand(self) -> Extraction:
        """Both shapes in sync, nothing copied."""
        assert not self.surveyed.problems, self.surveyed.problems
        ledger.ensure(server_at(self.url))
        catalog = self.surveyed.catalog
        found = "INSERT INTO zdm.migration (name, table_oid, table_name, change, catalog, state) VALUES (%s, %s, %s, '{}', '{}', 'expanded') RETURNING id"
        self.number = one(self.url, found, self.migration.name, catalog.oid, str(catalog.table))
        self.run(self.change.expand)
        return self

    def batch(self, session: Session, lower: Key | None, upper: Key | None, *, repair: bool = False) -> None:
        """One batch in a transaction of its own."""
        work = self.change.rows
        assert work is not None
        with session.transaction():
            session.run(Statement("SELECT set_config('zdm.backfill', 'on', true)"))
            for statement in work.batch(lower, upper, pick=ALL, repair=repair):
                session.run(statement)

    def backfill(self, *, repair: bool = False, patience: float = 30.0) -> Extraction:
        """Batches until no row waits."""
        work = self.change.rows
        assert work is not None
        deadline = time.monotonic() + patience
        with self.server.connect(purpose="backfill") as session:
            while session.run(work.waiting(None, None, repair=repair))[0][0]:
                self.batch(session, None, None, repair=repair)
                assert time.monotonic() < deadline, "rows wait for ever"
        return self

    def counts(self) -> tuple[int, ...]:
        """Rows, missing, extra, different, through down, unmoved."""
        parity = self.change.parity
        assert parity is not None
        with self.server.connect(purpose="compare") as session:
            return tuple(session.run(parity.compare(None, None))[0])

    def agree(self) -> bool:
        """Whether no row disagrees or waits."""
        _, missing, extra, different, _, unmoved = self.counts()
        return (missing, extra, different, unmoved) == (0, 0, 0, 0)

    def tombstone(self) -> Extraction:
        """Put the old columns out of sight."""
        retire = self.change.retire
        assert retire is not None
        self.run(retire.tombstone())
        self.tombstoned = True
        return self


@contextmanager
def holding(url: str, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction that has run these statements and stays open."""
    with psycopg.connect(url) as connection:
        for statement in statements:
            connection.execute(statement)
        yield connection
        connection.rollback()


def eventually(condition: Callable[[], Any], timeout: float = 30.0) -> None:
    """Wait until a condition holds; fails when it does not."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def waiting(url: str) -> int:
    """How many statements wait for somebody's lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    return int(one(url, waits))


class Background(threading.Thread):
    """A call in a thread whose outcome is asked for later."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.value: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error

    def result(self, timeout: float = 120.0) -> Any:
        """Its value; raises what it raised."""
        self.join(timeout)
        assert not self.is_alive(), "it did not end in time"
        if self.error is not None:
            raise self.error
        return self.value
