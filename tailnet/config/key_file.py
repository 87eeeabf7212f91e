"""The file of keys with which the store's secrets are encrypted (layer L2).

One key a line, 32 bytes as base64; lines that begin with # are comments.  The first one encrypts, all of them decrypt:
to exchange keys put a new line on top, `tailnet admin secrets reseal`, take the old line away.
"""

import os
from base64 import b64decode, b64encode
from binascii import Error
from pathlib import Path
from typing import Final

from derp.config.files import write_whole
from derp.config.sources import read_file
from derp.errors import ConfigError
from derp.text import error_text

KEY_BYTES: Final = 32
# The new one and the old one; more are exchanges that were never finished.
MAX_KEYS: Final = 16


def read_key_file(path: Path) -> tuple[bytes, ...]:
    """The keys, the one that encrypts first.  Raises ConfigError, whose text holds nothing of a key."""
    keys: list[bytes] = []
    for number, line in enumerate(read_file(path, "secrets keys").decode("ascii", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            key = b64decode(text, validate=True)
        except (Error, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise ConfigError(
                f"{path}: line {number}: wants a key of {KEY_BYTES} bytes as base64: `tailnet admin secrets new-key` "
                "makes one"
            )
        if key in keys:
            raise ConfigError(f"{path}: line {number}: this key stands there twice: remove one")
        keys.append(key)
    if not 0 < len(keys) <= MAX_KEYS:
        raise ConfigError(f"{path}: has {len(keys)} keys: it should have one, or a few while they are exchanged")
    return tuple(keys)


def add_key(path: Path, *, last: bool = False) -> int:
    """Put a new key on top of the file, or at its end, where it only decrypts; the file is made if it is missing.

    Returns how many it has.  Raises ConfigError.

    Whole or not at all, and never readable to others.
    """
    before = list(read_key_file(path)) if path.exists() else []
    fresh = os.urandom(KEY_BYTES)
    keys = [*before, fresh] if last else [fresh, *before]
    try:
        write_whole(path, b"".join(b64encode(key) + b"\n" for key in keys))
    except OSError as error:
        raise ConfigError(f"{path}: cannot make the file of secrets keys: {error_text(error)}") from None
    return len(read_key_file(path))
