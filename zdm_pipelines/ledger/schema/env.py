"""Alembic's environment: upgrades the ledger on the connection it is handed."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table="schema_version",
    version_table_schema="zdm",
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
