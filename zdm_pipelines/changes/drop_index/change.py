"""Change: which capabilities a dropped index has, and what makes them."""

from __future__ import annotations

from zdm_pipelines.changes.drop_index import words
from zdm_pipelines.changes.drop_index.spec import DropIndex
from zdm_pipelines.changes.protocol import Bound, Change, Survey, Words
from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Relation

_NAME = "drop_index"


def declared(migration: Migration) -> DropIndex:
    """The change as it is declared."""
    assert isinstance(migration.change, DropIndex)  # the registry asks the kind that `kind` names
    return migration.change


class DropIndexKind:
    """See `Kind` for what each member is."""

    name = _NAME
    spec = DropIndex
    example = """\
name: orders_by_customer
unused_for: 7d  # nobody scanned it for so long; null: drop it all the same"""

    def words(self, migration: Migration) -> Words:
        """What a dropped index calls things."""
        return words.words(migration, declared(migration))

    def survey(self, session: Session, migration: Migration, server: Server) -> Survey:
        """Look for the index, and keep what makes it anew."""
        catalog, facts, problems = server.kind(_NAME).survey(session, migration.table_name, declared(migration).name)
        return Survey(catalog=catalog, facts=facts.stored(), problems=problems, warnings=catalog.warnings)

    def bind(self, bound: Bound, server: Server) -> Change:
        """The index goes, and nothing else."""
        sql = server.kind(_NAME)
        old = sql.Facts.read(bound.facts).old
        unused_for = declared(bound.migration).unused_for
        return Change(
            relations=(Relation(name=bound.catalog.table, oid=bound.catalog.oid),),
            told=(("index", old.index.definition),),
            retire=sql.Going(old=old),
            in_use=sql.Use(old=old, unused_for=unused_for).reasons if unused_for is not None else None,
        )
