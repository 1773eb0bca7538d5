"""Change: which capabilities an added index has, and what makes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zdm_pipelines.changes.add_index import words
from zdm_pipelines.changes.add_index.spec import AddIndex, IndexSpec
from zdm_pipelines.changes.protocol import Bound, Change, DataCheck, Survey, Words
from zdm_pipelines.dialects.server import Server, Session
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.values import Column, Relation

_NAME = "add_index"


def declared(migration: Migration) -> AddIndex:
    """The change as it is declared."""
    assert isinstance(migration.change, AddIndex)  # the registry asks the kind that `kind` names
    return migration.change


class AddIndexKind:
    """See `Kind` for what each member is."""

    name = _NAME
    spec = AddIndex
    example = """\
name: orders_by_customer
columns: [customer_id, created_at DESC]  # each as in SQL; expressions, too
unique: false  # true: rows that are not unique yet are counted first
where: state = 'open'  # only these rows; leave it out for all"""

    def words(self, migration: Migration) -> Words:
        """What an added index calls things."""
        return words.words(migration, declared(migration))

    def survey(self, session: Session, migration: Migration, server: Server) -> Survey:
        """Try the index on a temporary copy of the table's shape."""
        catalog, facts, problems = server.kind(_NAME).survey(session, migration.table_name, declared(migration))
        return Survey(catalog=catalog, facts=facts.stored(), problems=problems, warnings=catalog.warnings)

    def bind(self, bound: Bound, server: Server) -> Change:
        """Steps that build it, and nothing else."""
        index = server.kind(_NAME).Facts.read(bound.facts).new
        return Change(
            relations=(Relation(name=bound.catalog.table, oid=bound.catalog.oid),),
            enforce=index.steps(reason="as declared"),
            today=index.today,
            checks=check_duplicates(declared(bound.migration), index, bound.catalog.key),
        )


def check_duplicates(declared: IndexSpec, index: Any, key: Sequence[Column]) -> tuple[DataCheck, ...]:
    """The verdict on rows that are not unique yet; none for an index that need not be.

    Args:
        index: the server's part of the new index.
        key: the primary key of the table.
    """
    if not declared.unique:
        return ()
    return (
        DataCheck(
            check=words.NO_DUPLICATES,
            count=index.duplicates(),
            failed=words.DUPLICATES,
            keys=index.duplicate_keys(key),
        ),
    )
