"""Carries the coordinator's effects out: every update is encoded once, however many peers receive it.  Layer L3.

services/tailnet_rpc.py -> coordinator/core.py -> Hub.carry_out -> transport/channel.py.  A receiver that does not read
is dropped here, so that nobody waits for it.
"""

import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, Protocol

from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.messages import Deliver, Effect, Request, SendError, Update
from tailnet.transport.channel import Channel

_log = logging.getLogger("tailnet.server")

_ID_FIELDS: Final = b"\x0a\x10"  # PeerUpdate.id, 16 bytes


class Receiver(Protocol):
    """A peer's Coordinate stream, or its older twin (services/legacy.py)."""

    def send_updates(self, payload: bytes, updates: Sequence[Update]) -> bool:
        """Send one CoordinateResponse, encoded in `payload`; False when the peer's buffer is full."""
        ...

    def send_error(self, text: str) -> None:
        """Tell the peer what it did wrong, if that is possible."""
        ...

    def end(self, text: str) -> None:
        """End the stream; the core has forgotten it."""
        ...


class CoordinateCall:
    """A Coordinate RPC in hand.  Hashes by identity: the core's name for the connection."""

    __slots__ = ("_send", "call_id", "channel", "deciding", "waiting")

    def __init__(self, channel: Channel, call_id: int) -> None:
        self.channel = channel
        self.call_id = call_id
        self._send = channel.connection.send_message
        # The request that waits for a decision, and those that came behind it; None: nothing is being decided.
        self.deciding: Request | None = None
        self.waiting: deque[bytes] | None = None

    def send_updates(self, payload: bytes, updates: Sequence[Update]) -> bool:
        if not self._send(self.call_id, payload):
            return False
        channel = self.channel
        if not channel.is_dirty:
            channel.touch()
        return True

    def send_error(self, text: str) -> None:
        self._send(self.call_id, encode_error(text))
        self.channel.touch()

    def end(self, text: str) -> None:
        self.channel.calls.pop(self.call_id, None)
        self.channel.connection.finish(self.call_id)
        self.channel.touch()


class Hub:
    """Joins one Coordinator to its channels.  Called from the reactor's thread only."""

    def __init__(self, coordinator: Coordinator[Any]) -> None:
        self.coordinator = coordinator
        self.overflow_count = 0
        self.delivered_count = 0

    def carry_out(self, effects: Sequence[Effect[Any]], now: float) -> None:
        """Do what the core said, in order, and what follows from it."""
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            if isinstance(effect, Deliver):
                updates = effect.updates
                payload = encode_updates(updates)
                self.delivered_count += len(effect.receivers)
                for receiver in effect.receivers:
                    if not receiver.send_updates(payload, updates):
                        self.overflow_count += 1
                        waiting.extend(self.coordinator.handle_overflow(receiver, now))
            elif isinstance(effect, SendError):
                effect.connection.send_error(effect.text)
            else:
                effect.connection.end(effect.reason)


def encode_updates(updates: Sequence[Update]) -> bytes:
    """A CoordinateResponse with these peer updates, byte for byte what google's library makes of them.

    By hand, because a node travels on as the bytes it came in: parsing and encoding it again for a message that
    only wraps it would cost as much as the whole rest of a delivery.
    """
    return b"".join([_encode_update(update) for update in updates])


def _encode_update(update: Update) -> bytes:
    tail = _TAILS.get((update.kind, update.reason)) or _tail(update.kind, update.reason)
    node = update.node
    if node is None:
        body = _ID_FIELDS + update.peer_id + tail
    else:
        raw = node.raw
        body = b"".join((_ID_FIELDS, update.peer_id, b"\x12", _varint(len(raw)), raw, tail))
    return b"\x0a" + _varint(len(body)) + body


# Kind and reason, encoded.  Reasons are a handful of the core's own words.
_TAILS: Final[dict[tuple[int, str], bytes]] = {}
_MAX_TAILS: Final = 64


def _tail(kind: int, reason: str) -> bytes:
    tail = b"\x18" + bytes((kind,))
    if reason:
        encoded = reason.encode()
        tail += b"\x22" + _varint(len(encoded)) + encoded
    if len(_TAILS) < _MAX_TAILS:
        _TAILS[kind, reason] = tail
    return tail


def encode_error(text: str) -> bytes:
    """A CoordinateResponse that holds only an error."""
    encoded = text.encode()
    return b"\x12" + _varint(len(encoded)) + encoded


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    if value < 0x4000:
        return bytes((value & 0x7F | 0x80, value >> 7))
    return bytes((value & 0x7F | 0x80,)) + _varint(value >> 7)
