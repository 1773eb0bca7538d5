"""Ways out of the gate: each reason against contract is brought about, its way out is followed, and contract goes through.

The names are odd ones throughout, as they are in the tests of preflight's ways out.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from zdm_pipelines.dialects.postgres.statements import named_statements
from zdm_pipelines.model.errors import GateRefused, ParityMismatch, StateConflict
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase, State
from zdm_pipelines.phases import contract, switch_reads
from zdm_pipelines.sandbox.postgres import Cluster
from zdm_pipelines.sandbox.server import Server
from zdm_pipelines.verbs import rollback
from zdm_pipelines_tests.helpers import (
    backfilled,
    contracted,
    expanded,
    read_in_full_for,
    sql,
    state,
    switched,
    validated,
    work,
)
from zdm_pipelines_tests.integration.test_ways_out_of_preflight import (
    DROP,
    EXCHANGE,
    EXTRACT,
    ITEMS,
    KEPT,
    REPLACE,
    C,
    T,
    alter,
    declared,
)
from zdm_pipelines_tests.refusals import in_order, reasons

Way = Callable[[Migration, str, str], None]
FUNCTION = f"""CREATE FUNCTION "F 1"() RETURNS bigint LANGUAGE sql AS 'SELECT count({C}) FROM {T}'"""


PHASES: dict[Phase, Callable[[Migration, str], object]] = {
    Phase.EXPAND: expanded, Phase.BACKFILL: backfilled, Phase.VALIDATE: validated, Phase.SWITCH_READS: switched,
    Phase.CONTRACT: contracted,
}  # fmt: skip


def walk(m: Migration, url: str, to: State) -> None:
    """Run one phase after another up to a state."""
    for phase in [*m.lifecycle.phases, Phase.CONTRACT]:
        if (now := state(m, url)) == to:
            return
        if now in m.lifecycle.allowed(phase) or m.lifecycle.begins(phase, now):
            PHASES[phase](m, url)
    assert state(m, url) == to


def runs(*phases: Callable[[Migration, str], object]) -> Way:
    """The way out is to run phases."""

    def way(m: Migration, url: str, _: str) -> None:
        for phase in phases:
            phase(m, url)

    return way


def prints(after: str, until: str = "$") -> Way:
    """The way out is the statement that the reason prints between two words."""

    def way(_: Migration, url: str, reason: str) -> None:
        found = re.search(f"{re.escape(after)}([A-Z]{{3}}.*?)(?:{until})", reason, re.DOTALL)
        assert found, reason
        sql(url, found[1])

    return way


def does(statement: str) -> Way:
    """The way out is a statement that the reason describes."""

    def way(_: Migration, url: str, __: str) -> None:
        for each in statement.split("; "):
            sql(url, each)

    return way


def then(first: Way, second: Way) -> Way:
    """One and then the other."""

    def way(m: Migration, url: str, reason: str) -> None:
        first(m, url, reason)
        second(m, url, reason)

    return way


def anew(to: State) -> Way:
    """Roll back, and begin anew."""

    def way(m: Migration, url: str, _: str) -> None:
        rollback.run(work(m, url), to=State.ROLLED_BACK, force=True)
        walk(m, url, to)

    return way


def repaired(m: Migration, url: str) -> None:
    """Validate names the ranges that are to be moved again."""
    with pytest.raises(ParityMismatch) as caught:
        validated(m, url)
    partitions = list(caught.value.partitions)
    with pytest.raises(StateConflict, match="bring all reads back first: switch_reads with percent 0"):
        backfilled(m, url, partitions=partitions, repair=True)
    switch_reads.run(work(m, url), percent=0)
    backfilled(m, url, partitions=partitions, repair=True)


def looked_away(statement: str) -> str:
    """A statement of which the sync knows nothing."""
    return f"SET session_replication_role = replica; SET zdm.backfill = 'on'; {statement}"


@dataclass(frozen=True)
class Case:
    """A reason and its way out."""

    says: str  # fragments of the reason in their order, with … between
    plant: str  # a statement
    way: Way
    contract: Mapping[str, Any] = field(default_factory=dict)  # of the declaration, at the refusal and after
    instead: Mapping[str, Any] = field(default_factory=dict)  # of the declaration after the way out
    leaves: bool = False  # more than the next case may find
    fresh: bool = False  # it needs a database in which no other case was


ONE_HOUR = {"straggler_window": "1h"}
CASES = [
    # -- what stands on the old column
    Case('reads weird "name … VIEW', f'CREATE VIEW "V 1" AS SELECT id, {C} FROM {T}', prints("name: ")),
    Case('reads weird "name … ALTER POLICY', f"CREATE POLICY \"P 1\" ON {T} USING ({C} <> 'x')", prints("name: ")),
    Case('reads weird "name … TRIGGER', f'CREATE TRIGGER "T 1" AFTER UPDATE OF {C} ON {T} FOR EACH ROW EXECUTE FUNCTION t()', prints("name: ")),
    Case('reads weird "name … PUBLICATION', f'CREATE PUBLICATION "P 1" FOR TABLE {T} (id, {C})', prints("name: ")),
    Case('reads weird "name … drop it, or make it anew over Shown', alter(f"ADD g text GENERATED ALWAYS AS (upper({C})) STORED"), does(alter("DROP g"))),
    Case('reads weird "name … drop it, or make it anew over', f"CREATE STATISTICS s ON lower({C}), note FROM {T}", does("DROP STATISTICS s")),
    Case("inherits from … rows there are neither moved nor mirrored: ALTER TABLE", f'CREATE TABLE "Child 1" () INHERITS ({T})', prints("mirrored: ")),
    Case("is of type … which keeps its columns as they are: ALTER TABLE",
         f'CREATE TYPE "Y 1" AS (id bigint, {C} text, note text, "Shown" text); ' + alter('OF "Y 1"'), prints("are: ")),
    Case("is invalid: let its build end, or DROP INDEX CONCURRENTLY",
         f'CREATE INDEX "I 1" ON {T} ({C}); UPDATE pg_index SET indisvalid = false WHERE indexrelid = \'"I 1"\'::regclass', prints("or ")),
    Case("got the default … which the new one has not: … DROP DEFAULT, and give", alter(f"ALTER {C} SET DEFAULT 'guest'"), prints("has not: ", ", and give")),
    Case("became NOT NULL, and … SET NOT NULL", alter(f"ALTER {C} SET NOT NULL"), prints(", or ")),
    Case("became NOT NULL, and … which fails through", alter(f"ALTER {C} SET NOT NULL"), does(alter('ALTER "Shown" SET NOT NULL')), leaves=True),
    Case("has what cannot pass to … roll back and begin anew", alter(f'ADD CONSTRAINT "E 1" EXCLUDE ({C} WITH =)'), prints("written; ", " first, or")),
    # -- who names it
    Case("names the table … and names … in its body … make it anew without the name", FUNCTION, does(FUNCTION.replace("CREATE", "CREATE OR REPLACE").replace(C, "note"))),
    Case("and names … or, if it means something else, list it under contract.unaffected: ", FUNCTION, does(""), instead={"unaffected": ('function "F 1"()',)}),
    Case("is called by a trigger of the table", f"CREATE FUNCTION g() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM NEW.{C}; RETURN NULL; END'; "
         f"CREATE TRIGGER g AFTER INSERT ON {T} FOR EACH ROW EXECUTE FUNCTION g()", does(f"DROP TRIGGER g ON {T}; DROP FUNCTION g")),
    Case("hands its function the name", f"CREATE TRIGGER g AFTER INSERT ON {T} FOR EACH ROW EXECUTE FUNCTION t('weird \"name')", does(f"DROP TRIGGER g ON {T}")),
    Case("holds rows of the table, which lose", f"CREATE TABLE kept (r {T})", does("DROP TABLE kept")),
    # -- the sync
    Case("is missing: old and new drift apart; roll back and begin anew", f'DROP TRIGGER "zzz_zdm_way_out_update" ON {T}', anew(State.SWITCHED), fresh=True),
    Case("is disabled: old and new drift apart; … then run validate", alter('DISABLE TRIGGER "zzz_zdm_way_out_update"'),
         then(prints("apart; ", ", then run validate"), runs(validated))),
    Case("runs behind the sync trigger, which does not see what it changes: rename it: ", f'CREATE TRIGGER "zzz~" BEFORE UPDATE ON {T} FOR EACH ROW EXECUTE FUNCTION t()',
         prints("rename it: ")),
    # -- what the ledger says
    Case("no range was ever planned: run expand", "DELETE FROM zdm.range", runs(expanded, backfilled, validated)),
    Case("ranges are not backfilled: … run backfill, then validate", "UPDATE zdm.range SET done_at = NULL", runs(backfilled, validated)),
    Case("never ran on this data: run validate", "DELETE FROM zdm.check_result WHERE name = 'parity'", runs(validated)),
    Case("failed: … mend it, then run validate", "UPDATE zdm.check_result SET passed = false, summary = 'planted' WHERE name = 'parity'", runs(validated)),
    Case("reads are at … % of the new shape, not 100 %: run switch_reads", "UPDATE zdm.flag SET percent = 50", runs(switched)),
    Case("not in place: … run validate", f'CREATE INDEX "I 2" ON {T} ({C}, note)', runs(validated)),
    Case("reads are fully switched since … the confidence window ends in", "", lambda _, url, __: read_in_full_for(url, "8 days"), contract={"confidence_window": "7d"}),
    Case("straggler: … deploy new code there", f"UPDATE {T} SET {C} = 'late' WHERE id = 3", does("UPDATE zdm.writer SET at = at - interval '62 minutes'"), contract=ONE_HOUR),
    Case("straggler: … named the old shape, changing nothing of it", f"UPDATE {T} SET {C} = {C} WHERE id = 3", does("UPDATE zdm.writer SET at = at - interval '62 minutes'"),
         contract=ONE_HOUR),
    # -- the data
    Case("old and new disagree: … in range … run validate", looked_away(f"UPDATE {T} SET \"Shown\" = 'other' WHERE id = 7"), runs(repaired, validated, switched)),
    # -- names
    Case("is called … now: ALTER TABLE … or roll back", alter('RENAME "Shown" TO "Else"'), prints("now: ", ", or roll back")),
    Case("is called … now: ALTER TABLE … or roll back", alter(f'RENAME {C} TO "Else"'), prints("now: ", ", or roll back")),
    Case("is gone, or has another name: give it back, or roll back", alter('DROP COLUMN "Shown" CASCADE'), anew(State.SWITCHED), fresh=True),
]  # fmt: skip


def said(m: Migration, url: str) -> list[str]:
    """The reasons with which contract is refused."""
    before = state(m, url)
    with pytest.raises(GateRefused) as caught:
        contract.run(work(m, url))
    assert state(m, url) == before
    return list(caught.value.reasons)


def reason(m: Migration, url: str, says: str) -> str:
    """The one of this wording."""
    told = said(m, url)
    found = [each for each in told if in_order(says, each)]
    assert found, told
    return found[0]


@pytest.fixture(scope="module")
def templates(cluster: Cluster) -> Iterator[Callable[[str, Mapping[str, Any], State], str]]:
    """Databases in which a migration of a kind has come so far, made when one is first asked for, to copy."""
    made: dict[str, str] = {}

    def template(name: str, change: Mapping[str, Any], to: State) -> str:
        if name not in made:
            url = cluster.primary.create_database(f"gate_{name}")
            made[name] = f"gate_{name}"
            sql(url, ITEMS)
            sql(url, 'CREATE SCHEMA "Old Things"')
            walk(declared(change), url, to)
        return made[name]

    yield template
    for name in made.values():
        cluster.primary.drop_database(name)


@pytest.fixture
def copied(server: Server, templates: Callable[[str, Mapping[str, Any], State], str]) -> Iterator[Callable[..., str]]:
    """A copy of one of them."""
    made = []

    def copy(name: str, change: Mapping[str, Any], to: State) -> str:
        made.append(f"gate_copy_{name}")
        return server.create_database(made[-1], template=templates(name, change, to))

    yield copy
    for name in made:
        server.drop_database(name)


class Reused:
    """One database in which reads are switched: a test leaves it so, or the next one has another copy."""

    def __init__(self, server: Server, template: str) -> None:
        self._server, self._template, self._count = server, template, 0
        self.dirty = True

    def url(self) -> str:
        if self.dirty:
            if self._count:
                self._server.drop_database(f"gate_reused_{self._count}")
            self._count += 1
            self._url = self._server.create_database(f"gate_reused_{self._count}", template=self._template)
        self.dirty = True
        return self._url

    def remove(self) -> None:
        if self._count:
            self._server.drop_database(f"gate_reused_{self._count}")


@pytest.fixture(scope="module")
def reused(cluster: Cluster, templates: Callable[[str, Mapping[str, Any], State], str]) -> Iterator[Reused]:
    """See there."""
    found = Reused(cluster.primary, templates("replace", REPLACE, State.SWITCHED))
    yield found
    found.remove()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_the_way_out_leads_through(reused: Reused, case: Case) -> None:
    reused.dirty = reused.dirty or case.fresh
    url, m = reused.url(), declared(REPLACE, **case.contract)
    if case.plant:
        sql(url, case.plant)
    case.way(m, url, reason(m, url, case.says))
    m = declared(REPLACE, **{**case.contract, **case.instead})
    assert contract.run(work(m, url)).state == State.TOMBSTONED
    # As it was: the next case finds a gate that is open.
    rollback.run(work(m, url), to=State.SWITCHED)
    sql(url, 'DELETE FROM zdm.writer; DROP FUNCTION IF EXISTS "F 1"()')
    reused.dirty = case.leaves or bool(contract.refusals(work(declared(REPLACE), url)))


# -- from one state to the next ---------------------------------------------------------------------------------------


def test_before_it_begins_and_between_the_phases(copied: Callable[..., str]) -> None:
    m = declared(REPLACE)
    url = copied("planned", REPLACE, State.PLANNED)
    reason(m, url, "is planned: it never began; run expand first")
    for run, word in ((expanded, "expanded"), (backfilled, "backfilled"), (validated, "validated")):
        run(m, url)
        told = said(m, url)
        assert in_order(f"is {word} … contract begins from switched", told[0])
    assert any("reads were never fully switched: run switch_reads" in each for each in told)
    switched(m, url)
    walk(m, url, State.CONTRACTED)


def test_a_file_that_was_edited(copied: Callable[..., str]) -> None:
    url = copied("replace", REPLACE, State.SWITCHED)
    other = declared(REPLACE | {"down": 'lower("Shown")'})
    reason(other, url, "it began with another declaration of … put defs.yaml back as it was")
    walk(declared(REPLACE), url, State.CONTRACTED)


def test_a_tombstone_within_its_window(copied: Callable[..., str]) -> None:
    url, m = copied("replace", REPLACE, State.SWITCHED), declared(REPLACE, tombstone_window="1d")
    contract.run(work(m, url))
    reason(m, url, "is out of sight since … it is kept for … more")
    sql(url, "UPDATE zdm.check_result SET passed = false WHERE name = 'parity'; "
             "UPDATE zdm.migration SET tombstoned_at = now() - interval '25 hours'")  # fmt: skip
    reason(m, url, "mend it, then run validate; roll back to switched first")
    rollback.run(work(m, url), to=State.SWITCHED)
    validated(m, url)
    walk(m, url, State.TOMBSTONED)
    sql(url, "UPDATE zdm.migration SET tombstoned_at = now() - interval '25 hours'")
    walk(m, url, State.CONTRACTED)


def test_an_identity_that_came_later(database: str) -> None:
    sql(database, f"CREATE TABLE {T} (id bigint PRIMARY KEY, {C} int NOT NULL); INSERT INTO {T} VALUES (1, 1)")
    m = declared(REPLACE | {"new": {"name": "Shown", "type": "bigint", "nullable": False}, "down": '"Shown"::int'})
    walk(m, database, State.SWITCHED)
    sql(database, alter(f"ALTER {C} ADD GENERATED BY DEFAULT AS IDENTITY"))
    prints("is not: ")(
        m, database, reason(m, database, "became an identity column, which the new one is not: ALTER TABLE")
    )
    walk(m, database, State.CONTRACTED)


# -- extract_table ----------------------------------------------------------------------------------------------------


def test_an_index_that_came_to_a_column_that_goes(copied: Callable[..., str]) -> None:
    url, m = copied("extract", EXTRACT, State.SWITCHED), declared(EXTRACT)
    sql(url, f'CREATE INDEX "I 1" ON {T} ({C})')
    reason(
        m, url, 'index "I 1" came to … after expand and goes with it: give public."Item Names" the like, then drop it'
    )
    sql(url, 'CREATE INDEX ON "Item Names" ("Shown")')
    sql(url, 'DROP INDEX "I 1"')
    sql(url, f'CREATE VIEW "V 1" AS SELECT {C} FROM {T}')
    reason(m, url, 'view "V 1" reads weird "name … drop it, or make it anew without that')
    sql(url, 'DROP VIEW "V 1"')
    walk(m, url, State.CONTRACTED)


# -- purge_rows -------------------------------------------------------------------------------------------------------

CHANGED = [
    ("is another table than when the migration began: roll back and begin anew", f'CREATE TABLE c (LIKE {T} INCLUDING ALL); DROP TABLE {T}; ALTER TABLE c RENAME TO "Order Items"'),
    ("other foreign keys refer to … than when the migration began: roll back and begin anew", f"CREATE TABLE kids (id int PRIMARY KEY, i bigint REFERENCES {T})"),
    ("has other columns than its archive: roll back and begin anew", alter("ADD later text")),
    ("is gone: somebody dropped it by hand; roll back and begin anew", 'DROP TABLE "Old Things"."Order Items"'),
]  # fmt: skip


@pytest.mark.parametrize(("says", "plant"), CHANGED)
def test_what_changed_since_a_purge_began(copied: Callable[..., str], says: str, plant: str) -> None:
    url, m = copied("kept", KEPT, State.VALIDATED), declared(KEPT)
    validated(m, url)  # in a copy of a database, tables are found by their names at first
    sql(url, plant)
    reason(m, url, says)
    anew(State.VALIDATED)(m, url, "")
    contracted(m, url)
    assert state(m, url) == State.TOMBSTONED


def test_what_reads_an_archive(copied: Callable[..., str]) -> None:
    url, m = copied("kept", KEPT, State.VALIDATED), declared(KEPT)
    reason(m, url, "rows of 1 ranges are not taken away yet")
    contracted(m, url)
    sql(url, 'CREATE VIEW "V 1" AS TABLE "Old Things"."Order Items"')
    reason(m, url, 'reads archive "Old Things"."Order Items": drop it, or make it anew without that')
    sql(url, 'DROP VIEW "V 1"')
    assert contract.run(work(m, url)).state == State.CONTRACTED


# -- indexes ----------------------------------------------------------------------------------------------------------


def test_an_index_that_is_in_use(copied: Callable[..., str]) -> None:
    url, m = copied("planned", REPLACE, State.PLANNED), declared(DROP | {"unused_for": "7d"})
    with psycopg.connect(url, autocommit=True) as c:
        c.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        c.execute(f"SELECT note FROM {T} WHERE note = 'note 3'".encode())
        c.execute("SELECT pg_stat_force_next_flush()")
    reason(m, url, "was scanned … times, last at … less than … ago; wait, or declare unused_for: null")
    sql(url, "SELECT pg_stat_reset()")
    reason(m, url, "may be in use: scans are counted since … only, less than … ago; wait, or declare unused_for: null")
    assert contract.run(work(declared(DROP), url)).state == State.CONTRACTED


def test_an_index_whose_successor_is_gone_or_that_is_called_otherwise(copied: Callable[..., str]) -> None:
    url, m = copied("exchange", EXCHANGE, State.VALIDATED), declared(EXCHANGE)
    sql(url, 'DROP INDEX "New One"')
    reason(m, url, "does not stand as declared: run validate")
    validated(m, url)
    sql(url, 'ALTER INDEX "By Note" RENAME TO "By Note 2"')
    prints("its name back, ", ", or roll back")(
        m, url, reason(m, url, "was renamed to … give it its name back, ALTER INDEX")
    )
    assert contract.run(work(m, url)).state == State.CONTRACTED


@pytest.mark.parametrize(
    ("says", "plant", "way"),
    [
        ("is another one than when the migration began: roll back and begin anew", f'DROP INDEX "By Note"; CREATE INDEX "By Note" ON {T} (note)', ""),
        ("backs constraint … takes the index along", f'DROP INDEX "By Note"; CREATE UNIQUE INDEX "By Note" ON {T} (note); ', alter('DROP CONSTRAINT "By Note"')),
    ],
)  # fmt: skip
def test_an_index_that_is_another_one(copied: Callable[..., str], says: str, plant: str, way: str) -> None:
    url, m = copied("exchange", EXCHANGE, State.VALIDATED), declared(EXCHANGE)
    validated(m, url)  # as above
    sql(url, plant)
    if way:
        anew(State.VALIDATED)(m, url, "")
        sql(url, alter('ADD CONSTRAINT "By Note" UNIQUE USING INDEX "By Note"'))
    told = reason(m, url, says)
    if way:
        prints(": ", " takes")(m, url, told)
    else:
        anew(State.VALIDATED)(m, url, "")
    assert contract.run(work(m, url)).state == State.CONTRACTED


def test_an_index_that_was_moved_with_its_table(copied: Callable[..., str]) -> None:
    url, m = copied("exchange", EXCHANGE, State.VALIDATED), declared(EXCHANGE)
    validated(m, url)  # as above
    sql(url, alter('SET SCHEMA "Old Things"'))
    prints("its table: ")(m, url, reason(m, url, "was moved to … with its table: ALTER TABLE"))
    assert contract.run(work(m, url)).state == State.CONTRACTED


# -- completeness -----------------------------------------------------------------------------------------------------

KINDS = "dialects/postgres/kinds"
# The functions that give the gate's reasons.
SAY = [
    *(("engine/gate.py", name) for name in (
        "reasons", "uses", "declaration_reasons", "_progress_reasons", "_check_reasons", "_window_reasons", "_old_shape_reasons")),
    ("engine/schema/sync.py", "_table_reasons"),
    ("ledger/migrations.py", "conflict"), ("ledger/writers.py", "late_writers"),
    *(("phases/contract.py", name) for name in ("_standing", "_stage", "_compare", "rename", "_drain", "_touched")),
    *(("dialects/postgres/inventory.py", name) for name in ("reasons", "_way_out", "mentions")),
    ("dialects/postgres/old_indexes.py", "dependents"), ("dialects/postgres/users.py", "reasons"),
    (f"{KINDS}/replace_column/later.py", "reasons"), (f"{KINDS}/extract_table/steps.py", "dependents"),
    (f"{KINDS}/purge_rows/retire.py", "dependents"), (f"{KINDS}/purge_rows/survey.py", "changed"),
    (f"{KINDS}/drop_index.py", "reasons"), (f"{KINDS}/drop_index.py", "_used"), (f"{KINDS}/replace_index.py", "dependents"),
]  # fmt: skip
BLOCKS = ("inventory.kin", "catalog.altered")
# Whose way out is followed elsewhere, or that have none: a part of the text, and why.
APART = {
    "takes nothing away: it has no contract": "there is nothing to be let through",
    "what is read on replicas is not known": "kinds/test_stories, where a replica is declared and then named",
    "may be in use on replicas": "the same",
    "is not there: is it a replica of this database?": "of a URL that names another database: as for one that is not set",
    "the server counts no scans (track_counts is off)": "a setting of the server; test_drop_index",
    "and this server does not say when": "Postgres 15 and earlier do not; test_drop_index",
    "named the column in the latest statement; deploy new code there": "test_stragglers",
    "may have called a statement that names": "test_stragglers, over pg_stat_statements",
    "a sync trigger was changed during the proof": "test_contract_refused, in a race",
    "rows written during the proof disagree; run validate": "the same",
    "the application writes faster than that can be compared": "the same: nothing but a quieter time helps",
    "the proof took longer than": "24 hours",
    "the last look": "a part of what test_stragglers asks for",
    "wrote the old shape": "the same as the one who named it",
    "out of sight": "what the ledger's events say",
    "somebody changed the table by hand": "never said: a column that is gone is told before",
}


def test_every_reason_has_a_way_out_that_is_followed() -> None:
    tree = ast.parse(Path(__file__).read_text(encoding="utf-8"))
    apart = next(n.value for n in tree.body if isinstance(n, ast.Assign) and "APART" in ast.unparse(n.targets[0]))
    mine = {n for n in ast.walk(tree) if isinstance(n, ast.Constant)} - set(ast.walk(apart))
    asked = [part for node in mine for part in str(node.value).split(" … ")] + list(APART)
    texts = reasons(SAY)
    texts |= {
        text: block for block in BLOCKS for text in re.findall(r"format\('([a-z].*?)'", named_statements()[block])
    }
    untold = []
    for text, place in texts.items():
        # The fact stands first; the way out behind it may be the same for several.
        said = (max((p.strip(" ,") for p in re.split("\0|%.", half)), key=len) for half in re.split("[:;]", text))
        fact = next(piece for piece in said if len(piece) > 6)
        if not any(fact in part or (part in fact and len(part) > 8) for part in asked):
            untold.append(f"{place}: {text}")
    assert untold == []
