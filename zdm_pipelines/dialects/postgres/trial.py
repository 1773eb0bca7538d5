"""Trial: let the server judge declared SQL on temporary tables of the declared shape, in a transaction undone.

The server itself says what an expression reads and whether its type fits; no SQL of the user is taken apart by us.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import psycopg

from zdm_pipelines.dialects.postgres import catalog as catalogs
from zdm_pipelines.dialects.postgres.connection import Connection, attempt, query, scalar
from zdm_pipelines.dialects.postgres.environment import plain
from zdm_pipelines.dialects.postgres.expressions import expression
from zdm_pipelines.dialects.postgres.faults import safe
from zdm_pipelines.model.errors import Problem
from zdm_pipelines.model.names import quote
from zdm_pipelines.model.values import Column

_INPUTS = """
SELECT a.attname FROM pg_depend d
JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
WHERE r.ev_class = 'pg_temp.zdm_view'::regclass AND d.refobjid = $1::regclass AND a.attnum > 0
ORDER BY a.attnum"""

# The last column: what the application defined, it may have called immutable though it is not.
# An implicit cast loses nothing; one on assignment is taken within a kind of types (bigint to integer), as the
# server checks it value by value, but not across kinds, where it would turn every type into text.
_FITS = """
SELECT v.atttypid = t.atttypid OR v.atttypid = 'unknown'::regtype OR coalesce(
         CASE k.castcontext WHEN 'i' THEN true WHEN 'a' THEN s.typcategory = g.typcategory END, false),
       format_type(v.atttypid, v.atttypmod), format_type(t.atttypid, t.atttypmod),
       t.atttypid < 16384 AND t.atttypid NOT IN ('money'::regtype, 'xml'::regtype) AND NOT EXISTS (
         SELECT FROM pg_depend d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
         WHERE r.ev_class = v.attrelid AND d.refobjid >= 16384
           AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass)),
       -- What the type of the column cannot hold of the type of the value: text that is too long, or large numbers.
       -- The length of text, or of bits, is in the modifier; so are the digits of numeric.
       CASE WHEN m.t < 0 OR v.atttypid = 'unknown'::regtype THEN NULL
         WHEN g.typcategory IN ('S', 'V') AND (m.v < 0 OR m.v > m.t) THEN 'length'
         WHEN g.typcategory = 'N' AND (m.v < 0
           OR (m.v - 4 >> 16) - (m.v - 4 & 2047) > (m.t - 4 >> 16) - (m.t - 4 & 2047)) THEN 'size' END,
       CASE WHEN s.typcategory = 'N' AND k.castcontext = 'a' THEN 'size' END
FROM pg_attribute v CROSS JOIN pg_attribute t
JOIN pg_type s ON s.oid = v.atttypid JOIN pg_type g ON g.oid = t.atttypid
CROSS JOIN LATERAL (SELECT coalesce(nullif(v.atttypmod, -1), s.typtypmod) AS v,
                           coalesce(nullif(t.atttypmod, -1), g.typtypmod) AS t) AS m
LEFT JOIN pg_cast k ON k.castsource = v.atttypid AND k.casttarget = t.atttypid
WHERE v.attrelid = 'pg_temp.zdm_view'::regclass AND v.attnum = 1 AND t.attrelid = $1::regclass AND t.attname = $2"""

# What asks who runs it, or in which session: the application, a batch and a comparison each have another answer.
_ASKS = """
WITH read AS (SELECT ev_action::text AS tree FROM pg_rewrite WHERE ev_class = 'pg_temp.zdm_view'::regclass)
SELECT p.proname FROM read, regexp_matches(tree, ':funcid (\\d+)', 'g') AS called
JOIN pg_proc p ON p.oid = called[1]::oid
WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.proname IN ('current_setting', 'inet_client_addr',
  'inet_client_port', 'pg_backend_pid', 'getpgusername', 'current_schemas', 'pg_client_encoding', 'system_user')
UNION SELECT name FROM read, (VALUES (9, 'current_role'), (10, 'current_user'), (11, 'user'), (12, 'session_user'),
  (14, 'current_schema')) AS asker (op, name) WHERE tree LIKE '%{SQLVALUEFUNCTION :op ' || op || ' %'"""

# A view's text names a whole row so; its dependencies do not tell.
_WHOLE_ROW = "SELECT strpos(pg_get_viewdef('pg_temp.zdm_view'::regclass), quote_ident($1) || '.*') > 0"


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What the server said of an expression."""

    inputs: tuple[str, ...] = ()  # the columns that it reads
    immutable: bool = True  # whether it depends on them alone
    plain: bool = False  # no setting but those of printing says what it means
    problems: tuple[Problem, ...] = field(default=())
    gives: str = ""  # its type
    exceeds: Literal["length", "size"] | None = None  # in what its values may exceed the column that it fits


def narrower(which: str, judged: Judged, old: Column) -> str | None:
    """What new code must not write before contract, where the type of an old column says that it cannot hold it.

    Args:
        which: what the declaration calls the expression.
    """
    what = f"{which} gives {judged.gives}, and {quote(old.name)} is {old.type}: until contract"
    if judged.exceeds == "length":
        return (
            f"{what}, old code sees only the beginning of what new code writes longer than that, a rollback keeps no "
            "more, and a unique index on the old column refuses what begins alike"
        )
    if judged.exceeds == "size":
        effect = "refuses its insert" if old.not_null else "leaves it NULL where new code inserts it"
        return (
            f"{what}, let new code write no number that is too large for it. The old column keeps what it held, or "
            f"{effect}; validate fails for such a row until all reads are on the new shape; a rollback loses the number"
        )
    return None


@dataclass(frozen=True)
class Trial:
    """Judges expressions over rows of one temporary table; inside of a transaction that is undone."""

    conn: Connection
    shape: str  # the temporary table
    name: str  # what expressions call it

    def judge(self, which: str, sql: str, *, fits: tuple[str, str], many: bool = False) -> Judged:
        """What an expression reads, and everything that does not fit.

        Args:
            which: what the declaration calls it.
            fits: a temporary table and its column, whose type the value must fit.
            many: it is computed over many rows, by aggregates.
        """
        thing, alias = f"{which}: {sql}", quote(self.name)
        problems: list[Problem] = []
        found: tuple[str, ...] = ()
        if volatile := catalogs.volatile_functions(self.conn, sql):
            fact = f"calls {', '.join(volatile)}, which may give another value each time: parity could not be proven"
            problems.append(Problem(thing, fact, f"compute {which} from the row"))
        together = " HAVING true" if many else ""  # no column outside of an aggregate then
        select = f"SELECT {expression(sql)} AS zdm_value FROM"
        view = f"CREATE TEMPORARY VIEW zdm_view AS {select} {self.shape} AS {alias}{together}"
        # A predicate accepts no aggregate, window or set, where a view would.
        single = f"EXPLAIN SELECT FROM {self.shape} AS {alias} WHERE {expression(sql)} IS NULL"
        try:
            with attempt(self.conn):
                self.conn.execute(view.encode(), prepare=True)
                found = tuple(name for (name,) in query(self.conn, _INPUTS, [self.shape]))
                does, gives, wants, built_in, *exceeds = query(self.conn, _FITS, [*fits])[0]
                if not does:
                    fact, way_out = (
                        f"gives {gives}, and column {quote(fits[1])} is {wants}",
                        f"({sql.strip()})::{wants}",
                    )
                    return Judged(
                        inputs=found,
                        problems=(*problems, Problem(thing, fact, f"write an explicit cast, as {way_out}")),
                    )
                if not many:
                    self.conn.execute(single.encode(), prepare=True)
                if asks := [name for (name,) in query(self.conn, _ASKS)]:
                    fact = f"calls {', '.join(asks)}, which another session answers otherwise"
                    problems.append(Problem(thing, fact, f"compute {which} from the row"))
                if scalar(self.conn, _WHOLE_ROW, [self.name]):
                    problems.append(Problem(thing, "reads the whole row", f"name the columns that {which} reads"))
                # The expression is evaluated as in a trigger: over these columns and nothing else, no system column
                # either.
                listed = ", ".join(quote(c) for c in found) or "1 AS zdm_none"
                alone = f"EXPLAIN {select} (SELECT {listed} FROM {self.shape}) AS {alias}{together}"
                self.conn.execute(alone.encode(), prepare=True)
                immutable = not many and self._immutable(sql, wants)
        except psycopg.Error as error:
            fact = f"is no expression over {'rows' if many else 'one row'} of the table ({safe(error)})"
            return Judged(inputs=found, problems=(*problems, Problem(thing, fact, f"correct {which}")))
        return Judged(
            inputs=found,
            immutable=immutable,
            plain=immutable and built_in and plain([sql]),
            problems=tuple(problems),
            gives=gives,
            exceeds=next((one for one in exceeds if one), None),
        )

    def _immutable(self, sql: str, type_name: str) -> bool:
        """Only an immutable expression may be stored as a generated column: the server is the judge."""
        try:
            with attempt(self.conn):
                self.conn.execute(f"CREATE TEMPORARY TABLE zdm_immutable (LIKE {self.shape}) ON COMMIT DROP".encode())
                self.conn.execute(
                    f"ALTER TABLE zdm_immutable ADD COLUMN zdm_value {type_name} "
                    f"GENERATED ALWAYS AS ({expression(sql)}::{type_name}) STORED".encode()
                )
        except psycopg.Error:
            return False
        return True
