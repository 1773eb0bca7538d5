"""In-place moves, and which ranges were written since they were proven."""

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    op.execute(
        "DROP TABLE zdm.written; ALTER TABLE zdm.migration DROP COLUMN epoch; "
        "ALTER TABLE zdm.range DROP COLUMN proof; ALTER TABLE zdm.range DROP COLUMN hot"
    )
