"""Providers of external auth that the control plane has, fetched by a question of --auth-url (layer L3).

One task per server asks, and asks again when the answer's time is over or the control plane says that something
changed.  While nobody answers, those of the last answer stay: an account that is linked goes on being of use.
Next hop: auth/call_out.py, which signs, bounds and keeps; external_auth.py, which uses them.
"""

import logging

import trio

from tailnet.auth.call_out import RETRY_SECONDS, CallOut
from tailnet.refusals import Refused
from tailnet.services.external_auth import ExternalAuth

_log = logging.getLogger("tailnet.external_auth")


class FetchedProviders:
    """One per server, if the settings ask for it; `run` is one task."""

    def __init__(self, external: ExternalAuth, call_out: CallOut) -> None:
        self._external = external
        self._call_out = call_out

    async def run(self) -> None:
        """Fetch them, until cancelled."""
        known: list[str] = []
        while True:
            count = self._call_out.changes.count
            try:
                found, until = await self._call_out.providers()
            except Refused:
                until = trio.current_time() + RETRY_SECONDS  # and the call-out's log says why
            else:
                self._external.take_fetched(found)
                if (ids := [each.id for each in found]) != known:
                    _log.info("= external auth providers of the control plane: %s", ", ".join(ids) or "none")
                    known = ids
            with trio.move_on_at(until):
                await self._call_out.changes.wait(count)
