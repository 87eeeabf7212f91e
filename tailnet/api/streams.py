"""A feed over a websocket (layer L3): from services/feed.py to Hypercorn, one message per change.

It ends with 1001 when the feed is closed, with 1008 when the caller's right is withdrawn, with 1011 for a client that
does not read.  Nothing is expected from the client, and whatever it sends is dropped.  Hypercorn pings.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio
from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from tailnet.services.feed import Event, Feed, FollowerDropped

T = TypeVar("T")

GOING_AWAY: Final = 1001
POLICY_VIOLATION: Final = 1008
INTERNAL_ERROR: Final = 1011
# A close frame has 125 bytes, two of which are the code.
MAX_REASON_BYTES: Final = 123


async def send_feed(
    websocket: WebSocket,
    feed: Feed[T],
    encode: Callable[[Sequence[Event[T]]], bytes],
    wait_withdrawn: Callable[[], Awaitable[None]],
) -> None:
    """Accept, and send what is published, until one of the ends that the module's head names.

    Each message is `encode(events)` of all that came since the one before it.  `wait_withdrawn` returns when the caller
    may not follow any longer.
    """
    await websocket.accept()

    async def send() -> tuple[int, str]:
        try:
            with feed.follow() as follower:
                async for events in follower:
                    with follower.sending():
                        await websocket.send_bytes(encode(events))
        except FollowerDropped as dropped:
            return INTERNAL_ERROR, str(dropped)
        return GOING_AWAY, feed.closed_because or ""

    async def watch_right() -> tuple[int, str]:
        await wait_withdrawn()
        return POLICY_VIOLATION, "authorization withdrawn"

    is_closing = False
    try:
        async with trio.open_nursery() as nursery:

            async def close_after(wait: Callable[[], Awaitable[tuple[int, str]]]) -> None:
                nonlocal is_closing
                code, reason = await wait()
                if not is_closing:  # there is one goodbye
                    is_closing = True
                    await websocket.close(code, reason[:MAX_REASON_BYTES])
                    nursery.cancel_scope.cancel()

            nursery.start_soon(close_after, send)
            nursery.start_soon(close_after, watch_right)
            while (await websocket.receive())["type"] != "websocket.disconnect":
                pass
            nursery.cancel_scope.cancel()
    except* WebSocketDisconnect:
        pass  # it left while a message was on its way
