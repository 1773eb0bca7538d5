"""Users: whose statements name an old column, told by the statements' texts, reads included.

pg_stat_statements has the text of what was called, and how often, but not when: a statement counts as in use for as
long as a look found more calls than the one before. pg_stat_activity has each session's latest statement, and when.
A text means our column for certain when it names the table, and no other relation has a column of that name; else it is
a hint. Texts are never shown, for they may hold values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import errors

from zdm_pipelines.dialects.postgres.connection import Connection, query
from zdm_pipelines.dialects.postgres.faults import safe
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.units import Unit, for_people

# Statements of ours name the table in a form of their own; those of foreign keys follow a rename.
_OURS = r"""zdm[._]|"zdm"|\mONLY .*OPERATOR\(pg_catalog\."""
_COUNTED = """
SELECT userid::bigint, pg_get_userbyid(userid)::text, queryid, sum(calls)::bigint FROM {schema}.pg_stat_statements(true)
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND toplevel
  AND query ~* $1 AND query ~* $2 AND query !~* $3 AND strpos(query, $4) = 0
  AND query !~* '^\\s*(alter|create|drop|comment|grant|revoke|analyze|vacuum|explain)\\M'
GROUP BY 1, 2, 3 ORDER BY 4 DESC"""
_LATEST = """
SELECT coalesce(nullif(application_name, ''), 'unnamed application'), usename,
  extract(epoch FROM clock_timestamp() - query_start)
FROM pg_stat_activity CROSS JOIN LATERAL regexp_replace(query, '''([^'']|'''')*''', '', 'g') AS zdm_text
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
  AND application_name NOT LIKE 'zdm %' AND query_start > clock_timestamp() - make_interval(secs => $5)
  AND zdm_text ~* $1 AND zdm_text ~* $2 AND zdm_text !~* $3 AND strpos(zdm_text, $4) = 0 ORDER BY 3 LIMIT 5"""
_ALONE = """
SELECT NOT EXISTS (SELECT FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  JOIN pg_namespace n ON n.oid = c.relnamespace
  WHERE a.attname = $2 AND a.attrelid <> $1 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'zdm') AND n.nspname NOT LIKE 'pg\\_%')"""


def _word(name: str) -> str:
    plain, quoted = (re.sub(r"(\W)", r"\\\1", text) for text in (name, quote(name)[1:-1]))
    return rf"\m(?:{plain}|{quoted})\M"


@dataclass(frozen=True, kw_only=True)
class Users:
    """Who names the old columns of a table."""

    migration_id: int
    table: TableName
    oid: int
    columns: Sequence[str]  # as clients name them
    window: float  # seconds; 0: nobody is asked

    def reasons(self, session: Connection, replicas: Mapping[str, Connection]) -> list[str]:
        """Who is known for certain to have named an old column within the window.

        Args:
            replicas: sessions on those that are declared, by what they are called.
        """
        if not self.window:
            return []
        found, known = [], {(login, text): (calls, ago) for login, text, calls, ago in self._remembered(session)}
        for column in self.columns:
            if not query(session, _ALONE, [self.oid, column])[0][0]:
                continue
            for where, conn in (("", session), *((f" on {called}", replica) for called, replica in replicas.items())):
                for application, role, ago in query(conn, _LATEST, [*self._patterns(column), self.window]):
                    since = f"{application} (role {role}){where}, {ago:.0f} s ago"
                    found.append(f"straggler: {since} named {column} in the latest statement; deploy new code there")
            for login, role, text, calls in self._counted(session, column):
                before, ago = known.get((login, text), (None, 0.0))
                if before == calls and ago >= self.window:
                    continue
                since = for_people(ago, Unit.SECONDS) if before == calls else "the last look"
                found.append(
                    f"straggler: role {role} may have called a statement that names {column} since {since} "
                    f"(pg_stat_statements, queryid {text}, {calls:,} calls); deploy new code there"
                )
        return found

    def remember(self, session: Connection) -> None:
        """Keep how often each statement was called so far, so that a later look knows which are called still."""
        if not self.window or not session.value("ledger.has_home"):
            return
        for column in self.columns:
            for login, _, text, calls in self._counted(session, column):
                session.named("ledger.remember_statement", self.migration_id, login, text, calls)

    def unseen(self, session: Connection) -> list[str]:
        """What is not known of who uses the old columns, and what is only a hint."""
        if not self.window:
            return []
        told = [f"who reads {', '.join(self.columns)} inside of functions or through a reset of statistics is not seen"]
        schema = self._schema(session)
        if schema is None:
            return [f"who reads {', '.join(self.columns)} is not seen: pg_stat_statements is not in this database"]
        try:
            with session.transaction():
                lost, since = query(session, f"SELECT dealloc, stats_reset FROM {schema}.pg_stat_statements_info")[0]
                if lost:
                    when = f"{since:%Y-%m-%d %H:%M}"
                    told.append(f"pg_stat_statements has dropped statements {lost:,} times since {when}")
                texts = f"FROM {schema}.pg_stat_statements(true) WHERE query = '<insufficient privilege>'"
                if query(session, f"SELECT count(*) {texts}")[0][0]:
                    told.append("statements of other roles are hidden: GRANT pg_read_all_stats to our role")
        except psycopg.Error as error:
            return [f"who reads {', '.join(self.columns)} is not seen: {safe(error)}"]
        for column in self.columns:
            if not query(session, _ALONE, [self.oid, column])[0][0] and (hints := self._counted(session, column)):
                listed = ", ".join(str(text) for _, _, text, _ in hints[:5])
                told.append(f"may name {column}, as another table has such a column: queryid {listed}")
        return told

    def _patterns(self, column: str) -> list[str]:
        own = f"ONLY {self.table.sql} AS "
        return [_word(self.table.name), rf'(?<!\mas\s+"?){_word(column)}', _OURS, own]

    def _remembered(self, session: Connection) -> list[tuple[int, int, int, float]]:
        if not session.value("ledger.has_home"):
            return []
        return [(a, b, c, float(d)) for a, b, c, d in session.named("ledger.remembered_statements", self.migration_id)]

    def _schema(self, session: Connection) -> str | None:
        found = query(
            session,
            "SELECT quote_ident(nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace "
            "WHERE extname = 'pg_stat_statements'",
        )
        return str(found[0][0]) if found else None

    def _counted(self, session: Connection, column: str) -> list[tuple[int, str, int, int]]:
        """Statements that name a column: login and its name, the server's number of the statement, calls."""
        if (schema := self._schema(session)) is None:
            return []
        try:
            with session.transaction():
                rows = query(session, _COUNTED.format(schema=schema), self._patterns(column))
        except (errors.ObjectNotInPrerequisiteState, errors.UndefinedColumn):  # not loaded, or an older extension
            return []
        return [(login, role, text, calls) for login, role, text, calls in rows if text is not None]
