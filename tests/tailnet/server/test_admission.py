"""The embedded relay goes by the keys that peers announce, and relays elsewhere by the same keys, signed."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import trio

from derp.client.client import DerpClient, open_derp_client
from derp.config import RelayRules
from derp.errors import ConnectionClosed
from derp.keys import NodePrivate
from derp.protocol.messages import Health, Message
from tailnet.server.server import CoordinatorServer
from tests.derp.server.test_keysets import admits
from tests.derp.server.world import Caller, open_server, relay_config
from tests.derp.server.world import call as call_relay
from tests.support.seeds import agent_token, peer_id
from tests.support.tailnet_driver import AGENT_DOOR, open_peer, wait_for

Serve = Callable[..., Awaitable[CoordinatorServer]]
MAIN = peer_id("main")
TOKEN = "s3cret-of-relays"


def url_of(server: CoordinatorServer) -> str:
    return f"http://{server.listening[0].host}:{server.listening[0].port}"


def move_clocks(server: CoordinatorServer, seconds: float) -> None:
    """The reactor's and the wall's, as its relay sees them."""
    assert server.relay is not None
    clock = server.reactor._clock
    server.reactor._clock = lambda: clock() + seconds
    guests = server.relay.sessions.guests
    wall = guests._clock
    guests._clock = lambda: wall() + seconds


async def test_another_tenants_peer_does_not_move_a_key_while_its_first_one_is_connected(serve: Serve) -> None:
    server = await serve()
    key = b"k" * 32
    web = peer_id("web")
    async with open_peer(server, AGENT_DOOR, agent_token("web")) as thief:
        theirs = await thief.coordinate()
        async with open_peer(server, AGENT_DOOR, agent_token("main")) as agent:
            await (await agent.coordinate()).update(agent.node(MAIN, key=b"np" + key))
            await wait_for(lambda: server.relay_keys.has(key))
            await theirs.update(thief.node(web, key=b"np" + key))
            await wait_for(lambda: server.relay_keys.contested == 1)
            assert server.relay_keys.tenant_of(key) == "alice"
            assert server.reading().relay_keys_contested == 1
        await wait_for(lambda: len(list(server.coordinator.nodes())) == 1)
        await theirs.update(thief.node(web, key=b"np" + b"x" * 32))
        await wait_for(lambda: server.relay_keys.has(b"x" * 32))
        server.relay_keys._held_until.clear()  # as after a second
        await theirs.update(thief.node(web, key=b"np" + key))
        await wait_for(lambda: server.relay_keys.tenant_of(key) == "bob")


async def last_messages(client: DerpClient) -> list[Message]:
    """What a client is told until the relay ends it."""
    messages: list[Message] = []
    with trio.fail_after(20), suppress(ConnectionClosed):
        while True:
            messages.append(await client.receive())
    return messages


async def test_an_announced_key_stays_and_an_unknown_one_has_a_minute(serve: Serve) -> None:
    server = await serve()
    assert server.relay is not None
    known, unknown = NodePrivate.generate(), NodePrivate.generate()
    async with (
        open_derp_client(f"{url_of(server)}/derp", known) as friend,
        open_derp_client(f"{url_of(server)}/derp", unknown) as stranger,
        open_peer(server, AGENT_DOOR, agent_token("main")) as agent,
    ):
        guests = server.relay.sessions.guests
        await friend.ping()
        await stranger.ping()
        assert len(guests) == 2, "it dialled its relay before it announced its node, as stock peers do"
        coordination = await agent.coordinate()
        await coordination.update(agent.node(MAIN, key=b"np" + known.public().raw))
        await wait_for(lambda: len(guests) == 1)
        clients = {client.key: client for client in server.relay.router.clients.values()}
        await wait_for(lambda: clients[known.public().raw].tenant == "alice")  # the agent's owner
        assert clients[unknown.public().raw].tenant == "default"
        move_clocks(server, 61)
        texts = [message.text for message in await last_messages(stranger) if isinstance(message, Health)]
        assert "whose key nobody has announced to the coordinator, has ended" in texts[-1]
        await friend.ping()


async def test_an_unknown_key_has_few_bytes(serve: Serve) -> None:
    server = await serve()
    async with open_derp_client(f"{url_of(server)}/derp", NodePrivate.generate()) as stranger:
        for _ in range(20):
            await stranger.send(b"n" * 32, bytes(30_000))
        texts = [message.text for message in await last_messages(stranger) if isinstance(message, Health)]
        assert "has no bytes left" in texts[-1]
    async with open_derp_client(f"{url_of(server)}/derp", NodePrivate.generate()) as stranger:
        await stranger.ping()


async def test_open_means_open(serve: Serve) -> None:
    server = await serve(relay=RelayRules(open=True))
    assert server.relay is not None
    async with open_derp_client(f"{url_of(server)}/derp", NodePrivate.generate()) as stranger:
        await stranger.ping()
        assert len(server.relay.sessions.guests) == 0


async def test_a_relay_elsewhere_follows_the_coordinator_and_feels_a_revocation_at_once(
    serve: Serve, tmp_path: Path
) -> None:
    """From an agent's deletion in the store, over its coordinator and the key set, to its connection at a relay."""
    server = await serve(relays_token=TOKEN)
    private = NodePrivate.generate()
    outside = relay_config(
        issuers=(server.relay_keys.issuer,),
        key_set=f"{url_of(server)}/api/v2/relays/key-set",
        key_set_token=TOKEN,
        key_set_file=tmp_path / "kept",
    )
    async with open_server(outside) as relay, open_peer(server, AGENT_DOOR, agent_token("main")) as agent:
        key = private.public().raw
        coordination = await agent.coordinate()
        await coordination.update(agent.node(MAIN, key=b"np" + key))
        await wait_for(lambda: admits(relay, key))
        assert not admits(relay, b"x" * 32)
        caller: Caller = await call_relay(relay, private=private)
        await caller.ping()
        assert [client.tenant for client in relay.relay.router.clients.values()] == ["alice"]
        revoked = server.rights.revoked_connections
        await server.store.run(server.store.callers.delete_agent, MAIN)
        await wait_for(lambda: server.rights.revoked_connections > revoked)
        began = time.monotonic()
        await caller.receive_a(Health)
        await caller.wait_closed()
        assert time.monotonic() - began < 1.0
        await caller.aclose()
        assert not admits(relay, key)
