"""Change: which capabilities a purge has, and what makes them."""

from __future__ import annotations

from zdm_pipelines.changes.protocol import Bound, Change, DataCheck, Survey, Words
from zdm_pipelines.changes.purge_rows import words
from zdm_pipelines.changes.purge_rows.spec import PurgeRows
from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Relation

_NAME = "purge_rows"


def declared(migration: Migration) -> PurgeRows:
    """The change as it is declared."""
    assert isinstance(migration.change, PurgeRows)  # the registry asks the kind that `kind` names
    return migration.change


class PurgeRowsKind:
    """See `Kind` for what each member is."""

    name = _NAME
    spec = PurgeRows
    example = """\
where: created_at < cutoff  # SQL over the row
once: {cutoff: "now() - interval '90 days'"}  # computed when the migration expands, and never again
children: refuse  # delete: rows of other tables that refer to these go first
archive: {table: archive.orders_2025}  # so that the rows can come back; null: they are gone"""

    def words(self, migration: Migration) -> Words:
        """What a purge calls things."""
        return words.words(migration, declared(migration))

    def survey(self, session: Session, migration: Migration, server: Server) -> Survey:
        """Judge the predicate, compute what is computed once, and look for tables that refer to this one."""
        catalog, facts, problems = server.kind(_NAME).survey(session, migration.table_name, declared(migration))
        return Survey(catalog=catalog, facts=facts.stored(), problems=problems, warnings=catalog.warnings)

    def bind(self, bound: Bound, server: Server) -> Change:
        """Row work that destroys, the archive, and the verdict on children that refuse."""
        change, sql = declared(bound.migration), server.kind(_NAME)
        facts = sql.Facts.read(bound.facts)
        deleted = [child for child in facts.children if child.fate is sql.Fate.DELETED]
        archive = None
        if change.archive_name is not None:
            archive = sql.Archive(
                name=change.archive_name, source=bound.catalog, children=deleted, owner=facts.owner,
                readers=facts.readers,
            )  # fmt: skip
        rows = sql.Purge(over=bound.catalog, facts=facts, archive=archive)
        kept = archive.tables() if archive is not None else []
        return Change(
            relations=(
                Relation(name=bound.catalog.table, oid=bound.catalog.oid),
                *(Relation(name=child.table, oid=child.oid) for child in {c.oid: c for c in facts.children}.values()),
                *(Relation(name=table, oid=0) for table in kept),
            ),
            told=(("where", facts.where), *facts.once.items()),
            expand=archive.create() if archive is not None else (),
            rows=rows,
            checks=tuple(
                DataCheck(
                    check=words.NO_CHILDREN,
                    count=count,
                    failed=words.describe_children(str(child.table), child.constraint),
                    keys=keys,
                )
                for child, count, keys in rows.refusing()
            ),
            retire=sql.Purged(
                catalog=bound.catalog, change=change, facts=facts, archive=archive,
                kept=change.archive is not None and change.archive.keep, tombstoned=bound.tombstoned,
            ),
        )  # fmt: skip
