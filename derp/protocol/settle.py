"""How relays of ours keep the order of a pair's packets while a client goes from one of them to another.  Layer L1.

Who gets a client asks the relay from which it comes.  That one answers all relays of the region, behind all packets
from and for the client, and they tell the one who asked: then everything is where it has to be.  One frame that the
field does not know.  Next hop: relay/router.py.
"""

import enum
import struct
from dataclasses import dataclass
from typing import Final

from derp.errors import RemoteProtocolError
from derp.protocol.frames import KEY_BYTES, encode_frame

SETTLE: Final = 0x62  # mesh c>s  1 B step + 32 B key + 32 B asker + 8 B number + 1 B answers
_PAYLOAD: Final = struct.Struct(f"!B{KEY_BYTES}s{KEY_BYTES}sQB")
MAX_ANSWERS: Final = 255
# In the number of a question: the asker has the client.  Relays that do not know it give it back as it is.
HERE: Final = 1 << 63


class SettleStep(enum.IntEnum):
    """ASKED goes to the relay that sends its clients away: is everything from and for this key on its way?  ANSWERED
    comes from there to each relay, and TOLD from each to all others, of whom one had asked: behind what waits there for
    a key that the asker has."""

    ASKED = 0
    ANSWERED = 1
    TOLD = 2


@dataclass(frozen=True, slots=True)
class Settle:
    """`asker`: the relay's public key; `number`: the asker's own for what it asked, 64 bits; `answers`: how many relays
    were answered, so that the asker knows of how many it hears."""

    step: SettleStep
    key: bytes
    asker: bytes
    number: int
    answers: int = 0

    def encode(self) -> bytes:
        """One whole frame."""
        return encode_frame(SETTLE, _PAYLOAD.pack(self.step, self.key, self.asker, self.number, self.answers))


def parse_settle(payload: bytes) -> Settle:
    """RemoteProtocolError for what no relay of ours sends."""
    if len(payload) != _PAYLOAD.size:
        raise RemoteProtocolError(f"Settle of {len(payload)} bytes, must be {_PAYLOAD.size}")
    step, key, asker, number, answers = _PAYLOAD.unpack(payload)
    try:
        return Settle(SettleStep(step), key, asker, number, answers)
    except ValueError:
        raise RemoteProtocolError(f"Settle with step {step}") from None
