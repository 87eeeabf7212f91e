"""Genuine WireGuard nodes that talk in pairs while something happens to their coordinators and relays.

The program is tests/interop/go_agent/cmd/wgpairs: whole genuine nodes, many in one process, or `tailnet agent` at one
end.  `async with open_tunnels(...) as tunnels:` has pairs that talk directly, and as many by relays alone.
No pytest here: bench/replicas.py measures with what a test asserts.
"""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import PIPE
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeVar

import trio

from tests.support.gobuild import WGPAIRS, build
from tests.support.tailnet_servers import TAILNET_COMMAND, Agent

T = TypeVar("T")

# Above what the program itself waits for.
PATIENCE_SECONDS: Final = 180.0


class WgPairsError(Exception):
    """The program could not do what it was told; the text is its own."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What pairs saw of a window, packets in either direction."""

    sent: int
    lost: int
    twice: int
    late: int
    """Behind newer ones."""
    silences: Sequence[float]
    """The longest one of each pair, seconds, the shortest first; the period of packets is in it."""
    dials: int
    met_after: float
    """Seconds from the last dial until all pairs had met; 0 if nobody dialled."""
    kinds: dict[str, int]
    """Updates that ends were told of, since they began."""
    strayed: int
    """Pairs that ended in another way than they began: directly, or by relays."""


class _Pairs:
    """A running program.  One order at a time."""

    def __init__(self, process: trio.Process, relayed: bool) -> None:
        self._process, self._relayed, self._text = process, relayed, b""

    async def ask(self, order: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with trio.fail_after(PATIENCE_SECONDS):
            await self._process.stdin.send_all(order.encode() + b"\n")
            while b"\n" not in self._text:
                piece = await self._process.stdout.receive_some()
                if not piece:
                    raise WgPairsError("it ended; its standard error says why")
                self._text += piece
        line, _, self._text = self._text.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if not said["ok"]:
            raise WgPairsError(said["error"])
        return said

    async def end(self) -> Seen:
        said = await self.ask("end")
        pairs, dials = said["pairs"], said["dials"]
        return Seen(
            **{name: sum(each[name] for each in pairs) for name in ("sent", "lost", "twice", "late")},
            silences=sorted(each["silence_ms"] / 1000 for each in pairs),
            dials=dials,
            met_after=max(0.0, said["met_at"] - said["dialled_at"]) if dials else 0.0,
            kinds=said["kinds"],
            strayed=sum(each["way"].startswith("derp-") != self._relayed for each in pairs),
        )


@dataclass(frozen=True, slots=True)
class Tunnels:
    """Both kinds of pairs."""

    direct: _Pairs
    relayed: _Pairs

    async def begin(self) -> None:
        """What is counted begins now."""
        for pairs in (self.direct, self.relayed):
            await pairs.ask("begin")

    async def dials(self) -> int:
        """How many ends have dialled their coordinator since."""
        return sum([(await pairs.ask("dials"))["dials"] for pairs in (self.direct, self.relayed)])

    async def met(self) -> None:
        """Until each two know where the other is now."""
        for pairs in (self.direct, self.relayed):
            await pairs.ask("met")

    async def heard(self) -> None:
        """Until each end has heard what was sent from now on."""
        for pairs in (self.direct, self.relayed):
            await pairs.ask("heard")

    async def end(self) -> tuple[Seen, Seen]:
        """What was sent since and has not come 4 s later is lost.  Of direct pairs and of relayed ones."""
        return await _both(self.direct.end, self.relayed.end)


async def _both(one: Callable[[], Awaitable[T]], other: Callable[[], Awaitable[T]]) -> tuple[T, T]:
    """What both give, at once."""
    found: dict[int, T] = {}

    async def keep(number: int, ask: Callable[[], Awaitable[T]]) -> None:
        found[number] = await ask()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, 0, one)
        nursery.start_soon(keep, 1, other)
    return found[0], found[1]


@asynccontextmanager
async def open_tunnels(
    url: str, trusted: Path, targets: Sequence[Agent], *, ours: int, period: str = "40ms"
) -> AsyncIterator[Tunnels]:
    """A pair for each of an even number of agents, with its owner as the client, from the moment all hear each other.

    `trusted`: the authority of whoever serves at `url`.  `ours`: in so many pairs of each kind the agent is `tailnet
    agent`.  `period`: between two packets of an end, as Go writes durations.  Raises WgPairsError, trio.TooSlowError.
    """
    half = len(targets) // 2
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment["SSL_CERT_FILE"] = str(trusted)
    with TemporaryDirectory(prefix="wg-pairs-") as home:
        async with trio.open_nursery() as nursery:

            async def begin(agents: Sequence[Agent], *, relayed: bool) -> _Pairs:
                for each in agents[:ours]:
                    command = [*TAILNET_COMMAND, "agent", "--url", url, "--log-level", "error"]
                    command += ["--relay-only"] * relayed
                    own = environment | {"HOME": home, "CODER_AGENT_TOKEN": each.token}
                    nursery.start_soon(partial(trio.run_process, command, env=own))
                command = [str(build(WGPAIRS)), f"-url={url}", f"-period={period}", f"-relayed={str(relayed).lower()}"]
                run = partial(trio.run_process, command, stdin=PIPE, stdout=PIPE, env=environment)
                pairs = _Pairs(await nursery.start(run), relayed)
                told = [
                    {
                        "agent": str(each.id),
                        "agent_token": "" if each in agents[:ours] else each.token,
                        "client_token": each.owner.token,
                    }
                    for each in agents
                ]
                await pairs.ask(json.dumps(told))
                return pairs

            direct, relayed = await _both(
                partial(begin, targets[:half], relayed=False), partial(begin, targets[half:], relayed=True)
            )
            yield Tunnels(direct, relayed)
            nursery.cancel_scope.cancel()
