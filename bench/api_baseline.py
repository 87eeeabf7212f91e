"""The baseline of bench/api.py: the API's own app, its handlers and middleware, served by uvicorn on asyncio.

    python bench/api_baseline.py STORE     # fills it, and prints its URL
Callers are known from the start, as ours are after the first request; the store is read by threads of asyncio.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import uvicorn

if not __package__:  # started as a file: the project's root is not on the path then
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tailnet.api import guards
from tailnet.api.app import create_app
from tailnet.auth.callers import Callers
from tailnet.auth.policy import workspace_rights
from tailnet.config import CoordinatorConfig
from tailnet.store.rows import AgentIdentity, UserIdentity
from tailnet.store.store import Store
from tailnet.store.writer import SWITCH_SECONDS
from tailnet.types import PeerID
from tests.support.api_world import make_world
from tests.support.seeds import make_id, peer_id

AGENT = peer_id("main")


class AsyncioStore(Store):
    async def run(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(work, *args, **kwargs)


class KnownCallers:
    """As tailnet/auth/store_callers.py answers once it knows them."""

    def __init__(self, user: UserIdentity, agents: dict[PeerID, AgentIdentity]) -> None:
        self._user = user
        self._agents = agents

    async def user_of_agent_route(self, token: str) -> UserIdentity:
        return self._user

    async def find_agent(self, agent_id: PeerID) -> AgentIdentity | None:
        return self._agents.get(agent_id)

    def rights(self, user: UserIdentity, agent: AgentIdentity) -> Any:
        return workspace_rights(user, agent, admins_enter=True)


def main(url: str) -> None:
    sys.setswitchinterval(SWITCH_SECONDS)  # as `tailnet serve` does
    store = AsyncioStore.open(url)
    services = make_world(store, CoordinatorConfig(api_rate_limit=0)).services
    guards.trio = SimpleNamespace(current_time=time.monotonic)  # type: ignore[assignment,attr-defined]  # there is none here
    user = store.callers.get_user(make_id("alice"))
    assert user is not None
    row = store.callers.get_agent(AGENT)
    assert row is not None
    agent = AgentIdentity(AGENT, row.name, None, row.workspace_id, "dev", user.id, "alice")
    callers = KnownCallers(user, {AGENT: agent})
    app = create_app(replace(services, callers=cast(Callers, callers)))
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main(*sys.argv[1:])
