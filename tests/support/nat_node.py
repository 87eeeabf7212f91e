"""A node of ours as a program, which obeys what tests/interop/go_tailscaled/cmd/wholenode obeys, for other namespaces.

`python -m tests.support.nat_node --private= --peer= --derp= --port= --stun= --here= --there=`; orders are lines on
standard input, answers lines of JSON.  Its port 7 echoes.  Of its own it has

    hold PORT    keep a stream to the peer's echo, with a number each 0.1 s, and pings through the tunnel beside it
    held         what came of both since the last time: the longest wait for a number, and pings lost
"""

import argparse
import json
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import trio

from derp.client.dial import DialOptions
from derp.keys import NodePrivate
from derp.map import DERPMap, DERPNode, DERPRegion
from tailnet.node.core import PeerNode
from tailnet.node.engine import Engine, open_engine
from tailnet.node.place import Place
from tailnet.node.streams import TunnelStream
from tailnet.paths.endpoint import parse_endpoint
from tests.support.nat_world import OTHER_STUN_PORT
from tests.support.whole_node import ECHO, REGION, region_at

_BEAT_SECONDS = 0.1
_PING_SECONDS = 10.0


class Held:
    """A stream and pings that are to live through everything."""

    def __init__(self, engine: Engine, there: bytes) -> None:
        self._engine = engine
        self._there = there
        self.answered_at = trio.current_time()
        self.longest_wait = 0.0
        self.count = 0
        self.lost_pings = 0
        self.trouble = ""

    def take(self) -> dict[str, Any]:
        wait = max(self.longest_wait, trio.current_time() - self.answered_at)
        said = {"wait": wait, "count": self.count, "lost_pings": self.lost_pings, "trouble": self.trouble}
        self.longest_wait, self.count, self.lost_pings = 0.0, 0, 0
        return said

    async def run(self, port: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ping)
            try:
                async with await self._engine.dial(self._there, port) as stream:
                    nursery.start_soon(self._read, stream)
                    for number in range(1 << 32):
                        await stream.send_all(number.to_bytes(8, "big"))
                        await trio.sleep(_BEAT_SECONDS)
            except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
                self.trouble = repr(error)

    async def _read(self, stream: TunnelStream) -> None:
        came = b""
        wanted = 0
        try:
            while piece := await stream.receive_some():
                now = trio.current_time()
                self.longest_wait = max(self.longest_wait, now - self.answered_at)
                self.answered_at = now
                came += piece
                while len(came) >= 8:
                    if int.from_bytes(came[:8], "big") != wanted:
                        self.trouble = f"{wanted} did not come"
                    wanted, came, self.count = wanted + 1, came[8:], self.count + 1
            self.trouble = "the stream ended"
        except trio.BrokenResourceError as error:
            self.trouble = repr(error)

    async def _ping(self) -> None:
        while True:
            try:
                await self._engine.ping(self._there, timeout_seconds=_PING_SECONDS)
            except trio.TooSlowError:
                self.lost_pings += 1
            await trio.sleep(2 * _BEAT_SECONDS)


class Program:
    def __init__(self, engine: Engine, place: Place, peer: bytes, there: bytes, nursery: trio.Nursery) -> None:
        self._engine = engine
        self._place = place
        self._peer = peer
        self._there = there
        self._nursery = nursery
        self._held = Held(engine, there)

    async def obey(self, words: list[str]) -> dict[str, Any]:
        orders: dict[str, Callable[..., Awaitable[object]]] = {
            "peer": self.meet,
            "endpoints": self.endpoints,
            "ping": self.ping,
            "hold": self.hold,
            "held": self.held,
        }
        try:
            return {"ok": True, "text": await orders[words[0]](*words[1:])}
        except (OSError, trio.TooSlowError) as error:
            return {"ok": False, "error": repr(error)}

    async def meet(self, disco: str, *endpoints: str) -> None:
        told = tuple(each for text in endpoints if (each := parse_endpoint(text)) is not None)
        known = PeerNode(self._peer, (self._there,), bytes.fromhex(disco), told, REGION)
        self._engine.core.configure(known, trio.current_time())

    async def endpoints(self) -> str:
        """Once STUN has been asked; a peer would ask again and again until there are some."""
        if self._place.report is None:
            return ""
        return " ".join(map(str, self._engine.local_endpoints))

    async def ping(self, kind: str) -> str:
        ponged = await self._engine.disco_ping(self._peer, timeout_seconds=2)
        return str(ponged.endpoint) if ponged.endpoint is not None else f"derp-{ponged.region}"

    async def hold(self, port: str) -> None:
        self._held = Held(self._engine, self._there)
        self._nursery.start_soon(self._held.run, int(port))

    async def held(self) -> str:
        while not self._held.count and not self._held.trouble:  # noqa: ASYNC110  # a look in a second is enough
            await trio.sleep(_BEAT_SECONDS)
        return json.dumps(self._held.take())


async def echo(stream: TunnelStream) -> None:
    with suppress(trio.BrokenResourceError):
        async with stream:
            while piece := await stream.receive_some():
                await stream.send_all(piece)
            await stream.send_eof()


def say(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("private", "peer", "derp", "port", "stun", "here", "there"):
        parser.add_argument(f"--{name}", required=True)
    told = parser.parse_args()
    private, peer = NodePrivate(bytes.fromhex(told.private)), bytes.fromhex(told.peer)
    here, there = ip_address(told.here).packed, ip_address(told.there).packed
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    regions = {REGION: region_at(int(told.port), told.derp, int(told.stun))}
    if ip_address(told.derp).version == 4:
        other = DERPNode(
            "stun", REGION + 1, told.derp, ipv4=told.derp, ipv6="none", stun_port=OTHER_STUN_PORT, stun_only=True
        )
        regions[REGION + 1] = DERPRegion(REGION + 1, "stun", "Only STUN", nodes=(other,))
    options = DialOptions(context=context, environment=None)
    async with open_engine(private, [here], regions, None, options=options) as engine, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [engine.listen(ECHO)])
        place = Place(engine, REGION, options, changed=lambda: None)
        place.take_map(DERPMap(regions))
        nursery.start_soon(place.run)
        await engine.relays.wait_connected(REGION)
        say({"ok": True, "text": engine.core.paths.disco_key.hex()})
        program, text = Program(engine, place, peer, there, nursery), b""
        async with trio.lowlevel.FdStream(0) as orders:
            while piece := await orders.receive_some():
                *lines, text = (text + piece).split(b"\n")
                for line in lines:
                    say(await program.obey(line.decode().split()))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
