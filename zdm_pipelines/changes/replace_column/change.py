"""Change: which capabilities a column replacement has, and what makes them."""

from __future__ import annotations

from zdm_pipelines.changes.protocol import Bound, Change, DataCheck, Survey, Words
from zdm_pipelines.changes.replace_column import words
from zdm_pipelines.changes.replace_column.spec import ReplaceColumn
from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Named, Relation

_NAME = "replace_column"


def declared(migration: Migration) -> ReplaceColumn:
    """The change as it is declared."""
    assert isinstance(migration.change, ReplaceColumn)  # the registry asks the kind that `kind` names
    return migration.change


class ReplaceColumnKind:
    """See `Kind` for what each member is."""

    name = _NAME
    spec = ReplaceColumn
    example = """\
old: full_name
new: {name: display_name, type: text}  # nullable: false sets NOT NULL once parity is proven
up: full_name  # SQL over the old row -> new value
down: display_name  # SQL over the new row -> old value: keeps rollback open"""

    def words(self, migration: Migration) -> Words:
        """What a column replacement calls things."""
        return words.words(migration, declared(migration))

    def survey(self, session: Session, migration: Migration, server: Server) -> Survey:
        """Try the declared change on a temporary copy of the table's shape."""
        catalog, facts, problems = server.kind(_NAME).survey(
            session, migration.table_name, declared(migration), name=migration.name
        )
        return Survey(catalog=catalog, facts=facts.stored(), problems=problems, warnings=catalog.warnings)

    def bind(self, bound: Bound, server: Server) -> Change:
        """Every capability but destruction."""
        change, sql = declared(bound.migration), server.kind(_NAME)
        facts = sql.Facts.read(bound.facts)
        statements = sql.ReplaceColumnSql(
            name=bound.migration.name,
            migration_id=bound.migration_id,
            change=change,
            catalog=bound.catalog,
            facts=facts,
            tombstoned=bound.tombstoned,
            marking=bound.notes.marking,
            called=bound.migration.table_name.name,
        )
        steps = sql.ReplaceColumnSteps(statements)
        nulls = steps.nulls()
        users = None if bound.tombstoned else sql.Users(
            migration_id=bound.migration_id, table=bound.catalog.table, oid=bound.catalog.oid, columns=(change.old,),
            window=bound.migration.contract.straggler_window,
        )  # fmt: skip
        return Change(
            relations=(Relation(name=bound.catalog.table, oid=bound.catalog.oid),),
            named=(Named(table=bound.catalog.oid, columns=statements.columns),),
            told=(
                ("up reads", ", ".join(facts.up_inputs) or "no column"),
                ("down reads", ", ".join(facts.down_inputs) or "no column"),
            ),
            expand=steps.expand(),
            sync=steps,
            rows=statements,
            parity=statements,
            enforce=steps.enforce(),
            today=steps.today,
            checks=(DataCheck(check="constraints_valid", count=nulls, failed=words.NULLS),) if nulls else (),
            retire=steps,
            in_use=users and users.reasons,
            remember=users and users.remember,
            unseen=users and users.unseen,
        )
