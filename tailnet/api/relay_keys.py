"""What relays elsewhere ask: /api/v2/relays/issuer, /api/v2/relays/key-set and, from stock derpers, POST
/api/v2/relays/verify (layer L3).

A relay of ours follows the key set with its ETag; `Prefer: wait=SECONDS` (RFC 7240) has the answer wait for a change,
which is how a revocation reaches it at once through any proxy.  A stock derper asks about each client
(--verify-client-url). services/relay_keys.py has the keys.
"""

import re
from typing import Annotated, Final

import trio
from fastapi import APIRouter, Depends
from pydantic import Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from derp.errors import KeyFormatError
from derp.keys import NodePublic
from tailnet import refusals
from tailnet.api.answers import Body
from tailnet.api.bodies import Sent, body_of
from tailnet.api.guards import RelayOnly, ServicesOf

router = APIRouter(prefix="/api/v2/relays", tags=["relays"])

# Reverse proxies cut an answer that takes 60 s, and some one that takes 30.
MAX_WAIT_SECONDS: Final = 25
_WAIT: Final = re.compile(r"\bwait=(\d{1,4})\b")


class AdmissionQuestion(Sent):
    """tailcfg.DERPAdmitClientRequest.  Where the client comes from is of no matter here."""

    node_public: str = Field(alias="NodePublic")
    source: str = Field(alias="Source", default="")


class AdmissionAnswer(Body):
    """tailcfg.DERPAdmitClientResponse."""

    allow: bool = Field(serialization_alias="Allow")


_TEXT: Final[dict[int | str, dict[str, object]]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/issuer", response_class=Response, responses=_TEXT)
async def issuer(services: ServicesOf) -> Response:
    """The public key that signs key sets, as a line for a relay's --admission-keys."""
    return PlainTextResponse(f"{services.relay_keys.issuer}\n")


@router.get(
    "/key-set",
    dependencies=[RelayOnly],
    response_class=Response,
    responses=_TEXT | {304: {"description": "Nothing has changed"}},
)
async def key_set(services: ServicesOf, asked: Request) -> Response:
    """Who may use a relay, signed.  With If-None-Match it waits for a change, as long as `Prefer: wait=` says."""
    keys = services.relay_keys
    wait = _WAIT.search(asked.headers.get("prefer", ""))
    seconds = min(int(wait[1]), MAX_WAIT_SECONDS) if wait else 0
    known = asked.headers.get("if-none-match", "")
    etag, document = await keys.document()
    if known == f'"{etag}"' and seconds:
        with trio.move_on_after(seconds):
            await keys.wait_changed()
        etag, document = await keys.document()
    headers = {"ETag": f'"{etag}"', "Cache-Control": "no-store"}
    if known == f'"{etag}"':
        return Response(status_code=304, headers=headers)
    return Response(document, media_type="text/plain", headers=headers)


@router.post("/verify")
async def verify(
    services: ServicesOf,
    question: Annotated[AdmissionQuestion, Depends(body_of(AdmissionQuestion))],
) -> AdmissionAnswer:
    """Whether a client may use a relay: the question of a stock derper with --verify-client-url."""
    try:
        key = NodePublic.parse(question.node_public).raw
    except KeyFormatError as error:
        raise refusals.admission_key_malformed(str(error)) from None
    return AdmissionAnswer(allow=services.relay_keys.has(key))
