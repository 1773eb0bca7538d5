"""Change: which capabilities the extraction of a table has, and what makes them."""

from __future__ import annotations

from zdm_pipelines.changes.extract_table import words
from zdm_pipelines.changes.extract_table.spec import ExtractTable
from zdm_pipelines.changes.protocol import Bound, Change, DataCheck, Survey, Words
from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Named, Relation

_NAME = "extract_table"


def declared(migration: Migration) -> ExtractTable:
    """The change as it is declared."""
    assert isinstance(migration.change, ExtractTable)  # the registry asks the kind that `kind` names
    return migration.change


class ExtractTableKind:
    """See `Kind` for what each member is."""

    name = _NAME
    spec = ExtractTable
    example = """\
old: profile
new:
  table: public.user_settings
  key: {user_id: id}  # the new table's key column holds the primary key of this table
  columns:
    theme: {type: text, up: "profile->>'theme'"}
    notifications_enabled: {type: boolean, up: "(profile->>'notifications')::boolean", nullable: false, default: "true"}
down: "jsonb_build_object('theme', theme, 'notifications', notifications_enabled)"  # keeps rollback open"""

    def words(self, migration: Migration) -> Words:
        """What the extraction calls things."""
        return words.words(migration, declared(migration))

    def survey(self, session: Session, migration: Migration, server: Server) -> Survey:
        """Try the declared change on temporary tables of both shapes."""
        catalog, facts, problems = server.kind(_NAME).survey(session, migration.table_name, declared(migration))
        return Survey(catalog=catalog, facts=facts.stored(), problems=problems, warnings=catalog.warnings)

    def bind(self, bound: Bound, server: Server) -> Change:
        """Every capability but destruction."""
        change, sql = declared(bound.migration), server.kind(_NAME)
        statements = sql.ExtractSql(
            name=bound.migration.name,
            migration_id=bound.migration_id,
            change=change,
            catalog=bound.catalog,
            facts=sql.Facts.read(bound.facts),
            tombstoned=bound.tombstoned,
            called=bound.migration.table_name.name,
        )
        target = change.new.table_name
        created = bound.claims.get(str(target), 0)  # the oid of the new table, once expand has made the table
        steps = sql.ExtractSteps(statements, created)
        nulls = steps.nulls()
        users = None if bound.tombstoned else sql.Users(
            migration_id=bound.migration_id, table=bound.catalog.table, oid=bound.catalog.oid,
            columns=tuple(change.olds), window=bound.migration.contract.straggler_window,
        )  # fmt: skip
        return Change(
            relations=(
                Relation(name=bound.catalog.table, oid=bound.catalog.oid),
                Relation(name=target, oid=created),
            ),
            named=tuple(Named(table=oid, columns=columns) for oid, columns in statements.names_columns(created)),
            told=(("rows", statements.when), *((("each", change.each),) if change.each else ())),
            expand=steps.expand(),
            sync=steps,
            rows=statements,
            parity=statements,
            enforce=steps.enforce(),
            checks=(DataCheck(check="constraints_valid", count=nulls, failed=words.NULLS),) if nulls else (),
            retire=steps,
            in_use=users and users.reasons,
            remember=users and users.remember,
            unseen=users and users.unseen,
        )
