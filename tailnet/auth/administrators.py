"""Which administrator is calling (layer L2): by tokens that the settings name, never by those of the store."""

import hashlib
import hmac
from collections.abc import Sequence

from tailnet.config.admin_tokens import MAX_TOKEN_CHARS, AdminToken


class Administrators:
    """Who is calling.  One per server; `tokens` may be replaced at any time."""

    def __init__(self, tokens: Sequence[AdminToken]) -> None:
        self.tokens = tuple(tokens)

    def find(self, token: str) -> str | None:
        """The name of that token, None if it is nobody's.  Takes as long whichever it is, and whatever is wrong."""
        digest = hashlib.sha256(token[:MAX_TOKEN_CHARS].encode("utf-8", "surrogatepass")).digest()
        name = None
        for each in self.tokens:
            if hmac.compare_digest(each.digest, digest):
                name = each.name
        return name
