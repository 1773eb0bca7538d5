"""Later: what came to the old column after the survey, and what the new one lacks for it today."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres import inventory
from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.inventory import Inventory
from zdm_pipelines.dialects.postgres.kinds.replace_column.rebuilds import Rebuilds
from zdm_pipelines.dialects.postgres.kinds.replace_column.sql import ReplaceColumnSql
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Rebuild, Step


@dataclass(frozen=True)
class Later:
    """Compares both columns as they are now."""

    sql: ReplaceColumnSql

    @property
    def inventory(self) -> Inventory:
        """What stands on the old column, as it is called now."""
        table, oid = self.sql.catalog.table, self.sql.catalog.oid
        return Inventory(table=table, oid=oid, column=self.sql.old, new=self.sql.new)

    def rebuilds(self, session: Connection) -> tuple[list[Rebuild], list[Problem]]:
        """Indexes and constraints that the survey did not see, as they will stand on the new column."""
        oid, known = self.sql.catalog.oid, {r.original for r in self.sql.facts.rebuilds}
        number = session.value("catalog.column_number", oid, self.sql.old)
        there = session.named("inventory.enforced", oid, number) if number is not None else []
        if all(invalid or name in known for _, name, invalid in there):
            return [], []
        with session.transaction(force_rollback=True):
            like = f"LIKE {self.sql.table} INCLUDING GENERATED"
            session.execute(f"CREATE TEMPORARY TABLE zdm_shape ({like}) ON COMMIT DROP".encode())
            job = Rebuilds(session, catalog=self.sql.catalog, change=self.sql.change)
            later = [found for found in job.find() if found.original not in known]
        return [self._standing(session, found) for found in later], job.problems

    def _standing(self, session: Connection, found: Rebuild) -> Rebuild:
        """The same under the name of what stands already on the new column, if something alike does."""
        oid = self.sql.catalog.oid
        if found.kind == "foreign_key":
            alike = session.named("inventory.standing", oid, found.original, self.sql.old, self.sql.new)
        elif found.kind == "check":
            alike = session.named("inventory.alike_check", oid, found.definition)
        else:
            unique, using = found.kind != "index", f"USING {found.definition}"
            alike = session.named("inventory.alike_index", oid, unique, using, found.kind == "unique")
        return replace(found, name=alike[0][0]) if alike else found

    def settings(self, session: Connection, rebuilds: list[Rebuild]) -> list[Step]:
        """What belongs to the old column, its indexes and its constraints and is yet to be given to the new ones."""
        sql, names = self.sql, {r.original: r.name for r in (*self.sql.facts.rebuilds, *rebuilds)}
        return inventory.carried(session, sql.catalog.table, sql.catalog.oid, sql.old, sql.new, names)

    def reasons(self, session: Connection) -> list[str]:
        """What stands on the old column today and cannot pass to the new one."""
        found = self.inventory.reasons(session)
        state = session.named("inventory.state", self.sql.catalog.oid, self.sql.old)
        if not state:
            return found
        _, not_null, default, identity = state[0]
        was, old, new = self.sql.catalog.column(self.sql.change.old), quote(self.sql.old), self.sql.new
        alter = f"ALTER TABLE {self.sql.table} ALTER COLUMN {old}"
        if identity and not was.identity:
            found.append(f"column {old} became an identity column, which the new one is not: {alter} DROP IDENTITY")
        elif default is not None and default != was.default:
            found.append(
                f"column {old} got the default {default}, which the new one has not: {alter} DROP DEFAULT, and give "
                f"{quote(new)} its default once {old} is out of sight"
            )
        if not_null and not was.not_null and not self._not_null(session):
            found.append(
                f"column {old} became NOT NULL, and {quote(new)} takes NULL, which fails through {old}: SET NOT NULL "
                f"on {quote(new)}, or {alter} DROP NOT NULL"
            )
        if not self.sql.tombstoned:
            found += [
                f"{old} has what cannot pass to {quote(new)}: {p} (to declare it otherwise, roll back and begin anew)"
                for p in self.rebuilds(session)[1]
            ]
        return found

    def _not_null(self, session: Connection) -> bool:
        state = session.named("inventory.state", self.sql.catalog.oid, self.sql.new)
        return bool(state and state[0][1])
