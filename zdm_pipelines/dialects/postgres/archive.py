"""Archive: a table for the rows that go, one more for each table whose rows go with them, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.children import Child, Tree
from zdm_pipelines.dialects.postgres.held import Held
from zdm_pipelines.dialects.postgres.literals import text
from zdm_pipelines.model.capabilities import ALL, Pick, Until
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Catalog, Column, Key, Statement, Step

TRANSACTION = "zdm_transaction"  # the column that says which batch a row went with
_OURS = "none: a table that nobody knows yet"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """The tables that keep what a purge deletes."""

    name: TableName
    source: Catalog
    children: Sequence[Child]  # whose rows go, too
    owner: str
    readers: tuple[str, ...]

    def for_child(self, child: Child) -> TableName:
        """The table that keeps a child's rows."""
        return TableName(schema=self.name.schema, name=fitted(f"{self.name.name}_{child.table.name}"))

    def tables(self) -> list[TableName]:
        """Every table of the archive."""
        return [self.name, *(self.for_child(child) for child in self.children)]

    def create(self) -> list[Step]:
        """Steps of one transaction."""
        key = f"PRIMARY KEY ({keys.columns(self.source.key)}, {TRANSACTION})"
        steps = self._create(self.name, self.source.table, f", ADD {key}")
        for child in self.children:
            table = self.for_child(child)
            steps += self._create(table, child.table)
            columns = ", ".join(quote(own) for own, _ in child.columns)
            steps.append(
                Step(
                    name=f"index {table} by what its rows refer to",
                    sql=f"CREATE INDEX ON {table.sql} ({columns}, {TRANSACTION})",
                    reason="rows come back together with those that they refer to",
                    lock=_OURS,
                )
            )
        return steps

    def _create(self, table: TableName, source: TableName, more: str = "") -> list[Step]:
        column = f"{TRANSACTION} xid8 NOT NULL DEFAULT pg_current_xact_id()"
        steps = [
            Step(
                name=f"create archive {table}",
                # Neither constraints nor defaults are taken over: nothing may refuse a row, or alter it.
                sql=f"CREATE TABLE {table.sql} AS SELECT * FROM ONLY {source.sql} WITH NO DATA",
                reason=f"keeps the rows of {source} that go",
                lock="ACCESS SHARE: reads and writes go on",
                undo=_drop_empty(table),
            ),
            Step(
                name=f"let {table} say which transaction a row went with",
                sql=f"ALTER TABLE {table.sql} ADD COLUMN {column}{more}",
                reason="rows that went together come back together",
                lock=_OURS,
            ),
        ]
        reason, lock = "nobody else may read what is kept", _OURS
        if self.owner:
            owner = f"ALTER TABLE {table.sql} OWNER TO {quote(self.owner)}"
            steps.append(Step(name=f"give {table} to {self.owner}", sql=owner, reason=reason, lock=lock))
        if self.readers:
            revoke = f"REVOKE ALL ON {table.sql} FROM {', '.join(self.readers)}"
            steps.append(Step(name=f"let nobody else read {table}", sql=revoke, reason=reason, lock=lock))
        return steps

    def drop(self) -> list[Step]:
        """Steps that give up what is kept."""
        return [
            Step(
                name=f"drop archive {table}",
                sql=f"DROP TABLE IF EXISTS {table.sql} RESTRICT",
                reason="its window has ended; RESTRICT: never takes along what depends on it",
                lock="ACCESS EXCLUSIVE, on the archive alone",
            )
            for table in reversed(self.tables())
        ]

    def keep_row(self, held: Held) -> str:
        """Copy the held rows of the source."""
        return _copy(self.name, [c.name for c in self.source.columns], held)

    def keep_child(self, child: Child) -> str:
        """Copy the held rows of a child."""
        return _copy(self.for_child(child), child.all_columns, child.held)


def _copy(into: TableName, columns: Sequence[str], held: Held) -> str:
    listed = ", ".join(quote(name) for name in columns)
    return f"INSERT INTO {into.sql} ({listed}) SELECT {listed} FROM {held.table} WHERE {held.held}"


def _drop_empty(table: TableName) -> str:
    """What removes an archive unless rows would be lost with it."""
    told = f"archive {table} still keeps rows whose keys are in use again: look at them and delete them there"
    body = (
        f"BEGIN IF to_regclass({text(table.sql)}) IS NOT NULL THEN IF EXISTS (SELECT FROM {table.sql}) THEN "
        f"RAISE EXCEPTION USING ERRCODE = 'object_in_use', MESSAGE = {text(told)}; END IF; "
        f"DROP TABLE {table.sql}; END IF; END"
    )
    return f"DO {text(body)}"


@dataclass(frozen=True, kw_only=True)
class Restore:
    """Row work that brings rows back from an archive; see `RowWork` for what each member is.

    A row whose key, or whatever else is unique, the application has used anew stays in the archive, and its children
    with it. Of several rows of one key the last one comes back. Archived rows that somebody has locked are waited for,
    since nobody comes back for one that was passed over; a child would be left without its parent.
    """

    table: Catalog
    tree: Tree
    archive: Archive
    destroys: bool = False
    until: Until = Until.SEEN
    written: str | None = None

    @property
    def over(self) -> Catalog:
        """The archive; its oid is known to nobody before expand."""
        number = len(self.table.columns) + 1
        transaction = Column(
            name=TRANSACTION, type="xid8", not_null=True, default=None, generated=False, identity=False, number=number
        )
        columns, key = (*self.table.columns, transaction), (*self.table.key, transaction)
        return replace(self.table, table=self.archive.name, oid=0, rows=0, bytes=0, columns=columns, key=key)

    @property
    def _kept(self) -> Held:
        return Held(number=0, source=f"ONLY {self.archive.name.sql}")

    @property
    def _waits(self) -> str:
        """Predicate: the key is free, and the row is the last one that had it."""
        kept = self._kept.alias
        same = " AND ".join(f"zdm_other.{quote(c.name)} = {kept}.{quote(c.name)}" for c in self.table.key)
        later = f"{same} AND zdm_other.{TRANSACTION} > {kept}.{TRANSACTION}"
        return (
            f"NOT EXISTS (SELECT FROM ONLY {self.table.table.sql} AS zdm_other WHERE {same}) "
            f"AND NOT EXISTS (SELECT FROM ONLY {self.archive.name.sql} AS zdm_other WHERE {later})"
        )

    @property
    def writes(self) -> dict[str, str]:
        return {table.sql: "INSERT" for table in (self.table.table, *(child.table for child in self.tree.deleted))}

    def batch(self, lower: Key | None, upper: Key | None, *, pick: Pick = ALL, repair: bool = False) -> list[Statement]:
        """Bring back the rows of an interval of the archive's key."""
        interval, values = keys.between(self.over.key, lower, upper)
        wanted = self._waits if pick.among is None else pick.among(self._waits)
        return self._bring(f"{interval} AND {wanted}", values, limit=pick.limit)

    def one(self, key: Key, *, repair: bool = False) -> list[Statement]:
        """Bring back the row at a key of the archive."""
        row = f"{keys.row(self.over.key)} = {keys.bound(self.over.key, 1)}"
        return self._bring(f"{row} AND {self._waits}", [list(key)])

    def _bring(self, rows: str, values: Sequence[list[str]], *, limit: int | None = None) -> list[Statement]:
        kept, source = self._kept, self.table
        columns = [c.name for c in source.columns if not c.generated]
        locked = Statement(kept.lock(f"{kept.table} WHERE {rows}", wait=True, limit=limit), values)
        following = [_insert(kept, source.table, columns, [c.name for c in source.key])]
        deletes = [kept.delete()]
        kept_of = {0: kept}
        for child in self.tree.deleted:
            own = kept_of[child.number] = Held(number=child.number, source=f"ONLY {self.archive.for_child(child).sql}")
            parent = kept_of[child.parent]
            match = (
                f"{child.refers(own.alias, parent.alias)} AND {own.alias}.{TRANSACTION} = {parent.alias}.{TRANSACTION}"
            )
            following.append(own.lock(f"{own.table} JOIN {parent.table} ON {match} WHERE {parent.held}", wait=True))
            columns = [name for name in child.all_columns if name not in child.generated]
            following.append(_insert(own, child.table, columns, child.key))
            deletes.append(own.delete())
        return [locked, *(Statement(sql) for sql in (*following, *reversed(deletes)))]

    def waiting(
        self, lower: Key | None, upper: Key | None, *, last: Key | None = None, repair: bool = False
    ) -> Statement:
        """How many rows of an interval can come back."""
        interval, values = keys.between(self.over.key, lower, upper, last=last)
        return Statement(f"SELECT count(*) FROM {self._kept.table} WHERE {interval} AND {self._waits}", values)

    def waiting_keys(self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False) -> Statement:
        """The first keys of them."""
        interval, values = keys.between(self.over.key, lower, upper)
        return Statement(
            f"SELECT {keys.as_text(self.over.key, row=self._kept.alias)} FROM {self._kept.table} "
            f"WHERE {interval} AND {self._waits} ORDER BY {keys.columns(self.over.key)} LIMIT {limit}",
            values,
        )

    def back(self) -> None:
        """Nothing: contract does it again."""


def _insert(kept: Held, table: TableName, columns: Sequence[str], key: Sequence[str]) -> str:
    """Insert held rows of an archive where they came from, and go on with those whose place was free."""
    listed, returned = (", ".join(quote(name) for name in names) for names in (columns, key))
    insert = (
        f"INSERT INTO {table.sql} ({listed}) OVERRIDING SYSTEM VALUE SELECT {listed} FROM {kept.table} "
        f"WHERE {kept.held} ON CONFLICT DO NOTHING RETURNING {returned}"
    )
    match = " AND ".join(f"zdm_written.{quote(name)} = {kept.alias}.{quote(name)}" for name in key)
    return kept.keep_written(insert, match)
