"""A user's story with an agent on the genuine layers; tests/tailnet/server/test_user_story.py tells it with ours."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
import trio

from tests.support.tailnet_peers import AGENT, TailnetPeer, TailnetPeers, wire
from tests.support.user_story import LEFT_STREAMS, Agents, open_scene, tell_story

pytestmark = pytest.mark.interop

STORY_SECONDS = 120.0  # a hang guard


class Genuine:
    """What the story has an agent do, as RPCs of the genuine layers."""

    def __init__(self, peer: TailnetPeer) -> None:
        self.peer = peer

    async def log(self, *lines: str) -> None:
        logs = [{"created_at": _now(), "output": line, "level": "INFO"} for line in lines]
        await self.peer.call(AGENT + "BatchCreateLogs", {"log_source_id": wire(UUID(int=0)), "logs": logs})

    async def metadata(self, values: Mapping[str, str]) -> None:
        metadata = [{"key": key, "result": {"collected_at": _now(), "value": value}} for key, value in values.items()]
        await self.peer.call(AGENT + "BatchUpdateMetadata", {"metadata": metadata})

    async def healthy(self, app_id: UUID) -> None:
        updates = [{"id": wire(app_id), "health": "HEALTHY"}]
        await self.peer.call(AGENT + "BatchUpdateAppHealths", {"updates": updates})


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.filterwarnings(LEFT_STREAMS)
async def test_an_agent_on_the_genuine_layers(program: TailnetPeers, tmp_path: Path) -> None:
    with open_scene(tmp_path) as (server, alice, agent):

        @asynccontextmanager
        async def connect() -> AsyncIterator[Agents]:
            peer = program.peer("agent")
            await peer.dial_agent(server, agent, version="2.8")
            await peer.boot(minor=8, preferred_derp=999, derp_latency={"999-v4": 0.013})
            yield Genuine(peer)
            await peer.hang_up()

        with trio.fail_after(STORY_SECONDS):
            await tell_story(server.url, alice, agent, connect)
