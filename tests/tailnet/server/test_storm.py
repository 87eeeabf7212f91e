"""A thousand agents that come back at the same moment: each is in at its first try, and is answered."""

import pytest
import trio

from tailnet.proto.generated import agent_pb2 as agent
from tailnet.store.store import Store
from tests.support.seeds import AgentSpec, agent_token, fill, peer_id, seed_document
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, open_peer
from tests.tailnet.conftest import Serve

pytestmark = pytest.mark.stores

NAMES = [f"agent{number}" for number in range(1_000)]


async def test_a_thousand_agents_at_once(serve: Serve, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of a busy machine, and of a thousand clients in this same process.
    monkeypatch.setattr("tests.support.tailnet_driver.PATIENCE_SECONDS", 60.0)
    fill(store, seed_document(tuple(AgentSpec(name, f"w{number % 50}", "alice") for number, name in enumerate(NAMES))))
    server = await serve()
    told: set[bytes] = set()
    everybody = trio.Event()

    async def come_back(name: str) -> None:
        async with open_peer(server, AGENT_DOOR, agent_token(name)) as peer:
            told.add((await peer.call(AGENT + "GetManifest", agent.GetManifestRequest(), agent.Manifest)).agent_id)
            if len(told) == len(NAMES):
                assert server.reading().channels == len(NAMES)
                everybody.set()
            await everybody.wait()

    async with trio.open_nursery() as nursery:
        for name in NAMES:
            nursery.start_soon(come_back, name)
    assert told == {bytes(peer_id(name)) for name in NAMES}
