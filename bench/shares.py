"""Has each tenant its share of a relay that is full?  Genuine clients, sockets and all, send as fast as they are read.

    python bench/shares.py                          # 20 s at 4 MB/s
    python bench/shares.py --node 20MB --seconds 50

Three tenants: one client that sends small packets, nine that send large ones, and three with four times the weight.
A tenant's share is of what the relay took from all of them within the window; its due follows from the weights.
"""

import json
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import trio

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from derp.keys import KEY_BYTES, NodePrivate
from tests.support.peers import Peer, PeerError, open_peers
from tests.support.relays import Relay, open_relay


@dataclass(frozen=True, slots=True)
class Tenant:
    """`size`: bytes of each of its packets."""

    name: str
    weight: int
    clients: int
    size: int


TENANTS: Final = (Tenant("one", 1, 1, 200), Tenant("many", 1, 9, 1280), Tenant("heavy", 4, 3, 1280))
WARM_UP_SECONDS: Final = 3.0
# In flight of each client: enough that its socket is never empty while it waits for its turn.
_WINDOW_BYTES: Final = 2_000_000


def limits_for(keys: dict[str, list[NodePrivate]], node: str) -> str:
    """The file of --limits."""
    lines = [f'[node]\nbytes_per_second = "{node}"']
    for tenant in TENANTS:
        named = ", ".join(f'"{key.public()}"' for key in keys[tenant.name])
        lines.append(f"[tenants.{tenant.name}]\nweight = {tenant.weight}\nkeys = [{named}]")
    return "\n".join(lines)


def carried(relay: Relay) -> dict[str, int]:
    """What the relay charged, by tenant: packets and the keys before them."""
    with urllib.request.urlopen(f"http://localhost:{relay.port}/debug/clients", timeout=10) as page:
        rows = json.load(page)
    charged = [(row["tenant"], row["bytes_in"] + KEY_BYTES * row["packets_in"]) for row in rows]
    return {each.name: sum(count for name, count in charged if name == each.name) for each in TENANTS}


async def send(peer: Peer, receiver: Peer, size: int) -> None:
    """Until the program ends."""
    try:
        await peer.burst(receiver, count=1 << 30, size=size, window=_WINDOW_BYTES // size)
    except (PeerError, trio.EndOfChannel, trio.TooSlowError):
        return


async def measure(node: str, seconds: float) -> dict[str, int]:
    keys = {tenant.name: [NodePrivate.generate() for _ in range(tenant.clients)] for tenant in TENANTS}
    with tempfile.TemporaryDirectory() as folder:
        limits = Path(folder) / "limits.toml"
        limits.write_text(limits_for(keys, node))
        async with (
            open_relay("ours", extra=(f"--limits={limits}",)) as relay,
            open_peers() as peers,
            trio.open_nursery() as nursery,
        ):
            for tenant in TENANTS:
                for number, private in enumerate(keys[tenant.name]):
                    name = f"{tenant.name}-{number}"
                    receiver = await peers.connect(f"{name}-receiver", relay.url)
                    sender = await peers.connect(name, relay.url, private_key=private.raw)
                    nursery.start_soon(send, sender, receiver, tenant.size)
            await trio.sleep(WARM_UP_SECONDS)
            before = await trio.to_thread.run_sync(carried, relay)
            await trio.sleep(seconds)
            after = await trio.to_thread.run_sync(carried, relay)
            nursery.cancel_scope.cancel()
    return {name: after[name] - before[name] for name in after}


@click.command()
@click.option("--node", default="4MB", show_default=True, help="what the relay lets all of them send in a second")
@click.option("--seconds", default=20.0, show_default=True, type=click.FloatRange(1, 50), help="the measured window")
def main(node: str, seconds: float) -> None:
    """Print a row for each tenant."""
    had = trio.run(measure, node, seconds)
    total, weights = sum(had.values()), sum(tenant.weight for tenant in TENANTS)
    click.echo("tenant   weight  clients   packet     MB/s    share %  of its due %")
    for each in TENANTS:
        share = had[each.name] / total
        due = share * weights / each.weight
        click.echo(
            f"{each.name:8} {each.weight:6} {each.clients:8} {each.size:8} {had[each.name] / seconds / 1e6:8.2f} "
            f"{share * 100:10.2f} {due * 100:13.1f}"
        )


if __name__ == "__main__":
    main()
