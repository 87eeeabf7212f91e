"""Connections that were ended by another one of their peer's id, told to all replicas (layer L3).

The next of that id may come to any of them.  A topic of sharing.py; server/entrance.py tells, and is told.
"""

from collections.abc import Callable, Sequence

from tailnet.replica.messages import ReplicaID
from tailnet.services.sharing import Shared
from tailnet.types import PEER_ID_BYTES, PeerID


class Overtakings(Shared):
    """The id, and behind it the addresses of the two, as text."""

    topic = "overtaken"

    def __init__(self, tell: Callable[[str, bytes], None], overtaken: Callable[[PeerID, Sequence[str]], None]) -> None:
        """`tell` sends to all; `overtaken` is called with what others tell."""
        self._tell = tell
        self._overtaken = overtaken

    def tell(self, peer_id: PeerID, addresses: Sequence[str]) -> None:
        """It happened here."""
        self._tell(self.topic, peer_id + " ".join(addresses).encode())

    def hear(self, other: ReplicaID, payload: bytes) -> None:
        if len(payload) >= PEER_ID_BYTES:
            addresses = payload[PEER_ID_BYTES:].decode("utf-8", "replace").split()[:2]
            self._overtaken(PeerID(payload[:PEER_ID_BYTES]), addresses)
