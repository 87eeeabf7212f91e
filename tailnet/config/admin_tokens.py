"""Tokens of administrators (layer L2): who may call the API below /api/v2/admin, and under which name.

They stand in a file beside the settings and nowhere in the store: whoever may change every user of a store has to be
somebody that the store cannot make.  The file has a line `name:token` for each; the name is what the account of changes
shows.  Next hop: auth/administrators.py.
"""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from derp.config.sources import read_file
from derp.errors import ConfigError
from derp.text import error_text
from tailnet.tokens import can_be_sent

# 32 random letters and digits are 190 bits.  A shorter one was typed by somebody.
MIN_TOKEN_CHARS: Final = 32
MAX_TOKEN_CHARS: Final = 1024
# Each control plane has one, and one more while it is replaced.
MAX_TOKENS: Final = 100
_NAME: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._@-]{0,63}")


@dataclass(frozen=True, slots=True)
class AdminToken:
    """One of them: its name, and the SHA-256 of the token."""

    name: str
    digest: bytes = field(repr=False)


def parse_admin_tokens(text: str) -> tuple[AdminToken, ...]:
    """The file's text.  Raises ValueError with the line and what to change; it repeats no token."""
    found: list[AdminToken] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, token = (part.strip() for part in line.partition(":"))
        if not colon or not _NAME.fullmatch(name):
            raise ValueError(f"line {number}: wants NAME:TOKEN, with a name of letters, digits and ._@-")
        if not MIN_TOKEN_CHARS <= len(token) <= MAX_TOKEN_CHARS or not can_be_sent(token):
            raise ValueError(
                f"line {number}: wants a token of {MIN_TOKEN_CHARS} visible ASCII characters or more, as "
                "`openssl rand -hex 32` makes one"
            )
        found.append(AdminToken(name, hashlib.sha256(token.encode()).digest()))
    if not found:
        raise ValueError("has no line NAME:TOKEN")
    if len(found) > MAX_TOKENS:
        raise ValueError(f"has {len(found)} tokens, at most {MAX_TOKENS} are possible")
    for what in ("name", "digest"):
        if len({getattr(each, what) for each in found}) < len(found):
            raise ValueError(f"has a {what.replace('digest', 'token')} twice: each needs its own")
    return tuple(found)


def load_admin_tokens(path: Path) -> tuple[AdminToken, ...]:
    """Read the file.  Raises ConfigError, which repeats no token."""
    text = read_file(path, "tokens of administrators").decode("utf-8", "replace")
    try:
        return parse_admin_tokens(text)
    except ValueError as error:
        raise ConfigError(f"{path}: {error_text(error)}") from None
