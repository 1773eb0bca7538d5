"""Sync of an extracted table: the functions of both directions, and the triggers that call them.

Locks. A row of the source and the rows of the new table that belong to it are written by both directions, so that both
must lock them in one order: the source row first, always.

- Old code has locked the source row when its trigger writes the new table.
- An INSERT of new code locks the source row in a BEFORE trigger, when there is nothing else yet to lock; with ON
  CONFLICT too, for that trigger runs before the conflict is looked for.
- An UPDATE of new code would have its row locked before any row trigger runs. But the server evaluates a table's checks
  before it locks the row that is updated: so a check of the new table locks the source row. Who waited there updates
  the row as the one before has left it, by READ COMMITTED's rules, and no column is lost. In REPEATABLE READ it is a
  serialization failure. (A BEFORE UPDATE trigger of the application's on the new table has the row locked first, and
  undoes this.)
- A DELETE of new code, and an UPDATE of the key, have no such place: the new row is locked first. When old code writes
  the same source row at that very moment, the server ends one of the two transactions as a deadlock, as it does for
  code that locks rows of the new table on its own (FOR UPDATE) before it writes. Code that locks the source row before
  it deletes is safe from that.

So whoever writes the new table waits for the source row that its row belongs to, and for nobody else's.

Who wins. The shape that was written last, in one transaction too. One statement that writes both (by WITH) ends with
what it wrote first. Either function makes the other shape what the row is when it runs, not what one event says it was:
rows that exchange their keys, and triggers of the application that write the row again, end right in any order. Old
columns are written only where the shapes do not agree already, so that a write of new code that changes nothing of what
`up` reads costs the old columns none of what `down` loses.

A source row that cannot be mapped, or whose copy a constraint of the new table refuses, is no error of the
application's write: the row is then one that was not copied, and a batch names its key and says why.

In REPEATABLE READ and SERIALIZABLE the statements of a trigger do not see what was copied since the transaction began.
An upsert meets it as a serialization failure, which such applications repeat. A delete would meet nothing and leave the
copy behind: therefore the function makes it meet the key by an insert.

A row that was not copied yet. The new table has no row then, and new code that inserts one would, with the columns that
it leaves out, erase what the old columns say: an INSERT takes them from there. Therefore the new table has neither
defaults nor NOT NULL before contract; the BEFORE trigger fills defaults in. An element that is inserted beside an array
that was not copied yet brings the others of that array along, those that it does not replace.
"""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.postgres.expressions import TRIGGER_PREFIX
from zdm_pipelines.dialects.postgres.kinds.extract_table.functions import ExtractFunctions, differ
from zdm_pipelines.dialects.postgres.kinds.extract_table.sql import ExtractSql
from zdm_pipelines.model.names import fitted, quote


@dataclass(frozen=True)
class ExtractSync:
    """The functions and triggers of one extraction."""

    sql: ExtractSql

    @property
    def make(self) -> ExtractFunctions:
        """What gives each function as SQL."""
        return ExtractFunctions(self.sql)

    @property
    def functions(self) -> dict[str, str]:
        """Every function by its name with its arguments, in the order of creation."""
        sql, key = self.sql, ", ".join(c.type for c in self.sql.key)
        made = {
            f"{sql.named('note')}(text[], text, text)": self.make.note(),
            f"{sql.named('first')}({key})": self.make.first(key),
            f"{sql.named('fill')}()": self.make.fill(),
            f"{sql.named('copy')}()": self.make.copy(),
            f"{sql.named('back')}()": self.make.back(),
        }
        if sql.many:
            made[f"{sql.named('mark')}()"] = self.make.mark()
        return made

    @property
    def renaming(self) -> dict[str, str]:
        """The functions that name the old columns, and the one that may still record keys for contract's proof."""
        named = self.sql.named
        return {
            named("copy"): self.make.copy(),
            named("fill"): self.make.fill(),
            named("back"): self.make.back(),
            named("note"): self.make.note(),
        }

    @property
    def check(self) -> str:
        """Name of the check that locks the source row; checks are evaluated in the order of their names."""
        return fitted(f"{TRIGGER_PREFIX}{self.sql.name}_first")

    def create_check(self) -> str:
        """The check that locks the source row before a row of the new table is locked."""
        key = ", ".join(quote(c.name) for c in self.sql.key)
        return (
            f"ALTER TABLE {self.sql.table} ADD CONSTRAINT {quote(self.check)} CHECK ({self.sql.named('first')}({key}))"
        )

    # -- triggers -----------------------------------------------------------------------------------------

    @property
    def of_source(self) -> dict[str, str]:
        """The triggers of the source by name, each as SQL."""
        sql = self.sql
        watched = [*(c.name for c in sql.catalog.key), *map(sql.present, sql.change.olds)]
        changed = differ(watched)
        return dict(
            self._trigger(sql.source, event, f"AFTER {event.upper()}", "copy", changed if event == "update" else "")
            for event in ("insert", "update", "delete", "truncate")
        )

    @property
    def of_new(self) -> dict[str, str]:
        """The triggers of the new table by name, each as SQL."""
        names = [c.name for c in self.sql.target.columns]
        made = {
            "fill": ("BEFORE INSERT", "fill", ""),
            "back_0": ("AFTER INSERT", "mark", ""),  # sorts before the next one
            "back_insert": ("AFTER INSERT", "back", ""),
            "back_update": ("AFTER UPDATE", "back", differ(names)),
            "back_delete": ("AFTER DELETE", "back", ""),
            "back_truncate": ("AFTER TRUNCATE", "back", ""),
        }
        if not self.sql.many:
            del made["back_0"]
        return dict(self._trigger(self.sql.table, what, *how) for what, how in made.items())

    def _trigger(self, table: str, what: str, event: str, function: str, when: str) -> tuple[str, str]:
        name = fitted(f"{TRIGGER_PREFIX}{self.sql.name}_{what}")
        each = "STATEMENT" if event.endswith("TRUNCATE") else "ROW"
        condition = f"{when} AND {self.make.unguarded}" if when else self.make.unguarded
        return name, (
            f"CREATE TRIGGER {quote(name)} {event} ON {table} "
            f"FOR EACH {each} WHEN ({condition}) EXECUTE FUNCTION {self.sql.named(function)}()"
        )
