"""Admission by a local tailscaled: a client comes in if its key is in that machine's netmap.  Layer L3.

Asked over the LocalAPI on its Unix socket, as the genuine relay does: GET /localapi/v0/whois?addr=nodekey:...; 200 is a
yes, 404 a no, and everything else refuses too.  One of the judges of server/verify.py.
"""

import json
from typing import Any, Final

from derp.errors import KeyFormatError, TransportError
from derp.keys import NodePublic
from derp.server.admission import ADMITTED, Finding, Verdict
from derp.transport.fetch import Fetched, HttpCaller

TIMEOUT_SECONDS: Final = 5.0
# A node with many capabilities is some ten KiB; the daemon runs as root, so this only guards against a wrong socket.
MAX_ANSWER_BYTES: Final = 1024 * 1024
# The host is part of the protocol: tailscaled refuses every other one, so that no web page can be led here.  We leave
# out the capability version that genuine callers add: the answers do not depend on it, and we are no version of theirs.
_API: Final = "http://local-tailscaled.sock/localapi/v0"
# States in which tailscaled knows nobody, or nobody new, and what the operator can do about each.
_STUCK: Final = {
    "NoState": "has not started yet",
    "NeedsLogin": "is not logged in, so it knows nobody: run `tailscale up` on this machine",
    "NeedsMachineAuth": "waits for its machine to be approved, so it knows nobody: approve it in the tailnet",
    "Stopped": "is down, so it learns of nobody new: run `tailscale up` on this machine",
}


class TailscaledJudge:
    """One tailscaled, by the path of its socket.  It never lets anybody in while it does not answer, as genuine."""

    fails_open = False

    def __init__(self, socket: str) -> None:
        self.http = HttpCaller(timeout_seconds=TIMEOUT_SECONDS, socket=socket)
        self._socket = socket

    async def judge(self, key: bytes, address: str) -> Verdict:
        try:
            fetched = await self.http.get(f"{_API}/whois?addr=nodekey%3A{key.hex()}", MAX_ANSWER_BYTES)
        except TransportError as error:
            return Verdict(False, f"tailscaled: {error}", faulty=True, answered=False)
        if fetched.status == 404:
            return Verdict(False, f"the tailscaled at {self._socket} does not know it")
        if fetched.status == 200 and isinstance(_json_object(fetched.body).get("Node"), dict):
            return ADMITTED
        return Verdict(False, self._complaint(fetched), faulty=True)

    async def look(self) -> Finding | None:
        """Its state, and whether it knows the node that it is itself: what derper's consistency check asks."""
        try:
            fetched = await self.http.get(f"{_API}/status?peers=false", MAX_ANSWER_BYTES)
        except TransportError as error:
            return Finding(False, f"tailscaled: {error}; until then clients are refused")
        if fetched.status != 200:
            return Finding(False, f"{self._complaint(fetched)}; until then clients are refused")
        status = _json_object(fetched.body)
        name = f"the tailscaled at {self._socket}"
        if said := _STUCK.get(str(status.get("BackendState"))):
            return Finding(False, f"{name} {said}", lasting=True)  # one that is down still knows its last netmap
        own = status.get("Self")
        try:
            key = NodePublic.parse(str(own.get("PublicKey") if isinstance(own, dict) else None))
        except KeyFormatError:
            return Finding(False, f"{name} does not say who it is: is that the socket of a tailscaled?")
        verdict = await self.judge(key.raw, "")
        if not verdict.allowed:
            return Finding(False, f"{verdict.because}, although that is its own key; clients may be refused")
        return Finding(True, f"{name} is asked about each client (version {status.get('Version')!s:.40})")

    def _complaint(self, fetched: Fetched) -> str:
        text = fetched.body[:200].decode("utf-8", "replace").strip()
        name = f"the tailscaled at {self._socket}"
        if "invalid 'addr' parameter" in text:
            return f"{name} is too old to be asked about node keys: update it"
        if fetched.status == 200:
            return f"{name} answered something else than a node: is that the socket of a tailscaled?"
        if fetched.status in (401, 403):
            return f"{name} refuses to tell us ({fetched.status}, {text!r}): run the relay as a user it answers"
        return f"{name} answered {fetched.status}, {text!r}"


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
