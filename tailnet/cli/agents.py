"""`tailnet agents`: what there is to reach, and what to call it (layer L4).

Next hop: login.py, tailnet/client/agents.py.
"""

from typing import Any, Final

import click
import trio

from tailnet.cli.login import login_options, read_login
from tailnet.cli.output import console, say_json
from tailnet.cli.tables import print_table
from tailnet.client.agents import list_agents

_COLUMNS: Final = ("agent", "status", "lifecycle", "system", "version", "id")


@click.command()
@login_options
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def agents(as_json: bool, **how: Any) -> None:
    """List the agents of your workspaces, with what to call them in other commands."""
    found = trio.run(list_agents, read_login(**how))
    if as_json:
        for agent in found:
            say_json(agent.as_event())
    elif found:
        print_table(console(), _COLUMNS, [agent.as_event() for agent in found])
    else:
        console().print("none of your workspaces has an agent")
