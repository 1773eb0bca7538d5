"""Words: what a purge calls things."""

from __future__ import annotations

from zdm_pipelines.changes.protocol import Words
from zdm_pipelines.changes.purge_rows.spec import PurgeRows
from zdm_pipelines.model.migration import Migration
from zdm_pipelines.model.states import Phase

NO_CHILDREN = "no_children"


def describe_children(table: str, constraint: str) -> str:
    """What is said of rows of a table that keep others by a foreign key, with {count}."""
    named = f"rows of {table} refer to rows that would go (foreign key {constraint})".replace("{", "{{").replace(
        "}", "}}"
    )
    return f"{{count:,}} {named}, which stay therefore: declare children: delete, or delete them first"


def words(migration: Migration, change: PurgeRows) -> Words:
    """Every text of the kind."""
    table, archive = migration.table_name, change.archive_name
    children = ", the rows that refer to them first" if change.deletes_children else ""
    refused = {} if change.deletes_children else {NO_CHILDREN: "No row of another table refers to a row that would go."}
    if archive is None:
        old, kept, back = (
            f"what matches {change.where} in {table}",
            ", for good",
            "no more rows go; those that went stay gone",
        )
        expand, expanded = "", "the ranges are forgotten"
        last = f"The rows of {table} where {change.where} are deleted now{children}, for good"
    else:
        old, kept, back = f"archive {archive}", f", and keeps them in `{archive}`", f"the rows come back from {archive}"
        expand, expanded = (
            f"Creates the archive `{archive}`. ",
            f"archive {archive} is dropped when nothing is left in it",
        )
        last = f"Archive {archive} with the deleted rows of {table} is dropped now, for good"
        if change.archive is not None and change.archive.keep:
            last = f"Archive {archive} stays, and its rows of {table} come back by no rollback any more"
    return Words(
        summary=f"- rows where {change.where}",
        old=old,
        new=f"archive {archive}" if archive is not None else "nothing",
        phases={
            Phase.EXPAND: f"{expand}Computes the values of `once`.",
            Phase.VALIDATE: f"Counts the rows where `{change.where}` in each range of `{table}`: the dry run.",
            Phase.CONTRACT: f"Deletes the rows of `{table}` where `{change.where}`, batch by batch{children}{kept}.",
        },
        undone={
            Phase.EXPAND: expanded,
            Phase.VALIDATE: "the counts are forgotten",
            Phase.CONTRACT: back,
        },
        checks={"dry_run": "How many rows of each range will go.", **refused},
        last=last,
    )
