"""Holds, what may be tuned, and the heartbeat that replicas are watched by."""

from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    op.execute("DROP TABLE zdm.heartbeat, zdm.tuning, zdm.hold")
