"""Change: which capabilities a replaced index has, and what makes them."""

from __future__ import annotations

from zdm_pipelines.changes.add_index.change import check_duplicates
from zdm_pipelines.changes.protocol import Bound, Change, Survey, Words
from zdm_pipelines.changes.replace_index import words
from zdm_pipelines.changes.replace_index.spec import ReplaceIndex
from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Relation

_NAME = "replace_index"


def declared(migration: Migration) -> ReplaceIndex:
    """The change as it is declared."""
    assert isinstance(migration.change, ReplaceIndex)  # the registry asks the kind that `kind` names
    return migration.change


class ReplaceIndexKind:
    """See `Kind` for what each member is."""

    name = _NAME
    spec = ReplaceIndex
    example = """\
old: orders_by_customer
new: {name: orders_by_customer_newest, columns: [customer_id, created_at DESC]}"""

    def words(self, migration: Migration) -> Words:
        """What a replaced index calls things."""
        return words.words(migration, declared(migration))

    def survey(self, session: Session, migration: Migration, server: Server) -> Survey:
        """Try the new index on a temporary copy of the table's shape, and keep what makes the old one anew."""
        change = declared(migration)
        catalog, facts, problems = server.kind(_NAME).survey(session, migration.table_name, change.old, change.new)
        return Survey(catalog=catalog, facts=facts.stored(), problems=problems, warnings=catalog.warnings)

    def bind(self, bound: Bound, server: Server) -> Change:
        """Steps that build the new index, and what drops the old one."""
        sql = server.kind(_NAME)
        facts = sql.Facts.read(bound.facts)
        return Change(
            relations=(Relation(name=bound.catalog.table, oid=bound.catalog.oid),),
            told=(("old index", facts.old.index.definition),),
            enforce=facts.new.steps(reason=f"takes over from {facts.old.index.name}"),
            checks=check_duplicates(declared(bound.migration).new, facts.new, bound.catalog.key),
            retire=sql.Replaced(old=facts.old, new=facts.new),
        )
