"""Rewriting: the statement after which an object reads the new column instead of the old one, for people to run.

The server prints the object, and each identifier that is the old column's becomes the new one's. What comes out is
shown only if the server takes it, and if it then reads the same columns but for that one; otherwise the object is named
alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psycopg

from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.dialects.postgres.indexes import print_alike
from zdm_pipelines.model.names import quote

# Of printed SQL: a string, a quoted name, a word, white space; strings stay as they are.
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|[^\W\d][\w$]*|\s+""")


@dataclass(frozen=True, kw_only=True)
class Rewriting:
    """Rewrites what reads one column of a table for another column of the table."""

    table: int  # oid
    old: str
    new: str

    def statement(self, conn: Connection, catalog: str, oid: int) -> str | None:
        """The statement for an object of one of the server's catalogs; None: none that is known to be right."""
        make: Mapping[str, Callable[[Connection, int], str | None]] = {
            "pg_rewrite": self._view,
            "pg_policy": self._policy,
            "pg_trigger": self._trigger,
            "pg_publication_rel": self._publication,
        }
        if catalog not in make:
            return None
        with conn.transaction(force_rollback=True):
            print_alike(conn)
            try:
                return make[catalog](conn, oid)
            except psycopg.Error:  # the server does not take it
                return None

    def _renamed(self, printed: str) -> str:
        mine = {self.old, quote(self.old)}
        return _TOKEN.sub(lambda m: quote(self.new) if m[0] in mine else m[0] if m[0].strip() else " ", printed)

    def _tried(self, conn: Connection, columns: str, query: str, *, like: tuple[str, int]) -> str | None:
        """The types of what a query gives; None: it does not read what an object reads, but for the column."""
        numbers = {name: conn.value("catalog.column_number", self.table, name) for name in (self.old, self.new)}
        with conn.transaction():
            conn.execute(f"CREATE TEMPORARY VIEW zdm_rewritten{columns} AS {query}".encode())
            rule, types = conn.named("inventory.rewritten")[0]
            reads = set(conn.named("inventory.columns_read", "pg_rewrite", rule))
        before, after = (self.table, numbers[self.old]), (self.table, numbers[self.new])
        wanted = {after if read == before else read for read in conn.named("inventory.columns_read", *like)}
        return str(types) if reads == wanted else None

    def _view(self, conn: Connection, oid: int) -> str | None:
        if not (found := conn.named("inventory.view", oid)):
            return None
        view, kind, printed, columns, types, options = found[0]
        query, extra = self._renamed(printed), f" WITH ({options})" if options else ""
        got = self._tried(conn, f" ({columns})", query, like=("pg_rewrite", oid))
        body = f"{view} ({columns}){extra} AS {query.strip()}"
        if got is None:
            return None
        if kind == "m":
            return f"DROP MATERIALIZED VIEW {view}; CREATE MATERIALIZED VIEW {body}"
        return f"CREATE OR REPLACE VIEW {body}" if got == types else f"DROP VIEW {view}; CREATE VIEW {body}"

    def _policy(self, conn: Connection, oid: int) -> str | None:
        name, table, *said = conn.named("inventory.policy", oid)[0]
        using, check = (None if text is None else self._renamed(text) for text in said)
        both = " AND ".join(text for text in (using, check) if text is not None)
        if self._tried(conn, "", f"SELECT FROM {table} WHERE {both}", like=("pg_policy", oid)) is None:
            return None
        parts = (
            f" USING ({using})" if using is not None else "",
            f" WITH CHECK ({check})" if check is not None else "",
        )
        return f"ALTER POLICY {name} ON {table}{''.join(parts)}"

    def _trigger(self, conn: Connection, oid: int) -> str | None:
        printed, name, table, constraint = conn.named("inventory.trigger", oid)[0]
        head, _, rest = printed.partition(f"TRIGGER {name} ")
        events, _, rest = rest.partition(f" ON {table} ")
        condition, calls, function = rest.rpartition(" EXECUTE FUNCTION ")
        rewritten = f"TRIGGER {name} {self._renamed(events)} ON {table} {self._renamed(condition)}{calls}{function}"
        if constraint:
            return f"DROP TRIGGER {name} ON {table}; {head}{rewritten}"
        return f"{head.replace('CREATE ', 'CREATE OR REPLACE ')}{rewritten}"

    def _publication(self, conn: Connection, oid: int) -> str | None:
        name, table, columns, rows = conn.named("inventory.published", oid)[0]
        listed = (
            "" if columns is None else f" ({', '.join(self._renamed(column) for column in dict.fromkeys(columns))})"
        )
        where = "" if rows is None else f" WHERE ({self._renamed(rows)})"
        alter = f"ALTER PUBLICATION {name}"  # together, so that no change in between is left out
        return f"BEGIN; {alter} DROP TABLE {table}; {alter} ADD TABLE {table}{listed}{where}; COMMIT"
