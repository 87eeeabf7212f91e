"""/bootstrap-dns: addresses of names that clients need before they have working DNS.  Layer L3.

Names are looked up in the background every ten minutes; answering never waits.
"""

import logging
import socket
from collections.abc import Mapping, Sequence
from typing import Final

import trio

_log = logging.getLogger("derp.server")

REFRESH_SECONDS: Final = 600.0
# A DNS server that hangs may not hold the other names up for longer than a client would wait.
_LOOKUP_SECONDS: Final = 10.0


class BootstrapDns:
    """Published names are answered to everybody, unpublished ones only to who asks for one by name."""

    def __init__(self, published: Sequence[str], unpublished: Sequence[tuple[str, str]]) -> None:
        self._published_names = tuple(published)
        self._unpublished_names = tuple(name for name, _ in unpublished)
        self._addresses: dict[str, list[str]] = {}
        self.requests = 0
        self.published_hits = 0
        self.published_misses = 0
        self.unpublished_hits = 0
        self.unpublished_misses = 0

    def answer(self, query: str) -> Mapping[str, list[str]] | None:
        """What /bootstrap-dns?q=query answers; None when there is nothing to say."""
        self.requests += 1
        if query in self._unpublished_names:
            addresses = self._addresses.get(query)
            if addresses:
                self.unpublished_hits += 1
                return {query: addresses}
            self.unpublished_misses += 1
        elif query in self._published_names:
            self.published_hits += 1
        elif query:
            self.published_misses += 1
        published = {name: self._addresses[name] for name in self._published_names if name in self._addresses}
        return published or None

    def totals(self) -> dict[str, int]:
        """What was asked and answered, by the genuine relay's names."""
        return {
            "requests": self.requests,
            "published_hits": self.published_hits,
            "published_misses": self.published_misses,
            "unpublished_hits": self.unpublished_hits,
            "unpublished_misses": self.unpublished_misses,
        }

    async def refresh_forever(self) -> None:
        """Look all names up, now and every ten minutes, until cancelled."""
        names = self._published_names + self._unpublished_names
        while names:
            for name in names:
                with trio.move_on_after(_LOOKUP_SECONDS):
                    await self._refresh(name)
            await trio.sleep(REFRESH_SECONDS)

    async def _refresh(self, name: str) -> None:
        try:
            found = await trio.socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # the second: no name that DNS can encode
            # The last good answer is better than none.
            _log.warning("bootstrap DNS: cannot look up %s: %s", name, error)
            return
        self._addresses[name] = list(dict.fromkeys(str(entry[4][0]) for entry in found))
