"""Admission by the control plane: asks a URL about each new key, in the genuine wire form.  Layer L3.

POST {"NodePublic": "nodekey:...", "Source": "ip"}; 200 with {"Allow": true} lets the client in.  Used by
server/admission.py; while an answer is on its way the client's socket is not read.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import trio

from derp.errors import TransportError
from derp.transport.fetch import HttpCaller

_log = logging.getLogger("derp.server")

TIMEOUT_SECONDS: Final = 5.0
MAX_ANSWER_BYTES: Final = 4096
# A client that reconnects within this time is not asked about again.  A yes is believed for long enough to survive a
# blip of its network, a no only so long that a client in a loop does not become a storm on the control plane.
YES_SECONDS: Final = 30.0
NO_SECONDS: Final = 5.0
# About 200 bytes each.
MAX_CACHED: Final = 65_536
# Questions on their way.  Those beyond wait; the handshake's own deadline bounds for how long.
MAX_ASKING: Final = 64


class UrlVerifier:
    """`run` it as one task; then `cached` and `ask` from the reactor's thread.

    `fail_open`: whether an unreachable service lets everybody in.  A service that answers badly never does.
    """

    def __init__(
        self,
        url: str,
        *,
        fail_open: bool,
        clock: Callable[[], float] = trio.current_time,
        caller: HttpCaller | None = None,
    ) -> None:
        self._url = url
        self._fail_open = fail_open
        self._clock = clock
        self._http = caller or HttpCaller(timeout_seconds=TIMEOUT_SECONDS)
        self._answers: OrderedDict[tuple[bytes, str], tuple[bool, float]] = OrderedDict()
        self._limiter = trio.CapacityLimiter(MAX_ASKING)
        self._nursery: trio.Nursery | None = None
        self.allowed_count = 0
        self.refused_count = 0
        self.unreachable_count = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer questions until cancelled; started when it can be asked."""
        async with self._http, trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    def cached(self, key: bytes, address: str) -> bool | None:
        """The last answer about this key from this address, while it is fresh."""
        found = self._answers.get((key, address))
        if found is None or found[1] <= self._clock():
            return None
        return found[0]

    def ask(self, key: bytes, address: str, answer: Callable[[bool], None]) -> None:
        """Ask; `answer` is called once, later."""
        assert self._nursery is not None, "run() is not running"
        self._nursery.start_soon(self._ask, key, address, answer)

    async def _ask(self, key: bytes, address: str, answer: Callable[[bool], None]) -> None:
        async with self._limiter:
            verdict = await self._verdict(key, address)
        answer(verdict)

    async def _verdict(self, key: bytes, address: str) -> bool:
        body = json.dumps({"NodePublic": f"nodekey:{key.hex()}", "Source": address}, separators=(",", ":")).encode()
        try:
            fetched = await self._http.post(self._url, body, MAX_ANSWER_BYTES)
        except TransportError as error:
            self.unreachable_count += 1
            _log.warning("! admission: %s; %s", error, "let in" if self._fail_open else "refused")
            # Not kept: the next client asks again, so the service is used as soon as it is back.
            return self._fail_open
        allowed = fetched.status == 200 and is_allowed(fetched.body)
        if fetched.status != 200:
            _log.warning("! admission: %s answered %d; refused", self._url, fetched.status)
        self.allowed_count += allowed
        self.refused_count += not allowed
        self._keep(key, address, allowed)
        return allowed

    def _keep(self, key: bytes, address: str, allowed: bool) -> None:
        until = self._clock() + (YES_SECONDS if allowed else NO_SECONDS)
        self._answers[key, address] = (allowed, until)
        self._answers.move_to_end((key, address))
        while len(self._answers) > MAX_CACHED:
            self._answers.popitem(last=False)


def is_allowed(body: bytes) -> bool:
    """Whether an answer says {"Allow": true}; names match as Go's decoder matches them, in any case."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):  # the second: 4 KiB of brackets
        return False
    if not isinstance(value, dict):
        return False
    return any(name.lower() == "allow" and said is True for name, said in value.items())
