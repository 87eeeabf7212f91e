"""A control plane on loopback that is asked about keys: a real HTTP server, as small as can be."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import trio

from derp.transport.http import Request, ServerHttp

Answer = tuple[int, bytes]
YES: Answer = (200, b'{"Allow":true}')
NO: Answer = (200, b'{"Allow":false}')


class ControlPlane:
    """`answer` decides; None hangs up.  `requests` is what was asked.  It waits for `gate` before each answer."""

    def __init__(self, answer: Callable[[Request], Answer | None]) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        self.gate = trio.Event()
        self.gate.set()
        self.asked = trio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/allow"

    async def serve(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):  # a caller may hang up whenever it likes
            await self._serve(stream)
        await stream.aclose()

    async def _serve(self, stream: trio.SocketStream) -> None:
        http = ServerHttp(max_body_bytes=1 << 16)
        while data := await stream.receive_some():
            request = http.receive_data(data)
            while request is not None:
                self.requests.append(request)
                self.asked.set()
                await self.gate.wait()
                answer = self.answer(request)
                if answer is None:
                    return
                await stream.send_all(http.send_response(answer[0], [], answer[1]))
                request = http.next_cycle()


@asynccontextmanager
async def open_control_plane(answer: Callable[[Request], Answer | None]) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane(answer)
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, plane.serve, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        plane.port = listener.socket.getsockname()[1]
        yield plane
        nursery.cancel_scope.cancel()
