"""Admission to the RPC sockets: who may come in, and as what kind of peer (layer L3).

Agents dial /api/v2/workspaceagents/me/rpc, clients .../{id}/coordinate or /api/v2/tailnet; version 1 spoke JSON on
me/coordinate and on coordinate without a version.  The front door asks `wants` for every request head and `judge` for
those it wants; accepted connections go to the reactor, everything else to the app.  The order of the checks is the
reference's: an SDK must meet the refusal that it knows how to act on.
"""

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final
from uuid import uuid4

import trio

from tailnet import refusals
from tailnet.api.answers import refusal_body, refusal_headers
from tailnet.api.authorise import authorise_agent, check_origin
from tailnet.api.middleware import REQUEST_ID, request_id
from tailnet.auth.callers import Callers, Credential, at_once, user_of_agent_route
from tailnet.coordinator.resume import ResumeTokenRefused, ResumeTokens, audience
from tailnet.proto.version import CURRENT, Version, VersionRefused, check_version
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity, Right, UserIdentity
from tailnet.tokens import find_token, query_values
from tailnet.types import PeerID

_PATHS: Final = re.compile(
    r"/api/v2/(?:workspaceagents/me/(?P<own>rpc|coordinate)"
    r"|workspaceagents/(?P<agent>[^/]+)/coordinate"
    r"|(?P<many>tailnet))"
)


class PeerKind(Enum):
    """What a peer is, by the path it dialled."""

    AGENT = "agent"  # Agent and Tailnet services
    CLIENT = "client"  # Tailnet service; may tunnel to one agent
    CLIENT_OF_MANY = "client of many"  # Tailnet service; to every agent its user may SSH to
    LEGACY_AGENT = "agent, version 1"  # JSON nodes, no RPC
    LEGACY_CLIENT = "client, version 1"


@dataclass(frozen=True, slots=True)
class Accepted:
    """Upgrade to a websocket and serve this peer."""

    kind: PeerKind
    peer_id: PeerID  # an agent's own id; of a client a fresh one, or that of its resume token
    version: Version | None  # None of version 1
    agent: AgentIdentity | None  # an agent itself, or the one agent that a client may reach
    user: UserIdentity | None  # of clients
    credential: Credential | None = None  # what it came in with, to be asked about again when callers changed
    drives_status: bool = False  # whether this connection makes an agent connected and disconnected
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class RefusedPeer:
    """Answer with this and close."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    why: str  # for the log; holds no secret


class RpcAdmission:
    """Decides on requests for the RPC sockets.

    `resume_tokens` is asked anew each time, since keys rotate.  `wall_seconds` is Unix time.
    """

    def __init__(
        self,
        callers: Callers,
        resume_tokens: Callable[[], ResumeTokens],
        *,
        access_url: str = "",
        browser_only: bool = False,
        origins: Callable[[], Collection[str]] = tuple,
        current: Version = CURRENT,
        wall_seconds: Callable[[], float] = time.time,
        new_peer_id: Callable[[], PeerID] = lambda: PeerID(uuid4().bytes),
    ) -> None:
        self._callers = callers
        self._resume_tokens = resume_tokens
        self._access_url = access_url
        self._browser_only = browser_only
        self._origins = origins
        self._current = current
        self._wall_seconds = wall_seconds
        self._new_peer_id = new_peer_id

    def wants(self, target: str) -> bool:
        """Whether a request for this target (path and query) is for an RPC socket; cheap, for every request head."""
        return _PATHS.fullmatch(target.partition("?")[0]) is not None

    def knows(self, target: str, headers: Mapping[str, str]) -> bool:
        """Whether the token of a request is that of somebody whom memory knows, though that may be too old to go by."""
        path, _, raw_query = target.partition("?")
        match = _PATHS.fullmatch(path)
        token = find_token(headers, query_values(raw_query))
        return match is not None and self._callers.knows_token(token, is_agent=bool(match["own"]))

    def judge_now(self, method: str, target: str, headers: Mapping[str, str]) -> Accepted | RefusedPeer | None:
        """`judge` without a task, if all it needs is in memory, else None.  Most of a storm of reconnects comes so."""
        try:
            return at_once(self._callers, self.judge(method, target, headers))
        except trio.WouldBlock:
            return None

    async def judge(self, method: str, target: str, headers: Mapping[str, str]) -> Accepted | RefusedPeer:
        """Decide.  `headers` have lower-case names.  Never raises Refused."""
        path, _, raw_query = target.partition("?")
        match = _PATHS.fullmatch(path)
        try:
            if match is None:
                raise refusals.route_not_found()
            if method != "GET":
                raise refusals.method_not_allowed()
            query = query_values(raw_query)
            token = find_token(headers, query)
            if match["own"]:
                accepted = await self._judge_agent(token, query, legacy=match["own"] == "coordinate")
            elif match["agent"]:
                accepted = await self._judge_client(token, match["agent"], query)
            else:
                accepted = await self._judge_client_of_many(token, query)
            check_origin(headers, self._access_url, self._origins())
            if not asks_for_websocket(headers):
                raise refusals.upgrade_missing()
        except Refused as refused:
            ident = request_id(headers.get(REQUEST_ID, ""))
            told = (*refusal_headers(refused), (REQUEST_ID, ident))
            return RefusedPeer(
                refused.status, told, refusal_body(refused), f"{path[:120]}: {refused} (request {ident})"
            )
        return replace(accepted, credential=self._callers.credential(token, is_agent=accepted.user is None))

    async def _judge_agent(self, token: str, query: Mapping[str, str], *, legacy: bool) -> Accepted:
        agent = await self._callers.agent(token)
        if legacy:
            return Accepted(PeerKind.LEGACY_AGENT, agent.id, None, agent, None, drives_status=True)
        version = self._version(query)
        # Other roles are served and leave the agent's status alone: tools that look at an agent from the inside.
        drives = query.get("role", "") in ("", "agent")
        return Accepted(PeerKind.AGENT, agent.id, version, agent, None, drives_status=drives)

    async def _judge_client(self, token: str, agent_text: str, query: Mapping[str, str]) -> Accepted:
        user = await user_of_agent_route(self._callers, token)
        agent = await authorise_agent(self._callers, user, agent_text, Right.SSH)
        self._check_override()
        if not query.get("version"):
            return Accepted(PeerKind.LEGACY_CLIENT, self._new_peer_id(), None, agent, user)
        version = self._version(query)
        peer_id, resumed = self._peer_id(query, PeerKind.CLIENT, user)
        return Accepted(PeerKind.CLIENT, peer_id, version, agent, user, resumed=resumed)

    async def _judge_client_of_many(self, token: str, query: Mapping[str, str]) -> Accepted:
        user = await self._callers.user(token)
        self._check_override()
        version = self._version(query)
        peer_id, resumed = self._peer_id(query, PeerKind.CLIENT_OF_MANY, user)
        return Accepted(PeerKind.CLIENT_OF_MANY, peer_id, version, None, user, resumed=resumed)

    def _check_override(self) -> None:
        if self._browser_only:
            raise refusals.browser_only()

    def _version(self, query: Mapping[str, str]) -> Version:
        try:
            return check_version(query.get("version") or None, current=self._current)
        except VersionRefused as refused:
            raise refusals.version_unsupported(refused.detail) from None

    def _peer_id(self, query: Mapping[str, str], kind: PeerKind, user: UserIdentity) -> tuple[PeerID, bool]:
        token = query.get("resume_token", "")
        try:
            peer_id = self._resume_tokens().verify(token, audience(kind.value, user.id), self._wall_seconds())
        except ResumeTokenRefused as refused:
            raise refusals.resume_token_invalid(str(refused)) from None
        return (self._new_peer_id(), False) if peer_id is None else (peer_id, True)


def asks_for_websocket(headers: Mapping[str, str]) -> bool:
    """Whether a request still has its upgrade; proxies that do not know websockets drop it."""
    upgrades = {part.strip() for part in headers.get("upgrade", "").lower().split(",")}
    connection = {part.strip() for part in headers.get("connection", "").lower().split(",")}
    return "websocket" in upgrades and "upgrade" in connection
