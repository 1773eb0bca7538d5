"""Rebuilds: how the indexes and constraints of the old column read on the new one.

On the temporary copy the old column takes the new one's name, and the server prints what depends on it: no SQL is
edited as text. What speaks of values is carried only where `up` keeps them (see `meaning`); else the declaration says
what stands in its place, or that nothing does.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import psycopg

from zdm_pipelines.dialects.postgres.connection import Connection, attempt, query, scalar
from zdm_pipelines.dialects.postgres.faults import safe
from zdm_pipelines.dialects.postgres.indexes import print_alike
from zdm_pipelines.dialects.postgres.kinds.replace_column.declared import GIVEN_UP, Declared
from zdm_pipelines.dialects.postgres.kinds.replace_column.meaning import Meaning, judge
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import TableName, fitted, quote
from zdm_pipelines.model.values import Catalog, Rebuild

COPY = "pg_temp.zdm_shape"


@dataclass(frozen=True)
class _Standing:
    """An index of the old column, as the server has it."""

    name: str
    unique: bool
    constraint: str | None  # that it backs
    kind: str | None  # of that constraint
    tail: str  # everything behind USING
    readable: bool
    primary: bool
    identity: bool
    excludes: bool
    deferrable: bool
    deferred: bool
    tablespace: str


@dataclass(frozen=True)
class _Tried:
    """An index on the copy, as the server prints it."""

    definition: str  # everything behind USING
    predicate: str
    elements: list[str]  # what it orders by
    expressions: list[str]  # those of them that are no plain columns
    alike: bool  # NULLs count as the same value
    columns: list[str]  # each column's name; empty for an expression
    tablespace: str


@dataclass(frozen=True)
class _Reference:
    """A foreign key of the old column, as the server has it."""

    name: str
    definition: str
    own: list[str]
    cleared: list[str]  # columns that ON DELETE SET names
    parent: str
    theirs: list[str]
    temporal: bool
    valid: bool
    allowed: bool  # our role may refer to those columns
    shown: str  # the parent's name as LIKE wants it


# Every index that reads the column, with the text that depends on neither its own name nor the table's.
_INDEXES = """
SELECT c.relname::text, i.indisunique, k.conname::text, k.contype::text,
       substr(pg_get_indexdef(i.indexrelid), strpos(pg_get_indexdef(i.indexrelid), p.prefix) + length(p.prefix)),
       strpos(pg_get_indexdef(i.indexrelid), p.prefix) > 0, i.indisprimary, i.indisreplident, i.indisexclusion,
       coalesce(k.condeferrable, false), coalesce(k.condeferred, false), coalesce(quote_ident(s.spcname), '')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid AND k.contype IN ('u', 'x')
CROSS JOIN LATERAL (SELECT format('INDEX %I ON %s USING ', c.relname, $3::text) AS prefix) p
WHERE i.indrelid = $1 AND i.indisvalid AND (
  $2::smallint = ANY (i.indkey::smallint[]) OR EXISTS (
    SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid
      AND d.refobjid = $1 AND d.refobjsubid = $2))
ORDER BY c.relname"""

_INDEX_TRIED = """
SELECT substr(pg_get_indexdef(i.indexrelid), strpos(pg_get_indexdef(i.indexrelid), ' USING ') + 7),
       coalesce(pg_get_expr(i.indpred, i.indrelid), ''),
       ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, false) FROM generate_series(1, i.indnkeyatts) AS n ORDER BY n),
       ARRAY(SELECT pg_get_indexdef(i.indexrelid, n, false) FROM generate_series(1, i.indnkeyatts) AS n
             WHERE i.indkey[n - 1] = 0 ORDER BY n),
       coalesce((to_jsonb(i) ->> 'indnullsnotdistinct')::boolean, false),
       ARRAY(SELECT coalesce(a.attname, '')::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS u (number, place)
             LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = u.number ORDER BY u.place),
       coalesce(quote_ident(s.spcname), '')
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace
WHERE i.indexrelid = 'pg_temp.zdm_index'::regclass"""

_CHECKS = """
SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = $1 AND contype = 'c' AND $2::smallint = ANY (conkey) ORDER BY conname"""

_CHECK_TRIED = """
SELECT pg_get_constraintdef(oid), pg_get_expr(conbin, conrelid) FROM pg_constraint
WHERE conrelid = $1::regclass AND conname = 'zdm_check' AND contype = 'c'"""

_NAMES = """ARRAY(SELECT a.attname::text FROM unnest({numbers}) WITH ORDINALITY AS u (number, place)
             JOIN pg_attribute a ON a.attrelid = {table} AND a.attnum = u.number ORDER BY u.place)"""
_REFERENCES = f"""
SELECT k.conname::text, pg_get_constraintdef(k.oid), {_NAMES.format(numbers="k.conkey", table="k.conrelid")},
       {_NAMES.format(numbers="ARRAY(SELECT jsonb_array_elements_text(coalesce(nullif(to_jsonb(k) -> 'confdelsetcols', 'null'), '[]'))::int2)", table="k.conrelid")},
       k.confrelid::regclass::text, {_NAMES.format(numbers="k.confkey", table="k.confrelid")},
       coalesce((to_jsonb(k) ->> 'conperiod')::boolean, false), k.convalidated,
       NOT EXISTS (SELECT FROM unnest(k.confkey) AS n WHERE NOT has_column_privilege(k.confrelid, n, 'REFERENCES')),
       format('%I.%I', n.nspname, c.relname)
FROM pg_constraint k JOIN pg_class c ON c.oid = k.confrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE k.conrelid = $1 AND k.contype = 'f' AND k.conparentid = 0 AND $2::smallint = ANY (k.conkey) ORDER BY k.conname"""  # noqa: E501

_TAKEN = """
SELECT EXISTS (SELECT 1 FROM pg_class c WHERE c.relname = $2
                 AND c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = $1))
    OR EXISTS (SELECT 1 FROM pg_constraint WHERE conrelid = $1 AND conname = $2)"""


class Rebuilds:
    """Reads them in the transaction in which the copy (`COPY`, with both columns) exists; collects problems.

    Args:
        known: what was found before; one that is still the same keeps its name.
    """

    def __init__(self, conn: Connection, *, catalog: Catalog, change: Declared, known: Sequence[Rebuild] = ()) -> None:
        self.conn = conn
        self.catalog = catalog
        self.change = change
        self.known = known
        self.oid = catalog.oid
        self.old = catalog.column(change.old)
        self.new = change.new.name
        self.meaning: Meaning = judge(
            conn, shape=COPY, alias=quote(catalog.table.name), up=change.up, old=self.old, new=self.new,
            new_type=change.new.type,
        )  # fmt: skip
        self.problems: list[Problem] = []
        self.warnings: list[str] = []
        self._named: set[str] = {rebuild.name for rebuild in known}
        self._seen: set[str] = set()

    def find(self) -> list[Rebuild]:
        """Every index and constraint of the old column, as it will stand on the new one."""
        found = [*self._indexes(), *self._checks(), *self._foreign_keys()]
        for name in sorted(set(self.change.rebuild) - self._seen):
            fact = f"is no index or constraint of column {quote(self.old.name)}"
            listed = ", ".join(sorted(self._seen)) or "none"
            self._refuse(f"rebuild: {name}", fact, f"write the exact name of one; there are: {listed}")
        return [self._settled(rebuild) for rebuild in found]

    def _refuse(self, thing: str, fact: str, way_out: str) -> None:
        self.problems.append(Problem(thing, fact, way_out))

    def _settled(self, rebuild: Rebuild) -> Rebuild:
        """The same with a name: that which it was given before, or a free one that tells where it comes from."""
        for other in self.known:
            if other.alike(rebuild):
                return other
        name = rebuild.original
        word = re.compile(rf"(?<![^\W_]){re.escape(self.old.name)}(?![^\W_])")
        first = word.sub(lambda _: self.new, name) if word.search(name) else f"{name}_zdm"
        further = (f"{first}_zdm{number}" for number in itertools.count(2))
        for each in map(fitted, itertools.chain((first, f"{first}_zdm"), further)):
            if each not in self._named and not scalar(self.conn, _TAKEN, [self.oid, each]):
                self._named.add(each)
                return replace(rebuild, name=each)
        raise AssertionError("names never end")

    def _without_old(self) -> None:
        """What reads the old column would go with it: the server refuses the same words without that column."""
        self.conn.execute(f"ALTER TABLE {COPY} RENAME COLUMN {quote(self.old.name)} TO zdm_aside".encode())

    def _swap(self) -> None:
        self.conn.execute(f"ALTER TABLE {COPY} RENAME COLUMN {quote(self.new)} TO zdm_aside".encode())
        self.conn.execute(f"ALTER TABLE {COPY} RENAME COLUMN {quote(self.old.name)} TO {quote(self.new)}".encode())

    def _declared(self, name: str) -> str | None:
        """What the declaration says of one, if it does."""
        self._seen.add(name)
        return self.change.rebuild.get(name)

    def _speaks(self, thing: str, name: str, told: str, proposal: str) -> None:
        """Refuse what speaks of values that `up` does not keep."""
        self._refuse(
            thing,
            f"speaks of values of {quote(self.old.name)} ({told}), and the same words would say something else of "
            f"{quote(self.new)}, for which up gives other values, or whose type compares otherwise",
            f"declare under change what stands on the new column, as rebuild: {{{_yaml(name)}: {_yaml(proposal)}}} "
            f"with the values of {quote(self.new)}; or rebuild: {{{_yaml(name)}: {GIVEN_UP}}} for nothing",
        )

    # -- indexes ------------------------------------------------------------------------------------------

    def _indexes(self) -> list[Rebuild]:
        table = scalar(self.conn, "SELECT format('%I.%I', $1::text, $2::text)", [*_parts(self.catalog)])
        rows = query(self.conn, _INDEXES, [self.oid, self.old.number, table])
        found = [self._index(_Standing(*row)) for row in rows]
        return [rebuild for rebuild in found if rebuild is not None]

    def _index(self, index: _Standing) -> Rebuild | None:
        name = index.constraint or index.name
        declared = self._declared(name)
        thing = f"{'constraint' if index.constraint else 'index'} {quote(name)}"
        alter = f"ALTER TABLE {self.catalog.table.sql}"
        identity = f"{alter} REPLICA IDENTITY DEFAULT"
        own = TableName(schema=self.catalog.table.schema, name=name).sql
        drop = f"{alter} DROP CONSTRAINT {quote(name)}" if index.constraint else f"DROP INDEX CONCURRENTLY {own}"
        for fact, holds, way_out in (
            ("is the primary key, which includes it", index.primary, "make the primary key anew without it first"),
            ("is the replica identity", index.identity, f"let the primary key be it: {identity}"),
        ):
            if holds:
                self._refuse(thing, fact, way_out)
                return None
        if declared == GIVEN_UP:
            return None
        way_out = f"{drop} first, or declare rebuild: {{{_yaml(name)}: {GIVEN_UP}}}, and make what you need afterwards"
        what = "an exclusion constraint" if index.kind == "x" else "a constraint WITHOUT OVERLAPS"
        for fact, holds in (
            (f"is {what}, which no server builds while the table is written", index.excludes),
            ("is unreadable", not index.readable),
        ):
            if holds:
                self._refuse(thing, fact, way_out)
                return None
        try:
            tried = self._try_declared(declared, index) if declared else self._carried(index, thing, name)
        except psycopg.Error as error:
            fact = f"cannot be built on the new column ({safe(error)})"
            self._refuse(thing, fact, f"declare another, as rebuild: {{{_yaml(name)}: …}}, or drop it first")
            return None
        if tried is None:
            return None
        return Rebuild(
            kind="unique" if index.constraint else "unique_index" if index.unique else "index",
            original=name,
            name="",
            definition=tried.definition,
            deferrable=(" DEFERRABLE" if index.deferrable else "") + (" INITIALLY DEFERRED" if index.deferred else ""),
            where=f" WHERE {tried.predicate}" if tried.predicate else "",
            tablespace=tried.tablespace or index.tablespace,
            columns=self._columns(tried),
            elements=tuple(tried.elements) if index.unique else (),
            nulls_distinct=not tried.alike,
        )

    def _columns(self, tried: _Tried) -> tuple[int | str, ...]:
        numbers: dict[str, int | str] = {c.name: c.number for c in self.catalog.columns}
        return tuple(numbers.get(name, name) if name and name != self.new else name or 0 for name in tried.columns)

    def _carried(self, index: _Standing, thing: str, name: str) -> _Tried | None:
        """How it reads on the new column; None: it speaks of values that are not kept."""
        with attempt(self.conn):
            before = self._try_index(f"USING {index.tail}")
            self._swap()
            after = self._tried()
        proposal = f"USING {after.definition}"
        of_all = not index.unique and before.predicate == f"({self._listed([self.old.name])} IS NOT NULL)"
        if before.predicate != after.predicate and not (
            of_all or self.meaning.kept(before.predicate, after.predicate, false_only=False)
        ):
            self._speaks(thing, name, f"WHERE {before.predicate}", proposal)
            return None
        computes = before.expressions != after.expressions
        if index.unique and computes and not self.meaning.values:
            self._speaks(thing, name, ", ".join(before.expressions), proposal)
            return None
        if index.unique and not self.meaning.equality:
            self._speaks(thing, name, "its collation says which are the same", proposal)
            return None
        if computes and not self.meaning.values:
            self.warnings.append(
                f"{thing} is of an expression, and up gives other values: it is built as {after.definition}; "
                f"declare rebuild: {{{_yaml(name)}: …}} for another"
            )
        with attempt(self.conn):
            return self._try_index(f"USING {after.definition}", backs=index.constraint is not None)

    def _try_declared(self, declared: str, index: _Standing) -> _Tried:
        with attempt(self.conn):
            tried = self._try_index(declared, unique=index.unique, backs=index.constraint is not None)
        with attempt(self.conn):
            self._without_old()
            self._try_index(declared)
        return tried

    def _try_index(self, words: str, *, unique: bool = False, backs: bool = False) -> _Tried:
        """Build it on the copy; a prepared statement can be but one."""
        uniquely = "UNIQUE " if unique or backs else ""
        self.conn.execute(f"CREATE {uniquely}INDEX zdm_index ON {COPY} {words}".encode(), prepare=True)
        tried = self._tried()
        if backs:
            self.conn.execute(f"ALTER TABLE {COPY} ADD CONSTRAINT zdm_index UNIQUE USING INDEX zdm_index".encode())
        return tried

    def _tried(self) -> _Tried:
        print_alike(self.conn)
        return _Tried(*query(self.conn, _INDEX_TRIED)[0])

    # -- constraints --------------------------------------------------------------------------------------

    def _checks(self) -> list[Rebuild]:
        rows = query(self.conn, _CHECKS, [self.oid, self.old.number])
        return [rebuild for name, definition in rows if (rebuild := self._check(name, definition)) is not None]

    def _check(self, name: str, definition: str) -> Rebuild | None:
        declared, thing = self._declared(name), f"check {quote(name)}"
        if declared == GIVEN_UP:
            return None
        try:
            moved = declared or self._carried_check(definition, thing, name)
            if moved is None:
                return None
            with attempt(self.conn):
                printed, condition = self._try_check(moved)
            with attempt(self.conn):
                self._without_old()
                self._try_check(moved)
        except psycopg.Error as error:
            fact = f"does not fit the new column ({safe(error)})"
            self._refuse(thing, fact, f"declare what does, as rebuild: {{{_yaml(name)}: CHECK (…)}}, or drop it first")
            return None
        valid = " NOT VALID" not in definition.rpartition(")")[2]
        return Rebuild(
            kind="check", original=name, name="", definition=printed.removesuffix(" NOT VALID"), elements=(condition,),
            validated=valid and " NOT ENFORCED" not in printed.rpartition(")")[2],
        )  # fmt: skip

    def _carried_check(self, definition: str, thing: str, name: str) -> str | None:
        """How it reads on the new column; None: it speaks of values that are not kept."""
        with attempt(self.conn):
            _, before = self._try_check(definition)
            self._swap()
            moved, after = self._check_tried()
        moved = moved.removesuffix(" NOT VALID")
        if self.meaning.kept(before, after, false_only=True):
            return moved
        self._speaks(thing, name, before, moved)
        return None

    def _try_check(self, definition: str) -> tuple[str, str]:
        """Its definition and its condition, as the server prints them."""
        self.conn.execute(f"ALTER TABLE {COPY} ADD CONSTRAINT zdm_check {definition}".encode(), prepare=True)
        return self._check_tried()

    def _check_tried(self) -> tuple[str, str]:
        print_alike(self.conn)
        rows = query(self.conn, _CHECK_TRIED, [COPY])
        if not rows:
            raise psycopg.errors.InvalidTableDefinition("it is no CHECK")
        return str(rows[0][0]), str(rows[0][1])

    def _foreign_keys(self) -> list[Rebuild]:
        with attempt(self.conn):
            print_alike(self.conn)
            rows = [_Reference(*row) for row in query(self.conn, _REFERENCES, [self.oid, self.old.number])]
        return [rebuild for row in rows if (rebuild := self._foreign_key(row)) is not None]

    def _foreign_key(self, key: _Reference) -> Rebuild | None:
        declared, thing = self._declared(key.name), f"foreign key {quote(key.name)}"
        if declared == GIVEN_UP:
            return None
        way_out = (
            f"ALTER TABLE {self.catalog.table.sql} DROP CONSTRAINT {quote(key.name)} first, or declare rebuild: "
            f"{{{_yaml(key.name)}: {GIVEN_UP}}}, and add what you need afterwards"
        )
        if declared is not None:
            self._refuse(thing, "cannot be declared anew: only the server knows it", way_out)
            return None
        own = [self.new if name == self.old.name else name for name in key.own]
        head = f"FOREIGN KEY ({self._listed(key.own)}) REFERENCES {key.parent}({self._listed(key.theirs)})"
        for fact, holds in (
            ("is temporal (PERIOD)", key.temporal),
            ("is unreadable", not key.definition.startswith(head)),
            ("refers to values that up does not keep", not (self.meaning.values and self.meaning.null)),
        ):
            if holds:
                self._refuse(thing, fact, way_out)
                return None
        if not key.allowed:
            grant = f"GRANT REFERENCES ON {key.shown} TO {quote(self.conn.info.user)}"
            self._refuse(thing, f"refers to {key.parent}, to which our role may not refer", grant)
            return None
        tail = key.definition.removeprefix(head)
        if key.cleared:
            cleared = [self.new if name == self.old.name else name for name in key.cleared]
            tail = tail.replace(f" ({self._listed(key.cleared)})", f" ({self._listed(cleared)})")
        tail = tail.removesuffix(" NOT VALID")
        try:
            with attempt(self.conn):
                self._try_foreign_key(key, own, tail)
        except psycopg.errors.InsufficientPrivilege:
            pass  # a copy of a table that we may not read cannot be made; that we may refer to it is known
        except psycopg.Error as error:
            self._refuse(thing, f"cannot stand on the new column ({safe(error)})", way_out)
            return None
        present = " AND ".join(f"zdm_row.{quote(name)} IS NOT NULL" for name in own)
        same = " AND ".join(f"zdm_parent.{quote(t)} = zdm_row.{quote(o)}" for o, t in zip(own, key.theirs, strict=True))
        return Rebuild(
            kind="foreign_key", original=key.name, name="",
            definition=f"FOREIGN KEY ({self._listed(own)}) REFERENCES {key.parent}({self._listed(key.theirs)}){tail}",
            elements=(f"NOT ({present}) OR EXISTS (SELECT FROM {key.shown} AS zdm_parent WHERE {same})",),
            validated=key.valid and " NOT ENFORCED" not in tail,
        )  # fmt: skip

    def _try_foreign_key(self, key: _Reference, own: Sequence[str], tail: str) -> None:
        """A temporary table may refer to another one only."""
        theirs = self._listed(key.theirs)
        self.conn.execute(f"CREATE TEMPORARY TABLE zdm_parent (LIKE {key.shown}, UNIQUE ({theirs}))".encode())
        self.conn.execute(
            f"ALTER TABLE {COPY} ADD CONSTRAINT zdm_key FOREIGN KEY ({self._listed(own)}) "
            f"REFERENCES pg_temp.zdm_parent ({theirs}){tail}".encode()
        )

    def _listed(self, names: Sequence[str]) -> str:
        """Names as the server prints a list of them."""
        return str(
            scalar(
                self.conn,
                "SELECT coalesce(string_agg(quote_ident(n), ', ' ORDER BY place), '') "
                "FROM unnest($1::text[]) WITH ORDINALITY AS u (n, place)",
                [[*names]],
            )
        )


def _yaml(text: str) -> str:
    """A text as YAML has it, inside of braces too."""
    return text if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) else json.dumps(text, ensure_ascii=False)


def _parts(catalog: Catalog) -> tuple[str, str]:
    return catalog.table.schema, catalog.table.name
