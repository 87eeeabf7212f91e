"""Which resume keys each replica verifies with, told to all: none signs with one that another lacks.  Layer L3.

A key that can be read for 20 minutes before it signs is known everywhere, unless a replica could not read: then the
others go on with the key of before (resume_keys.py).  Ids are told, which stand in each token, and nothing of a secret.
A topic of sharing.py.
"""

from collections.abc import Callable
from typing import Final

from tailnet.replica.messages import ReplicaID
from tailnet.services.resume_keys import ResumeKeys
from tailnet.services.sharing import Shared

# There are two or three: the key that signs, the one before it, the one behind it.
MAX_IDS: Final = 64
_MAX_BYTES: Final = 4_096


class SharedKeys(Shared):
    """The ids as text, a space between.  What a replica told stays until it leaves the cluster."""

    topic = "resume keys"

    def __init__(self, tell: Callable[[str, bytes], None], keys: ResumeKeys) -> None:
        """`tell` sends to all."""
        self._tell = tell
        self._keys = keys
        keys.on_read.append(self._tell_all)

    def _tell_all(self) -> None:
        self._tell(self.topic, self.greet())

    def greet(self) -> bytes:
        return " ".join(self._keys.ids[:MAX_IDS]).encode()

    def hear(self, other: ReplicaID, payload: bytes) -> None:
        # Whoever can read none has not started yet, or says it in another way.
        if ids := payload[:_MAX_BYTES].decode("utf-8", "replace").split()[:MAX_IDS]:
            self._keys.note_elsewhere(other, frozenset(ids))

    def forget(self, other: ReplicaID) -> None:
        self._keys.note_elsewhere(other, None)
