"""The seams: what carries sessions satisfies them, and whoever is a session knows nothing else."""

import ast
from pathlib import Path

import pytest

from derp.close_reason import CloseReason
from derp.transport.host import Host, Wire, WireEnded
from derp.transport.links import Link, TlsLink
from derp.transport.reactor import Reactor
from tests.support.wires import socket_pair, tls_contexts

ROOT = Path(__file__).resolve().parents[3]
# Who lives on wires.  What makes sockets (listener, mesh dialling, the coordinator's hand-over to the API) is not here.
SESSIONS = (
    "derp/server/session.py",
    "derp/server/door.py",
    "derp/server/lobby.py",
    "derp/server/upgrade.py",
    "tailnet/services/legacy.py",
    "tailnet/server/entrance.py",
    "tailnet/services/tailnet_rpc.py",
    "derp/server/relay.py",
    "derp/server/drain.py",
    "derp/server/explain.py",
    "derp/server/debug.py",
    "tailnet/transport/channel.py",
)
SOCKETS = ("derp.transport.reactor", "derp.transport.links", "derp.transport.linkstream", "socket", "select")


def test_a_link_is_a_wire_and_the_reactor_a_host() -> None:
    near, far = socket_pair()
    wires: list[Wire] = [Link(near, ("127.0.0.1", 1)), TlsLink(near, ("127.0.0.1", 1), tls_contexts()[0])]
    host: Host = Reactor()
    assert [wire.version() for wire in wires] == [None, None]
    assert list(host.wires) == []
    near.close()
    far.close()


@pytest.mark.parametrize("path", SESSIONS)
def test_sessions_know_no_socket(path: str) -> None:
    imported = {
        name
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported.isdisjoint(SOCKETS), "a session asks a Host and a Wire, not what they are made of"


def test_an_end_without_words_says_its_reason() -> None:
    assert str(WireEnded(CloseReason.FLOOD)) == CloseReason.FLOOD.value
    assert str(WireEnded(CloseReason.FLOOD, "too much")) == "too much"
