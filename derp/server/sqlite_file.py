"""A file of SQLite that a relay and commands beside it share: the ledger's, the invitations'.  Layer L3.

Opened anew for each transaction, so that nobody holds it while nothing is written.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from derp.errors import ConfigError
from derp.text import error_text

# Writers wait so long for each other; their transactions take milliseconds.
_BUSY_SECONDS: Final = 5.0


@contextmanager
def transaction(path: Path, schema: str, purpose: str) -> Iterator[sqlite3.Connection]:
    """One transaction.  The file is made if there is none, for its owner alone from the start.

    `schema` is run first, each time.  Blocks.  Raises ConfigError "cannot be used `purpose`", with the reason.
    """
    try:
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, timeout=_BUSY_SECONDS)
        try:
            connection.executescript(schema)
            with connection:
                yield connection
        finally:
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise ConfigError(f"{path}: cannot be used {purpose}: {error_text(error)}") from None
