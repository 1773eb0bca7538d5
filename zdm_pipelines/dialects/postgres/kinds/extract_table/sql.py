"""The SQL of extracting a table: what a source row says and the new table holds, batches, parity.

A source row *says* no, one or several rows of the new table: those that `up` gives where `when` holds, one for each
element of `each`. The shapes agree when the new table holds exactly these; or else when the old columns are what `down`
gives of what it holds, for rows that new code wrote where `down` loses information.

A row of the new table is written by batches, by the sync and by new code. All of them lock the source row first, and
look at the new table only then, in a statement of its own: in READ COMMITTED it sees what those before have left.

- A source row that is under change when a batch comes is passed over by FOR SHARE SKIP LOCKED. It is locked from its
  change to the commit, hence also before and while the sync writes the new table. So no key that a batch inserts is
  under way in another transaction, and the batch waits for none. (FOR KEY SHARE does not exclude an update. The batch
  would read the old value, then wait at the key until the application ends, while it holds keys that the application
  may want next: a deadlock.)
- A change that comes after the lock waits until the batch is committed, one batch at most.
"""

from __future__ import annotations

from dataclasses import dataclass

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.expressions import expression, same
from zdm_pipelines.dialects.postgres.held import Held
from zdm_pipelines.dialects.postgres.kinds.extract_table.declared import Declared, Facts
from zdm_pipelines.model.capabilities import ALL, Pick, Until
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
    called: str = ""  # what expressions call the source, whatever others call it by now; default: its name

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
        """A function or view of this migration, quoted."""
        return f"zdm.{quote(fitted(f'{what}_{self.name}'))}"

    @property
    def source(self) -> str:
        return self.catalog.table.sql

    @property
    def source_alias(self) -> str:
        """The source's bare name, so that expressions may say users.profile."""
        return quote(self.called or self.catalog.table.name)

    def names_columns(self, created: int) -> list[tuple[int, dict[str, int]]]:
        """By table, the columns that statements name, with their numbers; 0: expand makes it.

        Args:
            created: oid of the new table.
        """
        source = {self.present(old): self.catalog.column(old).number for old in self.change.olds}
        source |= {c.name: c.number for c in self.catalog.key}
        return [(self.catalog.oid, source), (created, dict.fromkeys((c.name for c in self.target.columns), 0))]

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

    def matched(self, alias: str) -> str:
        """Predicate: a row of the new table belongs to the source row."""
        return " AND ".join(
            f"{alias}.{quote(t.name)} = {self.source_alias}.{quote(s.name)}"
            for s, t in zip(self.catalog.key, self.key, strict=True)
        )

    # -- what a source row says, and what the new table holds ------------------------------------------------

    def declared(self, row: str) -> str:
        """Columns of a source row under their declared names, behind all that it has."""
        if not self.tombstoned:
            return ""
        return "".join(f", {row}.{quote(now)} AS {quote(old)}" for old, now in self.tombstones.items())

    @property
    def _source_rows(self) -> str:
        if not self.tombstoned:
            return f"ONLY {self.source}"
        return f"(SELECT zdm_row.ctid, zdm_row.*{self.declared('zdm_row')} FROM ONLY {self.source} AS zdm_row)"

    @property
    def rows(self) -> str:
        """The source as FROM item; old columns answer to their declared names."""
        return f"{self._source_rows} AS {self.source_alias}"

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
            held = f"{self.source_alias}.{quote(old)}"
            unlike = (
                f" AND NOT ({same(held, f'({column.default})', column.type)})" if column.default is not None else ""
            )
            kept.append(f"{held} IS NOT NULL{unlike}")
        return " OR ".join(f"({part})" if " AND " in part else part for part in kept)

    @property
    def _elements(self) -> str:
        """What gives the elements of a source row, as FROM item."""
        array = f"nullif({expression(self.change.each or 'NULL')}::jsonb, 'null')"
        return f"pg_catalog.jsonb_array_elements({array}) WITH ORDINALITY AS zdm_each (element, position)"

    @property
    def element_key(self) -> str:
        """What tells the elements of a source row apart."""
        apart = self.change.new.element_key
        return expression(self.change.new.columns[apart].up if apart else f"position::{POSITION}")

    @property
    def given(self) -> str:
        """What stands behind the source row in a FROM clause that gives a row for each row it says."""
        return f" CROSS JOIN LATERAL {self._elements}" if self.many else ""

    @property
    def mapped(self) -> str:
        """What each column in `listed` gets."""
        key = [f"{self.source_alias}.{quote(c.name)}" for c in self.catalog.key]
        return ", ".join([*key, *([self.element_key] if self.many else []), *map(expression, self.columns.values())])

    @property
    def insert(self) -> str:
        """The beginning of each statement that writes the new table."""
        listed = ", ".join(map(quote, (*(c.name for c in self.target.key), *self.columns)))
        return f"INSERT INTO {self.table} AS zdm_target ({listed})"

    @property
    def on_conflict(self) -> str:
        """What precedes what is done about a row that is there."""
        return f"ON CONFLICT ({keys.columns(self.target.key)}) DO"

    @property
    def taken_over(self) -> str:
        """What is done about a row that is there: it becomes what the source says."""
        return f"UPDATE SET {', '.join(f'{quote(c)} = EXCLUDED.{quote(c)}' for c in self.columns)}"

    @property
    def said(self) -> str:
        """What the source row says: its rows as text[], in order."""
        values = [f"{expression(up)}::{self.target.column(name).type}" for name, up in self.columns.items()]
        if not self.many:
            return f"ARRAY(SELECT ROW({', '.join(values)})::text WHERE {expression(self.when)})"
        first = f"{self.element_key}::{self.target.key[-1].type}"
        return (
            f"ARRAY(SELECT ROW({', '.join((first, *values))})::text FROM {self._elements} "
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

    @property
    def _downs(self) -> list[tuple[Column, str]]:
        return [(self.catalog.column(old), expression(down)) for old, down in self.change.downs.items()]

    @property
    def disagrees(self) -> str:
        """Predicate over a source row: the shapes disagree."""
        back = " AND ".join(same(f"{self.source_alias}.{quote(old.name)}", down, old.type) for old, down in self._downs)
        rows = f"FROM ONLY {self.table} AS {self.alias} WHERE {self.matched(self.alias)}"
        through_down = f"(SELECT {back} {rows})" if self.many else f"EXISTS (SELECT {rows} AND {back})"
        return f"NOT ({self.said} = {self.held(self.matched('zdm_target'))} OR {through_down})"

    @property
    def uncopied(self) -> str:
        """Predicate over a source row: it says rows, and the new table has none of it."""
        says = [self.when, f"EXISTS (SELECT FROM {self._elements})"] if self.many else [self.when]
        held = ", ".join(f"{quote(t.name)} AS zdm_{i}" for i, t in enumerate(self.key, 1))
        at = " AND ".join(f"zdm_{i} = {self.source_alias}.{quote(s.name)}" for i, s in enumerate(self.catalog.key, 1))
        return (
            f"{' AND '.join(map(expression, says))} "
            # Its columns are renamed: in here, too, names mean the source's columns.
            f"AND NOT EXISTS (SELECT FROM (SELECT {held} FROM ONLY {self.table}) AS zdm_copy WHERE {at})"
        )

    # -- batches ------------------------------------------------------------------------------------------

    @property
    def over(self) -> Catalog:
        return self.catalog

    destroys = False
    until = Until.NONE_WAITS
    written = None  # rows of the source are only read

    @property
    def writes(self) -> dict[str, str]:
        return {self.table: "INSERT"}

    def back(self) -> None:
        """Nothing: the new table is dropped with what it holds."""

    @property
    def _sources(self) -> Held:
        """The source rows of a batch. Locked so, they keep all else that writes the rows that they say away."""
        return Held(number=0, source=self._source_rows, called=self.source_alias, strength="SHARE")

    def batch(self, lower: Key | None, upper: Key | None, *, pick: Pick = ALL, repair: bool = False) -> list[Statement]:
        """One batch. Rows that the application is changing are passed over."""
        interval, values = keys.between(self.catalog.key, lower, upper)
        waits = self._waits(repair)
        chosen = f"{self.rows} WHERE {interval} AND {waits if pick.among is None else pick.among(waits)}"
        locked = Statement(self._sources.lock(chosen, wait=False, limit=pick.limit), values)
        return [*(self._remove_extra(lower, upper) if repair else []), locked, *self._write_held(repair)]

    def one(self, key: Key, *, repair: bool = False) -> list[Statement]:
        """The same for the one row at a key, which is waited for."""
        at = f"{keys.row(self.catalog.key)} = {keys.bound(self.catalog.key, 1)}"
        locked = self._sources.lock(f"{self.rows} WHERE {at} AND {self._waits(repair)}", wait=True)
        return [Statement(locked, [list(key)]), *self._write_held(repair)]

    def _waits(self, repair: bool) -> str:
        return self.disagrees if repair else self.uncopied

    def _write_held(self, repair: bool) -> list[Statement]:
        """Write what the held source rows say, as far as they still wait: new code may have written meanwhile."""
        held, first, then = self._sources.held, [], "NOTHING"
        if repair:
            unsaid = "true" if self.many else f"NOT coalesce({expression(self.when)}, false)"
            first = [
                self._sources.keep(f"{self.rows} WHERE {held} AND {self.disagrees}"),
                f"DELETE FROM ONLY {self.table} AS zdm_target USING {self.rows} "
                f"WHERE {self.matched('zdm_target')} AND {held} AND {unsaid}",
            ]
            then = self.taken_over
        rows = f"{held} AND {expression(self.when) if repair else self.uncopied}"
        written = (
            f"{self.insert} SELECT {self.mapped}\nFROM {self.rows}{self.given}\nWHERE {rows}\n{self.on_conflict} {then}"
        )
        return [Statement(statement) for statement in (*first, written)]

    def _remove_extra(self, lower: Key | None, upper: Key | None) -> list[Statement]:
        """Delete the rows of the new table without a source row.

        A source row that is inserted meanwhile waits, or its sync has locked the row, or it writes the row anew.
        """
        interval, values = keys.between(self.key, lower, upper)
        extra = Held(number=1, source=f"ONLY {self.table}")
        nobodys = (
            f"NOT EXISTS (SELECT FROM ONLY {self.source} AS {self.source_alias} WHERE {self.matched(extra.alias)})"
        )
        return [
            Statement(extra.lock(f"{extra.table} WHERE {interval} AND {nobodys}", wait=False), values),
            Statement(extra.keep(f"{extra.table} WHERE {extra.held} AND {nobodys}")),
            Statement(extra.delete()),
        ]

    def waiting(
        self, lower: Key | None, upper: Key | None, *, last: Key | None = None, repair: bool = False
    ) -> Statement:
        """How many source rows of an interval wait."""
        interval, values = keys.between(self.catalog.key, lower, upper, last=last)
        return Statement(f"SELECT count(*) FROM {self.rows} WHERE {interval} AND {self._waits(repair)}", values)

    def waiting_keys(self, lower: Key | None, upper: Key | None, *, limit: int, repair: bool = False) -> Statement:
        """The first keys of them."""
        interval, values = keys.between(self.catalog.key, lower, upper)
        return Statement(
            f"SELECT {keys.as_text(self.catalog.key)} FROM {self.rows} WHERE {interval} AND {self._waits(repair)} "
            f"ORDER BY {keys.columns(self.catalog.key)} LIMIT {limit}",
            values,
        )

    # -- parity -------------------------------------------------------------------------------------------

    guard = None  # a row for which `down` raises is an error

    @property
    def guarded(self) -> ExtractSql:
        return self

    def _joined(self, of_source: str, of_new: str) -> str:
        """Both tables as FROM clause, joined by key: what each source row says beside what the new table holds.

        Args:
            of_source: predicate over the source's rows; the others are left out.
            of_new: predicate over the new table's rows.
        """
        old_key, new_key = (
            [f"{quote(c.name)} AS zdm_key_{i}" for i, c in enumerate(key, 1)] for key in (self.catalog.key, self.key)
        )
        olds = [f"{self.source_alias}.{quote(c.name)} AS zdm_old_{i}" for i, (c, _) in enumerate(self._downs, 1)]
        downs = [f"{down} AS zdm_down_{i}" for i, (_, down) in enumerate(self._downs, 1)]
        held, grouped = f"ARRAY[{self._row(self.alias)}]", ""
        if self.many:
            held = f"array_agg({self._row(self.alias)} ORDER BY {self.alias}.{quote(self.target.key[-1].name)})"
            grouped = f" GROUP BY {keys.columns(self.key)}"
        old = f"SELECT {', '.join((*old_key, *olds))}, {self.said} AS zdm_said FROM {self.rows} WHERE {of_source}"
        new = (
            f"SELECT {', '.join((*new_key, *downs))}, {held} AS zdm_held FROM ONLY {self.table} AS {self.alias} "
            f"WHERE {of_new}{grouped}"
        )
        on = " AND ".join(f"zdm_source.zdm_key_{i} = zdm_new.zdm_key_{i}" for i, _ in enumerate(self.key, 1))
        return f"({old}) AS zdm_source\nFULL JOIN ({new}) AS zdm_new ON {on}"

    def _verdicts(self) -> dict[str, str]:
        """Predicates over a joined row."""
        # The key is compared, too: what `=` matches may be another text.
        keys_alike = [
            same(f"zdm_source.zdm_key_{i}", f"zdm_new.zdm_key_{i}", c.type) for i, c in enumerate(self.key, 1)
        ]
        alike = " AND ".join(["zdm_said = zdm_held", *keys_alike])
        back = " AND ".join(
            [*(same(f"zdm_old_{i}", f"zdm_down_{i}", c.type) for i, (c, _) in enumerate(self._downs, 1)), *keys_alike]
        )
        both, says = "zdm_said IS NOT NULL AND zdm_held IS NOT NULL", "cardinality(zdm_said) > 0"
        return {
            "missing": f"{says} AND zdm_held IS NULL",
            "extra": f"zdm_said IS NULL OR {both} AND NOT ({says}) AND NOT ({back})",
            "different": f"{both} AND {says} AND NOT ({alike} OR {back})",
            "through_down": f"{both} AND {back} AND NOT ({says} AND {alike})",
        }

    def _between(self, lower: Key | None, upper: Key | None) -> tuple[str, list[list[str]]]:
        of_source, values = keys.between(self.catalog.key, lower, upper)
        return self._joined(of_source, keys.between(self.key, lower, upper)[0]), values

    def compare(self, lower: Key | None, upper: Key | None) -> Statement:
        """Counts: rows, missing, extra, different, agreeing through `down` only, not copied."""
        joined, values = self._between(lower, upper)
        verdicts = self._verdicts()
        counts = ",\n  ".join(f"count(*) FILTER (WHERE {v})" for v in (*verdicts.values(), verdicts["missing"]))
        return Statement(f"SELECT count(*),\n  {counts}\nFROM {joined}", values)

    def mismatched_keys(self, category: str, lower: Key | None, upper: Key | None, *, limit: int) -> Statement:
        """The first keys of one category."""
        joined, values = self._between(lower, upper)
        key = [f"coalesce(zdm_source.zdm_key_{i}, zdm_new.zdm_key_{i})" for i, _ in enumerate(self.key, 1)]
        return Statement(
            f"SELECT ARRAY[{', '.join(f'{k}::text' for k in key)}] FROM {joined}\n"
            f"WHERE {self._verdicts()[category]} ORDER BY {', '.join(key)} LIMIT {limit}",
            values,
        )

    def touched_disagreeing(self) -> str:
        """Take the keys recorded so far ($1: migration id); how many there were, how many of them disagree."""
        of_source, of_new = (
            " AND ".join(f"{quote(c.name)} = (zdm_taken.key)[{i}]::{c.type}" for i, c in enumerate(key, 1))
            for key in (self.catalog.key, self.key)
        )
        verdicts = self._verdicts()
        wrong = " OR ".join(expression(verdicts[category]) for category in ("missing", "extra", "different"))
        return (
            "WITH zdm_touched AS (DELETE FROM zdm.touched WHERE migration_id = $1 RETURNING key), "
            "zdm_taken AS MATERIALIZED (SELECT DISTINCT key FROM zdm_touched) "
            "SELECT (SELECT count(*) FROM zdm_taken), (SELECT count(*) FROM zdm_taken CROSS JOIN LATERAL "
            f"(SELECT FROM {self._joined(of_source, of_new)}\nWHERE {wrong}) AS zdm_bad)"
        )
