"""The URL of a store: what may stand in it (layer L2).

It may hold a password: derp/text.py masks it wherever it is shown.  Next hop: database.py picks the dialect by it.
"""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from tailnet.errors import StoreError

_SQLITE: Final = frozenset({"sqlite", "sqlite+pysqlite"})
# How people write it elsewhere, and how SQLAlchemy calls the one driver that we use.
_POSTGRESQL: Final = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
_EXAMPLES: Final = "sqlite:///tailnet.db, sqlite:////absolute/path.db or postgresql+psycopg://user@host/database"


def parse_store_url(text: str) -> sa.URL:
    """Raises StoreError, which says what is wanted and repeats no password."""
    try:
        url = sa.make_url(text)
    except (ArgumentError, ValueError):
        # It may hold a password all the same: not one character of it is repeated.
        raise StoreError(f"store: this is not a URL: write {_EXAMPLES}") from None
    if url.drivername in _SQLITE:
        if not url.database or url.database == ":memory:":
            raise StoreError(
                "store: a database in memory would forget its keys: name a file, as in sqlite:///tailnet.db"
            )
        if url.query or url.database.startswith("file:"):
            raise StoreError("store: a SQLite URL takes no parameters here: write sqlite:///tailnet.db")
        return url.set(drivername="sqlite")
    if url.drivername in _POSTGRESQL:
        if not url.database:
            raise StoreError("store: the URL names no database: write postgresql+psycopg://user@host/database")
        return url.set(drivername="postgresql+psycopg")
    raise StoreError(f"store: {url.drivername} is not supported: write {_EXAMPLES}")


def store_path(url: sa.URL) -> Path:
    """The file that a SQLite URL names."""
    assert url.database is not None
    return Path(url.database)
