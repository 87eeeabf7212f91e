"""Genuine agents and clients at two coordinators that serve as one: processes that link with each other."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.conftest import make_seed
from tests.support.relays import free_port
from tests.support.tailnet_peers import TailnetPeers, Update
from tests.support.tailnet_servers import TAILSCALE_PREFIX, Agent, Server, User, address, running_server

pytestmark = pytest.mark.interop

CLIENT_ADDRESS = "fd7a:115c:a1e0:4444:8888:1111:2222:3333/128"


@dataclass(slots=True)
class Both:
    one: Server
    other: Server
    alice: User
    agents: Iterator[Agent]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder, seed = tmp_path_factory.mktemp("replicas"), make_seed()
    ports = [free_port(socket.SOCK_STREAM) for _ in range(2)]
    key = Path(folder) / "cluster.key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(
                running_server(
                    "ours",
                    folder / str(port),
                    seed,
                    environment={
                        "TAILNET_BUS": "static:" + ",".join(f"127.0.0.1:{each}" for each in ports),
                        "TAILNET_BUS_KEY_FILE": str(key),
                        "TAILNET_REPLICA_LISTEN": f"127.0.0.1:{port}",
                    },
                )
            )
            for port in ports
        ]
        yield Both(servers[0], servers[1], seed.users[0], iter(seed.agents[1:]))


async def test_they_meet_across_replicas(both: Both, program: TailnetPeers) -> None:
    target = next(both.agents)
    agent, client = program.peer("agent"), program.peer("client")
    await agent.dial_agent(both.one, target)
    await agent.coordinate()
    node = await agent.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=["10.0.0.1:1111"])
    await client.dial_client(both.other, both.alice, target)
    await client.coordinate()
    sent = await client.update(addresses=[CLIENT_ADDRESS], endpoints=["10.0.0.2:2222"])
    await client.add_tunnel(target.id)
    assert await client.next_node() == (target.id, node)
    client_id, received = await agent.next_node()
    assert received == sent
    await agent.ready_for(client_id)
    assert await client.next_update() == Update("READY_FOR_HANDSHAKE", target.id)
    for port in range(5):
        node = await agent.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=[f"10.0.0.1:{port}"])
        assert await client.next_node() == (target.id, node)


async def test_an_agent_whose_replica_is_killed_comes_back_at_the_other_unnoticed(
    both: Both, program: TailnetPeers
) -> None:
    """Last in this file: the replica stays dead."""
    target = next(both.agents)
    agent, client = program.peer("agent"), program.peer("client")
    await client.dial_client(both.one, both.alice, target)
    await client.coordinate()
    await client.add_tunnel(target.id)
    await agent.dial_agent(both.other, target)
    await agent.coordinate()
    node = await agent.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=["10.0.0.1:1111"])
    assert await client.next_node() == (target.id, node)
    both.other.process.kill()
    again = program.peer("again")
    await again.dial_agent(both.one, target)
    await again.coordinate()
    node = await again.update(addresses=[address(TAILSCALE_PREFIX, target.id)], endpoints=["10.0.0.1:2222"])
    told = [await client.next_update()]
    while told[-1].kind != "NODE":
        told.append(await client.next_update())
    assert "DISCONNECTED" not in [each.kind for each in told]
