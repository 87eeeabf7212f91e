"""Who may become a client.  Layer L3: lists answer at once; a control plane that is asked answers later.

Order: a mesh key of ours always comes in; a denied key never; then the allow list, then the control plane.
Called by server/session.py for each handshake.
"""

from collections.abc import Callable
from typing import Protocol

from derp.config import RelayConfig
from derp.keys import MeshKey
from derp.protocol.messages import ClientInfo


class Verifier(Protocol):
    """Asks somebody else about a key; server/verify.py does it over HTTP."""

    def cached(self, key: bytes, address: str) -> bool | None:
        """The last answer, while it is fresh."""
        ...

    def ask(self, key: bytes, address: str, answer: Callable[[bool], None]) -> None:
        """Call `answer` once, later, from the reactor's thread."""
        ...


class Admission:
    """The rules of one relay.  `verifier` is None when nobody needs to be asked."""

    def __init__(self, config: RelayConfig, verifier: Verifier | None = None) -> None:
        self._mesh_key = config.mesh_key
        self._allow = config.allow_keys
        self._deny = config.deny_keys
        self._verifier = verifier

    def is_mesh_peer(self, info: ClientInfo) -> bool:
        """Whether the client proved to be a relay of our region; the comparison takes constant time."""
        key: MeshKey | None = info.mesh_key
        return self._mesh_key is not None and key is not None and key == self._mesh_key

    def decide(self, key: bytes, address: str) -> bool | None:
        """True: come in, False: go away, None: `ask` first."""
        if key in self._deny:
            return False
        if self._allow is not None:
            return key in self._allow
        if self._verifier is None:
            return True
        return self._verifier.cached(key, address)

    def ask(self, key: bytes, address: str, answer: Callable[[bool], None]) -> None:
        """Have the control plane decide; `answer` is called once."""
        assert self._verifier is not None, "decide gives None only when there is somebody to ask"
        self._verifier.ask(key, address, answer)
