"""A user's story with an agent of ours, from the seed to the last GET; tests/interop tells it with genuine ones."""

from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
import trio

from tailnet.proto.generated import agent_pb2 as proto
from tailnet.types import PeerID
from tests.support.reporting_agent import ReportingAgent, open_reporting_agent
from tests.support.seeds import definitions
from tests.support.tailnet_servers import Seed, running_server
from tests.support.user_story import LEFT_STREAMS, Agents, tell_story

STORY_SECONDS = 120.0  # a hang guard


class Ours(ReportingAgent):
    async def healthy(self, app_id: UUID) -> None:
        await self.health(app_id, proto.HEALTHY)


@pytest.mark.filterwarnings(LEFT_STREAMS)
async def test_an_agent_of_ours(tmp_path: Path) -> None:
    seed = Seed()
    alice = seed.add_user("alice")
    agent = seed.add_agent(alice)
    seed.definitions[agent.id] = definitions()
    key = tmp_path / "secrets.key"
    key.write_text(b64encode(bytes(32)).decode())
    environment = {"TAILNET_SECRETS_KEY_FILE": str(key)}
    with running_server("ours", tmp_path / "server", seed, environment=environment) as server:

        @asynccontextmanager
        async def connect() -> AsyncIterator[Agents]:
            async with open_reporting_agent(server.url, agent.token, PeerID(agent.id.bytes)) as reporting:
                ours = Ours(reporting.rpc, reporting.peer_id)
                await ours.start()
                await ours.meet(999, {"999-v4": 0.013})
                await ours.lifecycle(proto.Lifecycle.READY)
                yield ours

        with trio.fail_after(STORY_SECONDS):
            await tell_story(server.url, alice, agent, connect)
