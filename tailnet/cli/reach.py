"""How commands reach an agent through the tailnet (layer L4): options, the way there, and Ctrl-C.

Next hop: login.py, agents.py, tailnet/node/membership.py.
"""

import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import click
import trio

from derp.client.client import open_background
from derp.text import error_text
from tailnet.cli.login import login_options
from tailnet.client.agents import KnownAgent, Login
from tailnet.errors import TransportError

if TYPE_CHECKING:
    from tailnet.node.membership import Client
    from tailnet.node.streams import TunnelStream

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


def open_reached(
    login: Login, agent: KnownAgent, *, relay_only: bool, wait_seconds: float
) -> AbstractAsyncContextManager["Client"]:
    """A node of ours that reaches the agent.  Raises TransportError when it does not come in time, and as `open_client`
    does."""
    # Imported here: the other commands need none of it.
    from tailnet.node.membership import open_client

    client = open_client(login.url, login.token, agent.id, is_direct=not relay_only, timeout_seconds=wait_seconds)
    return in_time(client, agent, wait_seconds)


@asynccontextmanager
async def in_time(opening: AbstractAsyncContextManager[T], agent: KnownAgent, wait_seconds: float) -> AsyncIterator[T]:
    """Open what reaches the agent, and say that it did not come; what is late inside is the block's own matter."""
    async with AsyncExitStack() as stack:
        try:
            opened = await stack.enter_async_context(opening)
        except trio.TooSlowError:
            raise TransportError(
                f"{agent.label} cannot be reached: nothing was heard of it in {wait_seconds:g} s, and the coordinator "
                f"lists it as {agent.status or 'unknown'}"
            ) from None
        yield opened


async def dial_port(
    client: "Client", agent: KnownAgent, port: int, wait_seconds: float, *, refusal: str = "serves nothing"
) -> "TunnelStream":
    """A connection to a port of the agent.  Raises TransportError: it refuses, does not answer or has gone."""
    try:
        return await client.dial(port, timeout_seconds=wait_seconds)
    except ConnectionRefusedError:
        raise TransportError(f"{agent.label} {refusal} on port {port}") from None
    except OSError as error:
        raise TransportError(f"{agent.label}, port {port}: {error_text(error)}") from None
    except trio.TooSlowError:
        raise TransportError(f"{agent.label} does not answer on port {port} within {wait_seconds:g} s") from None


def run_interruptible(work: Callable[[], Awaitable[T]]) -> T:
    """Run to its end, or to Ctrl-C, which comes between two steps: `finally` can still say what was measured.

    SIGTERM, and SIGHUP by which ssh ends its ProxyCommand, end it in order too, or agents would go on with streams of
    nobody's; SystemExit has the status that shells give then.
    """

    ended: list[int] = []

    async def main() -> T:
        goodbyes = _goodbyes()
        if not goodbyes:
            return await work()
        with trio.open_signal_receiver(*goodbyes) as signals, trio.CancelScope() as scope:
            async with open_background() as nursery:
                nursery.start_soon(_cancel_at, signals, scope, ended)
                return await work()
        raise SystemExit(128 + ended[0])

    return trio.run(main, restrict_keyboard_interrupt_to_checkpoints=True)


async def _cancel_at(signals: AsyncIterator[int], scope: trio.CancelScope, ended: list[int]) -> None:
    ended.append(await anext(signals))
    scope.cancel()


def _goodbyes() -> list[signal.Signals]:
    """Without what `nohup` has us ignore; none where a program runs us in a thread, since signals are that one's."""
    if threading.current_thread() is not threading.main_thread():
        return []
    return [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
