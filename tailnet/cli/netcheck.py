"""`tailnet netcheck`: what this network lets a node do, measured on the deployment's map (layer L4).

Next hop: login.py, derp/cli_netcheck.py.
"""

import sys
from typing import Any

import click
import trio

from derp.cli_netcheck import show_netchecks
from derp.text import fit_to_show
from tailnet.cli.login import login_options, read_login
from tailnet.client.agents import Login


@click.command()
@login_options
@click.option("--json", "as_json", is_flag=True, help="one JSON object per check, times in seconds")
@click.option("--every", metavar="SECONDS", type=click.FloatRange(1, 86_400), help="check again and again")
def netcheck(as_json: bool, every: float | None, **how: Any) -> None:
    """Measure the relays of the coordinator's map from here, and say which one a node makes its home.

    UDP, IPv4 and IPv6, how others see this machine, and whether that depends on who is asked: behind such a NAT direct
    connections are rare.  Lines with an exclamation mark say what is the matter.  With --every the choice of the home
    shows its stickiness, as in a node that runs for long.

    Exit status 0: there is a home; 1: there is none, or the coordinator cannot be reached.
    """
    if not trio.run(_netcheck, read_login(**how), as_json, every):
        sys.exit(1)


async def _netcheck(login: Login, as_json: bool, every: float | None) -> bool:
    # Imported here: the other commands need none of it.
    from tailnet.client.coordination import TAILNET_DOOR, read_map
    from tailnet.client.rpc import open_rpc_client

    async with open_rpc_client(login.url, TAILNET_DOOR, login.token) as rpc:
        derp_map = await read_map(rpc, login.url)
    return await show_netchecks(derp_map, f"the map of {fit_to_show(login.url)}", as_json, every)
