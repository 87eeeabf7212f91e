"""`tailnet demo`: a relay, a coordinator and two nodes on this machine, and packets both ways (layer L4).

The servers are the commands themselves, each a process of its own: `derp serve --dev` and `tailnet serve --dev`.  The
nodes are tailnet/client and derp/client.  Everything listens on loopback and is gone afterwards.
"""

import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from subprocess import PIPE
from typing import Any, Final

import click
import trio

from derp.client.client import DerpClient, open_derp_client
from derp.keys import NodePrivate, NodePublic
from derp.map import DERPMap, DERPNode, DERPRegion
from derp.protocol.messages import RecvPacket
from tailnet.cli.output import console, say_json
from tailnet.client.coordination import (
    AGENT_DOOR,
    Coordination,
    client_door,
    make_node,
    open_coordination,
    own_id,
    read_map,
)
from tailnet.client.rpc import open_rpc_client
from tailnet.errors import TailnetError
from tailnet.proto import convert
from tailnet.proto.generated import tailnet_pb2 as tailnet
from tailnet.types import PeerID

PACKETS: Final = 100
# What WireGuard sends most: a full packet of its default MTU.
PACKET_BYTES: Final = 1280
OUR_REGION: Final = 901
# A cold start of two interpreters takes a second; ten times that is a machine on which nothing works.
STEP_SECONDS: Final = 30.0


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON object for each step")
def demo(as_json: bool) -> None:
    """Start a relay, a coordinator and two nodes here, send packets both ways, say what happened, and stop."""
    trio.run(_demo, Steps(as_json))


class Steps:
    """Says what happened, step by step."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._out = console()

    def say(self, who: str, what: str, **facts: object) -> None:
        """One step: who did what; `facts` are for programs."""
        if self._as_json:
            say_json({"step": who, "text": what} | facts)
        else:
            self._out.print(f"{who:<18}{what}")


@dataclass(frozen=True, slots=True)
class Node:
    """One of the two nodes: its place at the coordinator and its connections to both relays."""

    name: str
    private: NodePrivate
    peer_id: PeerID
    home: int
    coordination: Coordination
    relays: Mapping[int, DerpClient]


async def _demo(steps: Steps) -> None:
    began = trio.current_time()
    with tempfile.TemporaryDirectory(prefix="tailnet-demo-") as folder:
        async with AsyncExitStack() as stack:
            said = await stack.enter_async_context(
                _server("derp", "serve", "--dev", "--listen", "127.0.0.1:0", "--stun=false")
            )
            relay = _first(said, "listening")
            steps.say("relay", f"derp serve listens on {relay['host']}:{relay['port']}: region {OUR_REGION}")
            map_file = Path(folder) / "map.json"
            map_file.write_text(json.dumps(_map_of(relay["host"], relay["port"]).to_json()))
            said = await stack.enter_async_context(
                _server("tailnet", "serve", "--dev", "--listen", "127.0.0.1:0", "--derp-map", str(map_file))
            )
            server, login = _first(said, "listening"), _first(said, "demo")
            url = f"http://{server['host']}:{server['port']}"
            steps.say("coordinator", f"tailnet serve listens on {url}; it has a relay of its own")

            agent_id = PeerID.parse(login["agent_id"])
            agent = await _join(stack, "agent", url, AGENT_DOOR, login["agent_token"], agent_id, OUR_REGION)
            steps.say("agent", f"is {agent.private.public()}, at home in region {agent.home}")
            client = await _join(stack, "client", url, client_door(agent_id), login["user_token"], None, None)
            steps.say("client", f"is {client.private.public()}, at home in region {client.home}")

            await client.coordination.add_tunnel(agent.peer_id)
            agents_key, agents_home = await _meet(client, agent)
            steps.say("client", f"asked for the agent: it is {agents_key}, at home in region {agents_home}")
            clients_key, clients_home = await _meet(agent, client)
            steps.say("agent", f"heard of the client: it is {clients_key}, at home in region {clients_home}")
            for source, target, key, region in (
                (client, agent, agents_key, agents_home),
                (agent, client, clients_key, clients_home),
            ):
                arrived, seconds = await _send_packets(source, target, key, region)
                steps.say(
                    f"{source.name} -> {target.name}",
                    f"{arrived} of {PACKETS} packets of {PACKET_BYTES} B arrived through region {region}, "
                    f"each after {seconds * 1000:.2f} ms (median)",
                    arrived=arrived,
                    median_seconds=seconds,
                )
            await client.coordination.leave()
            steps.say("agent", f"hears that the client {await _wait_gone(agent)}")
    steps.say("done", f"in {trio.current_time() - began:.1f} s; nothing of it is left running")


@asynccontextmanager
async def _server(*command: str) -> AsyncIterator[list[dict[str, Any]]]:
    """One of our commands as a process, until the block ends; gives what it said until it served."""
    # Settings of this shell are for other servers than these two.
    environment = {key: text for key, text in os.environ.items() if not key.startswith(("DERP_", "TAILNET_"))}
    # Ctrl-C goes to all of a terminal's processes.  A Python that is just starting prints an error of its own then, so
    # these ignore it until they serve; we end them anyway.
    patiently = ("/bin/sh", "-c", 'trap "" INT; exec "$0" "$@"', sys.executable)
    process = await trio.lowlevel.open_process(
        [*patiently, "-m", *command, "--json", "--log-level", "error"], stdout=PIPE, env=environment
    )
    assert process.stdout is not None
    try:
        said: list[dict[str, Any]] = []
        text = b""
        with trio.fail_after(STEP_SECONDS):
            while not any(event.get("event") == "serving" for event in said):
                chunk = await process.stdout.receive_some()
                if not chunk:
                    raise TailnetError(f"{' '.join(command[:2])} ended before it served; its reason stands above")
                *lines, text = (text + chunk).split(b"\n")
                said += [json.loads(line) for line in lines]
        yield said
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            with trio.move_on_after(STEP_SECONDS):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


def _first(said: list[dict[str, Any]], event: str) -> dict[str, Any]:
    return next(each for each in said if each["event"] == event)


def _map_of(host: str, port: int) -> DERPMap:
    node = DERPNode(f"{OUR_REGION}a", OUR_REGION, host, ipv4=host, derp_port=port, stun_port=-1, force_http=True)
    return DERPMap({OUR_REGION: DERPRegion(OUR_REGION, region_code="demo", region_name="Demo", nodes=(node,))})


async def _join(
    stack: AsyncExitStack, name: str, url: str, door: str, token: str, peer_id: PeerID | None, home: int | None
) -> Node:
    """Dial the coordinator and every relay of its map, and announce the node; `home` None: the coordinator's own."""
    # What is dialled has deadlines of its own; one around them would have to end before their connections do.
    rpc = await stack.enter_async_context(open_rpc_client(url, door, token))
    peer_id = peer_id or await own_id(rpc)
    regions = (await read_map(rpc, url, timeout_seconds=STEP_SECONDS)).regions
    private = NodePrivate.generate()
    relays = {
        number: await stack.enter_async_context(open_derp_client(region, private)) for number, region in regions.items()
    }
    home = home or next(number for number, region in regions.items() if region.embedded_relay)
    relays[home].note_preferred(True)
    coordination = await open_coordination(rpc)
    await coordination.announce(make_node(private, peer_id, home))
    return Node(name, private, peer_id, home, coordination, relays)


async def _meet(node: Node, other: Node) -> tuple[NodePublic, int]:
    """What the coordinator tells `node` about `other`: its key and its home region."""
    with trio.fail_after(STEP_SECONDS):
        while True:
            update = await node.coordination.receive()
            if update.id == other.peer_id and update.kind == tailnet.CoordinateResponse.PeerUpdate.NODE:
                return convert.node_key(update.node.key), update.node.preferred_derp


async def _wait_gone(node: Node) -> str:
    with trio.fail_after(STEP_SECONDS):
        while True:
            update = await node.coordination.receive()
            if update.kind != tailnet.CoordinateResponse.PeerUpdate.NODE:
                return {2: "disconnected", 3: "was lost"}.get(int(update.kind), f"sent kind {update.kind}")


async def _send_packets(source: Node, target: Node, key: NodePublic, region: int) -> tuple[int, float]:
    """Send packets one after the other through the target's home; how many arrived, and after how long."""
    took: list[float] = []
    for number in range(PACKETS):
        packet = number.to_bytes(4) + os.urandom(PACKET_BYTES - 4)
        began = trio.current_time()
        await source.relays[region].send(key.raw, packet)
        with trio.move_on_after(1.0):
            while True:
                received = await target.relays[region].receive()
                if isinstance(received, RecvPacket) and received.packet == packet:
                    took.append(trio.current_time() - began)
                    break
    return len(took), median(took) if took else 0.0
