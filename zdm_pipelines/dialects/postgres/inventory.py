"""Inventory: what stands on a column today, what belongs to it, and who names it in a text.

One home for what `plan` warns of, validate carries over and the gate asks: each looks at the server as it is then. What
belongs to the old column and can stand on the new one is carried over by steps; the rest is a reason against contract.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from zdm_pipelines.dialects.postgres import subscribers
from zdm_pipelines.dialects.postgres.builds import HARMLESS, SHORT
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.literals import text
from zdm_pipelines.dialects.postgres.rewriting import Rewriting
from zdm_pipelines.dialects.postgres.statements import named_statements
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.values import Step

_LOCKS = {"none": "none", "SHARE UPDATE EXCLUSIVE": HARMLESS, "brief": SHORT}
_COMMENT = re.compile(r"('(?:[^']|'')*')|--[^\n]*|/\*(?:[^*]|\*(?!/))*\*/")


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Looks at one column of a table, which is to go."""

    table: TableName
    oid: int
    column: str  # as it is called now
    new: str | None = None  # the column of the same table that takes over; None: the column goes without one

    def reasons(self, session: Connection) -> list[str]:
        """What stands on the column and is not carried over, each with a way out; or that the column is gone."""
        number = session.value("catalog.column_number", self.oid, self.column)
        if number is None:
            return [f"column {self.column} is gone: somebody changed the table by hand"]
        found = [
            f"{what} reads {self.column}{self._way_out(session, catalog, oid)}"
            for catalog, oid, what in session.named("inventory.hangs", self.oid, number, self.new)
        ]
        found += [f"{what}: {end}" for what, end in session.named("inventory.kin", self.oid)]
        found += [
            f"index {quote(name)} of {self.column} is invalid: let its build end, or DROP INDEX CONCURRENTLY "
            f"{TableName(schema=self.table.schema, name=name).sql}"
            for _, name, invalid in session.named("inventory.enforced", self.oid, number)
            if invalid
        ]
        return found

    def _way_out(self, session: Connection, catalog: str, oid: int) -> str:
        new = self.new and session.value("catalog.column_number", self.oid, self.new)
        if self.new is None or new is None:
            return ": drop it, or make it anew without that"
        statement = Rewriting(table=self.oid, old=self.column, new=self.new).statement(session, catalog, oid)
        return f": {statement}" if statement else f": drop it, or make it anew over {self.new}"

    def mentions(self, session: Connection) -> dict[str, str]:
        """Who names the column in a text, by what the server calls it: reasons, unless people say otherwise."""
        found: dict[str, str] = {}
        word, whole = self._word(self.column), self._word(self.table.name)
        for what, body, own, rows in session.named("inventory.texts", self.oid, self.column):
            code = _COMMENT.sub(lambda m: m[1] or " ", body)
            if word.search(code) and (own or rows or whole.search(code)):
                who = "is called by a trigger of the table" if own else "names the table"
                found[what] = f"{what} {who} and names {self.column} in its body"
        for (what,) in session.named("inventory.handed", self.oid, self.column):
            found[what] = f"{what} hands its function the name {self.column}"
        found |= subscribers.renamed(session, self.oid, self.column)
        for (what,) in session.named("inventory.row_type", self.oid):
            found[what] = f"{what} holds rows of the table, which lose {self.column}"
        return found

    @staticmethod
    def _word(name: str) -> re.Pattern[str]:
        plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name) is not None  # then it may be written in any case
        word = f"(?:{re.escape(name)}|{re.escape(quote(name)[1:-1])})"  # in a string, or as an identifier
        return re.compile(rf"(?<![\w$]){word}(?![\w$])", re.IGNORECASE if plain else 0)

    def warnings(self, session: Connection, *, becomes: str = "") -> list[str]:
        """The same before anything is changed: what contract will be refused for.

        Args:
            becomes: the new column that is yet to be made, if one takes over in the table.
        """
        number = session.value("catalog.column_number", self.oid, self.column)
        found = [
            f"{what} reads {quote(self.column)}: contract is refused while it does"
            for _, _, what in session.named("inventory.hangs", self.oid, number, becomes or None)
        ]
        found += [f"{reason}: contract is refused while it does" for reason in self.mentions(session).values()]
        if becomes:
            found += [
                f"trigger {quote(name)} fires for statements that set {quote(self.column)}, and not for those that set "
                f"{quote(becomes)}: once expand has run, make it fire for UPDATE OF both"
                for (name,) in session.named("inventory.update_of", self.oid, number)
            ]
        after = f"passes to {quote(becomes)}" if becomes else "is kept without a column"
        found += [
            f"sequence {name} belongs to {quote(self.column)}, and {after} when that is dropped"
            for (name,) in session.named("inventory.owned", self.oid, number)
        ]
        return found

    def losses(self, session: Connection) -> list[str]:
        """What goes with the column when nothing in the table takes over from it."""
        number = session.value("catalog.column_number", self.oid, self.column)
        return [loss for (loss,) in session.named("inventory.losses", self.oid, number)] if number is not None else []

    def keep_sequences(self) -> Step:
        """The step that lets sequences of the column live on, as DROP COLUMN would take them along."""
        table, owner = text(self.table.sql), f"{self.table.sql}.{quote(self.new)}" if self.new else "NONE"
        body = (
            "DECLARE zdm_sequence regclass; BEGIN FOR zdm_sequence IN SELECT d.objid FROM pg_depend d "
            "JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S' "
            "JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid "
            "WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a' "
            f"AND d.refobjid = {table}::regclass AND a.attname = {text(self.column)} "
            f"LOOP EXECUTE format('ALTER SEQUENCE %s OWNED BY %s', zdm_sequence, {text(owner)}); END LOOP; END"
        )
        return Step(
            name=f"keep the sequences that belong to {quote(self.column)}",
            sql=f"DO {text(body)}",
            reason="DROP COLUMN would take them along, whoever draws from them",
            lock="none",
        )


def settings(session: Connection, old: tuple[int, str], new: tuple[int, str], table: TableName) -> list[str]:
    """Statements that give a new column what belongs to an old one and has not been given yet.

    Args:
        old: oid of the table and the name of the column.
        new: the same of the new column, which may be in a copy of the table.
        table: for which the statements are written.
    """
    return [statement for statement, _ in session.named("inventory.settings", *old, *new, table.sql)]


def carried(
    session: Connection, table: TableName, oid: int, old: str, new: str, names: Mapping[str, str]
) -> list[Step]:
    """Steps that give the new column, its indexes and its constraints what those of the old one have today.

    Args:
        names: of indexes and constraints, from the old column's to the new one's.
    """
    steps = []
    pairs = json.dumps(dict(names))
    for block, values in (
        ("inventory.settings", (oid, old, oid, new, table.sql)),
        ("inventory.twins", (oid, pairs, table.sql)),
        ("inventory.statistics", (oid, old, new, table.sql)),
    ):
        for statement, *lock in session.named(block, *values):
            steps.append(
                _setting(statement, lock=_LOCKS[lock[0]] if lock else HARMLESS, lacking=_inlined(block, values))
            )
    for before, after, index in session.named("inventory.clustered", oid, pairs):
        steps.append(
            Step(
                name=f"let CLUSTER go by {quote(after)}",
                sql=f"ALTER TABLE {table.sql} CLUSTER ON {quote(after)}",
                reason=f"as it goes by {quote(before)}",
                lock=HARMLESS,
                undo=f"ALTER TABLE {table.sql} CLUSTER ON {quote(before)}",
                done_when=f"SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = {index} AND indisclustered)",
                undone_when=f"SELECT NOT EXISTS (SELECT FROM pg_index WHERE indexrelid = {index} AND indisclustered)",
            )
        )
    return steps


def _setting(statement: str, *, lock: str, lacking: str) -> Step:
    what = statement.split(" IS ")[0] if statement.startswith(("COMMENT", "SECURITY")) else statement
    return Step(
        name=what,
        sql=statement,
        reason="as it is on the old column",
        lock=lock,
        done_when=f"SELECT NOT EXISTS (SELECT FROM ({lacking}) AS zdm_lacking WHERE statement = {text(statement)})",
    )


def _inlined(block: str, values: tuple[object, ...]) -> str:
    """A named block as a query without values to bind."""
    literals = [str(value) if isinstance(value, int) else text(str(value)) for value in values]
    return re.sub(r"\$(\d)", lambda m: literals[int(m[1]) - 1], named_statements()[block])
