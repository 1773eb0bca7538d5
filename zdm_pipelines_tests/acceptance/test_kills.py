"""Kills: the worker or the database dies anywhere in any phase, under live writes; running it again finishes the job."""

from __future__ import annotations

import random
import threading
from typing import Any

import psycopg
import pytest

from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import State
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines_tests.helpers import Worker, one, people, ranges, replaced, sql, state, statements, tracks

ROWS = 6_000
WRITERS = 3

# Written by the backfill's own transactions, and by nobody else: what it says of a row it moved commits with that row.
AUDIT = """
CREATE TABLE moved (id bigint NOT NULL);
CREATE FUNCTION note_move() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO moved VALUES (NEW.id); RETURN NULL; END $$;
CREATE TRIGGER audit AFTER UPDATE ON people FOR EACH ROW
  WHEN (current_setting('zdm.backfill', true) = 'on') EXECUTE FUNCTION note_move();
"""

MIGRATION = replaced(
    new={"name": "display_name", "type": "text", "nullable": False},
    up="'n:' || coalesce(full_name, '')",
    backfill={"range_rows": 2_000, "batch_rows": 100},
)


class Application(threading.Thread):
    """Writes rows of its own through whichever shapes are allowed now, and knows what each must hold."""

    def __init__(self, number: int, url: str) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.url = url
        self.wrong: list[str] = []
        self.writes = 0
        self.random = random.Random(number)
        self.lock = threading.Lock()
        self.shapes = ["old"]
        self.halt = False
        self.pause = threading.Event()
        self.connection: psycopg.Connection[Any] | None = None
        # What each key may hold; None: no such row. More than one where a commit's outcome was never heard.
        self.expected: dict[int, set[str | None]] = {
            i: {f"v{i}"} for i in range(1, ROWS + 1) if i % (WRITERS * 3) == number
        }

    def allow(self, *shapes: str) -> None:
        """From now on, no write under way uses another shape."""
        with self.lock:
            self.shapes = list(shapes)

    def run(self) -> None:
        while not self.halt:
            with self.lock:
                key = self.random.choice(list(self.expected))
                try:
                    self._write(key)
                except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                    if error.sqlstate and not error.sqlstate.startswith(("57", "08")):
                        self.wrong.append(f"{key}: {error}")
                    self._close()
                except psycopg.Error as error:
                    self.wrong.append(f"{key}: {error}")
            self.pause.wait(0.004)  # leaves the machine to the phases, too

    def _connected(self) -> psycopg.Connection[Any]:
        if self.connection is None or self.connection.closed:
            self.connection = psycopg.connect(
                self.url, autocommit=True, application_name="application", connect_timeout=2
            )
        return self.connection

    def _close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.pause.wait(0.02)

    def _do(self, statement: str, *params: Any) -> int:
        return self._connected().execute(statement, params).rowcount

    def _write(self, key: int) -> None:
        self._look(key)
        before = self.expected[key]
        value = f"w{self.number}-{self.writes}"
        self.writes += 1
        chance = self.random.random()
        if before == {None} or (chance < 0.15 and len(self.expected) < 2 * ROWS):
            fresh = (self.number + 1) * 1_000_000 + self.writes
            self.expected[fresh] = {None, value}
            names, values = self._columns(value)
            self._do(f"INSERT INTO people (id, {', '.join(names)}) VALUES (%s{', %s' * len(values)})", fresh, *values)
            self.expected[fresh] = {value}
        elif chance < 0.3:
            self.expected[key] = before | {None}
            self._gone(key, before, self._do("DELETE FROM people WHERE id = %s", key))
            self.expected[key] = {None}
        else:
            self.expected[key] = before | {value}
            names, values = self._columns(value)
            sets = ", ".join(f"{n} = %s" for n in names)
            found = self._do(f"UPDATE people SET {sets} WHERE id = %s", *values, key)
            self._gone(key, before, found)
            self.expected[key] = {value} if found else {None}

    def _gone(self, key: int, before: set[str | None], found: int) -> None:
        if not found and None not in before:
            self.wrong.append(f"{key} had {before} and is gone")

    def _columns(self, value: str) -> tuple[list[str], list[str]]:
        shape = self.random.choice(self.shapes)
        pairs = {"full_name": value, "display_name": f"n:{value}"}
        if shape != "both":
            pairs = {c: v for c, v in pairs.items() if (c == "full_name") == (shape == "old")}
        return list(pairs), list(pairs.values())

    def _look(self, key: int) -> None:
        """What it reads must be what it wrote, in every shape that is there."""
        read = {"old": "full_name", "new": "substr(display_name, 3)"}
        for shape in set(self.shapes) & set(read):
            rows = self._connected().execute(f"SELECT {read[shape]} FROM people WHERE id = %s", [key])
            found = next((r[0] for r in rows.fetchall()), None)
            unmoved = shape == "new" and found is None
            if found not in self.expected[key] and not unmoved:
                self.wrong.append(f"{key}: {shape} reads {found}, expected {self.expected[key]}")


class Ordeal:
    """A migration whose every phase is run by a process that may die."""

    def __init__(self, url: str, m: Migration, *, seed: int) -> None:
        self.url = url
        self.m = m
        self.random = random.Random(seed)
        self.kills: list[str] = []
        people(url, ROWS)
        sql(url, AUDIT)
        self.applications = [Application(n, url) for n in range(WRITERS)]
        for application in self.applications:
            application.start()

    def allow(self, *shapes: str) -> None:
        for application in self.applications:
            application.allow(*shapes)

    def stop(self) -> None:
        for application in self.applications:
            application.halt = True
        for application in self.applications:
            application.join(30)

    def moves_agree(self) -> None:
        """The ledger counts exactly the rows that were moved, each once."""
        total, distinct = sql(self.url, "SELECT count(*), count(DISTINCT id) FROM moved")[0]
        assert total == distinct == sum(r.rows for r in ranges(self.m, self.url))
        assert total > ROWS / 2

    def agrees(self, *, old: bool = True) -> None:
        """Every row holds what its application wrote last, in both shapes, and nobody saw anything else."""
        self.stop()
        wrong = [w for a in self.applications for w in a.wrong]
        assert wrong == []
        assert all(a.writes > 100 for a in self.applications)
        column = "full_name" if old else "substr(display_name, 3)"
        rows = dict(sql(self.url, f"SELECT id, {column} FROM people"))
        new = dict(sql(self.url, "SELECT id, display_name FROM people"))
        for application in self.applications:
            for key, values in application.expected.items():
                assert rows.get(key) in values, key
        assert all(new[key] == f"n:{value}" for key, value in rows.items())
        untouched = {i for i in range(1, ROWS + 1) if i % (WRITERS * 3) >= WRITERS}
        assert all(rows[i] == f"v{i}" for i in untouched)


@pytest.fixture(scope="module")
def lengths(cluster: Any) -> dict[str, int]:
    """Statements of each phase."""
    url = cluster.primary.create_database("kills_lengths")
    people(url, ROWS)
    phases = ("expand", "backfill", "validate", "switch_reads", "rolled_back")
    found = {phase: statements(phase, MIGRATION, url) for phase in phases}
    for phase in phases[:-1]:
        statements(phase, MIGRATION, url)
    return found | {name: statements("contract", MIGRATION, url) for name in ("contract", "drop")}


def die(ordeal: Ordeal, phase: str, *, length: int, times: int, target: State) -> None:
    """Kill the worker `times` times, then let it finish."""
    for nth in range(1, times + 1):
        if phase == "contract" and state(ordeal.m, ordeal.url) == target:
            return  # another run would be the next stage
        killed, _ = Worker(
            phase,
            ordeal.m,
            ordeal.url,
            kill_at=ordeal.random.randint(1, max(1, length // nth)),
            before=ordeal.random.random() < 0.5,
        ).end()
        if killed:
            ordeal.kills.append(phase)
    if phase != "contract" or state(ordeal.m, ordeal.url) != target:
        Worker(phase, ordeal.m, ordeal.url).end()
    assert state(ordeal.m, ordeal.url) == target


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2])
def test_worker_killed_anywhere(own_server: Server, lengths: dict[str, int], seed: int) -> None:
    ordeal = Ordeal(own_server.create_database("app"), MIGRATION, seed=seed)
    try:
        for last in (False, True):
            die(ordeal, "expand", length=lengths["expand"], times=2, target=State.EXPANDED)
            ordeal.allow("old", "new", "both")
            die(ordeal, "backfill", length=lengths["backfill"], times=2, target=State.BACKFILLED)
            ordeal.moves_agree()
            die(ordeal, "validate", length=lengths["validate"], times=2, target=State.VALIDATED)
            die(ordeal, "switch_reads", length=lengths["switch_reads"], times=1, target=State.SWITCHED)
            if not last:
                ordeal.allow("old")
                die(ordeal, "rolled_back", length=lengths["rolled_back"], times=2, target=State.ROLLED_BACK)
                sql(ordeal.url, "TRUNCATE moved")
        ordeal.allow("new")
        die(ordeal, "contract", length=lengths["contract"], times=3, target=State.TOMBSTONED)
        assert not tracks(ordeal.url, ordeal.m)
        die(ordeal, "contract", length=lengths["drop"], times=2, target=State.CONTRACTED)
        ordeal.agrees(old=False)
    finally:
        ordeal.stop()
    assert len(ordeal.kills) >= 12
    assert set(ordeal.kills) == {"expand", "backfill", "validate", "switch_reads", "rolled_back", "contract"}


def crash(ordeal: Ordeal, server: Server, phase: str, *, length: int, target: State) -> None:
    """Kill the server at a statement of the worker, which goes on by itself once it is back."""
    worker = Worker(phase, ordeal.m, ordeal.url, report_at=ordeal.random.randint(2, length - 1))
    if worker.wait_for_report():
        threading.Event().wait(ordeal.random.uniform(0, 0.004))
        server.kill()
        ordeal.kills.append(phase)
        server.start()
    assert worker.end() != (True, 0)
    assert state(ordeal.m, ordeal.url) == target


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11])
def test_database_killed_anywhere(own_server: Server, lengths: dict[str, int], seed: int) -> None:
    ordeal = Ordeal(own_server.create_database("app"), MIGRATION, seed=seed)

    def hit(phase: str, target: State, length: str = "") -> None:
        crash(ordeal, own_server, phase, length=lengths[length or phase], target=target)

    try:
        hit("expand", State.EXPANDED)
        ordeal.allow("old", "new", "both")
        hit("backfill", State.BACKFILLED)
        ordeal.moves_agree()
        hit("validate", State.VALIDATED)
        hit("switch_reads", State.SWITCHED)
        ordeal.allow("old")
        hit("rolled_back", State.ROLLED_BACK)
        sql(ordeal.url, "TRUNCATE moved")
        hit("expand", State.EXPANDED)
        ordeal.allow("old", "new", "both")
        hit("backfill", State.BACKFILLED)
        ordeal.moves_agree()
        hit("validate", State.VALIDATED)
        hit("switch_reads", State.SWITCHED)
        ordeal.allow("new")
        hit("contract", State.TOMBSTONED)
        assert not tracks(ordeal.url, ordeal.m)
        hit("contract", State.CONTRACTED, "drop")
        ordeal.agrees(old=False)
    finally:
        ordeal.stop()
    assert len(ordeal.kills) >= 10


def test_a_crash_loses_rows_and_checkpoint_together(own_server: Server) -> None:
    """Batches commit asynchronously: after a crash the ledger and the table have lost the same ones."""
    own_server.settings |= {"wal_writer_delay": "10s", "bgwriter_lru_maxpages": "0"}
    own_server.restart()
    url = own_server.create_database("app")
    people(url, ROWS)
    sql(url, AUDIT)
    Worker("expand", MIGRATION, url).end()
    worker = Worker("backfill", MIGRATION, url, kill_at=200, before=True)
    killed, _ = worker.end()
    assert killed
    # What the crash takes away is still there before it.
    seen = one(url, "SELECT count(*) FROM people WHERE display_name IS NOT NULL")
    own_server.kill()
    own_server.start()
    kept = one(url, "SELECT count(*) FROM people WHERE display_name IS NOT NULL")
    assert kept <= seen
    assert kept == sum(r.rows for r in ranges(MIGRATION, url)) == one(url, "SELECT count(*) FROM moved")
    for r in ranges(MIGRATION, url):
        if r.checkpoint is not None:
            below = "id < %s" + (f" AND id >= {r.range.lower[0]}" if r.range.lower else "")
            left = one(url, f"SELECT count(*) FROM people WHERE display_name IS NULL AND {below}", int(r.checkpoint[0]))
            assert left == 0
    Worker("backfill", MIGRATION, url).end()
    assert one(url, "SELECT count(*) FROM people WHERE display_name IS NULL") == 0
    assert one(url, "SELECT count(*) = count(DISTINCT id) AND count(*) = %s FROM moved", ROWS)
