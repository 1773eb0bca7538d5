"""Traffic client: one user of the sample application, who knows what each of its rows must say."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from zdm_pipelines.client.flags import Flags
from zdm_pipelines.sandbox.traffic_report import Recorder

State = tuple[str, int] | None
"""What a row says: (name, login_count); none: there is no such row."""

VERSIONS = {"old": ("old",), "mixed": ("old", "new"), "new": ("new",)}
"""Which versions of the code run in which deployment."""

OLD, NEW = "full_name", "display_name"

_ROWS = 500  # existing rows a client works on: few enough that each is read and written many times

_HELD = 0.02  # seconds a transaction thinks at most while it holds row locks

# An application's own limit: a query that waits longer is a failed one, not a forgotten one.
_OPTIONS = "-c statement_timeout=10s"


_SHARE: LiteralString = """
SELECT id, {name}, login_count FROM public.users WHERE id %% %s = %s ORDER BY random() LIMIT %s
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all clients of one traffic have in common."""

    url: str
    flag: str
    clients: int
    rate: float  # requests per second, all clients together
    recorder: Recorder
    flags: Flags
    stop: threading.Event = field(default_factory=threading.Event)


class Failed(Exception):
    """A query failed; it is already counted."""

    def __init__(self, *, unknown: bool) -> None:
        super().__init__()
        self.unknown = unknown  # the connection was lost: it may have taken effect or not


class Client(threading.Thread):
    """One user: sends requests until told to stop, then looks at all its rows once more."""

    def __init__(self, plan: Plan, number: int, deployment: str) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.deployment = deployment  # what it shall run
        self.deployed = deployment  # what it runs: no connection of another version is open
        self._plan = plan
        self._number = number
        self._random = random.Random(number)
        self._rows: dict[int, set[State]] = {}  # more than one state: a write's outcome is unknown
        self._connections: dict[str, psycopg.Connection[Any]] = {}
        self._written = 0

    def learn(self) -> None:
        """Read what its share of the existing rows says, before anybody writes."""
        with psycopg.connect(self._plan.url, autocommit=True) as connection:
            found = connection.execute(
                "SELECT 1 FROM pg_attribute WHERE attrelid = 'public.users'::regclass AND attname = %s", [OLD]
            ).fetchone()
            rows = connection.execute(_sql(_SHARE, OLD if found else NEW), [self._plan.clients, self._number, _ROWS])
            self._rows = {key: {(name, logins)} for key, name, logins in rows}

    def run(self) -> None:
        """Send requests until told to stop; a mistake in this code counts, too: traffic never just goes quiet."""
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - a thread has nobody else to tell
            recorder = self._plan.recorder
            recorder.failed(recorder.section, VERSIONS[self.deployed][0], f"{self.name} ended: {error!r}")

    def _run(self) -> None:
        pace = self._plan.clients / self._plan.rate
        due = time.monotonic()
        while not self._plan.stop.is_set():
            self._deploy()
            with contextlib.suppress(Failed):
                self._request()
            due = max(due + pace * self._random.uniform(0.5, 1.5), time.monotonic() - 1)
            self._plan.stop.wait(max(0.0, due - time.monotonic()))
        self._deploy()
        for version in VERSIONS[self.deployed]:
            with contextlib.suppress(Failed):
                self._verify_all(version)
        for version in list(self._connections):
            self._close(version)

    def _deploy(self) -> None:
        wanted = self.deployment
        for version in set(self._connections) - set(VERSIONS[wanted]):
            self._close(version)
        self.deployed = wanted

    def _request(self) -> None:
        version = self._random.choice(VERSIONS[self.deployed])
        request, write_to = self._random.random(), self._writes(version)
        key = self._random.choice(list(self._rows)) if self._rows else None
        if request < 0.08 or key is None:
            self._insert(version, write_to)
        elif request < 0.50 or self._rows[key] == {None}:
            self._read(version, key)
        elif request < 0.65:
            self._rename(version, write_to, key)
        elif request < 0.78:
            self._rename(version, write_to, key)
            self._read(version, key)
        elif request < 0.86:
            self._log_in(version, key)
        elif request < 0.93:
            self._transaction(version, write_to)
        else:
            self._delete(version, key)

    # What the application does. Old code knows `full_name` only; new code asks the flag.

    def _writes(self, version: str) -> str:
        if version == "old" or self._plan.flags.percent(self._plan.flag) is None:
            return OLD
        return NEW

    def _reads(self, version: str, key: int) -> str:
        if version == "old" or not self._plan.flags.is_on(self._plan.flag, key):
            return OLD
        return NEW

    def _read(self, version: str, key: int) -> None:
        name = self._reads(version, key)
        statement = _sql("SELECT {name}, login_count FROM public.users WHERE id = %s", name)
        self._compare(version, name, key, self._query(version, statement, [key]).fetchone())

    def _rename(self, version: str, column: str, key: int) -> None:
        name = self._new_name()
        statement = _sql("UPDATE public.users SET {name} = %s WHERE id = %s", column)
        with self._writing(version, key, lambda state: (name, state[1])) as check:
            check(self._query(version, statement, [name, key]).rowcount)

    def _log_in(self, version: str, key: int) -> None:
        statement = _sql("UPDATE public.users SET login_count = login_count + 1 WHERE id = %s")
        with self._writing(version, key, lambda state: (state[0], state[1] + 1)) as check:
            check(self._query(version, statement, [key]).rowcount)

    def _delete(self, version: str, key: int) -> None:
        with self._writing(version, key, lambda state: None) as check:
            check(self._query(version, _sql("DELETE FROM public.users WHERE id = %s"), [key]).rowcount)

    def _insert(self, version: str, column: str) -> None:
        name = self._new_name()
        email = f"client{self._number}.{self._written}.{time.time_ns()}@example.com"
        statement = _sql("INSERT INTO public.users (email, {name}) VALUES (%s, %s) RETURNING id", column)
        row = self._query(version, statement, [email, name]).fetchone()
        if row is not None:
            self._rows[row[0]] = {(name, 0)}

    def _transaction(self, version: str, column: str) -> None:
        """Lock some rows, think, rename them, commit: row locks that last a while."""
        keys = sorted(self._random.sample(list(self._rows), min(3, len(self._rows))))
        names = {key: self._new_name() for key in keys}
        try:
            self._query(version, _sql("BEGIN"))
            lock = _sql("SELECT id FROM public.users WHERE id = ANY(%s) ORDER BY id FOR UPDATE")
            self._query(version, lock, [keys])
            time.sleep(self._random.uniform(0, _HELD))
            update = _sql("UPDATE public.users SET {name} = %s WHERE id = %s", column)
            counts = {key: self._query(version, update, [names[key], key]).rowcount for key in keys}
        except Failed as failed:
            if not failed.unknown:  # the connection lives, so the transaction must be ended
                self._query(version, _sql("ROLLBACK"))
            raise
        with contextlib.ExitStack() as stack:
            checks = {
                key: stack.enter_context(self._writing(version, key, partial(_renamed, names[key]))) for key in keys
            }
            self._query(version, _sql("COMMIT"))
            for key, check in checks.items():
                check(counts[key])

    # What it knows about its rows.

    @contextlib.contextmanager
    def _writing(
        self, version: str, key: int, change: Callable[[tuple[str, int]], State]
    ) -> Iterator[Callable[[int], None]]:
        """Write one row: it then says what `change` makes of it, or either if nobody can know."""
        before = self._rows[key]
        after = {change(state) for state in before if state is not None}

        def check(touched: int) -> None:
            if touched == 0 and None not in before:
                self._plan.recorder.wrong(version, f"user {key}: a write found no row")
            self._rows[key] = after if touched else {None}

        try:
            yield check
        except Failed as failed:
            if failed.unknown:
                self._rows[key] = before | after
            raise

    def _compare(self, version: str, column: str, key: int, seen: State) -> None:
        expected = self._rows[key]
        if seen not in expected:
            what = f"user {key} read through {column}: expected {_either(expected)}, found {_either({seen})}"
            self._plan.recorder.wrong(version, what)
        self._rows[key] = {seen}  # a wrong answer is counted once

    def _verify_all(self, version: str) -> None:
        """Read every row it knows once more, through whatever this version reads."""
        for column in (OLD, NEW):
            keys = [key for key in self._rows if self._reads(version, key) == column]
            if keys:
                statement = _sql("SELECT id, {name}, login_count FROM public.users WHERE id = ANY(%s)", column)
                rows = self._query(version, statement, [keys]).fetchall()
                seen = {key: (name, logins) for key, name, logins in rows}
                for key in keys:
                    self._compare(version, column, key, seen.get(key))

    def _new_name(self) -> str:
        self._written += 1
        return f"Zoë O'Neill {self._number}-{self._written}"

    # Its connections.

    def _query(self, version: str, statement: sql.Composed, values: list[Any] | None = None) -> psycopg.Cursor[Any]:
        recorder = self._plan.recorder
        section, started, text = recorder.section, time.perf_counter(), statement.as_string()
        try:
            connection = self._connections.get(version) or self._connect(version)
            started = time.perf_counter()  # connecting is not the query's latency
            return connection.execute(statement, values)
        except psycopg.Error as error:
            recorder.failed(section, version, f"{type(error).__name__}: {error} ({text})")
            lost = version not in self._connections or self._connections[version].broken
            if lost:
                self._close(version)
                self._plan.stop.wait(0.1)  # do not hammer a server that is down
            raise Failed(unknown=lost) from error
        finally:
            recorder.query(section, version, time.perf_counter() - started, text)

    def _connect(self, version: str) -> psycopg.Connection[Any]:
        self._connections[version] = psycopg.connect(
            self._plan.url,
            autocommit=True,
            application_name=f"app {version}",
            connect_timeout=5,
            options=_OPTIONS,
        )
        return self._connections[version]

    def _close(self, version: str) -> None:
        if connection := self._connections.pop(version, None):
            connection.close()


@cache
def _sql(statement: LiteralString, column: str = OLD) -> sql.Composed:
    return sql.SQL(statement).format(name=sql.Identifier(column))


def _renamed(name: str, state: tuple[str, int]) -> State:
    return name, state[1]


def _either(states: set[State]) -> str:
    return " or ".join("no row" if state is None else repr(state) for state in states)
