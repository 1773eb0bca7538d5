"""Steps: the statements of each phase that extracts a table."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres import builds
from zdm_pipelines.dialects.postgres.builds import SHORT
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.expressions import TRIGGER_PREFIX, expression
from zdm_pipelines.dialects.postgres.indexes import Index
from zdm_pipelines.dialects.postgres.inventory import Inventory
from zdm_pipelines.dialects.postgres.kinds.extract_table.sql import ExtractSql
from zdm_pipelines.dialects.postgres.kinds.extract_table.sync import ExtractSync
from zdm_pipelines.dialects.postgres.naming import Naming
from zdm_pipelines.model.capabilities import Notes
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Step

_TRIGGER = "SHARE ROW EXCLUSIVE, for milliseconds"
_UNKNOWN = "none on a table that anybody knows"


@dataclass(frozen=True)
class ExtractSteps:
    """Steps, sync and retirement over one extracted table, bound to how it stands now."""

    sql: ExtractSql
    created: int = 0  # oid of the new table, 0 until expand has made it

    @property
    def _sync(self) -> ExtractSync:
        return ExtractSync(self.sql)

    @property
    def _behind(self) -> ExtractSql:
        """The same with the old columns out of sight."""
        return replace(self.sql, tombstoned=True)

    # -- expand -------------------------------------------------------------------------------------------

    def expand(self) -> list[Step]:
        """The new table, and both directions of the sync."""
        return [self._create(), *self._unique(), *self._grants(), *self._functions(), *self._check(), *self._triggers()]

    def _create(self) -> Step:
        sql = self.sql
        collated = {
            held.name: self.sql.facts.collations.get(own.name)
            for own, held in zip(sql.catalog.key, sql.key, strict=True)
        }
        lines = [
            f"  {quote(c.name)} {c.type}" + (f" COLLATE {found}" if (found := collated.get(c.name)) else "")
            for c in sql.target.columns
        ]
        lines.append(f"  PRIMARY KEY ({', '.join(quote(c.name) for c in sql.target.key)})")
        return Step(
            name=f"create table {sql.table}",
            sql=f"CREATE TABLE {sql.table} (\n" + ",\n".join(lines) + "\n)",
            reason="with what must stand before its first row; NOT NULL, foreign key and indexes wait for the rows",
            lock="none",
            undo=f"DROP TABLE IF EXISTS {sql.table}",
        )

    def _unique(self) -> list[Step]:
        return [
            Step(
                name=f"create unique index {quote(index.name)}",
                sql=f"CREATE UNIQUE INDEX {quote(index.name)} ON {self.sql.table} "
                f"USING {index.using} {index.definition}",
                reason="a duplicate is met by the write that makes it",
                lock=_UNKNOWN,
            )
            for index in self.sql.change.new.indexes
            if index.unique
        ]

    def _grants(self) -> list[Step]:
        if self.sql.change.grants is None:
            return []
        return [
            Step(name="grant what is granted on the source", sql=grant, reason="grants: copy", lock=_UNKNOWN)
            for grant in self.sql.facts.grants
        ]

    def _functions(self) -> list[Step]:
        steps = []
        for name, body in self._sync.functions.items():
            steps.append(
                Step(
                    name=f"create function {name}",
                    sql=body,
                    reason="part of the sync: either shape shows what the other was given",
                    lock="none",
                    undo=f"DROP FUNCTION IF EXISTS {name}",
                )
            )
            if not name.startswith(f"{self.sql.named('first')}("):  # that one runs with the rights of who writes
                steps.append(
                    Step(
                        name=f"let nobody else use {name}",
                        sql=f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC",
                        reason="it runs with its owner's rights; firing a trigger needs no right to it",
                        lock="none",
                    )
                )
        return steps

    def _check(self) -> list[Step]:
        view = self.sql.named("source")
        return [
            Step(
                name=f"create view {view}",
                sql=self._sync.make.lockable(),
                reason="whoever may write the new table locks source rows by it, and nobody else",
                lock="ACCESS SHARE: reads and writes go on",
                undo=f"DROP VIEW IF EXISTS {view}",
            ),
            Step(
                name=f"let everybody use {view}",
                sql=f"GRANT SELECT, UPDATE ON {view} TO PUBLIC",
                reason="a lock needs the right to update, though nothing can be updated by it",
                lock="none",
            ),
            Step(
                name="lock source rows before rows of the new table",
                sql=self._sync.create_check(),
                reason="both directions lock in one order, so that they do not deadlock",
                lock=_UNKNOWN,
                undo=f"ALTER TABLE IF EXISTS {self.sql.table} DROP CONSTRAINT IF EXISTS {quote(self._sync.check)}",
            ),
        ]

    def _triggers(self) -> list[Step]:
        made = [(self.sql.table, name, create) for name, create in self._sync.of_new.items()]
        made += [(self.sql.source, name, create) for name, create in self._sync.of_source.items()]
        steps = []
        for table, name, create in made:
            steps.append(
                Step(
                    name=f"create trigger {quote(name)}",
                    sql=create,
                    reason="in the same transaction as the table: there is no moment in which they are not in sync",
                    lock=_TRIGGER if table == self.sql.source else _UNKNOWN,
                    undo=f"DROP TRIGGER IF EXISTS {quote(name)} ON {table}",
                )
            )
            steps.append(
                Step(
                    name=f"let {quote(name)} fire in every session",
                    sql=f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {quote(name)}",
                    reason="sessions in replica role, such as logical replication, are mirrored too",
                    lock=_TRIGGER if table == self.sql.source else _UNKNOWN,
                )
            )
        return [*steps, *self._naming.steps()]

    @property
    def _naming(self) -> Naming:
        sql = self.sql
        name, columns = fitted(f"{TRIGGER_PREFIX}{sql.name}_names"), tuple(sql.change.olds)
        when = self._sync.make.unguarded
        return Naming(table=sql.source, name=name, migration_id=sql.migration_id, columns=columns, when=when)

    # -- validate -----------------------------------------------------------------------------------------

    @property
    def _table(self) -> TableName:
        return self.sql.change.new.table_name

    def nulls(self) -> str:
        """A query that counts rows with NULL where there may be none in the end; empty: NULL may be anywhere."""
        required = [name for name, c in self.sql.change.new.columns.items() if not c.nullable]
        if not required:
            return ""
        done = " AND ".join(f"({builds.is_not_null(self._table, name)})" for name in required)
        is_null = " OR ".join(f"{quote(name)} IS NULL" for name in required)
        return f"SELECT CASE WHEN {done} THEN 0 ELSE (SELECT count(*) FROM {self.sql.table} WHERE {is_null}) END"

    def enforce(self) -> list[Step]:
        """What waited for the rows."""
        new, table = self.sql.change.new, self._table
        steps: list[Step] = []
        for index in new.indexes:
            if not index.unique:
                late = Index(
                    name=index.name, table=table, table_oid=self.created, unique=False,
                    definition=f"{index.using} {index.definition}", printed=False,
                )  # fmt: skip
                steps += late.build(reason="put off until the rows were there")
        if new.foreign_key:
            definition = (
                f"FOREIGN KEY ({', '.join(quote(c.name) for c in self.sql.key)}) REFERENCES {self.sql.source} "
                f"({', '.join(quote(c.name) for c in self.sql.catalog.key)}) ON UPDATE CASCADE ON DELETE CASCADE"
            )
            reason = "each row belongs to a source row, and goes with it"
            key = builds.Constraint(name=self.foreign_key, table=table, definition=definition, printed=False)
            steps += key.add(reason=reason)
        for name, column in new.columns.items():
            if not column.nullable and name not in {c.name for c in self.sql.target.key}:
                steps += builds.not_null(table, name)
        return steps

    @property
    def foreign_key(self) -> str:
        """Name of the foreign key to the source."""
        return fitted(f"{self._table.name}_{'_'.join(c.name for c in self.sql.key)}_fkey")

    # -- contract -----------------------------------------------------------------------------------------

    def tombstone(self) -> list[Step]:
        """The old columns out of sight, and what mirrors them pointed at their new names."""
        before, behind = replace(self.sql, tombstoned=False), self._behind
        steps = [
            Step(
                name=f"rename {quote(old)} to {quote(tomb)}",
                sql=f"ALTER TABLE {before.source} RENAME COLUMN {quote(old)} TO {quote(tomb)}",
                reason="whoever still uses it is found now, while it can come back",
                lock=SHORT,
                undo=f"ALTER TABLE {before.source} RENAME COLUMN {quote(tomb)} TO {quote(old)}",
            )
            for old, tomb in before.tombstones.items()
        ]
        earlier = ExtractSync(before).renaming
        steps += [
            Step(
                name=f"point {name} at the tombstone",
                sql=body,
                reason="it is kept up to date, so that it can come back",
                lock="none",
                undo=earlier[name],
            )
            for name, body in ExtractSync(behind).renaming.items()
        ]
        steps += [
            Step(
                name=f"set the default of {quote(name)}",
                sql=f"ALTER TABLE {before.table} ALTER COLUMN {quote(name)} SET DEFAULT {expression(column.default)}",
                reason="only now: before, it would hide what an insert left out",
                lock=SHORT,
                undo=f"ALTER TABLE {before.table} ALTER COLUMN {quote(name)} DROP DEFAULT",
            )
            for name, column in before.change.new.columns.items()
            if column.default is not None
        ]
        return steps

    def drop(self) -> list[Step]:
        """The sync, then the old columns."""
        behind = replace(self, sql=self._behind)
        gone = [*behind._functions(), *behind._check(), *behind._triggers()]
        steps = [step.undoing() for step in reversed(gone) if step.undo]
        return [
            *(
                replace(
                    step, name=step.name.replace("undo create", "drop"), reason="nothing is left to mirror", lock=SHORT
                )
                for step in steps
            ),
            *(replace(self, sql=self._behind)._inventory(old).keep_sequences() for old in self.sql.change.olds),
            *(
                Step(
                    name=f"drop {quote(tomb)}",
                    sql=f"ALTER TABLE {self.sql.source} DROP COLUMN {quote(tomb)} RESTRICT",
                    reason="a catalog change only; RESTRICT: never takes along what depends on it",
                    lock=SHORT,
                )
                for tomb in self.sql.tombstones.values()
            ),
        ]

    def restore(self) -> list[Step]:
        """Nothing: only a tombstone comes back."""
        return []

    def _inventory(self, old: str) -> Inventory:
        return Inventory(table=self.sql.catalog.table, oid=self.sql.catalog.oid, column=self.sql.present(old))

    def dependents(self, session: Connection) -> list[str]:
        """Everything that stands on an old column, that came to it after the survey, or that one is gone."""
        found, seen = [], self.sql.facts.losses
        for old in self.sql.change.olds:
            going = self._inventory(old)
            found += going.reasons(session)
            if seen is not None:
                found += [
                    f"{loss} came to {going.column} after expand and goes with it: give {self._table} the "
                    "like, then drop it"
                    for loss in going.losses(session)
                    if loss not in seen.get(old, ())
                ]
        return found

    def mentions(self, session: Connection) -> dict[str, str]:
        """Who names an old column in a text."""
        found: dict[str, str] = {}
        for old in self.sql.change.olds:
            found |= self._inventory(old).mentions(session)
        return found

    # -- sync ---------------------------------------------------------------------------------------------

    @property
    def function(self) -> str:
        """Empty: the sync cannot note which ranges are written, for two tables are."""
        return ""

    @property
    def triggers(self) -> dict[int, tuple[str, ...]]:
        """The sync triggers of both tables; 0 stands for a table that expand is yet to create."""
        return {
            self.sql.catalog.oid: tuple(self._sync.of_source),
            self.created: tuple(self._sync.of_new),
        }

    def note(self, notes: Notes) -> Step:
        """Make the sync record keys from now on; the undo is the function as it stands."""
        return Step(
            name="record the keys of rows written from now on",
            sql=self._sync.make.note(track_until=notes.track_until),
            reason="so that under the lock only these are compared again, not the whole table",
            lock="none",
            undo=self._sync.make.note(),
        )
