"""Tells clients what is the matter with their connection, in sentences that their users see.  Layer L3.

What happens is noted here by session.py (a second connection of a key, a rate limit) and looked for by relay.py every
second (queues, packets to nobody, the mesh); relay/advice.py decides when who is told what.  Genuine clients show
a Health text as a problem of the region; the genuine relay never sends one.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from derp.keys import short_key
from derp.protocol.frames import FrameType, encode_frame
from derp.relay.advice import Advice, Cause
from derp.relay.clients import Client, Member
from derp.relay.router import Router
from derp.transport.alarm import Alarm
from derp.transport.host import Host

# Whoever changes networks has two connections until the old one is found dead: it would be told for nothing.
_DUPLICATE_AFTER_SECONDS: Final = 3.0
# Limits, queues and lost packets are looked at every second: what lasts is told once and stays until it is over.
LOOK_SECONDS: Final = 1.0
_HOLD_SECONDS: Final = 3 * LOOK_SECONDS
# Below this a queue is the ordinary jitter of a long way.  The queue itself drops what waits for --queue-delay beside
# others' packets, so that is where the oldest one stands when a sender does not listen to losses.
SLOW_SECONDS: Final = 0.2
_SLOW_SHARE: Final = 0.8
# Of packets that are not disco, to keys that are nowhere, within a second: a peer that sleeps is sent a handshake every
# five seconds, and that is no news.
NOT_HERE_PACKETS: Final = 10
# So many clients are told of the mesh between two batches of packets: 6 us each.
_AT_ONCE: Final = 1000
_STEP_SECONDS: Final = 0.01
_WELL: Final = "well"
# What a refused client may know.  Why exactly stands in the log: lists and answers of the control plane are not for it.
REFUSED_TEXT: Final = "this relay does not admit this machine's key; ask whoever runs it"
WITHDRAWN_TEXT: Final = "this relay admits this machine's key no longer; ask whoever runs it"


class Advisor:
    """One per relay; it knows its clients by the router."""

    def __init__(self, router: Router, host: Host) -> None:
        self._router = router
        self._host = host
        self._advice = Advice[Client]()
        self._alarm = Alarm(host, self._tell, self._advice)
        self._of_all = ""
        self._untold: list[Client] = []
        self._told_count = Counter({_WELL: 0, **{cause.value: 0 for cause in Cause}})

    def totals(self) -> Mapping[str, int]:
        """Texts by cause, for metrics; `well` are those that took something back."""
        return self._told_count

    # --- what happened

    def note_arrival(self, client: Client) -> None:
        """A client has just been registered."""
        assert client.member is not None
        if client.is_duplicate:
            self._note_duplicates(client.member)
        if self._of_all and _listens(client):
            self._advice.begin(client, Cause.MESH_BROKEN, self._of_all, self._host.now)
            self._alarm.by(self._host.now)

    def note_departure(self, client: Client, member: Member | None) -> None:
        """A client has just been unregistered; `member` was its key's."""
        self._advice.forget(client)
        if member is not None and member.connections:
            self._note_duplicates(member)

    def _note_duplicates(self, member: Member) -> None:
        now = self._host.now
        for client in member.connections:
            if not _listens(client):
                continue
            others = sorted({each.address for each in member.connections if each is not client})
            if not others:
                self._advice.end(client, Cause.DUPLICATE_KEY, now)
                continue
            where = " and ".join(others[:3])
            text = f"this machine's key is in use by another connection too, from {where}: packets go to whichever "
            text += "sent last; if that is another machine, one of the two needs a new key"
            self._advice.begin(client, Cause.DUPLICATE_KEY, text, now, after_seconds=_DUPLICATE_AFTER_SECONDS)
        self._alarm.look()

    def note_throttled(self, client: Client, seconds: float, text: str) -> None:
        """A client is not read for some seconds, because it sent more than it may, or others with it did."""
        self._note(client, Cause.RATE_LIMITED, text, seconds + _HOLD_SECONDS)

    def note_ending(self, client: Client, text: str) -> None:
        """What lets a client in ends soon."""
        if client.member is not None and _listens(client):
            self._advice.begin(client, Cause.ADMISSION_ENDING, text, self._host.now)
            self._alarm.by(self._host.now)

    def note_no_ending(self, client: Client) -> None:
        """It does not, any more."""
        self._advice.end(client, Cause.ADMISSION_ENDING, self._host.now)
        self._alarm.look()

    def note_slow(self, client: Client, seconds: float) -> None:
        """Packets wait for a client."""
        if seconds > min(SLOW_SECONDS, _SLOW_SHARE * self._router.queue_delay_seconds):
            text = (
                "packets for this machine wait in the relay and are dropped there: its connection takes less than comes"
            )
            self._note(client, Cause.QUEUE_DELAY, text, _HOLD_SECONDS)

    def note_lost(self, lost: Iterable[tuple[Client, tuple[bytes, int]]]) -> None:
        """What clients sent to a key that is nowhere since the last look."""
        for client, (key, packets) in lost:
            if packets >= NOT_HERE_PACKETS:
                text = f"packets of this machine to {short_key(key)} are lost: nobody with that key is connected here"
                self._note(client, Cause.NOT_HERE, text, _HOLD_SECONDS)

    def _note(self, client: Client, cause: Cause, text: str, seconds: float) -> None:
        if client.member is not None and _listens(client):
            self._advice.note(client, cause, text, self._host.now, seconds=seconds)
            self._alarm.by(self._host.now)

    # --- what all are told

    def tell_all(self, text: str) -> None:
        """What is the matter with the mesh, for those who are here and those who come; "" when it is well."""
        if text == self._of_all:
            return
        self._of_all = text
        was_busy = bool(self._untold)
        self._untold = list(self._router.clients.values())
        if not was_busy:
            self._tell_some()

    def _tell_some(self) -> None:
        now = self._host.now
        for client in islice(reversed(self._untold), _AT_ONCE):
            if client.member is None or not _listens(client):
                continue
            if self._of_all:
                self._advice.begin(client, Cause.MESH_BROKEN, self._of_all, now)
            else:
                self._advice.end(client, Cause.MESH_BROKEN, now)
        del self._untold[-_AT_ONCE:]
        self._alarm.look()
        if self._untold:
            self._host.call_at(now + _STEP_SECONDS, self._tell_some)

    def _tell(self, now: float) -> None:
        for client, causes, text in self._advice.handle_timeout(now):
            self._told_count.update(cause.value for cause in causes)
            self._told_count[_WELL] += not text
            self._router.send(client, health_frame(text))


def health_frame(text: str) -> bytes:
    """The frame that shows `text` to the user of a client."""
    return encode_frame(FrameType.HEALTH, text.encode())


def _listens(client: Client) -> bool:
    """Relays and our own client have no user."""
    return not (client.is_mesh_peer or client.is_own)
