"""The speed test on port 3, as tailscale.com/net/speedtest speaks it.  Layer L3.

A line of JSON says for how long and who sends; a line answers, with an error or without.  Then the sender writes random
blocks until the time is over, and closes.  The client's side, and the words: tailnet/node/speedtest.py.
"""

import json
import os
from dataclasses import dataclass
from typing import Any, Final

import trio

from tailnet.agent.context import Context
from tailnet.errors import RemoteProtocolError
from tailnet.node.speedtest import BLOCK_BYTES, DOWNLOAD, GRACE_SECONDS, UPLOAD, VERSION
from tailnet.node.streams import TunnelStream

# Genuine clients ask for 5 to 30 seconds.
MAX_SECONDS: Final = 60.0
# At once: each takes all that it gets, and a second one measures half of it.
MAX_TESTS: Final = 4
WISH_SECONDS: Final = 10.0
MAX_WISH_BYTES: Final = 4096
_NANOSECONDS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants measured."""

    seconds: float
    is_download: bool
    """The agent sends."""


class SpeedtestServer:
    """The tests of one agent.  `serve` is called for each connection."""

    def __init__(self) -> None:
        self._running = 0

    async def serve(self, stream: TunnelStream, context: Context) -> None:
        """One test.  A client that vanishes ends its own, at the latest GRACE_SECONDS after its time."""
        line = b""
        with trio.move_on_after(WISH_SECONDS):
            line = await _read_line(stream)
        try:
            wish = read_wish(line)
            if self._running >= MAX_TESTS:
                raise RemoteProtocolError(f"{MAX_TESTS} tests are running on this agent: try again later")
        except RemoteProtocolError as error:
            await _answer(stream, {"error": str(error)})
            return
        self._running += 1
        try:
            with trio.move_on_after(wish.seconds + GRACE_SECONDS):
                await _answer(stream, {})
                if wish.is_download:
                    await _send(stream, wish.seconds)
                else:
                    while await stream.receive_some():
                        pass
        finally:
            self._running -= 1


async def _read_line(stream: TunnelStream) -> bytes:
    """The line alone: what comes behind it belongs to the test, and is not counted here."""
    line = bytearray()
    while b"\n" not in line and len(line) < MAX_WISH_BYTES and (part := await stream.receive_some(MAX_WISH_BYTES)):
        line += part
    return bytes(line).partition(b"\n")[0]


def read_wish(line: bytes) -> Wish:
    """Raises RemoteProtocolError with what is told to the client."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise RemoteProtocolError("a test begins with a line of JSON")
    if said.get("version") != VERSION:
        raise RemoteProtocolError(f"this agent speaks version {VERSION} of the speed test")
    time, direction = said.get("time"), said.get("direction")
    if not isinstance(time, int) or not 0 <= time <= MAX_SECONDS * _NANOSECONDS:
        raise RemoteProtocolError(f"a test takes from 0 to {MAX_SECONDS:g} s; `time` is in nanoseconds")
    if direction not in (DOWNLOAD, UPLOAD):
        raise RemoteProtocolError(f"the direction is {DOWNLOAD} (the agent sends) or {UPLOAD}")
    return Wish(time / _NANOSECONDS, direction == DOWNLOAD)


async def _answer(stream: TunnelStream, answer: dict[str, Any]) -> None:
    await stream.send_all(json.dumps(answer).encode() + b"\n")


async def _send(stream: TunnelStream, seconds: float) -> None:
    block, began = os.urandom(BLOCK_BYTES), trio.current_time()
    while trio.current_time() - began <= seconds:
        await stream.send_all(block)
