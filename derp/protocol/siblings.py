"""What workers of one relay say to each other over their local links.  Layer L1.

Frames have DERP's head (type, length).  A batch is the source key of its packets and then their SendPacket frames as
they were received, so that whoever passes them on touches none of them; it may be far longer than a receive.  All else
is a list in msgpack whose first item says what it is.  Both ends are the same program, or while one version replaces
another nearly so: what is not known is read past.  Next hop: relay/siblings.py.
"""

from collections.abc import Sequence
from typing import Any, Final

import msgpack

from derp.errors import RemoteProtocolError
from derp.protocol.frames import HEADER, KEY_BYTES

# Beside DERP's own types, so that a link that was mistaken for another one shows it at once.
BATCH: Final = 0x60
CONTROL: Final = 0x61
BATCH_HEAD_BYTES: Final = HEADER.size + KEY_BYTES
# One control frame has to lie whole in a receive; longer answers and lists are cut into several.
MAX_CONTROL_BYTES: Final = 64 * 1024


def batch_head(source_key: bytes, frames_bytes: int) -> bytes:
    """What stands before SendPacket frames of together so many bytes, all from one client."""
    return HEADER.pack(BATCH, KEY_BYTES + frames_bytes) + source_key


def control_frame(*items: object) -> bytes:
    """A control message, whose first item names it."""
    payload: bytes = msgpack.packb(items)
    assert len(payload) <= MAX_CONTROL_BYTES, items[0]
    return HEADER.pack(CONTROL, len(payload)) + payload


def parse_control(payload: bytes) -> Sequence[Any]:
    """The items of a control message.  Raises RemoteProtocolError."""
    try:
        items = msgpack.unpackb(payload, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(f"a control message of {len(payload)} bytes that is none") from error
    if not isinstance(items, list) or not items or not isinstance(items[0], str):
        raise RemoteProtocolError("a control message without a name")
    return items
