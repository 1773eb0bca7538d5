"""The ledger: migrations, ranges, checks, flags, stragglers, events."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    op.execute(
        "DROP TABLE zdm.touched, zdm.writer, zdm.flag, zdm.check_result, zdm.range, zdm.event, zdm.migration; "
        "DROP FUNCTION zdm.refuse_change()"
    )
