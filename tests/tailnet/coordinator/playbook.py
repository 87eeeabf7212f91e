"""Rules as scripts: what happens is written flush left, what the core answers is indented below it.

    c: add A; node n2         one request: update_self, add_tunnel, remove_tunnel, disconnect, ready
      a <- NODE C n2 "init"   a response to connection a; several receivers of one Deliver are joined by commas
      c <- error "..."        SendError
      c ends "..."            EndConnection

Connections are lower case, peer ids upper case.  A test runs the flush-left lines and compares the whole text.
"""

import textwrap
from collections.abc import Iterable
from typing import Any

from tailnet.coordinator.core import Coordinator
from tailnet.coordinator.messages import Deliver, Effect, EndConnection, Request, SendError, Update
from tailnet.coordinator.nodes import Limits, Node
from tailnet.coordinator.policy import AgentPolicy, ClientPolicy, ManyAgentsPolicy, Policy
from tailnet.types import TAILSCALE_SERVICE_PREFIX, PeerID


def peer_id(name: str) -> PeerID:
    """A -> 41414141-4141-..."""
    return PeerID(name.encode() * 16)


def make_node(name: str, addresses: Iterable[str] = (), **changes: Any) -> Node:
    """A node that passes every check and is told apart from others by its raw bytes."""
    claimed = tuple(addresses)
    fields: dict[str, Any] = {
        "raw": name.encode(),
        "key": b"np" + bytes(32),
        "disco": "discokey:" + "0" * 64,
        "preferred_derp": 1,
        "addresses": claimed,
        "allowed_ips": claimed,
    }
    return Node(**(fields | changes))


class Playbook:
    """A coordinator whose answers are written down.  Connections are named by their strings."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.core: Coordinator[str] = Coordinator(limits)
        self.now = 0.0
        self._ids: dict[str, PeerID] = {}

    def run(self, script: str) -> str:
        """Carry out the flush-left lines; the whole text as it should have been."""
        lines: list[str] = []
        for line in textwrap.dedent(script).strip().splitlines():
            if line and not line.startswith(" "):
                lines.append(line)
                lines += (f"  {told}" for effect in self.step(line) for told in self._show(effect))
                self.core.check()
        return "\n".join(lines)

    def step(self, line: str) -> list[Effect[str]]:
        """Carry out one line."""
        self.now += 1
        command, _, rest = line.partition(" ")
        if command.endswith(":"):
            return self._request(command[:-1], rest)
        words = rest.split()
        if command == "connect":
            return self._connect(words[0], words[1], words[2:])
        if command == "close":
            return self.core.handle_close(self.now)
        ends = {
            "drop": lambda: self.core.handle_disconnect(words[0], False, self.now),
            "leave": lambda: self.core.handle_disconnect(words[0], True, self.now),
            "overflow": lambda: self.core.handle_overflow(words[0], self.now),
            "revoke": lambda: self.core.handle_revoke(words[0], self.now),
            "untie": lambda: self.core.handle_revoke_tunnels(words[0], map(_raw_id, words[1:])),
        }
        return ends[command]()

    def _connect(self, connection: str, name: str, kind: list[str]) -> list[Effect[str]]:
        policy: Policy
        if kind == ["agent"]:
            policy = AgentPolicy(peer_id(name))
        elif kind == ["many"]:
            policy = ManyAgentsPolicy()
        else:
            assert kind[0] == "client"
            policy = ClientPolicy(peer_id(kind[1]))
        self._ids[connection] = peer_id(name)
        return self.core.handle_connect(peer_id(name), policy, connection, self.now)

    def _request(self, connection: str, parts: str) -> list[Effect[str]]:
        request, allowed = Request(), {peer_id(name) for name in "ABDEF"}
        for part in parts.split("; "):
            verb, *words = part.split()
            if verb == "node":
                own = str(self._ids[connection].address(TAILSCALE_SERVICE_PREFIX)) + "/128"
                request.node = make_node(words[0], words[1:] or [own])
            elif verb == "add":
                request.add_tunnel = _raw_id(words[0])
            elif verb == "remove":
                request.remove_tunnel = _raw_id(words[0])
            elif verb == "disconnect":
                request.disconnect = True
            else:
                assert verb == "ready"
                request.ready_for_handshake = [_raw_id(word) for word in words]
        request.allowed = allowed
        return self.core.handle_request(connection, request, self.now)

    def _show(self, effect: Effect[str]) -> Iterable[str]:
        if isinstance(effect, SendError):
            return [f'{effect.connection} <- error "{_by_letter(effect.text)}"']
        if isinstance(effect, EndConnection):
            return [f'{effect.connection} ends "{_by_letter(effect.reason)}"']
        assert isinstance(effect, Deliver)
        updates = " + ".join(_show_update(update) for update in effect.updates)
        return [f"{', '.join(sorted(effect.receivers))} <- {updates}"]


def _raw_id(word: str) -> bytes:
    return peer_id(word) if len(word) == 1 else word.encode()


def _by_letter(text: str) -> str:
    for letter in "ABCDEFX":
        text = text.replace(str(peer_id(letter)), letter)
    return text


def _show_update(update: Update) -> str:
    node = "" if update.node is None else f" {update.node.raw.decode()}"
    reason = f' "{update.reason}"' if update.reason else ""
    return f"{update.kind.name} {update.peer_id[:1].decode()}{node}{reason}"
