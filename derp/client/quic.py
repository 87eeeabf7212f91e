"""Whether a relay is tried over QUIC, and how it is reached by it.  Layer L3.

Asked for by `DialOptions.quic`, at relays that have it by the map (`QUICPort`).  dial.py races it with TCP, a little
ahead; where it does not come about, it is left out for a while.
Next hop: transport/quic_client.py, which is imported when it is wanted.
"""

import socket
from typing import TYPE_CHECKING, Any, Final

import trio

from derp.errors import ConnectError
from derp.text import error_text
from derp.transport.stream import mapped_errors
from derp.transport.tcp import Attempt, TcpTarget, dial_family, race
from derp.transport.tls_client import TlsTrust

if TYPE_CHECKING:
    from derp.transport.quic_client import QuicStream

# What TCP waits for: QUIC needs a round trip less than TCP with TLS, so this is what it may cost where UDP is blocked.
HEAD_START_SECONDS: Final = 0.25
# A network that lets no UDP through is left in minutes (a hotel, a train) or never; a try in vain costs the head start.
FORGET_SECONDS: Final = 600.0
# Relays remembered; a map has a few dozen.
_MAX_REMEMBERED: Final = 256


class QuicTries:
    """Asks for QUIC: which relays did not come about by it, and until when they are not tried.  One for a client, or
    for all clients of a machine."""

    def __init__(self) -> None:
        self._failed_until: dict[tuple[str, int], float] = {}

    def may_try(self, host: str, port: int) -> bool:
        """Whether QUIC may be tried now."""
        return self._failed_until.get((host, port), 0.0) <= trio.current_time()

    def note(self, host: str, port: int, *, came_about: bool) -> None:
        """How a try ended."""
        self._failed_until.pop((host, port), None)
        if not came_about:
            if len(self._failed_until) >= _MAX_REMEMBERED:
                del self._failed_until[next(iter(self._failed_until))]
            self._failed_until[host, port] = trio.current_time() + FORGET_SECONDS


async def dial_quic(target: TcpTarget, trust: TlsTrust, label: str) -> "QuicStream":
    """Shake hands with the relay on the UDP port beside its TCP port: both families raced.  The caller has a deadline.

    Raises ConnectError with the reason of every address tried.
    """
    try:
        from derp.transport.quic_client import open_quic
    except ImportError as error:
        raise ConnectError(f"QUIC: {error_text(error)}; install tailnet-derp[quic]") from None

    def by_address(family: socket.AddressFamily, place: tuple[Any, ...]) -> Attempt["QuicStream"]:
        async def attempt() -> "QuicStream":
            with mapped_errors(str(place[0]), connecting=True):
                return await open_quic(place, family, trust, label)

        return attempt

    families = target.families()
    attempts = [dial_family(family, host, target.port, by_address, socket.SOCK_DGRAM) for family, host in families]
    try:
        return await race(attempts, stagger_seconds=0.0)
    except ConnectError as error:
        raise ConnectError(f"QUIC with {target.label()}: {error}") from error
