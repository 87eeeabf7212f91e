"""A control plane as an operator would write one: an HTTP server that knows its users and agents."""

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from tailnet.auth.call_out_wire import is_signed
from tests.support.seeds import make_id
from tests.support.sites import answer, read_message

SECRET = b"0123456789abcdef0123456789abcdef"

Answer = dict[str, Any]


def user(name: str, **more: object) -> dict[str, object]:
    return {"id": str(make_id(name)), "username": name, **more}


def agent(name: str, workspace: str = "dev", owner: str = "alice", **more: object) -> dict[str, object]:
    return {
        "id": str(make_id(name)),
        "name": name,
        "workspace_id": str(make_id(workspace)),
        "workspace_name": workspace,
        "owner_id": str(make_id(owner)),
        "owner_name": owner,
        **more,
    }


def http(status: str, body: bytes, *headers: str) -> bytes:
    return answer(body, *headers, status=status)


class ControlPlane:
    """Whoever is in its tables is known.  `respond` takes the place of its answers, `gate` holds them up."""

    def __init__(self) -> None:
        self.users: dict[str, dict[str, object]] = {}  # by token
        self.agents: dict[str, dict[str, object]] = {}
        self.rights: dict[tuple[str, str], list[str]] = {}  # by names of user and agent
        self.external_auth: list[dict[str, object]] | None = None
        self.more: dict[str, object] = {}  # in every answer
        self.questions: list[dict[str, str]] = []
        self.heads: list[str] = []
        self.unsigned = 0
        self.at_once = 0  # questions at the same time, at the most
        self.respond: Callable[[Mapping[str, str]], bytes] | None = None
        self.gate: trio.Event | None = None
        self.url = ""
        self._now = 0
        self._scope = trio.CancelScope()
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["ControlPlane"]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve)
            yield self
            nursery.cancel_scope.cancel()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `stop`; again on the same port after it."""
        with trio.CancelScope() as self._scope:
            listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
            self.port = listeners[0].socket.getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}/who"
            await trio.serve_listeners(self._connection, listeners, task_status=task_status)  # type: ignore[arg-type]

    def stop(self) -> None:
        self._scope.cancel()

    async def _connection(self, stream: trio.SocketStream) -> None:
        received = b""
        with suppress(trio.BrokenResourceError):
            async with stream:
                while (found := await read_message(stream, received)) is not None:
                    message, received = found
                    self.heads.append(message.head)
                    await stream.send_all(await self._answer(message.headers, message.body))
                    if self.respond is not None:
                        return

    async def _answer(self, headers: Mapping[str, str], body: bytes) -> bytes:
        if not is_signed(SECRET, headers, body, time.time()):
            self.unsigned += 1
            return http("401 Unauthorized", b"not signed")
        question = json.loads(body)
        self.questions.append(question)
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self._now -= 1
        if self.respond is not None:
            return self.respond(question)
        return http("200 OK", json.dumps(self._known(question) | self.more).encode())

    def _known(self, question: Mapping[str, str]) -> Answer:
        if question["question"] == "agent":
            found = self.agents.get(question["token"])
            return {"known": False} if found is None else {"known": True, "agent": found}
        if question["question"] == "user":
            found = self.users.get(question["token"])
            return {"known": False} if found is None else {"known": True, "user": found}
        if question["question"] == "external_auth":
            return {"known": self.external_auth is not None, "external_auth": self.external_auth}
        for each in self.agents.values():
            if each["id"] == question["agent_id"]:
                return {"known": True, "agent": each, "rights": self._rights(question["user_id"], each)}
        return {"known": False}

    def _rights(self, user_id: str, of: Mapping[str, object]) -> list[str]:
        if of["owner_id"] == user_id:
            return ["read", "ssh", "application-connect", "update"]
        for (name, agent_name), rights in self.rights.items():
            if str(make_id(name)) == user_id and agent_name == of["name"]:
                return rights
        return []
