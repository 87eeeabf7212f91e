"""Why a packet from A does, or does not, reach B: what this relay knows, as sentences.  Layer L3.

For the person on call.  It reads the registry and changes nothing; a table of bounded size remembers which keys left or
were refused.  debug.py shows it.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from derp.keys import KEY_BYTES, short_key
from derp.relay.clients import Client, Member
from derp.relay.counters import DropReason
from derp.relay.losses import Loss
from derp.relay.mesh import MeshPeerState
from derp.relay.queue import DISCO_DEPTH, INTERVAL_SECONDS, TARGET_SECONDS
from derp.relay.router import Router
from derp.text import span

# Some 3 MB: the last hour of a relay where three clients a second come and go.
MAX_DEPARTURES: Final = 10_000
# So many hex digits tell one key from all others that a relay will ever see.
MIN_PREFIX_DIGITS: Final = 8
_SHORT_KEY: Final = re.compile(r"\[[A-Za-z0-9+/ ]{5}\]")


@dataclass(frozen=True, slots=True)
class Departure:
    """The last that was seen of a key, at `at`: it was turned away, or it was a client and left."""

    at: float
    was_refused: bool
    why: str


class Departures:
    """Keys that left or were refused, the most recent MAX_DEPARTURES of them."""

    def __init__(self) -> None:
        self._by_key: OrderedDict[bytes, Departure] = OrderedDict()

    def note(self, key: bytes, now: float, why: str, *, was_refused: bool = False) -> None:
        """Remember why `key` is not here, in place of what was known of it."""
        self._by_key.pop(key, None)
        self._by_key[key] = Departure(now, was_refused, why)
        if len(self._by_key) > MAX_DEPARTURES:
            self._by_key.popitem(last=False)

    def get(self, key: bytes) -> Departure | None:
        return self._by_key.get(key)

    def keys(self) -> Iterable[bytes]:
        return self._by_key.keys()


def find_keys(text: str, router: Router, departures: Departures) -> list[bytes]:
    """Keys that `text` means: `nodekey:<64 hex>`, or of a key that is known here its first eight or more digits, or the
    short form of log lines, `[` + five base64 digits + `]`."""
    text = text.strip()
    if _SHORT_KEY.fullmatch(text):
        short = text.replace(" ", "+")  # which is how a query spells a blank
        return sorted(key for key in _known(router, departures) if short_key(key) == short)
    digits = text.removeprefix("nodekey:").lower()
    if len(digits) == 2 * KEY_BYTES:
        try:
            return [bytes.fromhex(digits)]
        except ValueError:
            return []
    if len(digits) < MIN_PREFIX_DIGITS:
        return []
    return sorted(key for key in _known(router, departures) if key.hex().startswith(digits))


def _known(router: Router, departures: Departures) -> set[bytes]:
    return {router.own_key, *router.members, *departures.keys()}


def explain_key(
    key: bytes, router: Router, departures: Departures, mesh: Iterable[MeshPeerState], now: float
) -> list[str]:
    """What is known of one key."""
    return list(_key(key, router, departures, tuple(mesh), now))


def explain_pair(
    source: bytes, target: bytes, router: Router, departures: Departures, mesh: Iterable[MeshPeerState], now: float
) -> list[str]:
    """Why packets from `source` do, or do not, reach `target`; the verdict is the last sentence."""
    states = tuple(mesh)
    lines = [*_key(source, router, departures, states, now), *_key(target, router, departures, states, now)]
    lines.append(f"So: {_verdict(source, target, router, states, now)}")
    return lines


def _key(
    key: bytes, router: Router, departures: Departures, mesh: tuple[MeshPeerState, ...], now: float
) -> Iterator[str]:
    name = short_key(key)
    if key == router.own_key:
        yield f"{name} is this relay itself."
        return
    member = router.members.get(key)
    if member is not None and member.connections:
        yield from _here(name, member, router, now)
    for link in member.forwarders if member is not None else ():
        yield f"{name} was announced by the relay {_relay_name(link, mesh)}."
        if link.queue is not None:
            waiting = _waiting(link.queue.packets, link.queue.oldest_seconds(now))
            yield f"The link to that relay is full: {waiting}, {link.queue.dropped} were dropped."
    if key in router.elsewhere:
        yield f"{name} is connected to another worker of this relay, and packets go there over the local mesh."
    if member is not None:
        return
    yield f"{name} is not here, and no relay of the region has announced it."
    last = departures.get(key)
    if last is not None:
        verb = "was refused" if last.was_refused else "left"
        yield f"It {verb} {_ago(now - last.at)}: {last.why}."
    else:
        yield "It was not here lately: its client has another home, is offline, or never reached this relay."


def _here(name: str, member: Member, router: Router, now: float) -> Iterator[str]:
    active = member.connections[-1]
    yield (
        f"{name} is here since {span(now - active.connected_at)}, from {active.address}:{active.port}"
        f"{', at home' if active.is_preferred else ', its home is elsewhere'}: "
        f"{active.packets_in} packets from it, {active.packets_out} for it."
    )
    if len(member.connections) > 1:
        yield (
            f"It has {len(member.connections)} connections; packets go to the one that spoke last, number "
            f"{active.number}. Two machines with one key look like this."
        )
    if active.queue is not None:
        yield f"It reads too slowly: {_waiting(active.queue.packets, active.queue.oldest_seconds(now))}."
    for reason, loss in active.losses.by_reason.items() if active.losses is not None else ():
        yield (
            f"{loss.packets} packets for it were dropped as {reason.name.lower()}, the last {_ago(now - loss.at)}: "
            f"{_bound(reason, loss, router)}."
        )
    if member.mailbox is not None:
        yield "It has just come from a relay that is leaving: its packets wait for older ones from there."
    elif active.wire is not None and active.wire.paused:
        yield "It sends faster than its rate limit allows, so it is being read more slowly; nothing of that is lost."


def _bound(reason: DropReason, loss: Loss, router: Router) -> str:
    """Which bound of its queue a packet met."""
    longest = _milliseconds(loss.seconds)
    if reason is DropReason.QUEUE_DELAY:
        return (
            f"they had waited for up to {longest}, and beside packets of others one may wait for "
            f"{_milliseconds(router.queue_delay_seconds)}, or for {_milliseconds(TARGET_SECONDS)} once that was so for "
            f"{_milliseconds(INTERVAL_SECONDS)}"
        )
    if reason is DropReason.QUEUE_HEAD:
        return (
            f"they had waited for up to {longest} when the queue was full: {router.queue_depth} packets, "
            f"{router.queue_bytes} bytes, half of them for one of several senders, and {DISCO_DEPTH} packets of path "
            "discovery"
        )
    if reason is DropReason.QUEUE_TAIL:
        return f"each was longer than its queue may be, {router.queue_bytes} bytes"
    return f"the queues of all slow readers together held {router.pool.max_bytes} bytes, and its was the fattest"


def _verdict(source: bytes, target: bytes, router: Router, mesh: tuple[MeshPeerState, ...], now: float) -> str:
    down = [state for state in mesh if not state.is_up and not state.is_ourselves]
    sender, receiver = router.members.get(source), router.members.get(target)
    if sender is None or not (sender.connections or sender.forwarders or source in router.elsewhere):
        return "the first does not send here, so nothing of it passes this relay."
    if receiver is None:
        hint = f" {_names(down)} cannot be asked, and may have it: {down[0].trouble}." if down else ""
        return f"packets for the second are dropped here as unknown_dest.{hint}"
    if not receiver.connections and target in router.elsewhere:
        if sender.connections:
            return "packets go to the worker that has the second; what became of them is known there."
        return "both are connected to other workers of this relay."
    if not receiver.connections:
        if not sender.connections:
            return "both are at other relays: packets between them do not come by here."
        name = _relay_name(receiver.forwarders[0], mesh)
        return f"packets are forwarded to the relay {name}; ask there how it goes on."
    if _was_reached(sender, receiver.connections[-1]):
        return f"packets of the first have reached the second{_but_lost(source, receiver.connections[-1], now)}."
    return "the way is open, and no packet has used it yet."


def _was_reached(sender: Member, receiver: Client) -> bool:
    return sender.sent_to is not None and receiver in sender.sent_to


def _but_lost(source: bytes, receiver: Client, now: float) -> str:
    lost = receiver.losses.of(source) if receiver.losses is not None else {}
    parts = (
        f"{loss.packets} as {reason.name.lower()}, the last {_ago(now - loss.at)}" for reason, loss in lost.items()
    )
    return f", and some were dropped: {'; '.join(parts)}" if lost else ""


def _relay_name(link: object, mesh: tuple[MeshPeerState, ...]) -> str:
    return next((state.name for state in mesh if state.route is link), "that is being disconnected")


def _names(states: list[MeshPeerState]) -> str:
    return ", ".join(state.name for state in states)


def _waiting(packets: int, seconds: float) -> str:
    return f"{packets} packets wait, the oldest for {seconds:.1f} s"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


def _ago(seconds: float) -> str:
    return f"{span(seconds)} ago"
