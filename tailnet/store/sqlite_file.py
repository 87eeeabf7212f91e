"""The file of a SQLite store beside what SQLite does with it: which file it is, and who serves from it (layer L2).

Called by sqlite.py.  Linux keeps a file that was moved away for as long as somebody has it open, so what a path names
and what a connection reads can be two files.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from derp.text import error_text
from tailnet.errors import StoreError

# Beside the store, empty: the server that uses it holds a lock on it.  Not on the store itself: to close any descriptor
# of that file would drop the locks that SQLite holds on it.
LOCK_SUFFIX: Final = "-server"
# What SQLite keeps beside the file: its log, and the log's index.
_COMPANIONS: Final = ("-wal", "-shm")

FileIdentity = tuple[int, int]  # device and inode


def create_private(path: Path) -> None:
    """Make a file for its owner alone, unless there is one.  Raises StoreError."""
    # SQLite would create it with the umask's rights.  It holds signing keys; the log and its index inherit the mode.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    except FileExistsError:
        return
    except FileNotFoundError:
        raise StoreError(f"store {path}: the folder {path.parent} does not exist: create it") from None
    except OSError as error:
        raise StoreError(f"store {path}: cannot create the file: {error_text(error)}") from None


def identify(path: Path) -> FileIdentity | None:
    """Which file a path names now; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def lock_file(path: Path) -> int:
    """Lock a file, which is made if it is missing, for as long as the returned descriptor is open.

    Raises BlockingIOError if somebody else has it, and OSError where none can be made.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def identify_companions(path: Path) -> dict[Path, FileIdentity]:
    """Which files lie beside a store that is open, for `remove_companions`."""
    named = (path.with_name(path.name + suffix) for suffix in _COMPANIONS)
    found = ((each, identify(each)) for each in named)
    return {each: identity for each, identity in found if identity is not None}


def remove_companions(companions: dict[Path, FileIdentity]) -> None:
    """Remove what is left of a store that another file took the place of.

    SQLite would take the log for that of the new file, and write the old store's pages into it.  A log that somebody
    brought along with the new file is another one, and stays.
    """
    for path, identity in companions.items():
        if identify(path) == identity:
            with suppress(OSError):
                path.unlink()


def has_log(path: Path) -> bool:
    """Whether SQLite's log has something that is not in the file yet."""
    try:
        return path.with_name(path.name + _COMPANIONS[0]).stat().st_size > 0
    except OSError:
        return False
