"""Steps: the statements of each phase that replaces a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres import builds, keys
from zdm_pipelines.dialects.postgres.builds import SHORT
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.expressions import expression
from zdm_pipelines.dialects.postgres.indexes import Index
from zdm_pipelines.dialects.postgres.inventory import Inventory
from zdm_pipelines.dialects.postgres.kinds.replace_column.later import Later
from zdm_pipelines.dialects.postgres.kinds.replace_column.sql import ReplaceColumnSql
from zdm_pipelines.dialects.postgres.new_indexes import FEW, NewIndex
from zdm_pipelines.model.capabilities import Notes
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Rebuild, Step

_TRIGGER = "SHARE ROW EXCLUSIVE, for milliseconds"


@dataclass(frozen=True)
class ReplaceColumnSteps:
    """Steps, sync and retirement over one column replacement, bound to how it stands now."""

    sql: ReplaceColumnSql

    @property
    def _behind(self) -> ReplaceColumnSql:
        """The same with the old column out of sight."""
        return replace(self.sql, tombstoned=True)

    # -- expand -------------------------------------------------------------------------------------------

    def expand(self) -> list[Step]:
        sql, new = self.sql, quote(self.sql.new)
        steps = [
            Step(
                name=f"add column {new}",
                sql=f"ALTER TABLE {sql.table} ADD COLUMN {new} {sql.new_type}",
                reason="nullable and without default: no row is rewritten",
                lock=SHORT,
                undo=f"ALTER TABLE {sql.table} DROP COLUMN IF EXISTS {new}",
            ),
            *(
                Step(name=setting.split(" IS ")[0], sql=setting, reason="as it is on the old column", lock=SHORT)
                for setting in sql.facts.settings
            ),
            Step(
                name="create the sync function",
                sql=sql.create_function(),
                reason="old code's writes appear in the new column and new code's in the old one",
                lock="none",
                undo=f"DROP FUNCTION IF EXISTS {sql.function}()",
            ),
        ]
        steps.append(
            Step(
                name="let nobody else use the sync function",
                sql=f"REVOKE ALL ON FUNCTION {sql.function}() FROM PUBLIC",
                reason="it runs with its owner's rights; firing a trigger needs no right to it",
                lock="none",
            )
        )
        for event in ("insert", "update"):
            trigger = quote(sql.trigger(event))
            steps.append(
                Step(
                    name=f"create the sync trigger for {event.upper()}",
                    sql=sql.create_trigger(event),
                    reason="in the same transaction as the column: there is no moment in which they are not in sync",
                    lock=_TRIGGER,
                    undo=f"DROP TRIGGER IF EXISTS {trigger} ON {sql.table}",
                )
            )
            steps.append(
                Step(
                    name=f"let it fire in every session ({event})",
                    sql=f"ALTER TABLE {sql.table} ENABLE ALWAYS TRIGGER {trigger}",
                    reason="sessions in replica role, such as logical replication, are mirrored too",
                    lock=_TRIGGER,
                )
            )
        return [*steps, *sql.naming.steps()]

    # -- validate -----------------------------------------------------------------------------------------

    def nulls(self) -> str:
        if self.sql.change.new.nullable:
            return ""
        count = f"SELECT count(*) FROM ONLY {self.sql.table} WHERE {quote(self.sql.new)} IS NULL"
        is_set = builds.is_not_null(self.sql.catalog.table, self.sql.new)
        return f"SELECT CASE WHEN ({is_set}) THEN 0 ELSE ({count}) END"

    def enforce(self) -> list[Step]:
        steps = self._rebuilt(self.sql.facts.rebuilds)
        if not self.sql.change.new.nullable:
            steps += builds.not_null(self.sql.catalog.table, self.sql.new, oid=self.sql.catalog.oid)
        return steps

    def _rebuilt(self, rebuilds: Sequence[Rebuild]) -> list[Step]:
        steps: list[Step] = []
        for rebuild in rebuilds:
            steps += {
                "index": self._index,
                "unique_index": self._index,
                "unique": self._unique,
                "check": self._constraint,
                "foreign_key": self._constraint,
            }[rebuild.kind](rebuild)
        return steps

    def today(self, session: Connection) -> list[Step]:
        """What came to the old column after the survey: the new one is to have it, too."""
        if self.sql.tombstoned:
            return []
        rebuilds, _ = self._later.rebuilds(session)
        return [*self._rebuilt(rebuilds), *self._later.settings(session, rebuilds)]

    @property
    def _later(self) -> Later:
        return Later(self.sql)

    def _index(self, rebuild: Rebuild) -> list[Step]:
        index = Index(
            name=rebuild.name,
            table=self.sql.catalog.table,
            table_oid=self.sql.catalog.oid,
            unique=rebuild.kind != "index",
            definition=rebuild.definition,
            where=rebuild.where,
            tablespace=rebuild.tablespace,
            columns=rebuild.columns,
        )
        new = NewIndex(index=index, elements=rebuild.elements, nulls_distinct=rebuild.nulls_distinct)
        colliding = new.duplicate_keys(self.sql.catalog.key) if rebuild.elements else ""
        return index.build(reason=f"as {quote(rebuild.original)} on the old column", broken_by=colliding)

    def _unique(self, rebuild: Rebuild) -> list[Step]:
        name, catalog = quote(rebuild.name), self.sql.catalog
        stands = builds.unique_constraint(catalog.table, catalog.oid, rebuild.name, deferrable=rebuild.deferrable)
        attach = Step(
            name=f"make it the constraint {name}",
            sql=f"ALTER TABLE {self.sql.table} ADD CONSTRAINT {name} UNIQUE USING INDEX {name}{rebuild.deferrable}",
            reason=f"as {quote(rebuild.original)} on the old column; the index is there, so this is instant",
            lock=SHORT,
            undo=f"ALTER TABLE {self.sql.table} DROP CONSTRAINT IF EXISTS {name}",
            done_when=f"SELECT {stands}",
            undone_when=f"SELECT NOT {stands}",
        )
        return [*self._index(rebuild), attach]

    def _constraint(self, rebuild: Rebuild) -> list[Step]:
        made = builds.Constraint(
            name=rebuild.name,
            table=self.sql.catalog.table,
            oid=self.sql.catalog.oid,
            definition=rebuild.definition,
            original=rebuild.original,
            validated=rebuild.validated,
            broken_by=self._broken_by(rebuild),
        )
        return made.add(reason=f"as {quote(rebuild.original)} on the old column")

    def _broken_by(self, rebuild: Rebuild) -> str:
        """Query: the first keys of rows that a constraint does not hold for."""
        key = self.sql.catalog.key
        return "".join(
            f"SELECT {keys.as_text(key, row='zdm_row')} FROM ONLY {self.sql.table} AS zdm_row "
            f"WHERE ({condition}) IS FALSE ORDER BY {keys.columns(key)} LIMIT {FEW}"
            for condition in rebuild.elements
        )

    # -- contract -----------------------------------------------------------------------------------------

    def tombstone(self) -> list[Step]:
        sql, old, tomb = replace(self.sql, tombstoned=False), quote(self.sql.change.old), quote(self._behind.tombstone)
        steps = [
            Step(
                name=f"rename {old} to {tomb}",
                sql=f"ALTER TABLE {sql.table} RENAME COLUMN {old} TO {tomb}",
                reason="whoever still uses it is found now, while it can come back",
                lock=SHORT,
                undo=f"ALTER TABLE {sql.table} RENAME COLUMN {tomb} TO {old}",
            ),
            Step(
                name="point the sync function at the tombstone",
                sql=self._behind.create_function(),
                reason="it is kept up to date, so that it can come back",
                lock="none",
                undo=sql.create_function(),
            ),
        ]
        if (default := self.sql.change.new.default) is not None:
            new = quote(sql.new)
            steps.append(
                Step(
                    name=f"set the default of {new}",
                    sql=f"ALTER TABLE {sql.table} ALTER COLUMN {new} SET DEFAULT {expression(default)}",
                    reason="only now: before, it would hide who wrote the old shape",
                    lock=SHORT,
                    undo=f"ALTER TABLE {sql.table} ALTER COLUMN {new} DROP DEFAULT",
                )
            )
        return steps

    def drop(self) -> list[Step]:
        sql = self._behind
        drops = [
            Step(
                name=f"drop the sync trigger for {event.upper()}",
                sql=f"DROP TRIGGER IF EXISTS {quote(sql.trigger(event))} ON {sql.table}",
                reason="nothing is left to mirror to",
                lock=SHORT,
            )
            for event in ("insert", "update")
        ]
        going = Inventory(table=sql.catalog.table, oid=sql.catalog.oid, column=sql.tombstone, new=sql.new)
        return [
            *drops,
            going.keep_sequences(),
            Step(
                name="drop the trigger that notes who names an old column",
                sql=sql.naming.drop,
                reason="nobody can name it any more",
                lock=SHORT,
            ),
            Step(
                name="drop the sync function",
                sql=f"DROP FUNCTION IF EXISTS {sql.function}()",
                reason="nothing calls it",
                lock="none",
            ),
            Step(
                name=f"drop {quote(sql.tombstone)}",
                sql=f"ALTER TABLE {sql.table} DROP COLUMN {quote(sql.tombstone)} RESTRICT",
                reason="a catalog change only; RESTRICT: never takes along what depends on it",
                lock=SHORT,
            ),
        ]

    def restore(self) -> list[Step]:
        """Nothing brings a dropped column back: only the tombstone does."""
        return []

    def dependents(self, session: Connection) -> list[str]:
        """What stands on the old column and cannot pass to the new one, or that the old one is gone."""
        return self._later.reasons(session)

    def mentions(self, session: Connection) -> dict[str, str]:
        """Who names the old column in a text."""
        return self._later.inventory.mentions(session)

    # -- sync ---------------------------------------------------------------------------------------------

    @property
    def function(self) -> str:
        """The sync function, quoted."""
        return self.sql.function

    @property
    def triggers(self) -> dict[int, tuple[str, ...]]:
        """The sync triggers of the table."""
        return {self.sql.catalog.oid: tuple(self.sql.trigger(event) for event in ("insert", "update"))}

    def note(self, notes: Notes) -> Step:
        """Make the sync function note something from now on; the undo is the function as it stands."""
        if notes.track_until is not None:
            name = "record the keys of rows written from now on"
            reason = "so that under the lock only these are compared again, not the whole table"
        else:
            name, reason = (
                "note which ranges are written from now on",
                "so that the next validate reads only those again",
            )
        noting = replace(self.sql, marking=notes.marking)
        return Step(
            name=name,
            sql=noting.create_function(track_until=notes.track_until),
            reason=reason,
            lock="none",
            undo=self.sql.create_function(),
        )
