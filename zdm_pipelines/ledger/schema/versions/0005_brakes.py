"""What brakes and the gate rely on: since when reads are where they are, who writes, where the ledger stands."""

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    op.execute(
        "DROP TABLE zdm.home, zdm.statement; DROP INDEX zdm.writer_latest; "
        "DROP TRIGGER writer_once ON zdm.writer; DROP TRIGGER flag_times ON zdm.flag; "
        "DROP FUNCTION zdm.note_named(), zdm.writer_once(), zdm.flag_times(); "
        "ALTER TABLE zdm.flag DROP COLUMN full_since"
    )
