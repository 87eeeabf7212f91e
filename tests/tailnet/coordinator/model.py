"""The coordinator's rules once more, slow and obvious, to compare the core with.

Built the other way round: no graph, no bits, no effects made where things happen.  After each thing that happens, what
every connection *should* know is worked out from scratch (a set of tunnels, who is here, what they said), and compared
with what it knows; the differences are the messages.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

Message = tuple[str, ...]


@dataclass
class Session:
    """One connection."""

    peer: bytes
    role: str  # "agent", "many", "client"
    agent: bytes = b""  # the one agent of role "client"
    knows: dict[bytes, bytes] = field(default_factory=dict)  # peer -> node
    inbox: list[Message] = field(default_factory=list)  # of the present event


@dataclass
class Ask:
    """One request: nodes are their raw bytes, `foreign` makes the node's address a wrong one."""

    node: bytes | None = None
    foreign: bool = False
    add: bytes | None = None
    remove: bytes | None = None
    disconnect: bool = False
    ready: Sequence[bytes] = ()


class Model:
    """Every method is one event; afterwards `collect` says what each connection was sent."""

    def __init__(self, tunnel_limit: int, allowed: set[bytes]) -> None:
        self.tunnel_limit = tunnel_limit
        self.allowed = allowed
        self.sessions: dict[str, Session] = {}
        self.ended: dict[str, list[Message]] = {}
        self.tunnels: set[tuple[bytes, bytes]] = set()
        self.said: dict[bytes, bytes] = {}  # peer -> node of the connection that is here now
        self.closed = False

    # Events.

    def connect(self, name: str, session: Session) -> None:
        if self.closed:
            self.ended[name] = [("error", "coordinator close"), ("end", "coordinator close")]
            return
        old = self.holder(session.peer)
        if old is not None:
            text = "peer ID overwritten by new connection"
            self.sessions[old].inbox += [("error", text), ("end", text)]
            self.remove_session(old)
            self.said.pop(session.peer, None)
        self.sessions[name] = session
        self.tunnels = {
            (src, dst) for src, dst in self.tunnels if src != session.peer or self.may_open(session, dst) is None
        }
        self.settle("init", ("DISCONNECTED", "tunnel removed"))

    def request(self, name: str, ask: Ask) -> None:
        session = self.sessions.get(name)
        if session is None:
            return
        why = self.judge(session, ask)
        if why is not None:
            session.inbox.append(("error", why))
            self.depart(name, "LOST", "lost", end=why)
            return
        me = session.peer
        if ask.node is not None:
            self.said[me] = ask.node
            self.settle("node update")
        if ask.add is not None:
            if (me, ask.add) in self.tunnels or sum(src == me for src, _ in self.tunnels) < self.tunnel_limit:
                self.tunnels.add((me, ask.add))
                self.settle("add tunnel")
            else:
                session.inbox.append(("error", "too many tunnels"))
        if ask.remove is not None:
            self.tunnels.discard((me, ask.remove))
            self.settle("", ("DISCONNECTED", "tunnel removed"))
        if ask.disconnect:
            self.depart(name, "DISCONNECTED", "graceful disconnect", end="graceful disconnect")
            return
        strangers = [peer for peer in ask.ready if not self.linked(me, peer)]
        for peer in set(ask.ready) - set(strangers):
            other = self.holder(peer)
            if other is not None:
                self.sessions[other].inbox.append(("READY_FOR_HANDSHAKE", me.hex(), "", ""))
        if strangers:
            session.inbox.append(("error", f"no shared tunnel {strangers[0].hex()}"))

    def depart(self, name: str, kind: str, reason: str, end: str | None = None) -> None:
        session = self.sessions.get(name)
        if session is None:
            return
        if end is not None:
            session.inbox.append(("end", end))
        self.remove_session(name)
        self.said.pop(session.peer, None)
        self.tunnels = {(src, dst) for src, dst in self.tunnels if src != session.peer}
        self.settle("", (kind, reason))

    def revoke_tunnels(self, name: str) -> None:
        session = self.sessions.get(name)
        if session is not None:
            self.tunnels = {(src, dst) for src, dst in self.tunnels if src != session.peer}
            self.settle("", ("DISCONNECTED", "authorization withdrawn"))

    def close(self) -> None:
        self.closed = True
        for name, session in list(self.sessions.items()):
            for peer in session.knows:
                session.inbox.append(("LOST", peer.hex(), "", "coordinator close"))
            session.inbox.append(("end", "coordinator close"))
            self.remove_session(name)
        self.tunnels.clear()
        self.said.clear()

    def collect(self) -> dict[str, list[Message]]:
        """What every connection was sent by the last event."""
        sent = {name: session.inbox for name, session in self.sessions.items() if session.inbox} | self.ended
        self.ended = {}
        for session in self.sessions.values():
            session.inbox = []
        return sent

    # Rules.

    def settle(self, node_reason: str, gone: tuple[str, str] | None = None) -> None:
        """Bring everyone's knowledge up to what it should be."""
        for session in self.sessions.values():
            here = {other.peer for other in self.sessions.values() if self.linked(session.peer, other.peer)}
            # Somebody who took an id over and has said nothing yet: the old node stands.
            should = {peer: self.said.get(peer, session.knows.get(peer)) for peer in here}
            for peer in set(session.knows) - {peer for peer, node in should.items() if node is not None}:
                assert gone is not None, "nobody goes away by this event"
                session.inbox.append((gone[0], peer.hex(), "", gone[1]))
                del session.knows[peer]
            for peer, node in should.items():
                if node is not None and session.knows.get(peer) != node:
                    session.inbox.append(("NODE", peer.hex(), node.decode(), node_reason))
                    session.knows[peer] = node

    def judge(self, session: Session, ask: Ask) -> str | None:
        if ask.foreign and ask.node is not None and session.role == "agent":
            return "foreign address"
        if ask.add is not None:
            why = "self" if ask.add == session.peer else self.may_open(session, ask.add, self.allowed)
            if why is not None:
                return why
        if ask.ready and session.role != "agent":
            return "not ready"
        return None

    def may_open(self, session: Session, dst: bytes, allowed: set[bytes] | None = None) -> str | None:
        if session.role == "agent":
            return "agent"
        if session.role == "client":
            return None if dst == session.agent else "other agent"
        return None if allowed is None or dst in allowed else "no permission"

    def linked(self, one: bytes, other: bytes) -> bool:
        return (one, other) in self.tunnels or (other, one) in self.tunnels

    def holder(self, peer: bytes) -> str | None:
        return next((name for name, session in self.sessions.items() if session.peer == peer), None)

    def remove_session(self, name: str) -> None:
        self.ended[name] = self.sessions.pop(name).inbox
