"""A user's story with an agent of ours, from the seed to the last GET; tests/interop tells it with genuine ones."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
import trio

from tailnet.proto.generated import agent_pb2 as proto
from tailnet.types import PeerID
from tests.support.reporting_agent import ReportingAgent, open_reporting_agent
from tests.support.user_story import LEFT_STREAMS, Agents, open_scene, tell_story

STORY_SECONDS = 120.0  # a hang guard


class Ours(ReportingAgent):
    async def healthy(self, app_id: UUID) -> None:
        await self.health(app_id, proto.HEALTHY)


@pytest.mark.filterwarnings(LEFT_STREAMS)
async def test_an_agent_of_ours(tmp_path: Path) -> None:
    with open_scene(tmp_path) as (server, alice, agent):

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
