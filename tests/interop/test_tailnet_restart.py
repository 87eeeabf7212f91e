"""What outlives our server's process, as genuine peers see it.  The baseline keeps nothing, so it is not asked."""

from pathlib import Path

import pytest

from tests.interop.conftest import World, make_seed
from tests.interop.test_tailnet_doors import owned
from tests.interop.test_tailnet_leaving import meet
from tests.interop.test_tailnet_meeting import CLIENT_ADDRESS, start_agent
from tests.support.tailnet_peers import TAILNET, TailnetPeers, wire
from tests.support.tailnet_servers import Seed, Server, import_seed, running_server

pytestmark = pytest.mark.interop


def world_of(server: Server, seed: Seed) -> World:
    return World(server, seed.users[0], seed.users[1], seed.agents[0], iter(seed.agents[1:]))


async def test_a_resume_token_outlives_the_server(program: TailnetPeers, tmp_path: Path) -> None:
    seed = make_seed()
    target = seed.agents[1]
    with running_server("ours", tmp_path, seed) as server:
        _, client, _, _ = await meet(program, world_of(server, seed), target)
        token = (await client.call(TAILNET + "RefreshResumeToken"))["token"]
    await client.wait_closed()
    with running_server("ours", tmp_path, seed) as server:  # seeded twice: that changes nothing
        world = world_of(server, seed)
        again = program.peer("again")
        await again.dial_client(server, world.alice, target, query={"resume_token": token})
        await again.coordinate()
        node = await again.update(addresses=[CLIENT_ADDRESS])
        await again.add_tunnel(target.id)
        agent, agent_node = await start_agent(program, world, target, "agent again")
        assert await again.next_node() == (target.id, agent_node)
        assert await agent.next_node() == (client.id, node)


async def test_agents_imported_later_are_told_and_may_dial(program: TailnetPeers, tmp_path: Path) -> None:
    seed = make_seed()
    bob = seed.users[1]
    with running_server("ours", tmp_path, seed) as server:
        watcher = program.peer("watcher")
        await watcher.dial_tailnet(server, bob)
        await watcher.open(TAILNET + "WorkspaceUpdates", "workspaces", {"workspace_owner_id": wire(bob.id)})
        assert list(owned(await watcher.message("workspaces"))) == [seed.agents[0].name]
        late = seed.add_agent(bob)
        import_seed(tmp_path, seed)
        assert owned(await watcher.message("workspaces")) == {late.name: wire(late.workspace_id)}
        await start_agent(program, world_of(server, seed), late)
