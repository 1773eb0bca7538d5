"""Subscribers: who receives a table by logical replication stops at a column or table that it does not have.

What subscribers have is not to be seen from here. While some slot waits for changes of this database, people say so
themselves, under `contract.unaffected`; without a slot, plan tells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from zdm_pipelines.dialects.postgres.connection import Connection
from zdm_pipelines.model.errors import Judged, Problem
from zdm_pipelines.model.names import TableName, quote
from zdm_pipelines.model.values import Catalog

_LEDGER = "zdm"


def of_column(conn: Connection, found: Catalog, *, new: str, type_name: str) -> list[Problem]:
    """Publications that send a column as soon as a table has it."""
    problems: list[Problem] = []
    for name, alone in conn.named("subscribers.whole_rows", found.oid):
        add = f"ALTER TABLE {found.table.sql} ADD COLUMN {quote(new)} {type_name}"
        way_out = f"run there first: {add}; then list it under contract.unaffected: publication {name}"
        if alone:
            way_out += f"; or let it send the present columns only: {_listing(name, found, alone)}"
        fact = f"sends whole rows of {found.table}: a subscriber without column {quote(new)} stops at the first"
        problems.append(Judged(f"publication {name}", fact, way_out))
    return problems


def _listing(name: str, found: Catalog, rows: str) -> str:
    """The statements that list the present columns."""
    columns = ", ".join(quote(column.name) for column in found.columns if not column.generated)
    alter, where = f"ALTER PUBLICATION {name}", f" WHERE ({rows})" if rows != "true" else ""
    return (
        f"BEGIN; {alter} DROP TABLE {found.table.sql}; {alter} ADD TABLE {found.table.sql} ({columns}){where}; COMMIT"
    )


def of_tables(conn: Connection, *tables: TableName) -> list[Problem]:
    """Publications that send tables which a migration makes, though nobody adds them."""
    problems: list[Problem] = []
    for name, table in _unasked(conn, tables):
        fact = f"will send table {table}, which the migration makes: a subscriber that lacks it stops at its first row"
        way_out = (
            "make it there first, or as soon as expand has run, and list it under contract.unaffected: "
            f"publication {name}"
        )
        problems.append(Judged(f"publication {name}", fact, way_out))
    return problems


def of_ledger(conn: Connection) -> list[Problem]:
    """Publications that send the tables of the ledger, which is yet to be made."""
    if conn.value("catalog.oid", f"{_LEDGER}.migration") is not None:
        return []
    problems: list[Problem] = []
    for name, _ in _unasked(conn, [TableName(schema=_LEDGER, name="migration")]):
        fact = "sends tables of the ledger, too: a Postgres subscriber stops until it has them"
        way_out = (
            f"let it list its tables, or copy schema {_LEDGER} there (pg_dump --schema-only --schema={_LEDGER}) as "
            f"soon as expand has run, and list it under contract.unaffected: publication {name}"
        )
        problems.append(Judged(f"publication {name}", fact, way_out))
    return problems


def _unasked(conn: Connection, tables: Sequence[TableName]) -> Iterator[tuple[str, TableName]]:
    for table in tables:
        for (name,) in conn.named("subscribers.unasked", table.schema):
            yield name, table


def judged(conn: Connection, problems: list[Problem]) -> tuple[list[Problem], list[str]]:
    """The same as findings while somebody receives changes of this database, and as warnings while nobody does."""
    if conn.value("subscribers.some"):
        return problems, []
    return [], [f"{problem.thing} {problem.fact}: {problem.way_out}" for problem in problems]


def renamed(conn: Connection, oid: int, column: str) -> dict[str, str]:
    """Publications that send a column under the name that it has: why a subscriber stops when it is out of sight."""
    if not conn.value("subscribers.some"):
        return {}
    return {
        f"publication {name}": f"publication {name} sends {column} with whole rows of the table: a subscriber stops at "
        "the first row once the column has another name"
        for name, _ in conn.named("subscribers.whole_rows", oid)
    }
