"""One server at a time refreshes a link."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("external_auth_links", sa.Column("refreshing_until", sa.BigInteger, nullable=True))
