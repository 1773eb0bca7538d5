"""The SQL of extracting a table: what a source row says and the new table holds, batches, parity.

A source row *says* no, one or several rows of the new table: those that `up` gives where `when` holds, one for each
element of `each`. The shapes agree when the new table holds exactly these; or else when the old columns are what `down`
gives of what it holds, for rows that new code wrote where `down` loses information.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.copy_rows import CopyRowsSql, Elements
from zdm_pipelines.dialects.postgres.expressions import expression, same
from zdm_pipelines.dialects.postgres.kinds.extract_table.declared import Declared, Facts
from zdm_pipelines.dialects.postgres.pair import Compared, PairSql
from zdm_pipelines.model.capabilities import Pick, Until
from zdm_pipelines.model.names import fitted, quote
from zdm_pipelines.model.values import Catalog, Column, Key, Statement

POSITION = "integer"  # the type of a column that numbers elements


@dataclass(frozen=True, kw_only=True)
class ExtractSql:
    """SQL for one `extract_table`; the old columns have other names once they are out of sight."""

    name: str  # of the migration
    migration_id: int
    change: Declared
    catalog: Catalog  # of the source
    facts: Facts
    tombstoned: bool = False

    # -- names --------------------------------------------------------------------------------------------

    @property
    def many(self) -> bool:
        """Whether one source row gives several rows."""
        return self.change.each is not None

    @property
    def tombstones(self) -> dict[str, str]:
        """What the old columns are called once they are out of sight."""
        return {old: fitted(f"zdm_tombstone_{old}") for old in self.change.olds}

    def present(self, old: str) -> str:
        """What an old column is called now."""
        return self.tombstones[old] if self.tombstoned else old

    def named(self, what: str) -> str:
        """A function of this migration, quoted."""
        return f"zdm.{quote(fitted(f'{what}_{self.name}'))}"

    @property
    def source(self) -> str:
        return self.catalog.table.sql

    @property
    def table(self) -> str:
        return self.change.new.table_name.sql

    @property
    def alias(self) -> str:
        """The new table's bare name, so that `down` may say user_settings.theme."""
        return quote(self.change.new.table_name.name)

    @property
    def element(self) -> str | None:
        """The column that tells the rows of one source row apart; none: there is one row at most."""
        return self.change.new.position or self.change.new.element_key

    @property
    def columns(self) -> dict[str, str]:
        """The new table's columns outside its key, each with its `up`."""
        return {name: c.up for name, c in self.change.new.columns.items() if name != self.change.new.element_key}

    @property
    def target(self) -> Catalog:
        """The new table as expand creates it; its key begins with the source's, column by column."""
        new = self.change.new
        held = {source: name for name, source in new.key.items()}
        types = {held[c.name]: c.type for c in self.catalog.key}
        if new.position:
            types[new.position] = POSITION
        key = [*types, *([new.element_key] if new.element_key else [])]
        types |= {name: c.type for name, c in new.columns.items()}
        columns = {
            name: Column(
                name=name, type=t, not_null=name in key, default=None, generated=False, identity=False, number=number
            )
            for number, (name, t) in enumerate(types.items(), 1)
        }
        return Catalog(
            table=new.table_name,
            oid=0,
            rows=self.catalog.rows,
            bytes=0,
            columns=tuple(columns.values()),
            key=tuple(columns[name] for name in key),
        )

    @property
    def key(self) -> tuple[Column, ...]:
        """The columns of the new table that hold the source's key, in the order of the source's."""
        return self.target.key[: len(self.catalog.key)]

    # -- what a source row says, and what the new table holds ------------------------------------------------

    def absent(self, old: str) -> str:
        """What an old column holds where the new table has no row: what an insert that leaves it out gives."""
        column = self.catalog.column(old)
        return f"({column.default})::{column.type}" if column.default is not None else "NULL"

    @property
    def when(self) -> str:
        """Predicate over a source row: it says rows. By default: one of the old columns holds something."""
        if self.change.when is not None:
            return self.change.when
        if self.many:
            return "true"
        kept = []
        for old in self.change.olds:
            column = self.catalog.column(old)
            held = f"{self.copy_alias}.{quote(old)}"
            unlike = (
                f" AND NOT ({same(held, f'({column.default})', column.type)})" if column.default is not None else ""
            )
            kept.append(f"{held} IS NOT NULL{unlike}")
        return " OR ".join(f"({part})" if " AND " in part else part for part in kept)

    @property
    def _wrote(self) -> str:
        """Which shape a write to the source is one of. New code inserts source rows, too, and deletes them."""
        kept, changed = [], []
        for old in self.change.olds:
            column, now = self.catalog.column(old), quote(self.present(old))
            kept.append(f"pg_catalog.record_image_ne(ROW(NEW.{now}), ROW({self.absent(old)}::{column.type}))")
            changed.append(f"pg_catalog.record_image_ne(ROW(NEW.{now}), ROW(OLD.{now}))")
        return (
            f"CASE WHEN TG_OP = 'INSERT' AND ({' OR '.join(kept)}) "
            f"OR TG_OP = 'UPDATE' AND ({' OR '.join(changed)}) THEN 'old' END"
        )

    @property
    def copy_alias(self) -> str:
        """The source's bare name, so that expressions may say users.profile."""
        return quote(self.catalog.table.name)

    @property
    def copy(self) -> CopyRowsSql:
        """The copy from the source to the new table."""
        elements = None
        if self.change.each is not None:
            told_apart = self.change.new.element_key
            elements = Elements(
                rows=f"pg_catalog.jsonb_array_elements(nullif({expression(self.change.each)}::jsonb, 'null')) "
                "WITH ORDINALITY AS zdm_each (element, position)",
                key=self.change.new.columns[told_apart].up if told_apart else f"position::{POSITION}",
                unmoved=self.named("unmoved"),
            )
        plain = CopyRowsSql(
            name=self.name,
            migration_id=self.migration_id,
            source=self.catalog,
            target=self.target,
            columns=self.columns,
            reads=self.change.olds,
            when=self.when,
            elements=elements,
            renamed=self.tombstones if self.tombstoned else {},
            note=self.named("note"),
            wrote=self._wrote,
        )
        return replace(plain, disagrees=self._disagrees(elements))

    def said(self, elements: Elements | None) -> str:
        """What the source row says: its rows as text[], in order."""
        values = [f"{expression(c.up)}::{c.type}" for n, c in self.change.new.columns.items() if n in self.columns]
        if elements is None:
            return f"ARRAY(SELECT ROW({', '.join(values)})::text WHERE {expression(self.when)})"
        first = f"{expression(elements.key)}::{self.target.key[-1].type}"
        return (
            f"ARRAY(SELECT ROW({', '.join((first, *values))})::text FROM {elements.rows} "
            f"WHERE {expression(self.when)} ORDER BY {first})"
        )

    def _row(self, alias: str) -> str:
        """A row of the new table in the form of `said`."""
        names = [*([self.element] if self.element else []), *self.columns]
        return f"ROW({', '.join(f'{alias}.{quote(name)}' for name in names)})::text"

    def held(self, matched: str) -> str:
        """What the new table (`zdm_target`) holds where a predicate says so: its rows as text[], in order."""
        ordered = f" ORDER BY zdm_target.{quote(self.element)}" if self.element else ""
        return f"ARRAY(SELECT {self._row('zdm_target')} FROM ONLY {self.table} AS zdm_target WHERE {matched}{ordered})"

    def matched(self, alias: str) -> str:
        """Predicate: a row of the new table belongs to the source row."""
        return " AND ".join(
            f"{alias}.{quote(t.name)} = {self.copy_alias}.{quote(s.name)}"
            for s, t in zip(self.catalog.key, self.key, strict=True)
        )

    def _disagrees(self, elements: Elements | None) -> str:
        """Predicate over a source row: the shapes disagree."""
        back = " AND ".join(
            same(f"{self.copy_alias}.{quote(old)}", expression(down), self.catalog.column(old).type)
            for old, down in self.change.downs.items()
        )
        rows = f"FROM ONLY {self.table} AS {self.alias} WHERE {self.matched(self.alias)}"
        through_down = f"(SELECT {back} {rows})" if self.many else f"EXISTS (SELECT {rows} AND {back})"
        return f"NOT ({self.said(elements)} = {self.held(self.matched('zdm_target'))} OR {through_down})"

    # -- batches ------------------------------------------------------------------------------------------

    @property
    def over(self) -> Catalog:
        return self.catalog

    destroys = False
    until = Until.NONE_WAITS
    written = None  # rows of the source are only read

    def back(self) -> None:
        """Nothing: the new table is dropped with what it holds."""

    def batch(self, lower: Key | None, upper: Key | None, *, pick: Pick, repair: bool = False) -> list[Statement]:
        """One batch. With `repair` first the rows go that no source row says."""
        interval, values = keys.between(self.catalog.key, lower, upper)
        first = [
            self.copy.remove_extra(lower, upper),
            Statement(self._removed(interval, wait=False), values),
        ]
        return [*(first if repair else []), *self.copy.batch(lower, upper, repair=repair, pick=pick)]

    def one(self, key: Key, *, repair: bool = False) -> list[Statement]:
        """The same for the one row at a key, which is waited for."""
        at = f"{keys.row(self.catalog.key)} = {keys.bound(self.catalog.key, 1)}"
        first = [Statement(self._removed(at, wait=True), [list(key)])]
        return [*(first if repair else []), *self.copy.one(key, repair=repair)]

    def _removed(self, at: str, *, wait: bool) -> str:
        """Take away what source rows do not say: all rows of one, where there may be several."""
        copy = self.copy
        unsaid = copy.disagrees if self.many else f"NOT coalesce({expression(self.when)}, false) AND {copy.disagrees}"
        locked = f"FOR SHARE OF {copy.alias}{'' if wait else ' SKIP LOCKED'}"
        held = " AND ".join(
            f"zdm_target.{quote(t.name)} = zdm_batch.{quote(s.name)}"
            for s, t in zip(self.catalog.key, self.key, strict=True)
        )
        return f"""\
WITH zdm_batch AS MATERIALIZED (
  SELECT {keys.columns(self.catalog.key)} FROM {copy.rows}
  WHERE {at} AND {unsaid}
  {locked}
)
DELETE FROM ONLY {self.table} AS zdm_target USING zdm_batch WHERE {held}"""

    def waiting(self, lower: Key | None, upper: Key | None, *, repair: bool = False) -> Statement:
        """How many source rows of an interval wait."""
        return self.copy.waiting(lower, upper, repair=repair)

    def waiting_keys(self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False) -> Statement:
        """The first keys of them."""
        return self.copy.waiting_keys(lower, upper, limit=limit, repair=repair)

    # -- parity -------------------------------------------------------------------------------------------

    @property
    def pair(self) -> PairSql:
        """Both tables, row by row; where a source row says several rows, all of them are compared as one."""
        copy, downs = self.copy, self.change.downs
        if self.many:
            said = self.said(copy.elements)
            rows, wanted = self._grouped(), f"cardinality({said}) > 0"
            compared = [Compared(old=said, new="zdm_held", type="text[]")]
            downs = {old: f"zdm_down_{i}" for i, old in enumerate(downs, 1)}
        else:
            types = {c.name: c.type for c in self.target.columns}
            rows, wanted = f"ONLY {self.table} AS {self.alias}", self.when
            compared = [Compared(old=up, new=quote(name), type=types[name]) for name, up in self.columns.items()]
        return PairSql(
            old=self.catalog,
            new=replace(self.target, key=self.key),
            compared=compared,
            back=[
                Compared(old=f"{copy.alias}.{quote(old)}", new=down, type=self.catalog.column(old).type)
                for old, down in downs.items()
            ],
            wanted=wanted,
            old_rows=copy.rows,
            new_rows=rows,
        )

    def _grouped(self) -> str:
        """The new table as a FROM item with one row for each source row: what it holds, and what `down` gives of it."""
        key, order = keys.columns(self.key), f"{self.alias}.{quote(self.target.key[-1].name)}"
        listed = [key, f"array_agg({self._row(self.alias)} ORDER BY {order}) AS zdm_held"]
        listed += [f"{expression(down)} AS zdm_down_{i}" for i, down in enumerate(self.change.downs.values(), 1)]
        return f"(SELECT {', '.join(listed)} FROM ONLY {self.table} AS {self.alias} GROUP BY {key}) AS {self.alias}"

    def compare(self, lower: Key | None, upper: Key | None) -> Statement:
        """Counts: rows, missing, extra, different, agreeing through `down` only, not copied."""
        return self.pair.verdict(lower, upper)

    def mismatched_keys(self, category: str, lower: Key | None, upper: Key | None, *, limit: int) -> Statement:
        """The first keys of one category."""
        return self.pair.mismatched_keys(category, lower, upper, limit=limit)

    def touched_disagreeing(self) -> str:
        """Take the keys recorded so far ($1: migration id); how many there were, how many of them disagree."""
        return (
            "WITH zdm_touched AS (DELETE FROM zdm.touched WHERE migration_id = $1 RETURNING key), "
            "zdm_taken AS MATERIALIZED (SELECT DISTINCT key FROM zdm_touched) "
            "SELECT (SELECT count(*) FROM zdm_taken), (SELECT count(*) FROM zdm_taken CROSS JOIN LATERAL "
            f"({self.pair.disagreeing_at('zdm_taken')}) AS zdm_bad)"
        )
