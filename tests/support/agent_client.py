"""Drives a genuine client of one agent: tests/interop/go_agent/cmd/agentclient, one process.

`async with open_agent_client(url, token, agent_id) as client:` has reached the agent; `await client.ask("http",
method="GET", path="/")` gives what it answers.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from tests.support.go_program import PATIENCE_SECONDS, Answering, run, tell
from tests.support.gobuild import AGENTCLIENT
from tests.support.peers import require

# Relays speak TLS to genuine clients; that of a coordinator without a certificate does when this is set.
_ENVIRONMENT = {"TS_DEBUG_TRIM_WIREGUARD": "false", "TS_DEBUG_USE_DERP_HTTP": "true"}


class AgentClientError(Exception):
    """The genuine client could not do what it was told; the text is its own."""


class AgentClient(Answering):
    """The running program."""

    failure = AgentClientError

    async def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Give an order and await the answer.  Raises AgentClientError with its own words, trio.TooSlowError."""
        await tell(self._process, json.dumps({"op": op, **arguments}))
        return await self.answer()

    async def wait_way(self, is_direct: bool) -> str:
        """Until the agent answers in this way; by which one."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                with suppress(AgentClientError):
                    way = str((await self.ask("ping", kind="disco"))["text"])
                    if is_direct != way.startswith("derp-"):
                        return way
                await trio.sleep(0.05)  # another process tells nobody

    async def get(self, path: str, method: str = "GET") -> tuple[int, Any]:
        """Status and body, which has to be JSON, of a route of the agent."""
        said = await self.ask("http", method=method, path=path)
        return said["status"], json.loads(said["text"])


@asynccontextmanager
async def open_agent_client(url: str, token: str, agent_id: object) -> AsyncIterator[AgentClient]:
    """A genuine client that has reached the agent.  Raises AgentClientError."""
    command = ["env", *(f"{name}={value}" for name, value in _ENVIRONMENT.items()), str(require(AGENTCLIENT))]
    command += ["-url", url, "-token", token, "-agent", str(agent_id)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(lambda task_status: run(command, task_status))
        client = AgentClient(process)
        await client.answer()
        yield client
        nursery.cancel_scope.cancel()
