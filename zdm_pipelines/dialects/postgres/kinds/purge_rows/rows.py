"""Rows: the statements that delete matching rows, and count them beforehand.

What a batch deletes is what it has copied into the archive: it locks the rows first, lets go of those that something
stands against, and then names the very same rows in every statement; see `held`. The predicate is judged when a row's
lock is had, so a row that was written meanwhile and does not match any more stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.archive import Archive, Restore
from zdm_pipelines.dialects.postgres.children import Child, Fate, Tree
from zdm_pipelines.dialects.postgres.held import Held
from zdm_pipelines.dialects.postgres.kinds.purge_rows.declared import Facts
from zdm_pipelines.dialects.postgres.kinds.purge_rows.guard import guard
from zdm_pipelines.model.capabilities import ALL, Pick, Until
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Catalog, Key, Statement


@dataclass(frozen=True, kw_only=True)
class Purge:
    """Row work that takes matching rows away; see `RowWork` for what each member is."""

    over: Catalog
    facts: Facts
    archive: Archive | None
    destroys: bool = True
    until: Until = Until.SEEN
    written: str | None = None

    @cached_property
    def tree(self) -> Tree:
        """The table with those that refer to it."""
        return Tree(Held(number=0, source=f"ONLY {self.over.table.sql}"), self.facts.children)

    @property
    def _rows(self) -> str:
        """The table, beside it the values that were computed once."""
        once = ", ".join(f"{value} AS {quote(name)}" for name, value in self.facts.once.items())
        return self.tree.root.table + (f" CROSS JOIN (SELECT {once}) AS zdm_once" if once else "")

    @property
    def _goes(self) -> str:
        """Predicate: the row matches, and no child of it refuses."""
        return " AND ".join(part for part in (f"({self.facts.where})", self.tree.childless()) if part)

    @property
    def writes(self) -> dict[str, str]:
        return {table.sql: "DELETE" for table in (self.over.table, *(child.table for child in self.tree.deleted))}

    def batch(self, lower: Key | None, upper: Key | None, *, pick: Pick = ALL, repair: bool = False) -> list[Statement]:
        """Delete the matching rows of an interval that nobody has locked, and whose children nobody has locked."""
        interval, values = keys.between(self.over.key, lower, upper)
        wanted = self._goes if pick.among is None else pick.among(self._goes)
        return self._delete(f"{interval} AND {wanted}", values, wait=False, limit=pick.limit)

    def one(self, key: Key, *, repair: bool = False) -> list[Statement]:
        """Delete the row at a key when it still matches, waiting for locks on it and on its children."""
        row = f"{keys.row(self.over.key)} = {keys.bound(self.over.key, 1)}"
        return self._delete(f"{row} AND {self._goes}", [list(key)], wait=True)

    def _delete(
        self, rows: str, values: Sequence[list[str]], *, wait: bool, limit: int | None = None
    ) -> list[Statement]:
        root, tree = self.tree.root, self.tree
        locked = Statement(root.lock(f"{self._rows} WHERE {rows}", wait=wait, limit=limit), values)
        following = [*tree.narrow(wait=wait)]
        for child in reversed(tree.deleted):
            if self.archive is not None:
                following.append(self.archive.keep_child(child))
            following.append(child.held.delete())
        if self.archive is not None:
            following.append(self.archive.keep_row(root))
        guarded = guard(self.over, self.facts.children, archived=self.archive is not None)
        return [Statement(guarded), locked, *(Statement(sql) for sql in (*following, root.delete()))]

    def waiting(
        self, lower: Key | None, upper: Key | None, *, last: Key | None = None, repair: bool = False
    ) -> Statement:
        """How many rows of an interval match."""
        interval, values = keys.between(self.over.key, lower, upper, last=last)
        return Statement(f"SELECT count(*) FROM {self._rows} WHERE {interval} AND {self._goes}", values)

    def waiting_keys(self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False) -> Statement:
        """The first keys of them."""
        interval, values = keys.between(self.over.key, lower, upper)
        return Statement(
            f"SELECT {keys.as_text(self.over.key, row=self.tree.root.alias)} FROM {self._rows} "
            f"WHERE {interval} AND {self._goes} ORDER BY {keys.columns(self.over.key)} LIMIT {limit}",
            values,
        )

    def back(self) -> Restore | None:
        """From the archive, when there is one."""
        return None if self.archive is None else Restore(table=self.over, tree=self.tree, archive=self.archive)

    def refusing(self) -> list[tuple[Child, str, str]]:
        """Each foreign key that keeps rows: queries that count its rows, and for the first keys of those kept."""
        root, found = self.tree.root, []
        for child in (c for c in self.facts.children if c.fate is Fate.REFUSES):
            own = child.held
            matching = f"SELECT FROM {self._rows} WHERE ({self.facts.where}) AND {child.refers(own.alias, root.alias)}"
            count = f"SELECT count(*) FROM {own.table} WHERE EXISTS ({matching})"
            named = (
                f"SELECT {keys.as_text(self.over.key, row=root.alias)} FROM {self._rows} "
                f"WHERE ({self.facts.where}) AND EXISTS "
                f"(SELECT FROM {own.table} WHERE {child.refers(own.alias, root.alias)}) "
                f"ORDER BY {keys.columns(self.over.key)} LIMIT {_FEW}"
            )
            found.append((child, count, named))
        return found


_FEW = 5  # rows that a finding names
