"""Claims: which relations a migration holds, in place of one table for each migration."""

from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    op.execute(
        "CREATE UNIQUE INDEX migration_one_active_per_table ON zdm.migration (table_oid) "
        "WHERE state NOT IN ('planned', 'contracted', 'rolled_back'); "
        "DROP TABLE zdm.claim"
    )
