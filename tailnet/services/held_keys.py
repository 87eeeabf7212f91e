"""Whose connected peer has a node key, asked of all replicas before it becomes another tenant's here.  Layer L3.

The store says whose each key is (relay_keys.py), and which of these have a connected peer only that peer's replica
knows.  Such questions are rare: somebody announces, or signs out with, a key that was another tenant's.  A topic of
sharing.py.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from derp.admission.signed import KEY_BYTES
from tailnet.replica.messages import ReplicaID
from tailnet.services.relay_keys import RelayKeys
from tailnet.services.sharing import Shared

_ASKED: Final = b"?"
_HELD: Final = b"="
# An id of a user, or what signed tokens say of one.
MAX_TENANT_BYTES: Final = 1024


class HeldKeys(Shared):
    """One byte that says which it is, the key, and the tenant as text."""

    topic = "tenants"

    def __init__(self, tell: Callable[[str, bytes], None], has_others: Callable[[], bool], keys: RelayKeys) -> None:
        """`tell` sends to all, of whom `has_others` says whether there are any."""
        self._tell = tell
        self._has_others = has_others
        self._keys = keys
        keys.ask_others = self.ask
        keys.tell_others = partial(self._say, _HELD)

    def ask(self, key: bytes, tenant: str) -> bool:
        """Whether others were asked if a peer of this tenant, who is connected there, has the key."""
        if not self._has_others():
            return False
        self._say(_ASKED, key, tenant)
        return True

    def hear(self, other: ReplicaID, payload: bytes) -> None:
        kind, key, text = payload[:1], payload[1 : 1 + KEY_BYTES], payload[1 + KEY_BYTES :]
        if len(key) != KEY_BYTES or len(text) > MAX_TENANT_BYTES:
            return
        tenant = text.decode("utf-8", "replace")
        if kind == _HELD:
            self._keys.note_held_elsewhere(key, tenant)
        elif kind == _ASKED:
            if self._keys.holds(key, tenant):
                self._say(_HELD, key, tenant)  # to all: they need not ask
            else:
                self._keys.note_asked(key)

    def _say(self, kind: bytes, key: bytes, tenant: str) -> None:
        self._tell(self.topic, kind + key + tenant.encode()[:MAX_TENANT_BYTES])
