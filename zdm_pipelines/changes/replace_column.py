"""replace_column: a new column takes over from an old one in the same table."""

from __future__ import annotations

from dataclasses import replace

from zdm_pipelines.dialects.postgres import builds
from zdm_pipelines.dialects.postgres.builds import SHORT, constraint_exists, text
from zdm_pipelines.dialects.postgres.marking import Marking
from zdm_pipelines.dialects.postgres.replace_column import ReplaceColumnSql, expression
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.names import fitted, quote
from zdm_pipelines.model.values import Catalog, Rebuild, Step

_TRIGGER = "SHARE ROW EXCLUSIVE, for milliseconds"


class ReplaceColumnChange:
    """`Change` for replace_column; see the protocol for what each method is."""

    def __init__(
        self,
        migration: Migration,
        catalog: Catalog,
        migration_id: int,
        *,
        tombstoned: bool = False,
        marking: Marking | None = None,
    ) -> None:
        self._migration = migration
        self._catalog = catalog
        self._sql = ReplaceColumnSql(
            name=migration.name,
            migration_id=migration_id,
            change=migration.change,
            catalog=catalog,
            tombstoned=tombstoned,
            marking=marking,
        )
        self._behind = ReplaceColumnSql(
            name=migration.name,
            migration_id=migration_id,
            change=migration.change,
            catalog=catalog,
            tombstoned=True,
            marking=marking,
        )
        self.move = self._sql.move
        self.move_one = self._sql.move_one
        self.unmoved_keys = self._sql.unmoved_keys
        self.count_unmoved = self._sql.count_unmoved
        self.compare = self._sql.compare
        self.mismatched_keys = self._sql.mismatched_keys
        self.touched_disagreeing = self._sql.touched_disagreeing

    # -- expand -------------------------------------------------------------------------------------------

    def expand(self) -> list[Step]:
        sql, new = self._sql, quote(self._sql.new)
        steps = [
            Step(
                name=f"add column {new}",
                sql=f"ALTER TABLE {sql.table} ADD COLUMN {new} {sql.new_type}",
                reason="nullable and without default: no row is rewritten",
                lock=SHORT,
                undo=f"ALTER TABLE {sql.table} DROP COLUMN IF EXISTS {new}",
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
        return steps

    # -- validate -----------------------------------------------------------------------------------------

    def mark(self, marking: Marking) -> Step:
        return Step(
            name="note which ranges are written from now on",
            sql=replace(self._sql, marking=marking).create_function(),
            reason="so that the next validate reads only those again",
            lock="none",
        )

    def nulls(self) -> str:
        if self._migration.change.new.nullable:
            return ""
        count = f"SELECT count(*) FROM ONLY {self._sql.table} WHERE {quote(self._sql.new)} IS NULL"
        return f"SELECT CASE WHEN ({self._is_not_null()}) THEN 0 ELSE ({count}) END"

    def constrain(self) -> list[Step]:
        steps: list[Step] = []
        for rebuild in self._catalog.rebuilds:
            steps += {
                "index": self._index,
                "unique_index": self._index,
                "unique": self._unique,
                "check": self._constraint,
                "foreign_key": self._constraint,
            }[rebuild.kind](rebuild)
        if not self._migration.change.new.nullable:
            steps += self._not_null()
        return steps

    def _index(self, rebuild: Rebuild, *, unique: bool = False) -> list[Step]:
        return builds.index(
            self._catalog.table,
            rebuild.name,
            rebuild.definition,
            reason=f"as {quote(rebuild.original)} on the old column",
            unique=unique or rebuild.kind == "unique_index",
        )

    def _unique(self, rebuild: Rebuild) -> list[Step]:
        name = quote(rebuild.name)
        steps = self._index(rebuild, unique=True)
        attach = Step(
            name=f"make it the constraint {name}",
            sql=f"ALTER TABLE {self._sql.table} ADD CONSTRAINT {name} UNIQUE USING INDEX {name}{rebuild.deferrable}",
            reason=f"as {quote(rebuild.original)} on the old column; the index is there, so this is instant",
            lock=SHORT,
            undo=f"ALTER TABLE {self._sql.table} DROP CONSTRAINT IF EXISTS {name}",
            done_when=constraint_exists(self._catalog.table, rebuild.name),
        )
        return [*steps, attach]

    def _constraint(self, rebuild: Rebuild) -> list[Step]:
        reason = f"as {quote(rebuild.original)} on the old column"
        return builds.constraint(self._catalog.table, rebuild.name, rebuild.definition, reason=reason)

    def _is_not_null(self) -> str:
        return (
            f"SELECT attnotnull FROM pg_attribute WHERE attrelid = {text(self._sql.table)}::regclass "
            f"AND attname = {text(self._sql.new)}"
        )

    def _not_null(self) -> list[Step]:
        sql, new = self._sql, quote(self._sql.new)
        check = fitted(f"zdm_not_null_{sql.new}")
        is_set = self._is_not_null()
        prove = [
            replace(step, done_when=f"SELECT ({is_set}) OR ({step.done_when})")
            for step in builds.constraint(
                self._catalog.table, check, f"CHECK ({new} IS NOT NULL)", reason="proves that no row is NULL"
            )
        ]
        return [
            *prove,
            Step(
                name=f"set {new} NOT NULL",
                sql=f"ALTER TABLE {sql.table} ALTER COLUMN {new} SET NOT NULL",
                reason="the valid check proves it, so no row is read",
                lock=SHORT,
                undo=f"ALTER TABLE {sql.table} ALTER COLUMN {new} DROP NOT NULL",
                done_when=is_set,
            ),
            Step(
                name=f"drop check {quote(check)}",
                sql=f"ALTER TABLE {sql.table} DROP CONSTRAINT IF EXISTS {quote(check)}",
                reason="NOT NULL says the same",
                lock=SHORT,
                done_when=f"SELECT NOT ({constraint_exists(self._catalog.table, check)})",
            ),
        ]

    # -- contract -----------------------------------------------------------------------------------------

    def track(self, until: str) -> Step:
        return Step(
            name="record the keys of rows written from now on",
            sql=self._sql.create_function(track_until=until),
            reason="so that under the lock only these are compared again, not the whole table",
            lock="none",
            undo=self._sql.create_function(),
        )

    def tombstone(self) -> list[Step]:
        sql, old, tomb = self._sql, quote(self._migration.change.old), quote(self._behind.tombstone)
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
        if (default := self._migration.change.new.default) is not None:
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
        return [
            *drops,
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

    def sync_function(self) -> str:
        return self._sql.function

    def old_relation(self) -> str:
        return self._sql.old

    def new_relation(self) -> str:
        return self._sql.new

    def sync_triggers(self) -> tuple[str, ...]:
        return tuple(self._sql.trigger(event) for event in ("insert", "update"))
