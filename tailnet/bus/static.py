"""Replicas at addresses that the settings name, or that a DNS name has (layer L2).

The list may be the same for all and hold the own address: whoever is reached there says who it is.  There are no
records, and nothing is carried: direct links do everything.
"""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from derp.text import error_text
from tailnet.bus.contract import MAX_REPLICAS, Address, Record, Watcher
from tailnet.replica.messages import ReplicaID

_log = logging.getLogger("tailnet.replicas")

# A new replica is found within this; a headless service of Kubernetes has its name within 30 s anyway.
LOOK_UP_SECONDS: Final = 5.0


class StaticBus:
    """`static:` and `dns:`.  A Bus."""

    can_carry = False

    def __init__(self, addresses: Sequence[Address], *, by_name: bool = False) -> None:
        """`by_name`: each host is a name, whose addresses are those of replicas, and is looked up again and again."""
        self.kind = "dns" if by_name else "static"
        self.trouble = ""
        self._addresses = tuple(addresses)
        self._by_name = by_name

    async def run(self, own: Record, watcher: Watcher) -> None:
        if not self._by_name:
            watcher.see_addresses(self._addresses)
            await trio.sleep_forever()
        while True:
            await self._look_up(watcher)
            await trio.sleep(LOOK_UP_SECONDS)

    async def _look_up(self, watcher: Watcher) -> None:
        found: dict[Address, None] = {}
        try:
            with trio.fail_after(LOOK_UP_SECONDS):
                for host, port in self._addresses:
                    for each in await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM):
                        found[str(each[4][0]), port] = None
        except (OSError, UnicodeError, trio.TooSlowError) as error:
            # Whoever is linked stays so: a name server that is away says nothing about replicas.
            if not self.trouble:
                _log.warning("! replicas' names cannot be looked up: %s", error_text(error))
            self.trouble = f"the names of {self.kind}: cannot be looked up: {error_text(error)}"
            return
        self.trouble = ""
        watcher.see_addresses(list(found)[:MAX_REPLICAS])

    async def leave(self) -> None:
        """There is no record."""

    async def send(self, receiver: ReplicaID, frames: Sequence[bytes]) -> bool:
        return False
