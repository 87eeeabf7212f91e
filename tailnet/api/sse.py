"""Server-sent events (layer L3): what is followed as an endless HTTP answer.

    event: data\\ndata: <json>\\n\\n        and `event: ping\\n\\n` each 15 s, whatever else is sent
Programs of the field read exactly these lines.  Browsers ask for `text/event-stream` and get an `id:` line too, whose
number they send back as Last-Event-ID.  The last event says why the stream ends: an `error` with a refusal's body.
A client that does not read is dropped: its connection ends without a word.  What is followed: services/feed.py.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import trio
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tailnet.api.answers import Refusal
from tailnet.api.middleware import defer
from tailnet.api.streams import STORE_AWAY, Follows, Permit, tell_dropped
from tailnet.errors import StoreError
from tailnet.go_json import go_json
from tailnet.services.feed import FollowerDropped
from tailnet.transport.asgi import LEAVERS

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
    """An answer that tells what its sources give, until one ends, `permit` does or the caller leaves.

    The first source is told by the task that answers, which also pings and looks after the permit: each task more is
    some 4 KiB for each follower.  `goodbye(reason)`: message and detail of the last event.
    """

    def __init__(
        self,
        asked: HTTPConnection,
        sources: Sequence[Source[Any]],
        permit: Permit,
        goodbye: Callable[[str], tuple[str, str]] = lambda reason: ("The stream ended.", reason),
    ) -> None:
        super().__init__(None, 200, HEADERS, MEDIA_TYPE)
        del self.headers["content-length"]
        self._has_ids = MEDIA_TYPE in asked.headers.get("accept", "")
        self._sources = sources
        self._turn = trio.Lock()  # events of several sources are sent one after the other
        self._permit = permit
        self._goodbye = goodbye
        self._waiting: trio.CancelScope | None = None  # of the task that answers, while it waits
        self._has_left = False
        self._must_ask = False  # whether the permit is still good

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Begin once the app has answered, so that nothing of its routing stays in memory for as long as this does."""
        leavers = scope.get("extensions", {}).get(LEAVERS)
        if leavers is not None:
            leavers.append(self._note_left)
        defer(scope, lambda _, send: self._run(scope, send))

    async def _run(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self.raw_headers = []
        first, *others = self._sources
        with self._permit.callers.changes.telling(self._note_change):
            if not others:
                reason = await self._tell_first(scope, first, send)
            else:
                reason = await self._tell_all(scope, send)
        if reason is not None:
            await send(_piece(error_event(*self._goodbye(reason)), more=False))

    async def _tell_all(self, scope: Scope, send: Send) -> str | None:
        reason: str | None = None
        async with trio.open_nursery() as nursery:

            async def tell(source: Source[Any]) -> None:
                nonlocal reason
                reason = await self._tell(scope, source, send)
                nursery.cancel_scope.cancel()

            for source in self._sources[1:]:
                nursery.start_soon(tell, source)
            reason = await self._tell_first(scope, self._sources[0], send)
            nursery.cancel_scope.cancel()
        return reason

    async def _tell_first(self, scope: Scope, source: Source[Any], send: Send) -> str | None:
        """Tell what comes, and ping.  Returns why it ended; None when nobody is there to be told."""
        ping_at = trio.current_time() + PING_SECONDS
        ask_at = trio.current_time() + self._permit.look_seconds
        try:
            with source.follow() as follower:
                while not self._has_left:
                    if self._must_ask:
                        self._must_ask = False
                        end = await self._permit.ask()
                        if end is not None:
                            return end[1]
                    text = b""
                    with trio.CancelScope(deadline=min(ping_at, ask_at)) as self._waiting:
                        text = self._encode(source, await anext(follower))
                    self._waiting = None
                    if trio.current_time() >= ask_at:
                        ask_at = trio.current_time() + self._permit.look_seconds
                        self._must_ask = True
                    if not text and trio.current_time() >= ping_at:
                        text = PING
                        ping_at += PING_SECONDS
                        self._must_ask = True  # a token may have expired
                    if text:
                        await self._send(follower, text, send)
        except StopAsyncIteration:
            return follower.ended_because
        except StoreError:
            return STORE_AWAY
        except FollowerDropped as dropped:
            tell_dropped(scope, dropped)
        return None

    async def _tell(self, scope: Scope, source: Source[Any], send: Send) -> str | None:
        """Tell what comes of one more source."""
        try:
            with source.follow() as follower:
                async for batch in follower:
                    await self._send(follower, self._encode(source, batch), send)
        except StoreError:
            return STORE_AWAY
        except FollowerDropped as dropped:
            tell_dropped(scope, dropped)
            return None
        return follower.ended_because

    async def _send(self, follower: Follows[Any], text: bytes, send: Send) -> None:
        with follower.sending():
            async with self._turn:
                await send(_piece(text))

    def _note_left(self) -> None:
        self._has_left = True
        self._wake()

    def _note_change(self) -> None:
        self._must_ask = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    def _encode(self, source: Source[B], batch: B) -> bytes:
        return b"".join(data_event(json, number if self._has_ids else None) for number, json in source.encode(batch))


def _piece(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}
