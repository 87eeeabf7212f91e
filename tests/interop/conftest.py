"""What the tailnet interop tests share: one coordinator of each kind per test file, and the Go peers."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from tests.support.gobuild import TAILNET_COORDINATOR
from tests.support.peers import require
from tests.support.tailnet_peers import TailnetPeers, open_tailnet_peers
from tests.support.tailnet_servers import Agent, Seed, Server, ServerKind, User, running_server

AGENTS = 80  # more than any file has tests: each test takes fresh ones, so that none sees another's peers


@dataclass(slots=True)
class World:
    """A coordinator, alice who owns most agents, and bob who owns one."""

    server: Server
    alice: User
    bob: User
    bobs_agent: Agent
    _fresh: Iterator[Agent]

    def agent(self) -> Agent:
        """An agent of alice's that no other test uses."""
        return next(self._fresh)


def make_seed() -> Seed:
    seed = Seed()
    alice, bob = seed.add_user("alice"), seed.add_user("bob")
    seed.add_agent(bob)
    for _ in range(AGENTS):
        seed.add_agent(alice)
    return seed


@pytest.fixture(scope="module", params=["go-baseline", "ours"])
def kind(request: pytest.FixtureRequest) -> ServerKind:
    chosen: ServerKind = request.param
    if chosen == "go-baseline":
        require(TAILNET_COORDINATOR)
    return chosen


@pytest.fixture(scope="module")
def world(kind: ServerKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    seed = make_seed()
    with running_server(kind, tmp_path_factory.mktemp("coordinator"), seed) as server:
        yield World(server, seed.users[0], seed.users[1], seed.agents[0], iter(seed.agents[1:]))


@pytest.fixture
async def program() -> AsyncIterator[TailnetPeers]:
    async with open_tailnet_peers() as peers:
        yield peers
