"""A stream over a websocket (layer L3): from what is followed to Hypercorn, one message for what came at once.

It ends with 1001 when the server closes what is followed, with 1008 when the caller's right is withdrawn, with 1000
when its agent is gone, with 1011 for a client that does not read.  Nothing is expected from the client: whatever it
sends is dropped, or ends a one-way stream with 1002.  Hypercorn pings.  What is followed:
services/feed.py, services/logs.py.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final, Protocol, TypeVar

import trio
from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from tailnet.auth.backends import Callers
from tailnet.errors import StoreError
from tailnet.services.feed import Event, Feed, FollowerDropped
from tailnet.types import PeerID

T = TypeVar("T")
B_co = TypeVar("B_co", covariant=True)
B = TypeVar("B")

NORMAL: Final = 1000
GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
# A close frame has 125 bytes, two of which are the code.
MAX_REASON_BYTES: Final = 123
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


async def wait_withdrawn(callers: Callers, token: str) -> End:
    """Until a user's session token is good no more."""
    await callers.wait_withdrawn(token)
    return POLICY_VIOLATION, WITHDRAWN


async def wait_unreadable(callers: Callers, token: str, agent_id: PeerID) -> End:
    """Until a user may not read an agent any more."""
    is_gone = await callers.wait_unreadable(token, agent_id)
    return (NORMAL, "the agent is gone") if is_gone else (POLICY_VIOLATION, WITHDRAWN)


async def send_feed(
    websocket: WebSocket,
    feed: Feed[T],
    encode: Callable[[Sequence[Event[T]]], bytes],
    wait_end: Callable[[], Awaitable[End]],
) -> None:
    """Send what is published: see `send_stream`."""
    await send_stream(websocket, feed.follow, encode, wait_end)


async def send_stream(
    websocket: WebSocket,
    follow: Callable[[], AbstractContextManager[Follows[B]]],
    encode: Callable[[B], bytes | str],
    wait_end: Callable[[], Awaitable[End]],
    *,
    last_message: Callable[[str], str] | None = None,
    is_one_way: bool = False,
) -> None:
    """Accept, and send what comes, until one of the ends that the module's head names.

    Each message is `encode(batch)` of all that came since the one before it.  `wait_end` returns when the caller may
    not follow any longer.  `last_message(reason)` goes before the goodbye, where the form has one.
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
            return INTERNAL_ERROR, str(dropped)
        except StoreError:
            return INTERNAL_ERROR, "the server cannot read its store; try again"
        return GOING_AWAY, follower.ended_because

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
                    await websocket.close(code, reason[:MAX_REASON_BYTES])
                    nursery.cancel_scope.cancel()

            nursery.start_soon(close_after, send)
            nursery.start_soon(close_after, wait_end)
            while (await websocket.receive())["type"] != "websocket.disconnect":
                if is_one_way:
                    nursery.start_soon(close_after, _refuse_message)
            nursery.cancel_scope.cancel()
    except* WebSocketDisconnect:
        pass  # it left while a message was on its way


async def _refuse_message() -> End:
    return PROTOCOL_ERROR, ONE_WAY


async def _send(websocket: WebSocket, message: bytes | str) -> None:
    if isinstance(message, str):
        await websocket.send_text(message)
    else:
        await websocket.send_bytes(message)
