"""Streams of JSON lines: many changes at once, and exports (layer L3).

A bulk change is answered while it comes: results go out as lines are carried out, so that a caller may follow them.
One that sends everything before it reads anything is served too, as long as its results fit into WAITING_BYTES.
"""

import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import trio
from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tailnet.api.administration.guards import Administrator, NotAdmitted, ServicesOf, Turned
from tailnet.api.administration.problems import problem_of
from tailnet.errors import AdministrationError, Fault
from tailnet.services.administration.bulk import BulkChange, LineResult, told
from tailnet.services.administration.lines import export_lines
from tailnet.services.administration.service import Administration

CONTENT_TYPE: Final = "application/x-ndjson"
# Results that wait for a caller who does not read: some 30,000 lines.  Then no more lines are taken until it does.
WAITING_BYTES: Final = 4 * 1024 * 1024
_PIECE_BYTES: Final = 64 * 1024
_STATUSES: Final = {"created": 201, "changed": 200, "unchanged": 200}

router = APIRouter(tags=["transfer"])


@router.post(
    "/bulk",
    operation_id="bulk",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/BulkResult"}}}}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/BulkLine"}}},
        }
    },
)
async def bulk(request: Request, services: ServicesOf, caller: Administrator) -> Response:
    """Have many things be so: one a line, a result for each in the same order, 200 whatever became of them.

    Lines that are wrong are told so and skipped.  The same lines may be sent again at any time.
    """
    if request.headers.get("idempotency-key") is not None:
        raise AdministrationError(
            Fault.INVALID,
            "lines have ids of their own, so they may be sent twice as they are",
            [("Idempotency-Key", "leave it out")],
        )
    try:
        services.streams.acquire_on_behalf_of_nowait(request)
    except trio.WouldBlock:
        services.refused[Turned.STREAMS] += 1
        raise NotAdmitted("too_many_requests", 1) from None
    return _BulkResponse(BulkChange(services.administration, caller.actor), services.streams, request)


@router.get(
    "/export",
    operation_id="export",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/BulkLine"}}}}},
)
async def export(services: ServicesOf, caller: Administrator) -> Response:
    """All that can be set, of one moment, as lines that `bulk` takes.  Tokens are digests."""
    file = await services.administration.store.run(_spool, services.administration)
    return StreamingResponse(_pieces(file), media_type=CONTENT_TYPE)


def _spool(administration: Administration) -> Any:
    """The export as a file without a name: a slow reader then holds no snapshot of the store."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  # _pieces closes it
    try:
        file.writelines(export_lines(administration.store))
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file


async def _pieces(file: Any) -> AsyncIterator[bytes]:
    with file:
        while piece := await trio.to_thread.run_sync(file.read, _PIECE_BYTES):
            yield piece


class _BulkResponse(Response):
    """Reads lines and sends results at the same time."""

    def __init__(self, change: BulkChange, streams: trio.CapacityLimiter, request: Request) -> None:
        super().__init__(media_type=CONTENT_TYPE)
        self._change = change
        self._streams = streams
        self._request = request
        self._waiting = bytearray()
        self._is_whole = False
        self._moved = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, send, headers)
                try:
                    await self._take()
                except ClientDisconnect:
                    nursery.cancel_scope.cancel()  # what was carried out is told by the account
        finally:
            self._streams.release_on_behalf_of(self._request)

    async def _take(self) -> None:
        async for chunk in self._request.stream():
            self._put(await self._change.feed(chunk))
            while len(self._waiting) >= WAITING_BYTES:
                await self._moved.wait()
        self._put(await self._change.finish())
        self._is_whole = True
        self._wake()

    def _put(self, results: Sequence[LineResult]) -> None:
        for result in results:
            self._waiting += json.dumps(_result(result), separators=(",", ":")).encode() + b"\n"
        self._wake()

    async def _send(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while not (self._is_whole and not self._waiting):
            if not self._waiting:
                await self._moved.wait()
                continue
            piece = bytes(self._waiting[:_PIECE_BYTES])
            del self._waiting[:_PIECE_BYTES]
            self._wake()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()


def _result(result: LineResult) -> dict[str, Any]:
    said = told(result)
    if result.error is not None:
        problem = problem_of(result.error)
        return said | {"status": problem["status"], "problem": problem}
    return said | {"status": _STATUSES[said["result"]]}
