"""One session's keys: seals and opens batches of packets, and keeps the replay window (layer L1; white paper 5.4.6).

The hot path of the data plane.  A sealed packet is one bytes object, an opened one is what the AEAD made, and a copy
where it was padded: 1.3 and 2.0 us per 1,280 bytes where the AEAD alone takes 1.0 (python -m bench.wireguard).
The window is the ring of RFC 6479 in bytes.  Packets of strangers raise nothing: they are counted by their reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tailnet.errors import LocalProtocolError
from tailnet.wireguard.counters import Drop
from tailnet.wireguard.messages import HEAD_BYTES, OVERHEAD_BYTES, TRANSPORT, TRANSPORT_HEAD, Payload, padding_bytes
from tailnet.wireguard.noise import TransportKeys
from tailnet.wireguard.timers import REKEY_AFTER_SECONDS

Owner = TypeVar("Owner")

# After this many packets a session sends no more, and accepts none: the genuine implementation's 2^64 - 2^13 - 1.
REJECT_AFTER_MESSAGES: Final = (1 << 64) - (1 << 13) - 1

# How far behind the newest a packet may be.  The genuine window is a ring of 128 words of 64 bits, one of them in use.
WINDOW: Final = 8128
_RING_BYTES: Final = 1024
_RING_MASK: Final = _RING_BYTES - 1

MAX_PACKET_BYTES: Final = 65_535 - OVERHEAD_BYTES - 8  # what one UDP datagram carries

_ZEROS: Final = bytes(16)
_NONCE_HEAD: Final = bytes(4)
_IPV6_HEAD_BYTES: Final = 40


class KeyPair(Generic[Owner]):
    """Keys of one session between `owner`, a peer, and us.  The device makes it when a handshake is done."""

    __slots__ = (
        "_decrypt",
        "_encrypt",
        "_highest",
        "_ring",
        "born",
        "data",
        "is_initiator",
        "local_index",
        "owner",
        "rekey_seconds",
        "remote_index",
        "sent",
    )

    def __init__(
        self, owner: Owner, keys: TransportKeys, local: int, remote: int, now: float, *, is_initiator: bool
    ) -> None:
        self.owner = owner
        self.local_index = local
        self.remote_index = remote
        self.born = now
        self.is_initiator = is_initiator
        self.rekey_seconds = REKEY_AFTER_SECONDS
        """At which age we, as its initiator, ask for the next one."""
        self.sent = 0
        """The counter of the next packet."""
        self.data = 0
        """Packets that were opened and carried something."""
        self._encrypt = ChaCha20Poly1305(keys.send).encrypt
        self._decrypt = ChaCha20Poly1305(keys.receive).decrypt
        self._highest = -1
        self._ring = bytearray()  # made when the first packet comes: a session that is not used costs no KiB

    def seal(self, packets: Iterable[Payload], mtu: int) -> list[bytes]:
        """Datagrams for packets, in their order; an empty packet is a keepalive.

        The caller looks at `sent` and `born` first.  LocalProtocolError: a packet is larger than any datagram.
        """
        encrypt, pack, index, counter = self._encrypt, TRANSPORT_HEAD.pack, self.remote_index, self.sent
        sealed = []
        for packet in packets:
            size = len(packet)
            if size & 15:
                packet = b"".join((packet, _ZEROS[: padding_bytes(size, mtu)]))
            if size > MAX_PACKET_BYTES:
                raise LocalProtocolError(f"a packet of {size} bytes, no datagram carries more than {MAX_PACKET_BYTES}")
            head = pack(TRANSPORT, index, counter)
            sealed.append(head + encrypt(_NONCE_HEAD + head[8:], packet, None))
            counter += 1
            self.sent = counter  # at once: a nonce is never used twice, whatever the next packet is
        return sealed

    def open(
        self,
        datagrams: Sequence[Payload],
        at: int,
        owners: Mapping[bytes, Owner],
        opened: list[bytes],
        drops: dict[Drop, int],
    ) -> tuple[int, int]:
        """Open what is of this session from `at` on, up to the first datagram that is not.

        `owners`: whose packet may have which source address (16 bytes).  What may pass is appended to `opened`, without
        padding.  Returns where it stopped, and how many datagrams were authentic.
        """
        decrypt, unpack, index, owner = self._decrypt, TRANSPORT_HEAD.unpack_from, self.local_index, self.owner
        ring, highest, authentic = self._ring or self._first_ring(), self._highest, 0
        stop = at
        for stop in range(at, len(datagrams)):
            datagram = datagrams[stop]
            if len(datagram) < OVERHEAD_BYTES:
                break
            kind, receiver, counter = unpack(datagram)
            if receiver != index or kind != TRANSPORT:
                break
            # Looked at before it is opened: two paths in use mean many duplicates, and an AEAD costs a microsecond.
            behind = highest - counter
            if behind >= 0:
                if behind > WINDOW or ring[counter >> 3 & _RING_MASK] >> (counter & 7) & 1:
                    drops[Drop.REPLAYED] += 1
                    continue
            elif counter >= REJECT_AFTER_MESSAGES:
                drops[Drop.REPLAYED] += 1
                continue
            try:
                packet = decrypt(_NONCE_HEAD + datagram[8:HEAD_BYTES], memoryview(datagram)[HEAD_BYTES:], None)
            except InvalidTag:
                drops[Drop.FORGED_PACKET] += 1
                continue
            authentic += 1
            if behind < 0:
                if counter >> 3 != highest >> 3:
                    _forget(ring, highest >> 3, counter >> 3)
                self._highest = highest = counter
            ring[counter >> 3 & _RING_MASK] |= 1 << (counter & 7)
            if not packet:
                continue
            self.data += 1
            size = _IPV6_HEAD_BYTES + (packet[4] << 8 | packet[5]) if len(packet) >= _IPV6_HEAD_BYTES else 1 << 16
            if packet[0] >> 4 != 6 or size > len(packet):
                drops[Drop.NOT_IPV6] += 1
            elif owners.get(packet[8:24]) is not owner:
                drops[Drop.FOREIGN_SOURCE] += 1
            elif size == len(packet):
                opened.append(packet)
            else:
                opened.append(packet[:size])
        else:
            stop = len(datagrams)
        return stop, authentic

    def _first_ring(self) -> bytearray:
        self._ring = bytearray(_RING_BYTES)
        return self._ring


def _forget(ring: bytearray, last: int, new: int) -> None:
    """The window moves on: bytes of the ring that stood for old counters stand for new ones."""
    if new - last >= _RING_BYTES:
        ring[:] = bytes(_RING_BYTES)
        return
    for place in range(last + 1, new + 1):
        ring[place & _RING_MASK] = 0
