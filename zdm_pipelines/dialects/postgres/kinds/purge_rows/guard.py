"""Guard: the first statement of a batch, which fails when the tables are not as they were when the purge began.

It takes locks against changes of the schema first, in the order in which the batch deletes: whoever adds a foreign key
locks the child before the parent, too. What it looks at behind them stays as it is until the batch ends.
"""

from __future__ import annotations

from collections.abc import Iterable

from zdm_pipelines.dialects.postgres.children import Child, Fate
from zdm_pipelines.dialects.postgres.literals import text
from zdm_pipelines.model.values import Catalog

# By the triggers that fire for them when a row is deleted: those have an index on the table.
_REFERENCES = """\
SELECT FROM pg_trigger t JOIN pg_constraint k ON k.oid = t.tgconstraint
  WHERE t.tgrelid = ANY ({tables}) AND k.contype = 'f' AND k.confrelid = t.tgrelid AND k.conparentid = 0
    AND concat_ws(' ', k.confrelid, k.conrelid, k.confdeltype IN ('n', 'd'), k.conname, (
      SELECT string_agg(a.attname, ' ' ORDER BY u.place) FROM unnest(k.conkey) WITH ORDINALITY AS u(number, place)
      JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.number)) <> ALL ({known})"""
_COLUMNS = """\
SELECT FROM pg_attribute WHERE attrelid = ANY ({tables}) AND attnum > 0 AND NOT attisdropped
    AND concat_ws(' ', attrelid, attname) <> ALL ({known})"""
_BODY = """\
BEGIN LOCK TABLE {locked} IN ROW EXCLUSIVE MODE; IF {tables} <> {named} OR {changed} THEN
  RAISE EXCEPTION USING ERRCODE = 'object_not_in_prerequisite_state', MESSAGE = {message}; END IF; END"""


def guard(over: Catalog, children: tuple[Child, ...], *, archived: bool) -> str:
    """A statement that fails when a table is another one, or a foreign key that nobody knows refers to rows that go.

    Args:
        archived: fail also when one of their tables has a column that no archive keeps.
    """
    deleted = [child for child in children if child.fate is Fate.DELETED]
    oids = [over.oid, *(child.oid for child in children)]  # by number
    tables = f"ARRAY[{', '.join(str(oid) for oid in (over.oid, *(c.oid for c in deleted)))}]::oid[]"
    names = [over.table.sql, *(child.table.sql for child in deleted)]
    references = (
        f"{oids[c.parent]} {c.oid} {'t' if c.fate is Fate.CLEARED else 'f'} {c.constraint} "
        + " ".join(own for own, _ in c.columns)
        for c in children
    )
    changed = [_REFERENCES.format(tables=tables, known=_array(references))]
    if archived:
        kept = [(over.oid, column.name) for column in over.columns]
        kept += [(child.oid, name) for child in deleted for name in child.all_columns]
        changed.append(_COLUMNS.format(tables=tables, known=_array(f"{oid} {name}" for oid, name in kept)))
    body = _BODY.format(
        locked=", ".join(f"ONLY {name}" for name in reversed(names)),
        tables=tables,
        named=f"{_array(names)}::regclass[]::oid[]",
        changed=" OR ".join(f"EXISTS ({found})" for found in changed),
        message=text(f"{over.table}, or what refers to it, is not as it was when the migration began"),
    )
    return f"DO {text(body)}"


def _array(texts: Iterable[str]) -> str:
    return f"ARRAY[{', '.join(text(one) for one in texts)}]::text[]"
