"""What a deployment says of connections to an agent: GET /api/v2/workspaceagents/{id}/connection.  Layer L3.

Genuine clients ask before they dial, and obey: without direct connections they name no endpoints of theirs, and with
forced websockets they try no other way into a relay.  The other end is tailnet/api/connection.py.
Caller: tailnet/node/membership.py.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import trio

from derp.client.dial import DialOptions
from derp.errors import ConnectError, UpgradeRefused
from derp.text import error_text, fit_to_show
from derp.transport.stream import mapped_errors
from tailnet.client.rpc import REFUSALS
from tailnet.errors import TransportError
from tailnet.transport.fetch import Asker
from tailnet.types import PeerID

ASK_SECONDS: Final = 10.0
# It has the map too: a hundred regions are some 30 KiB.
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ConnectionInfo:
    """What clients of an agent may do; the defaults are those of a coordinator that says nothing."""

    is_direct: bool = True
    force_websocket: bool = False


async def ask_connection_info(
    url: str, token: str, agent_id: PeerID, options: DialOptions | None = None
) -> ConnectionInfo:
    """Ask the coordinator at `url`.  Raises ConnectError when it does not answer or refuses (UpgradeRefused, with the
    status), TransportTimeout."""
    options = options or DialOptions()
    shown = fit_to_show(url)
    # Each step of a question has its time, and all of it too: a byte now and then would keep us for ever.
    with mapped_errors(f"ask {shown} within {ASK_SECONDS:g} s", connecting=True), trio.fail_after(ASK_SECONDS):
        asking = Asker(
            url,
            token=token,
            verified=True,
            timeout_seconds=ASK_SECONDS,
            context=options.context,
            headers=options.extra_headers(),
        )
        async with asking as asker:
            try:
                answer = await asker.ask(f"/api/v2/workspaceagents/{agent_id}/connection", MAX_ANSWER_BYTES)
            except TransportError as error:
                raise ConnectError(error_text(error)) from None
    if answer.status != HTTPStatus.OK:
        text = f"{shown} answers {answer.status} when asked how agents may be reached"
        meaning = REFUSALS.get(answer.status)
        raise UpgradeRefused(f"{text}: {meaning}" if meaning else text, answer.status)
    return read_connection_info(answer.body, shown)


def read_connection_info(body: bytes, shown: str) -> ConnectionInfo:
    """What the answer of the coordinator that is `shown` says; what it does not say has its default.

    Raises ConnectError for another form: to guess might turn on what somebody turned off.
    """
    try:
        page = json.loads(body)
    except (ValueError, RecursionError):
        raise ConnectError(
            f"{shown} answers no JSON when asked how agents may be reached: is it a coordinator?"
        ) from None
    if not isinstance(page, Mapping):
        raise ConnectError(f"{shown} says how agents may be reached in a form that is not known")
    found = [page.get(name, False) for name in ("disable_direct_connections", "derp_force_websockets")]
    if not all(isinstance(each, bool) for each in found):
        raise ConnectError(f"{shown} says how agents may be reached in a form that is not known")
    return ConnectionInfo(is_direct=not found[0], force_websocket=found[1])
