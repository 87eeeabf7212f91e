"""What an agent's users do: sessions by kind, and bytes that connections carried.  Layer L3.

Services open a session with `Counters.session`; ports.py counts connections, udp_forwarding.py flows; all is reported.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address
from typing import Final, TypeAlias
from uuid import uuid4

from tailnet.node.streams import TunnelStream

UDP: Final = "udp"
"""The name under which flows of datagrams are counted among connections."""
# What an SSH session that was broken off is reported with; a shell says 128 and the signal of a process that died.
FAILED_STATUS: Final = 255


class Kind(Enum):
    """Of a session; the values are the names under which sessions are counted."""

    SSH = "ssh"
    VSCODE = "vscode"
    JETBRAINS = "jetbrains"
    RECONNECTING_PTY = "reconnecting_pty"


@dataclass(slots=True, eq=False)
class Session:
    """One that is open.  Its service says with which status it ended, and why."""

    kind: Kind
    address: str
    """The user's, inside the tailnet."""
    id: bytes = field(default_factory=lambda: uuid4().bytes)
    status_code: int = 0
    reason: str = ""


Report: TypeAlias = Callable[[Session, bool], None]
"""A session began (True) or ended."""


class Counters:
    """Plain integers, raised where it happens."""

    def __init__(self, report: Report = lambda session, is_open: None) -> None:
        self.sessions: Counter[Kind] = Counter()
        """Open now."""
        self.connections: Counter[str] = Counter()
        """Open now, by the name of their service; `connection` counts them."""
        self.served: Counter[str] = Counter()
        """All there ever were."""
        self.refused: Counter[str] = Counter()
        """Connections that found no room."""
        self.failed: Counter[str] = Counter()
        """Connections whose service ended by an error of its own."""
        self._streams: set[TunnelStream] = set()
        self._flow_peers: Counter[bytes] = Counter()
        self._other_bytes = (0, 0)  # of connections that ended, and of datagrams
        self._report = report

    @contextmanager
    def connection(self, name: str, stream: TunnelStream) -> Iterator[None]:
        """Around a connection of a service of that name."""
        self.connections[name] += 1
        self._streams.add(stream)
        try:
            yield
        finally:
            self.connections[name] -= 1
            self._streams.remove(stream)
            self._add(stream.received_bytes, stream.sent_bytes)

    def flow_began(self, address: bytes) -> None:
        """Datagrams between that peer and a port, until `flow_ended`."""
        self.connections[UDP] += 1
        self.served[UDP] += 1
        self._flow_peers[address] += 1

    def flow_ended(self, address: bytes) -> None:
        self.connections[UDP] -= 1
        self._flow_peers[address] -= 1
        if not self._flow_peers[address]:
            del self._flow_peers[address]

    def datagram_received(self, payload: bytes) -> None:
        """One of a user's came to where it goes."""
        self._add(len(payload), 0)

    def datagram_sent(self, payload: bytes) -> None:
        self._add(0, len(payload))

    def _add(self, received: int, sent: int) -> None:
        self._other_bytes = self._other_bytes[0] + received, self._other_bytes[1] + sent

    def carried(self) -> tuple[int, int]:
        """Bytes that came from users and went to them, by all connections and flows that there ever were."""
        received, sent = self._other_bytes
        received += sum(stream.received_bytes for stream in self._streams)
        return received, sent + sum(stream.sent_bytes for stream in self._streams)

    def peers(self) -> set[bytes]:
        """The addresses of those who have a connection or a flow."""
        return {stream.remote_address[0] for stream in self._streams} | self._flow_peers.keys()

    @contextmanager
    def session(self, kind: Kind, stream: TunnelStream) -> Iterator[Session]:
        """Around a session, which is reported when it begins and when it ends."""
        session = Session(kind, user_address(stream))
        self.sessions[kind] += 1
        self._report(session, True)
        try:
            yield session
        except BaseException:
            session.status_code = session.status_code or FAILED_STATUS
            raise
        finally:
            self.sessions[kind] -= 1
            self._report(session, False)


def user_address(stream: TunnelStream) -> str:
    """The address of whoever is at the other end, for people and reports."""
    return str(IPv6Address(stream.remote_address[0]))
