"""Leaving without dropping packets.  Layer L3.

Stock clients do not act on the Restarting frame, but a client that has just heard a frame keeps its home here while we
are away.  When we close its connection, the client dials the next node of the region; there we pace the closes, so
that the next node is not flooded.  Probes get no answers first (pages.py, stun.py), so no new clients come.
"""

import logging
from typing import Final

import trio

from derp.log import fields
from derp.server.relay import Relay

_log = logging.getLogger("derp.server")

_STEP_SECONDS: Final = 0.1
# At the end all clients were told and only have to hang up.  The next process waits for that, so we look often.
_LAST_STEP_SECONDS: Final = 0.01
# The last part of the deadline is for the kernel to send what it holds.
_CLOSING_SHARE: Final = 0.9
# A relay with few clients need not take its whole deadline: no more than these per second come back at once.
_CLOSES_PER_SECOND: Final = 1000.0
# Where this relay is the only one of its region, a client that we close can go nowhere until the relay is back; a slow
# pace would only make it wait longer.
_CLOSES_PER_SECOND_ALONE: Final = 10_000.0
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
    total = len(relay.router.clients)
    closing_seconds = max(drain_seconds * _CLOSING_SHARE, _STEP_SECONDS)
    usual = _CLOSES_PER_SECOND if relay.has_neighbours() else _CLOSES_PER_SECOND_ALONE
    per_step = max(total / closing_seconds, usual) * _STEP_SECONDS
    told = fields(event="draining", clients_count=total, per_second=per_step / _STEP_SECONDS, seconds=drain_seconds)
    text = "= draining %d clients, %.0f a second, within %.0f s"
    _log.info(text, total, per_step / _STEP_SECONDS, drain_seconds, extra=told)
    with trio.move_on_after(drain_seconds):
        while relay.close_clients(int(per_step) + 1):  # noqa: ASYNC110  # the pause is the pace
            await trio.sleep(_STEP_SECONDS if relay.router.clients else _LAST_STEP_SECONDS)
    left = len(relay.router.clients)
    _log.info("= drained; %d clients had to be cut off", left, extra=fields(event="drained", clients_count=left))
