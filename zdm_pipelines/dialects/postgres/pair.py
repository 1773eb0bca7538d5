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

from zdm_pipelines.dialects.postgres import keys
from zdm_pipelines.dialects.postgres.replace_column import expression, same
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Catalog, Column, Key

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

Statement = tuple[str, list[list[str]]]


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
        key = [f"{quote(c.name)} AS {name}" for c, name in zip(self.key, self.key_names, strict=True)]
        values = [f"{sql}::{t} AS zdm_value_{i}" for i, (sql, t) in enumerate(self.values, 1)]
        return f"SELECT {', '.join(key + values)} FROM {self.table.table.sql} WHERE {predicate}", params

    def checksums(self, lower: Key | None, upper: Key | None, *, by_bucket: bool) -> Statement:
        """Rows and checksum of an interval, or of each bucket of it."""
        predicate, params = keys.between(self.key, lower, upper)
        values = ", ".join(_hashed(f"{sql}::{t}", t) for sql, t in self.values)
        bucket, group = (f"{self._seed} & {BUCKETS - 1}", " GROUP BY 1") if by_bucket else ("0::bigint", "")
        return (
            f"SELECT {bucket} AS zdm_bucket, count(*) AS zdm_rows, "
            f"sum(hash_record_extended(ROW({values}), {self._seed})) AS zdm_sum "
            f"FROM {self.table.table.sql} WHERE {predicate}{group}",
            params,
        )

    def walk(self, start: Key | None, *, rows: int) -> Statement:
        """A walk along the key's index: how many rows it meets, at most so many, on how many pages, and of how many."""
        predicate, params = keys.between(self.key, start, None)
        return (
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
    new: Catalog
    compared: Sequence[Compared] = ()  # besides the key

    @property
    def old_side(self) -> Side:
        """The old table."""
        return self._side(self.old, [c.old for c in self.compared])

    @property
    def new_side(self) -> Side:
        """The new table."""
        return self._side(self.new, [c.new for c in self.compared])

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
        return f"SELECT count(*), {counts} FROM {joined}", params

    def mismatched_keys(
        self, category: str, lower: Key | None, upper: Key | None, *, limit: int, buckets: Sequence[int] | None = None
    ) -> Statement:
        """The first keys of one category in an interval."""
        joined, params = self._joined(lower, upper, buckets)
        key = [f"coalesce(zdm_old.{k}, zdm_new.{k})" for k in self.old_side.key_names]
        return (
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
        return (
            f"SELECT coalesce(sum(zdm_old.zdm_rows) FILTER (WHERE {alike}), 0)::bigint, "
            f"coalesce(array_agg(zdm_bucket) FILTER (WHERE NOT ({alike})), '{{}}') "
            f"FROM ({old}) AS zdm_old FULL JOIN ({new}) AS zdm_new USING (zdm_bucket)",
            params,
        )

    def _joined(self, lower: Key | None, upper: Key | None, buckets: Sequence[int] | None) -> Statement:
        old, params = self.old_side.rows(lower, upper, buckets)
        new, _ = self.new_side.rows(lower, upper, buckets)
        matched = " AND ".join(f"zdm_old.{k} = zdm_new.{k}" for k in self.old_side.key_names)
        return f"({old}) AS zdm_old FULL JOIN ({new}) AS zdm_new ON {matched}", params

    def _categories(self) -> dict[str, str]:
        """Predicates over a joined row."""
        first = self.old_side.key_names[0]
        no_old, no_new = f"zdm_old.{first} IS NULL", f"zdm_new.{first} IS NULL"
        agrees = " AND ".join(same(f"zdm_old.{v}", f"zdm_new.{v}", t) for v, t in self.old_side.value_types)
        return {"missing": no_new, "extra": no_old, "different": f"NOT ({no_old} OR {no_new} OR ({agrees}))"}

    def _side(self, table: Catalog, values: Sequence[str]) -> Side:
        # The types of the new key, which is the wider one if they differ.
        key = tuple(replace(own, type=new.type) for own, new in zip(table.key, self.new.key, strict=True))
        # The key is compared too: what `=` matches may be another text.
        of_key = [(f"{quote(table.table.name)}.{quote(c.name)}", c.type) for c in key]
        given = [(expression(v), c.type) for v, c in zip(values, self.compared, strict=True)]
        return Side(table=table, key=key, values=(*of_key, *given))
