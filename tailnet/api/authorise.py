"""Who asks, and for what: the checks that RPC admission and resources share (layer L3).

Everything is given as plain mappings, so that admission, which has no app around it, uses the same code.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Final
from urllib.parse import urlsplit

from derp.config.relay import Network
from derp.server.address import find_caller, why_closed
from tailnet import refusals
from tailnet.auth.callers import Callers
from tailnet.refusals import Refused
from tailnet.store.rows import AgentIdentity, Right, UserIdentity
from tailnet.tokens import find_token
from tailnet.types import PeerID

_UUID_CHARS: Final = 36
_MAX_SHOWN_CHARS: Final = 80


async def authorise_agent(
    callers: Callers,
    user: UserIdentity,
    text: str,
    *rights: Right,
    missing: Callable[[], Refused] = refusals.resource_not_found,
) -> AgentIdentity:
    """The agent whose id stands in a path, if the user has one of these rights on it.

    Raises Refused: 400 for what is no id; 404 for an agent that does not exist or that is not the user's, which nobody
    can tell apart; `missing` where he may read it and no more.
    """
    try:
        agent_id = PeerID.parse(text.lower())
    except ValueError:
        reason = "invalid UUID format" if len(text) == _UUID_CHARS else f"invalid UUID length: {len(text)}"
        raise refusals.agent_id_malformed(text[:_MAX_SHOWN_CHARS], reason) from None
    reach = await callers.reach(user, agent_id)
    if reach is None or Right.READ not in reach.rights:
        raise refusals.agent_not_found()
    if reach.rights.isdisjoint(rights):
        raise missing()
    return reach.agent


def check_origin(headers: Mapping[str, str], access_url: str, others: Collection[str] = ()) -> None:
    """Only our own pages may open websockets with a browser's cookies, and those of `others`, origins.  Raises Refused.

    Programs send no Origin.  Behind a proxy that rewrites Host, the access URL is what browsers see.
    """
    origin = headers.get("origin", "")
    if not origin or origin in others:
        return
    host = headers.get("host", "")
    try:
        netloc = urlsplit(origin).netloc.lower()
        ours = {host.lower(), urlsplit(access_url).netloc.lower()} - {""}
    except ValueError:
        netloc, ours = "", set()
    if netloc not in ours:
        raise refusals.foreign_origin(origin, host)


async def check_operator(
    callers: Callers,
    address: str,
    headers: Mapping[str, str],
    query: Mapping[str, str],
    allowed: tuple[Network, ...],
    trusted_proxies: tuple[Network, ...],
    own_names: Collection[str] = (),
) -> None:
    """Only operators see metrics and debug pages: by their address, or as administrators.  Raises Refused.

    `address` is who connected.  By which names we may be asked, and what proxies hide: derp/server/address.py.
    """
    caller = find_caller((address, 0), headers, trusted_proxies)
    closed = why_closed(caller, headers.get("host", ""), own_names, allowed)
    if not closed:
        return
    token = find_token(headers, query)
    if token:
        try:
            if (await callers.user(token)).admin:
                return
        except Refused as refused:
            if refused.status != 401:
                raise
    raise refusals.stranger(closed)
