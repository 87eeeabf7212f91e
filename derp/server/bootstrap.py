"""/bootstrap-dns: addresses of names that clients need before they have working DNS.  Layer L3.

Names are looked up in the background every ten minutes; answering never waits.  A name that is not published may have a
rollout: a TXT record says for how many of a hundred clients it is answered.  That record: transport/dns.py.
"""

import logging
import random
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address, ip_address
from typing import Final

import trio

from derp.errors import DerpError
from derp.text import error_text
from derp.transport.dns import look_up_txt

_log = logging.getLogger("derp.server")

REFRESH_SECONDS: Final = 600.0
# A DNS server that hangs may hold the other names up for no longer than a client would wait.
_LOOKUP_SECONDS: Final = 10.0
# Strangers choose the names that they ask for.  The set of names that the counter remembers has the genuine relay's
# bound, and each name the length that DNS allows.
_MAX_QUERIED: Final = 500
_MAX_NAME: Final = 253


class BootstrapDns:
    """Everybody gets the published names; an unpublished one gets only a client that asks for it by name.

    `unpublished` has a name and, if its rollout is in steps, the name whose TXT record says how far it is.
    """

    def __init__(
        self,
        published: Sequence[str],
        unpublished: Sequence[tuple[str, str]],
        look_up_txt: Callable[[str], Awaitable[list[str]]] = look_up_txt,
    ) -> None:
        self._published_names = tuple(published)
        self._rollout_names = dict(unpublished)
        self._look_up_txt = look_up_txt
        self._addresses: dict[str, list[str]] = {}
        # how many of a hundred clients get each name; without a TXT name all of them do
        self._percent = {name: 0 if txt else 100 for name, txt in unpublished}
        self.queried: set[str] = set()
        self.requests = 0
        self.published_hits = 0
        self.published_misses = 0
        self.unpublished_hits = 0
        self.unpublished_misses = 0
        self.unpublished_percent_misses = 0

    def answer(self, query: str, address: str) -> Mapping[str, list[str]] | None:
        """What /bootstrap-dns?q=query answers to a client at `address`; None when there is nothing to say."""
        self.requests += 1
        if query:
            self._remember(query)
            addresses = self._addresses.get(query)
            if addresses and query in self._rollout_names:
                self.unpublished_hits += 1
                if is_in_rollout(address, self._percent[query]):
                    return {query: addresses}
                self.unpublished_percent_misses += 1
            # We count as the genuine relay does, but for one thing: it takes a published name without addresses for an
            # unpublished one, and then no counter ever tells that a published name fails.
            if query not in self._published_names:
                self.unpublished_misses += 1
            elif addresses:
                self.published_hits += 1
            else:
                self.published_misses += 1
        published = {name: self._addresses[name] for name in self._published_names if name in self._addresses}
        return published or None

    def _remember(self, query: str) -> None:
        self.queried.add(query[:_MAX_NAME])
        if len(self.queried) > _MAX_QUERIED:
            self.queried.clear()

    def totals(self) -> dict[str, int]:
        """What was asked and answered, by the genuine relay's names."""
        return {
            "requests": self.requests,
            "published_hits": self.published_hits,
            "published_misses": self.published_misses,
            "unpublished_hits": self.unpublished_hits,
            "unpublished_misses": self.unpublished_misses,
            "unpublished_percent_misses": self.unpublished_percent_misses,
        }

    async def refresh_forever(self) -> None:
        """Look all names up, now and every ten minutes, until cancelled."""
        names = tuple(dict.fromkeys((*self._published_names, *self._rollout_names)))
        while names:
            for name in names:
                with trio.move_on_after(_LOOKUP_SECONDS):
                    await self._refresh(name)
                if txt := self._rollout_names.get(name):
                    with trio.move_on_after(_LOOKUP_SECONDS):
                        await self._refresh_rollout(name, txt)
            await trio.sleep(REFRESH_SECONDS)

    async def _refresh(self, name: str) -> None:
        try:
            found = await trio.socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:  # the second: no name that DNS can encode
            # The last good answer is better than none.
            _log.warning("bootstrap DNS: cannot look up %s: %s", name, error_text(error))
            return
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        random.shuffle(addresses)  # clients take the first one, and the resolver prefers one family
        self._addresses[name] = addresses

    async def _refresh_rollout(self, name: str, txt: str) -> None:
        try:
            records = await self._look_up_txt(txt)
        except DerpError as error:
            # A look-up that failed does not say that the rollout is over, so the percentage stays.
            _log.warning("bootstrap DNS: rollout of %s stays at %d %%: %s", name, self._percent[name], error)
            return
        percents = [int(record) for record in records if record.isdecimal() and record.isascii() and len(record) < 4]
        percents = [percent for percent in percents if percent <= 100]
        if not percents:
            _log.warning("bootstrap DNS: %s has no TXT record from 0 to 100, so %s is answered to nobody", txt, name)
        self._percent[name] = percents[-1] if percents else 0


def is_in_rollout(address: str, percent: int) -> bool:
    """Whether a client at `address` is one of those `percent` of a hundred: the same ones always, with every relay of
    ours and with the genuine ones (but for loopback, which those leave to chance)."""
    if percent in (0, 100):
        return percent == 100
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    packed = bytes(10) + b"\xff\xff" + ip.packed if isinstance(ip, IPv4Address) else ip.packed
    return percent / 100 > _draw(int.from_bytes(packed[:8], "little"), int.from_bytes(packed[8:], "little"))


def _draw(high: int, low: int) -> float:
    """The first number in [0, 1) of PCG-DXSM with this seed."""
    state = ((high << 64 | low) * 0x2360ED051FC65DA44385DF649FCCF645 + 0x5851F42D4C957F2D14057B7EF767814F) % (1 << 128)
    high, low = state >> 64, state % (1 << 64)
    high ^= high >> 32
    high = high * 0xDA942042E4DD58B5 % (1 << 64)
    high ^= high >> 48
    high = high * (low | 1) % (1 << 64)
    return (high % (1 << 53)) / (1 << 53)
