"""Is this key on that relay, and how far is it?  Layer L3, for `derp ping`.

A relay confirms no packet, but it tells a sender whose packet looks like disco when the destination is not there.  So a
ping is such a packet: a key that is absent gives PeerGone, a peer that runs `answer_pings` sends it back, and a genuine
node stays silent (it drops disco of strangers), which then means: it is there.  Pong of the relay itself tells how far
that is.  Called by cli_ping.py.
"""

import enum
import os
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from derp.client.client import DerpClient
from derp.protocol.frames import PeerGoneReason
from derp.protocol.messages import PeerGone, RecvPacket
from derp.relay.counters import DISCO_MAGIC, DISCO_MIN_BYTES

# Where disco has its sender's key; no key has these bytes, so no node takes it for its own.
_REQUEST: Final = DISCO_MAGIC + b"derp ping request".ljust(32, b"\0")
_ANSWER: Final = DISCO_MAGIC + b"derp ping answer".ljust(32, b"\0")
_TOKEN_BYTES: Final = DISCO_MIN_BYTES - len(_REQUEST)


class Presence(enum.Enum):
    """What became of a ping."""

    ANSWERED = "answered"
    SILENT = "silent"  # the relay did not deny it, and nothing came back
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class PeerPing:
    """One ping through the relay; `seconds` only if it was answered."""

    presence: Presence
    seconds: float | None = None


async def ping_peer(client: DerpClient, key: bytes, timeout_seconds: float) -> PeerPing:
    """Send one ping to `key` (32 bytes) and wait for what comes of it.  Nobody else may be receiving.

    Not more than one a second: a relay tells of absent keys no faster.  Raises as DerpClient.receive does.
    """
    token = os.urandom(_TOKEN_BYTES)
    started = trio.current_time()
    await client.send(key, _REQUEST + token)
    with trio.move_on_after(timeout_seconds):
        while True:
            match await client.receive():
                case PeerGone(gone, reason) if gone == key and reason == PeerGoneReason.NOT_HERE:
                    return PeerPing(Presence.ABSENT)
                case RecvPacket(src, packet) if src == key and packet == _ANSWER + token:
                    return PeerPing(Presence.ANSWERED, trio.current_time() - started)
    return PeerPing(Presence.SILENT)


class Answering(Protocol):
    """A DerpClient or a ReconnectingClient."""

    async def send(self, dst: bytes, packet: bytes) -> None:
        """Queue a packet."""

    async def receive(self) -> object:
        """The next message."""


async def answer_pings(client: Answering) -> None:
    """Send every ping back to where it came from, until cancelled or the connection ends."""
    while True:
        await answer_ping(client, await client.receive())


async def answer_ping(client: Answering, message: object) -> None:
    """Send a ping back to where it came from; every other message is left alone."""
    match message:
        case RecvPacket(src, packet) if len(packet) == DISCO_MIN_BYTES and packet[: len(_REQUEST)] == _REQUEST:
            await client.send(src, _ANSWER + packet[len(_REQUEST) :])
