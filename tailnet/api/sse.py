"""Server-sent events (layer L3): what is followed as an endless HTTP answer.

    event: data\\ndata: <json>\\n\\n        and `event: ping\\n\\n` each 15 s, whatever else is sent
Programs of the field read exactly these lines.  Browsers ask for `text/event-stream` and get an `id:` line too, whose
number they send back as Last-Event-ID.  The last event says why the stream ends: an `error` with a refusal's body.
A client that does not read is dropped: its connection ends without a word.  What is followed: services/feed.py.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Any, Final, Generic, TypeVar

import trio
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tailnet.api.answers import Refusal
from tailnet.api.streams import End, Follows
from tailnet.errors import StoreError
from tailnet.go_json import go_json
from tailnet.services.feed import FollowerDropped

B = TypeVar("B")

MEDIA_TYPE: Final = "text/event-stream"
# The reference's heartbeat; proxies give a silent answer a minute.
PING_SECONDS: Final = 15.0
HEADERS: Final = {"Cache-Control": "no-cache", "Connection": "keep-alive", "X-Accel-Buffering": "no"}
PING: Final = b"event: ping\n\n"
# Numbers of eight bytes, as ids of feeds are.
_MAX_ID_CHARS: Final = 18

# The id of an event and its JSON.  Events without an id leave a browser where it was.
Told = tuple[int | None, bytes]


def last_event_id(asked: HTTPConnection) -> int:
    """Where a browser that comes back was; 0 for any other."""
    text = asked.headers.get("last-event-id", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MAX_ID_CHARS else 0


def data_event(json: bytes, event_id: int | None = None) -> bytes:
    """One event of data.  `json`: without a line break but the last."""
    number = b"" if event_id is None else b"id: %d\n" % event_id
    return b"event: data\ndata: %s\n%s\n" % (json.rstrip(b"\n"), number)


def error_event(message: str, detail: str) -> bytes:
    """The last event of a stream."""
    body = go_json(Refusal(message=message, detail=detail).model_dump(mode="json"))
    return b"event: error\ndata: %s\n\n" % body.rstrip(b"\n")


@dataclass(frozen=True, slots=True)
class Source(Generic[B]):
    """What is followed, and what is told of all that came since the last time."""

    follow: Callable[[], AbstractContextManager[Follows[B]]]
    encode: Callable[[B], Sequence[Told]]


class EventStream(Response):
    """An answer that tells what its sources give, until one ends, `wait_end` returns or the caller leaves.

    `goodbye(reason)`: message and detail of the last event.
    """

    def __init__(
        self,
        asked: HTTPConnection,
        sources: Sequence[Source[Any]],
        wait_end: Callable[[], Awaitable[End]],
        goodbye: Callable[[str], tuple[str, str]] = lambda reason: ("The stream ended.", reason),
    ) -> None:
        super().__init__(None, 200, HEADERS, MEDIA_TYPE)
        del self.headers["content-length"]
        self._has_ids = MEDIA_TYPE in asked.headers.get("accept", "")
        self._sources = sources
        self._turn = trio.Lock()  # events of several sources are sent one after the other
        self._wait_end = wait_end
        self._goodbye = goodbye

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        reason: str | None = None  # None: nobody is there to be told
        async with trio.open_nursery() as nursery:

            async def watch_right() -> None:
                nonlocal reason
                _, reason = await self._wait_end()
                nursery.cancel_scope.cancel()

            async def watch_caller() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            async def tell(source: Source[Any]) -> None:
                nonlocal reason
                reason = await self._tell(source, send, PING_SECONDS if source is self._sources[0] else inf)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch_right)
            nursery.start_soon(watch_caller)
            for source in self._sources:
                nursery.start_soon(tell, source)
        if reason is not None:
            await send(_piece(error_event(*self._goodbye(reason)), more=False))

    async def _tell(self, source: Source[Any], send: Send, ping_seconds: float) -> str | None:
        """Tell what comes.  Returns why it ended; None when its reader takes nothing."""
        try:
            with source.follow() as follower:
                ping_at = trio.current_time() + ping_seconds
                while True:
                    text = PING
                    with trio.move_on_at(ping_at):
                        batch = await anext(follower)
                        text = b"".join(self._event(told) for told in source.encode(batch))
                    if text is PING:
                        ping_at += ping_seconds
                    with follower.sending():
                        async with self._turn:
                            await send(_piece(text))
        except StopAsyncIteration:
            return follower.ended_because
        except StoreError:
            return "the server cannot read its store; try again"
        except FollowerDropped:
            return None

    def _event(self, told: Told) -> bytes:
        event_id, json = told
        return data_event(json, event_id if self._has_ids else None)


def _piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
