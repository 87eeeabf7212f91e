"""Two peers find each other through a coordinator, with its own relay between them.

python examples/meet.py URL AGENT_ID AGENT_TOKEN USER_TOKEN     (`tailnet serve --dev --json` prints all four)
"""

import sys

import trio

from derp import NodePrivate
from tailnet import PeerID, connect_rpc, open_coordination
from tailnet.client.coordination import AGENT_DOOR, client_door, make_node, own_id


async def main(url: str, agent_text: str, agent_token: str, user_token: str) -> None:
    """Announce an agent, ask for it as a client, and print what both hear of each other."""
    agent_id = PeerID.parse(agent_text)
    async with (
        connect_rpc(url, AGENT_DOOR, agent_token) as agent,
        connect_rpc(url, client_door(agent_id), user_token) as client,
    ):
        at_agent, at_client = await open_coordination(agent), await open_coordination(client)
        await at_agent.announce(make_node(NodePrivate.generate(), agent_id, home_region=999))
        await at_client.announce(make_node(NodePrivate.generate(), await own_id(client), home_region=999))
        await at_client.add_tunnel(agent_id)
        print("the client heard of", (await at_client.receive()).node.addresses[0])
        print("the agent heard of", (await at_agent.receive()).node.addresses[0])


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:5])
