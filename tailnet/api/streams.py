"""A stream over a websocket (layer L3): from what is followed to Hypercorn, one message for what came at once.

It ends with 1001 when the server closes what is followed, with 1008 when the caller's right is withdrawn, with 1000
when its agent is gone, with 1011 for a client that does not read.  Nothing is expected from the client: whatever it
sends is dropped, or ends a one-way stream with 1002.  Hypercorn pings.  What is followed:
services/feed.py, services/logs.py.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import trio
from fastapi import WebSocket
from starlette.types import Scope
from starlette.websockets import WebSocketDisconnect

from derp.log import fields
from tailnet.api.middleware import exchange_of
from tailnet.auth.callers import EXPIRY_SECONDS, TICK_SECONDS, Callers, Lost, OutsideToken, find_lost
from tailnet.auth.policy import TO_READ, TO_TERMINALS
from tailnet.errors import StoreError
from tailnet.services.feed import Event, Feed, FollowerDropped
from tailnet.store.rows import Right
from tailnet.types import PeerID

_log = logging.getLogger("tailnet.api")

T = TypeVar("T")
B_co = TypeVar("B_co", covariant=True)
B = TypeVar("B")

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
UNSUPPORTED: Final = 1003
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
# A close frame has 125 bytes, two of which are the code.
MAX_REASON_BYTES: Final = 123
STORE_AWAY: Final = "the server cannot read its store; try again"
WITHDRAWN: Final = "authorization withdrawn"
ONE_WAY: Final = "Clients cannot send messages for one-way WebSockets"

# The code and the text of a goodbye.
End = tuple[int, str]


class Follows(Protocol[B_co]):
    """Somebody who follows: iteration gives what came since, and ends with what is followed."""

    @property
    def ended_because(self) -> str:
        """Why no more comes."""
        ...

    def __aiter__(self) -> "Follows[B_co]": ...

    async def __anext__(self) -> B_co: ...

    def sending(self) -> AbstractContextManager[None]:
        """Around each send.  Raises FollowerDropped when the reader takes too long."""
        ...


@dataclass(frozen=True, slots=True)
class Permit:
    """What a caller follows by.  `ask` says how it ended, None while it is good.

    It may have ended when callers changed, and by itself: so it is asked each `look_seconds` too.
    """

    callers: Callers
    ask: Callable[[], Awaitable[End | None]]
    look_seconds: float = EXPIRY_SECONDS

    async def wait_ended(self) -> End:
        """Until the caller may not follow any longer."""
        seen = self.callers.changes.count
        while (end := await self.ask()) is None:
            with trio.move_on_after(self.look_seconds):
                seen = await self.callers.changes.wait(seen)
        return end


def user_permit(callers: Callers, token: str) -> Permit:
    """As long as a user's session token is good."""
    return _permit(callers, token, is_agent=False)


def agent_permit(callers: Callers, token: str) -> Permit:
    """As long as an agent's token is good."""
    return _permit(callers, token, is_agent=True)


def reader_permit(callers: Callers, token: str, agent_id: PeerID) -> Permit:
    """As long as a user may read an agent."""
    return _permit(callers, token, agent_id, is_agent=False)


def terminal_permit(callers: Callers, token: str, agent_id: PeerID) -> Permit:
    """As long as a user may have terminals on an agent."""
    return _permit(callers, token, agent_id, TO_TERMINALS, is_agent=False)


def _permit(
    callers: Callers,
    token: str,
    agent_id: PeerID | None = None,
    rights: Collection[Right] = TO_READ,
    *,
    is_agent: bool,
) -> Permit:
    credential = callers.credential(token, is_agent=is_agent)

    async def ask() -> End | None:
        lost = await find_lost(callers, credential, agent_id, rights)
        if lost is None:
            return None
        return (NORMAL, "the agent is gone") if lost is Lost.AGENT else (POLICY_VIOLATION, WITHDRAWN)

    # Of the store's answers a change tells; those of others end by themselves, and are in memory until they do.
    return Permit(callers, ask, TICK_SECONDS if isinstance(credential, OutsideToken) else EXPIRY_SECONDS)


def tell_dropped(scope: Scope, dropped: FollowerDropped) -> None:
    """One line of log that says who is told no more, and why; the counter is the feed's."""
    exchange = exchange_of(scope)
    who = f"{exchange.caller_kind or 'nobody'} {exchange.caller_id}".strip()
    more = fields(event="follower_dropped", caller=exchange.caller_id, path=scope["path"], reason=dropped.reason.value)
    _log.info(
        "! %s is told no more at %s: %s, request %s", who, scope["path"], dropped, exchange.request_id, extra=more
    )


async def send_feed(
    websocket: WebSocket,
    feed: Feed[T],
    encode: Callable[[Sequence[Event[T]]], bytes],
    permit: Permit,
) -> None:
    """Send what is published: see `send_stream`."""
    await send_stream(websocket, feed.follow, encode, permit)


async def send_stream(
    websocket: WebSocket,
    follow: Callable[[], AbstractContextManager[Follows[B]]],
    encode: Callable[[B], bytes | str],
    permit: Permit,
    *,
    last_message: Callable[[str], str] | None = None,
    is_one_way: bool = False,
    end_code: Callable[[], int] = lambda: GOING_AWAY,
) -> None:
    """Accept, and send what comes, until one of the ends that the module's head names.

    Each message is `encode(batch)` of all that came since the one before it.  It ends when `permit` does.
    `last_message(reason)` goes before the goodbye, where the form has one.  `end_code()`: of the goodbye when nothing
    more comes.
    """
    await websocket.accept()

    async def send() -> End:
        try:
            with follow() as follower:
                async for batch in follower:
                    message = encode(batch)
                    with follower.sending():
                        await _send(websocket, message)
        except FollowerDropped as dropped:
            tell_dropped(websocket.scope, dropped)
            return INTERNAL_ERROR, str(dropped)
        except StoreError:
            return INTERNAL_ERROR, STORE_AWAY
        return end_code(), follower.ended_because

    is_closing = False
    try:
        async with trio.open_nursery() as nursery:

            async def close_after(wait: Callable[[], Awaitable[End]]) -> None:
                nonlocal is_closing
                code, reason = await wait()
                if not is_closing:  # there is one goodbye
                    is_closing = True
                    if last_message is not None and code != INTERNAL_ERROR:
                        await websocket.send_text(last_message(reason))
                    await websocket.close(code, fit_reason(reason))
                    nursery.cancel_scope.cancel()

            nursery.start_soon(close_after, send)
            nursery.start_soon(close_after, permit.wait_ended)
            while (await websocket.receive())["type"] != "websocket.disconnect":
                if is_one_way:
                    nursery.start_soon(close_after, _refuse_message)
            nursery.cancel_scope.cancel()
    except* WebSocketDisconnect:
        pass  # it left while a message was on its way


async def serve_until(websocket: WebSocket, *waits: Callable[[], Awaitable[End | None]]) -> None:
    """Have all of these run on an accepted websocket until the first is done; then say the goodbye that it gives, None
    when the other side left.  The others are cancelled."""
    goodbyes: list[End | None] = []
    try:
        async with trio.open_nursery() as nursery:

            async def end_after(wait: Callable[[], Awaitable[End | None]]) -> None:
                goodbyes.append(await wait())
                nursery.cancel_scope.cancel()

            for wait in waits:
                nursery.start_soon(end_after, wait)
        if goodbyes[0] is not None:
            code, reason = goodbyes[0]
            await websocket.close(code, fit_reason(reason))
    except* WebSocketDisconnect:
        pass  # it left while a message was on its way


def fit_reason(text: str) -> str:
    """As much of a reason as a close frame holds."""
    return text.encode()[:MAX_REASON_BYTES].decode("utf-8", "ignore")


async def _refuse_message() -> End:
    return PROTOCOL_ERROR, ONE_WAY


async def _send(websocket: WebSocket, message: bytes | str) -> None:
    if isinstance(message, str):
        await websocket.send_text(message)
    else:
        await websocket.send_bytes(message)
