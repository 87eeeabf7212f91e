"""The way into the relay as a route of any door; what it answers to the byte is in test_door.py and test_server.py."""

import pytest

from derp.server.door import FrontDoor, Route, every_path
from derp.server.lobby import Lobby
from derp.server.relay import Relay
from derp.server.upgrade import DerpUpgrades
from derp.transport.links import Link
from derp.transport.reactor import Reactor
from tests.derp.server.test_server import UPGRADE
from tests.derp.server.world import relay_config
from tests.support.wires import socket_pair


def test_it_wants_one_path_and_leaves_others_to_those_behind_it() -> None:
    reactor = Reactor(clock=lambda: 1.0)
    lobby = Lobby(reactor, relay_config())
    relay = Relay(relay_config(), reactor, lobby)
    wants = relay.upgrades.route().wants
    assert [path for path in ("/derp", "/derp/", "/derp/probe", "/", "/api/derp") if wants(path)] == ["/derp"]
    reactor._poller.close()


@pytest.mark.parametrize(
    ("request_text", "status", "counts"),
    [
        (UPGRADE, b"101", (1, 0, 0)),
        (UPGRADE.replace(b"GET /derp", b"GET /derp?x=y"), b"101", (1, 0, 0)),
        (UPGRADE.replace(b"Upgrade: DERP", b"Upgrade: h2c"), b"426", (0, 0, 1)),
        (UPGRADE.replace(b"/derp", b"/derp/"), b"204", (0, 0, 0)),
    ],
)
def test_an_upgrade_is_counted_and_so_is_a_refusal(
    request_text: bytes, status: bytes, counts: tuple[int, int, int]
) -> None:
    reactor = Reactor(clock=lambda: 1.0)
    lobby = Lobby(reactor, relay_config())
    relay = Relay(relay_config(), reactor, lobby)
    others = Route(every_path, lambda visit, request: visit.answer(204, (), b""))
    door = FrontDoor(lobby, [relay.upgrades.route(), others])
    near, far = socket_pair(None)
    link = Link(near, ("127.0.0.1", 1))
    door.open(link)
    reactor.add(link)
    far.send(request_text)
    reactor.serve_ready()
    assert far.recv(1000).split(b" ")[1] == status
    upgrades: DerpUpgrades = relay.upgrades
    assert (upgrades.accepts, upgrades.websocket_accepts, door.requests_refused) == counts
    assert list(lobby.waiting) == [link], "until it has logged in, it has a deadline"
    far.close()
    reactor.serve_ready()
    assert len(lobby.waiting) == 0
    reactor._poller.close()
