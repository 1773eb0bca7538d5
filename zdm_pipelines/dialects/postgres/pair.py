"""The SQL of a pair of tables on one server: which rows of two tables with the same key do not agree.

Rows are judged by one predicate only, `same`, over both rows joined by key. Checksums never judge: rows whose checksums
are alike need no join, and of the others the join says which. So a value may be hashed in any way that gives unlike
values the same hash by accident only, once in 2^64. What Postgres hashes with does not do so by itself:

- `hash_record_extended` is linear in the hashes of the columns, a sum or XOR of it over rows likewise: it would not see
  that two rows exchanged a value. Therefore each row has a seed of its own, the hash of its key.
- The halves of 8-byte integers and times are folded into 32 bits before they are hashed, with any seed: 5 and 5 * 2^32
  are one. NaN and the infinities of numeric are one, too. Such values are hashed as the bytes that are sent for them.
- The hash of jsonb does not see two elements exchanged that are 32 apart: it is hashed as text.
- Text is hashed bytewise, as it is compared, whatever its collation calls equal.

The other way round, what `same` calls alike may have unlike hashes: 1.0 and 1.00 where the type has no scale, or the
intervals `1 month` and `30 days`. Then the join has more to do, and says that they agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.expressions import expression, same
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Catalog, Column, Key, Statement

if TYPE_CHECKING:
    from zdm_pipelines.dialects.postgres.connection import Connection

BUCKETS = 4096  # a power of two; to find one row among ten million, the join then reads 2,500

_SEED = 7777  # of the keys' hashes; not 0, which NULL is hashed as: a float's zero is hashed as the seed

# Types whose own hash sees every difference. Those that are neither here nor below are hashed as text.
_HASHED = frozenset(("boolean", "smallint", "integer", "real", "double precision", "date", "uuid", "bytea"))
_SENT = {
    "bigint": "int8send",
    "numeric": "numeric_send",
    "timestamp without time zone": "timestamp_send",
    "timestamp with time zone": "timestamptz_send",
    "time without time zone": "time_send",
}

# Of the commonest keys; these cost less than the hash of a record.
_SEEDS = {
    # Beside the fold of both halves, the upper one: together they tell any two numbers apart.
    "bigint": "(pg_catalog.hashint8extended({key}, {seed}) # pg_catalog.hashint4extended(({key} >> 32)::integer, 1))",
    "integer": "pg_catalog.hashint4extended({key}, {seed})",
    "uuid": "pg_catalog.uuid_hash_extended({key}, {seed})",
}

_ALWAYS = {"jit": "off", "work_mem": "64MB"}  # compiling takes longer than a range
_ALONG = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_hashjoin": "off"}
# The planner takes the buckets for as many as there are rows, and would sort them.
_BY_CHECKSUMS = {"enable_sort": "off"}


def settings(*, along: bool, processes: int) -> dict[str, str]:
    """Settings of a session that compares; `along`: by the key's index on both sides, else by checksums first."""
    helpers = {"max_parallel_workers_per_gather": str(0 if along else processes - 1)}
    return _ALWAYS | helpers | (_ALONG if along else _BY_CHECKSUMS)


class PostgresPairs:
    """See `Pairs` for what each member is."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn

    def prepare(self, *, along: bool, processes: int) -> None:
        """Settings of a session that compares, which writes nothing."""
        for setting, value in settings(along=along, processes=processes).items():
            self._conn.named("pair.set", setting, value)
        self._conn.prepare_threshold = None  # a plan for any bounds would be none for these
        self._conn.read_only = True


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One thing that must be the same in both rows."""

    old: str  # SQL over the old row
    new: str  # SQL over the new row
    type: str  # both are cast to it


def _hashed(value: str, type_name: str) -> str:
    """A value in the form that is hashed."""
    base = re.sub(r"\([^)]*\)", "", type_name).strip().lower()
    if base in _HASHED:
        return value
    if base in _SENT:
        return f"pg_catalog.{_SENT[base]}({value})"
    return f'{value}::text COLLATE "C"'


@dataclass(frozen=True, kw_only=True)
class Side:
    """One table of a pair, under names that are the same on both sides."""

    table: Catalog
    key: tuple[Column, ...]  # its own key columns, with the types of the bounds
    values: tuple[tuple[str, str], ...]  # what is compared: SQL over its row, and the type that it is cast to
    summed: int  # how many of the values go into checksums, from the first on
    source: str  # FROM item that gives its rows
    wanted: str  # predicate over its row: the others need no row on the other side

    @property
    def key_names(self) -> list[str]:
        """What its key columns are called in `rows`."""
        return [f"zdm_key_{i}" for i in range(1, len(self.key) + 1)]

    @property
    def value_types(self) -> list[tuple[str, str]]:
        """What its values are called in `rows`, with their types."""
        return [(f"zdm_value_{i}", type_name) for i, (_, type_name) in enumerate(self.values, 1)]

    @property
    def _seed(self) -> str:
        """The hash of a row's key."""
        parts = [(f"{quote(c.name)}::{c.type}", c.type) for c in self.key]
        if len(parts) == 1 and parts[0][1] in _SEEDS:
            return _SEEDS[parts[0][1]].format(key=parts[0][0], seed=_SEED)
        return f"hash_record_extended(ROW({', '.join(_hashed(*part) for part in parts)}), {_SEED})"

    def rows(self, lower: Key | None, upper: Key | None, buckets: Sequence[int] | None) -> Statement:
        """Keys and values of an interval."""
        predicate, params = keys.between(self.key, lower, upper)
        if buckets is not None:
            params.append([str(b) for b in buckets])
            predicate += f" AND {self._seed} & {BUCKETS - 1} = ANY (${len(params)}::text[]::bigint[])"
        return Statement(self.where(predicate), params)

    def where(self, predicate: str) -> str:
        """Keys and values of the rows for which a predicate holds."""
        key = [f"{quote(c.name)} AS {name}" for c, name in zip(self.key, self.key_names, strict=True)]
        values = [f"{sql}::{t} AS zdm_value_{i}" for i, (sql, t) in enumerate(self.values, 1)]
        wanted = f"{self.wanted} AS zdm_wanted"
        return f"SELECT {', '.join((*key, *values, wanted))} FROM {self.source} WHERE {predicate}"

    def checksums(self, lower: Key | None, upper: Key | None, *, by_bucket: bool) -> Statement:
        """Rows and checksum of an interval, or of each bucket of it."""
        predicate, params = keys.between(self.key, lower, upper)
        predicate = predicate if self.wanted == "true" else f"{predicate} AND {self.wanted}"
        values = ", ".join(_hashed(f"{sql}::{t}", t) for sql, t in self.values[: self.summed])
        bucket, group = (f"{self._seed} & {BUCKETS - 1}", " GROUP BY 1") if by_bucket else ("0::bigint", "")
        return Statement(
            f"SELECT {bucket} AS zdm_bucket, count(*) AS zdm_rows, "
            f"sum(hash_record_extended(ROW({values}), {self._seed})) AS zdm_sum "
            f"FROM {self.source} WHERE {predicate}{group}",
            params,
        )

    def walk(self, start: Key | None, *, rows: int) -> Statement:
        """A walk along the key's index: how many rows it meets, at most so many, on how many pages, and of how many."""
        predicate, params = keys.between(self.key, start, None)
        return Statement(
            "SELECT count(*), count(DISTINCT (zdm_at::text::point)[0]), "
            f"pg_relation_size({self.table.oid}::oid) / current_setting('block_size')::bigint FROM "
            f"(SELECT ctid AS zdm_at FROM {self.table.table.sql} WHERE {predicate} "
            f"ORDER BY {keys.columns(self.key)} LIMIT {rows}) AS zdm_walk",
            params,
        )


@dataclass(frozen=True, kw_only=True)
class PairSql:
    """SQL for one pair. Each statement reads both tables, so that one snapshot sees both.

    Keys are matched by `=`: they are of the same types and collations, but an integer may have become a bigint.
    """

    old: Catalog
    new: Catalog  # its `key` holds the old one's, column by column
    compared: Sequence[Compared] = ()  # besides the key
    back: Sequence[Compared] = ()  # what is the same in rows that new code wrote where `compared` loses; empty: nothing
    wanted: str = "true"  # predicate over an old row: the others need no new row
    old_rows: str = ""  # FROM items that give the rows, under the tables' bare names; default: the tables
    new_rows: str = ""

    @property
    def old_side(self) -> Side:
        """The old table."""
        values = [c.old for c in (*self.compared, *self.back)]
        return self._side(self.old, values, self.old_rows, self.wanted)

    @property
    def new_side(self) -> Side:
        """The new table."""
        return self._side(self.new, [c.new for c in (*self.compared, *self.back)], self.new_rows, "true")

    @property
    def buckets(self) -> int:
        """How many buckets checksums are taken of."""
        return BUCKETS

    @property
    def sides(self) -> tuple[Side, Side]:
        """Both."""
        return self.old_side, self.new_side

    def compare(self, lower: Key | None, upper: Key | None, *, buckets: Sequence[int] | None = None) -> Statement:
        """Counts of an interval: rows, missing, extra, different.

        Args:
            buckets: only rows of these; default: all.
        """
        joined, params = self._joined(lower, upper, buckets)
        counts = ", ".join(f"count(*) FILTER (WHERE {c})" for c in self._categories().values())
        return Statement(f"SELECT count(*), {counts} FROM {joined}", params)

    def verdict(self, lower: Key | None, upper: Key | None) -> Statement:
        """Counts of an interval: rows, missing, extra, different, agreeing through `back` only, without a new row."""
        joined, params = self._joined(lower, upper, None)
        wrong = self._categories()
        only_back = f"{_BOTH} AND {self._same(back=True)} AND NOT (zdm_old.zdm_wanted AND {self._same(back=False)})"
        counts = ", ".join(f"count(*) FILTER (WHERE {c})" for c in (*wrong.values(), only_back, wrong["missing"]))
        return Statement(f"SELECT count(*), {counts} FROM {joined}", params)

    def disagreeing_at(self, keys_of: str) -> str:
        """A query that gives a row for each row that disagrees at a key.

        Args:
            keys_of: a row that has the key as text[] in its column `key`.
        """
        old, new = (
            side.where(
                " AND ".join(f"{quote(c.name)} = ({keys_of}.key)[{i}]::{c.type}" for i, c in enumerate(side.key, 1))
            )
            for side in self.sides
        )
        return f"SELECT 1 FROM {self._both(old, new)} WHERE {' OR '.join(self._categories().values())}"

    def mismatched_keys(
        self, category: str, lower: Key | None, upper: Key | None, *, limit: int, buckets: Sequence[int] | None = None
    ) -> Statement:
        """The first keys of one category in an interval."""
        joined, params = self._joined(lower, upper, buckets)
        key = [f"coalesce(zdm_old.{k}, zdm_new.{k})" for k in self.old_side.key_names]
        return Statement(
            f"SELECT ARRAY[{', '.join(f'{k}::text' for k in key)}] FROM {joined} "
            f"WHERE {self._categories()[category]} ORDER BY {', '.join(key)} LIMIT {limit}",
            params,
        )

    def checksums(self, lower: Key | None, upper: Key | None, *, by_bucket: bool) -> Statement:
        """How many rows lie in buckets whose checksums are alike, and the buckets where they are not.

        Args:
            by_bucket: BUCKETS of them, by the key's hash; else one for all, which takes a third of the time less.
        """
        old, params = self.old_side.checksums(lower, upper, by_bucket=by_bucket)
        new, _ = self.new_side.checksums(lower, upper, by_bucket=by_bucket)
        alike = "(zdm_old.zdm_rows, zdm_old.zdm_sum) IS NOT DISTINCT FROM (zdm_new.zdm_rows, zdm_new.zdm_sum)"
        return Statement(
            f"SELECT coalesce(sum(zdm_old.zdm_rows) FILTER (WHERE {alike}), 0)::bigint, "
            f"coalesce(array_agg(zdm_bucket) FILTER (WHERE NOT ({alike})), '{{}}') "
            f"FROM ({old}) AS zdm_old FULL JOIN ({new}) AS zdm_new USING (zdm_bucket)",
            params,
        )

    def _joined(self, lower: Key | None, upper: Key | None, buckets: Sequence[int] | None) -> tuple[str, Sequence[Any]]:
        """Both sides as a FROM clause, with its values."""
        old, params = self.old_side.rows(lower, upper, buckets)
        new, _ = self.new_side.rows(lower, upper, buckets)
        return self._both(old, new), params

    def _both(self, old: str, new: str) -> str:
        matched = " AND ".join(f"zdm_old.{k} = zdm_new.{k}" for k in self.old_side.key_names)
        return f"({old}) AS zdm_old FULL JOIN ({new}) AS zdm_new ON {matched}"

    def _same(self, *, back: bool) -> str:
        """Predicate over a joined row: what is compared is the same, or what is compared back."""
        side = self.old_side
        chosen = side.value_types[side.summed :] if back else side.value_types[: side.summed]
        return " AND ".join(same(f"zdm_old.{v}", f"zdm_new.{v}", t) for v, t in chosen) or "false"

    def _categories(self) -> dict[str, str]:
        """Predicates over a joined row."""
        wanted, up, down = "zdm_old.zdm_wanted", self._same(back=False), self._same(back=True)
        return {
            "missing": f"zdm_new.zdm_wanted IS NULL AND {wanted}",
            "extra": f"zdm_old.zdm_wanted IS NULL OR {_BOTH} AND NOT {wanted} AND NOT ({down})",
            "different": f"{_BOTH} AND {wanted} AND NOT ({up} OR {down})",
        }

    def _side(self, table: Catalog, values: Sequence[str], source: str, wanted: str) -> Side:
        # The types of the new key, which is the wider one if they differ.
        key = tuple(replace(own, type=new.type) for own, new in zip(table.key, self.new.key, strict=True))
        # The key is compared too: what `=` matches may be another text.
        of_key = [(f"{quote(table.table.name)}.{quote(c.name)}", c.type) for c in key]
        given = [(expression(v), c.type) for v, c in zip(values, (*self.compared, *self.back), strict=True)]
        return Side(
            table=table,
            key=key,
            values=(*of_key, *given),
            summed=len(of_key) + len(self.compared),
            source=source or table.table.sql,
            wanted=wanted if wanted == "true" else f"coalesce({expression(wanted)}, false)",
        )


_BOTH = "zdm_old.zdm_wanted IS NOT NULL AND zdm_new.zdm_wanted IS NOT NULL"
