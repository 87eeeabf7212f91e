"""How commands reach an agent through the tailnet (layer L4): options, the way there, and Ctrl-C.

Next hop: login.py, agents.py, tailnet/node/membership.py.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import click
import trio

from tailnet.cli.login import login_options
from tailnet.client.agents import KnownAgent, Login
from tailnet.errors import TransportError

if TYPE_CHECKING:
    from tailnet.node.membership import Client

T = TypeVar("T")

# As long as a genuine client waits for an agent that starts.
WAIT_SECONDS: Final = 30.0


def reach_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds those of `login_options`, --relay-only and --wait."""
    for option in (
        click.option(
            "--wait",
            default=WAIT_SECONDS,
            show_default=True,
            type=click.FloatRange(0.1, 86_400),
            help="seconds to wait for the agent",
        ),
        click.option("--relay-only", is_flag=True, help="no direct connection: by relays alone"),
    ):
        command = option(command)
    return login_options(command)


@asynccontextmanager
async def open_reached(
    login: Login, agent: KnownAgent, *, relay_only: bool, wait_seconds: float
) -> AsyncIterator["Client"]:
    """A node of ours that reaches the agent.  Raises TransportError when it does not come in time, and as `open_client`
    does."""
    # Imported here: the other commands need none of it.
    from tailnet.node.membership import open_client

    async with AsyncExitStack() as stack:
        with came_in_time(agent, wait_seconds):
            client = await stack.enter_async_context(
                open_client(login.url, login.token, agent.id, is_direct=not relay_only, timeout_seconds=wait_seconds)
            )
        yield client


@contextmanager
def came_in_time(agent: KnownAgent, wait_seconds: float) -> Iterator[None]:
    """What to reach an agent in: says that it did not come."""
    try:
        yield
    except trio.TooSlowError:
        raise TransportError(
            f"{agent.label} cannot be reached: nothing was heard of it in {wait_seconds:g} s, and the coordinator "
            f"lists it as {agent.status or 'unknown'}"
        ) from None


def run_interruptible(work: Callable[[], Awaitable[T]]) -> T:
    """Run to its end, or to Ctrl-C, which comes between two steps: `finally` can still say what was measured."""

    async def main() -> T:
        return await work()

    return trio.run(main, restrict_keyboard_interrupt_to_checkpoints=True)
