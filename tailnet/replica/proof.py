"""That a frame comes from a replica of ours, and belongs to this session (layer L1).

Each frame ends with 16 bytes of HMAC-SHA256 (RFC 2104).  A Hello is sealed with a key that follows from the cluster's;
all others with one that follows from the two ids, the nonces of both Hellos and what the link is bound to (the exporter
of its TLS): so a frame that was recorded, is late, or is of another pair, is of no use in a session.  It costs 1 us for
500 bytes.  The cluster's key is a secret of the store (a `lasting_key`), or a setting where there is none.
"""

import hmac
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final

from tailnet.errors import LocalProtocolError
from tailnet.replica.messages import ReplicaID

SEAL_BYTES: Final = 16
NONCE_BYTES: Final = 16
# As long as what is made of it.
MIN_KEY_BYTES: Final = 32
_BLOCK_BYTES: Final = 64  # of SHA-256
_INNER, _OUTER = (bytes(byte ^ pad for byte in range(256)) for pad in (0x36, 0x5C))


class FrameKey:
    """What frames of one direction are sealed with.

    The key's own blocks are hashed once (RFC 2104, section 4), which halves what a frame costs.
    """

    __slots__ = ("_begin_inner", "_begin_outer")

    def __init__(self, key: bytes) -> None:
        """`key`: a digest."""
        block = key.ljust(_BLOCK_BYTES, b"\0")
        self._begin_inner = sha256(block.translate(_INNER)).copy
        self._begin_outer = sha256(block.translate(_OUTER)).copy

    def seal(self, frame: bytes) -> bytes:
        """The frame with its seal behind it."""
        return frame + self._seal_of(frame)

    def unseal(self, sealed: bytes) -> bytes | None:
        """The frame, or None when the seal is not of this key.  Takes the same time whichever byte differs."""
        frame = sealed[:-SEAL_BYTES]
        return frame if hmac.compare_digest(self._seal_of(frame), sealed[-SEAL_BYTES:]) else None

    def _seal_of(self, frame: bytes) -> bytes:
        inner, outer = self._begin_inner(), self._begin_outer()
        inner.update(frame)
        outer.update(inner.digest())
        return outer.digest()[:SEAL_BYTES]


@dataclass(frozen=True, slots=True)
class ClusterKey:
    """What all replicas of a cluster share.  Raises LocalProtocolError when it is too short."""

    cluster: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) < MIN_KEY_BYTES:
            raise LocalProtocolError(f"a cluster key has at least {MIN_KEY_BYTES} bytes, got {len(self.secret)}")

    def greeting_key(self, sender: ReplicaID) -> FrameKey:
        """Seals the Hellos of one replica; of another cluster's name it is another key."""
        return FrameKey(_derive(self.secret, b"greeting", self.cluster.encode(), sender))

    def session_key(
        self, sender: ReplicaID, receiver: ReplicaID, sent_nonce: bytes, received_nonce: bytes, binding: bytes
    ) -> FrameKey:
        """Seals what one of the two says in one session.  The nonces are named as the sender sees them."""
        parts = (self.cluster.encode(), sender, receiver, sent_nonce, received_nonce, binding)
        return FrameKey(_derive(self.secret, b"session", *parts))

    def link_proof(
        self, role: bytes, prover: ReplicaID, judge: ReplicaID, nonce: bytes, judge_nonce: bytes, binding: bytes
    ) -> bytes:
        """What one end of a direct link shows the other, 32 bytes.  Bound to the link and to which end shows it, so
        that nobody's proof is of use as an answer to himself."""
        return _derive(self.secret, b"link", self.cluster.encode(), role, prover, judge, nonce, judge_nonce, binding)


def _derive(secret: bytes, *parts: bytes) -> bytes:
    """Each part with its length in front, so that no two lists of parts are the same bytes."""
    return hmac.digest(secret, b"".join(len(part).to_bytes(4, "big") + part for part in parts), "sha256")
