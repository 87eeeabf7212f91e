"""Leaving without dropping packets.  Layer L3.

Stock clients do not act on the Restarting frame, but a client that has just heard a frame keeps its home here while we
are away.  When it sees the end of our side, the client dials the next node of the region, or the process that replaces
this one; there we pace the closes, so that the other is not flooded, and never is everybody away at once.  Probes get
no answers first (pages.py, stun.py), so no new clients come.
"""

import logging
import random
from typing import Final

import trio

from derp.log import fields
from derp.server.relay import Relay

_log = logging.getLogger("derp.server")

# Closes come in steps of about this: chance makes each longer or shorter by half, so that nothing keeps time with us.
_STEP_SECONDS: Final = 0.02
# The last part of the deadline is for the kernel to send what it holds.
_CLOSING_SHARE: Final = 0.9
# Each comes to the next relay with a TLS handshake, 0.5 ms of its core, and twice that on a small machine: a quarter of
# its time.  At 1,000 a second 5,000 clients were away for 8 s on two cores that they shared with both relays.
_CLOSES_PER_SECOND: Final = 250.0
# A relay with few clients takes this long all the same: two that talk to each other are away one after the other.
_SPREAD_SECONDS: Final = 1.0
# Where this relay is the only one of its region, a client that we close can go nowhere until the relay is back; a slow
# pace would only make it wait longer.
_CLOSES_PER_SECOND_ALONE: Final = 10_000.0
# Relays of ours dial a successor as soon as they hear of it; genuine ones do not, and keep their packets coming here.
_NEIGHBOURS_SECONDS: Final = 5.0
# Stock clients that act on the frame wait this long; a restart takes a second or two.
_RECONNECT_IN_SECONDS: Final = 2.0
_TRY_FOR_SECONDS: Final = 60.0


async def drain_clients(
    relay: Relay, drain_seconds: float, *, reconnect_in_seconds: float = _RECONNECT_IN_SECONDS
) -> None:
    """Announce the restart, then close clients at an even pace until none is left or the time is up.

    A client that still has packets queued is closed last.  Those left at the end are closed with the reactor.
    """
    relay.announce_restart(reconnect_in_seconds, _TRY_FOR_SECONDS)
    await neighbours_moved(relay)
    total = len(relay.router.clients)
    per_second = _pace(total, drain_seconds, is_alone=not relay.has_neighbours())
    told = fields(event="draining", clients_count=total, per_second=per_second, seconds=drain_seconds)
    text = "= draining %d clients, %.0f a second, within %.0f s"
    _log.info(text, total, per_second, drain_seconds, extra=told)
    with trio.move_on_after(drain_seconds):
        at, due = trio.current_time(), 1.0
        while True:
            before = len(relay.router.clients)
            if not relay.close_clients(int(due)):
                break
            # What could not be closed yet is not made up for in one go; other relays are closed all at once, undue.
            due = min(max(due - (before - len(relay.router.clients)), 0.0), per_second * _STEP_SECONDS + 1.0)
            await trio.sleep(_STEP_SECONDS * (0.5 + random.random()))
            at, due = trio.current_time(), due + per_second * (trio.current_time() - at)
    left = len(relay.router.clients)
    _log.info("= drained; %d clients had to be cut off", left, extra=fields(event="drained", clients_count=left))


async def neighbours_moved(relay: Relay) -> None:
    """Until the other relays, who have been told, are connected with the process that takes our place."""
    with trio.move_on_after(_NEIGHBOURS_SECONDS):
        while relay.neighbours_to_move():  # noqa: ASYNC110  # it takes them a round trip or two
            await trio.sleep(_STEP_SECONDS)


def _pace(total: int, drain_seconds: float, *, is_alone: bool) -> float:
    """How many clients are closed in a second."""
    usual = _CLOSES_PER_SECOND_ALONE if is_alone else min(_CLOSES_PER_SECOND, total / _SPREAD_SECONDS)
    return max(total / max(drain_seconds * _CLOSING_SHARE, _STEP_SECONDS), usual)
