"""Seals of the simulator's frames: they tell sessions apart, and cost a tenth of an HMAC, which was a twelfth of a run.

Nobody forges here.  What a seal withstands is tailnet/replica/proof.py's matter, and that of its tests.
"""

from zlib import crc32

from tailnet.replica.messages import ReplicaID
from tailnet.replica.proof import SEAL_BYTES, ClusterKey, FrameKey


class Checksum(FrameKey):
    """Frames of one length have another checksum for each start, so one of another session never passes."""

    __slots__ = ("_start",)

    def __init__(self, key: bytes) -> None:
        self._start = crc32(key)

    def seal(self, frame: bytes) -> bytes:
        return b"%b%016x" % (frame, crc32(frame, self._start))

    def unseal(self, sealed: bytes) -> bytes | None:
        frame = sealed[:-SEAL_BYTES]
        return frame if sealed == self.seal(frame) else None


class SimulatedKey(ClusterKey):
    """What all replicas of a run share."""

    __slots__ = ()

    def greeting_key(self, sender: ReplicaID) -> FrameKey:
        return Checksum(sender)

    def session_key(
        self, sender: ReplicaID, receiver: ReplicaID, sent_nonce: bytes, received_nonce: bytes, binding: bytes
    ) -> FrameKey:
        return Checksum(sender + receiver + sent_nonce + received_nonce + binding)
