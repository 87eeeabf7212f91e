"""`derp ping`: how far away a relay is, and whether a key is there; or the one who answers (layer L4).

Next hop: client/ping.py, client/client.py, client/reconnect.py.
"""

import logging
import signal
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import trio

from derp.cli_output import open_console, print_json
from derp.cli_run import FILE
from derp.config import load_private_key
from derp.errors import ConnectError, TransportTimeout
from derp.keys import NodePrivate, NodePublic

if TYPE_CHECKING:
    from derp.client.client import DerpClient
    from derp.client.dial import DialOptions
    from derp.client.reconnect import ReconnectingClient

PING_INTERVAL_SECONDS: Final = 1.0
# A ping for each second of half a year; who pings for longer learns nothing new from the median of all of them.
_MAX_KEPT: Final = 10_000

Event = dict[str, Any]
Say = Callable[[Event], None]


@click.command()
@click.argument("key", required=False)
@click.option("--via", metavar="URL", required=True, help="the relay: https://relay.example, or http://host:3340")
@click.option("--count", default=4, show_default=True, type=click.IntRange(1), help="how many pings")
@click.option("--timeout", default=2.0, show_default=True, type=click.FloatRange(0.05, 60), help="seconds for each")
@click.option("--answer", is_flag=True, help="be the one who answers, until it is ended: for `derp ping` elsewhere")
@click.option("--key-file", type=FILE, metavar="FILE", help="come as this key, for relays that admit not everybody")
@click.option("--pin", metavar="PIN", default="", help="the certificate's sha256-raw:<hex>, as in a map's CertName")
@click.option("--websocket", is_flag=True, help="go by websocket at once")
@click.option("--quic", is_flag=True, help="go by QUIC, and by nothing else")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def ping(key: str | None, via: str, count: int, timeout: float, answer: bool, as_json: bool, **how: Any) -> None:
    """Ask a relay how far away it is, and whether KEY (nodekey:...) is there.

    A peer that runs `derp ping --answer` sends pings back, and connects again whenever its connection breaks; other
    nodes stay silent, but are known to be there, since the relay would deny an absent one.  At the end stands how many
    pings were sent, came back and were lost, and the shortest, the median and the longest time.  Exit status 0: the
    relay answered, and KEY is there if one was given.
    """
    from derp.client.dial import DialOptions

    destination = NodePublic.parse(key).raw if key is not None else None
    private = load_private_key(Path(how["key_file"])) if how["key_file"] else NodePrivate.generate()
    if how["quic"] and how["websocket"]:
        raise click.UsageError("--quic and --websocket are two ways: leave one of them out")
    options = DialOptions(cert_name=how["pin"], force_websocket=how["websocket"], only_quic=how["quic"])
    say = print_json if as_json else _say
    if answer:
        trio.run(_answer, via, private, options, say)
    elif not trio.run(_ping, destination, via, private, options, count, timeout, say):
        sys.exit(1)


@dataclass(slots=True)
class Tally:
    """Pings of one kind: how many were sent, and what became of them."""

    sent_count: int = 0
    received_count: int = 0
    seconds: list[float] = field(default_factory=list)  # of those that came back, the last _MAX_KEPT

    def note(self, seconds: float | None) -> None:
        """One ping came back after `seconds`, or not at all."""
        self.sent_count += 1
        if seconds is not None:
            self.received_count += 1
            self.seconds.append(seconds)
            del self.seconds[:-_MAX_KEPT]

    def as_event(self, of: str) -> Event:
        """The summary: counts, the share that was lost in percent, and times if there are any."""
        lost = self.sent_count - self.received_count
        event = {"event": "summary", "of": of, "sent": self.sent_count, "received": self.received_count, "lost": lost}
        event["lost_percent"] = round(100 * lost / self.sent_count, 1) if self.sent_count else 0.0
        if not self.seconds:
            return event
        times = {"min": min(self.seconds), "median": statistics.median(self.seconds), "max": max(self.seconds)}
        return event | {f"{name}_seconds": seconds for name, seconds in times.items()}


async def _ping(
    destination: bytes | None,
    via: str,
    private: NodePrivate,
    options: "DialOptions",
    count: int,
    timeout: float,
    say: Say,
) -> bool:
    from derp.client.client import open_derp_client

    relay, peer = Tally(), Tally()
    found: list[bool] = []
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def interrupt() -> None:
                await anext(signals)
                raise KeyboardInterrupt

            nursery.start_soon(interrupt)  # before the relay is dialled: that may take long
            async with open_derp_client(via, private, options=options, app_name="derp ping") as client:
                say(_relay_event(client, private))
                try:
                    await _ping_often(client, destination, count, timeout, say, relay, peer, found)
                finally:
                    # Also when it was interrupted, or the connection broke: what was measured stands.
                    say(relay.as_event("relay"))
                    if destination is not None:
                        say(peer.as_event(str(NodePublic(destination))))
            nursery.cancel_scope.cancel()
    return bool(relay.received_count) and (destination is None or any(found))


async def _ping_often(
    client: "DerpClient",
    destination: bytes | None,
    count: int,
    timeout: float,
    say: Say,
    relay: Tally,
    peer: Tally,
    found: list[bool],
) -> None:
    from derp.client.ping import Presence, ping_peer

    for number in range(1, count + 1):
        # A relay tells of absent keys once a second, so no faster; the first one goes out at once.
        not_before = trio.current_time() + PING_INTERVAL_SECONDS
        event: Event = {"event": "ping", "number": number, "relay_seconds": None}
        with suppress(TransportTimeout):  # the connection stands, and the next one may come back
            event["relay_seconds"] = await client.ping(timeout)
        relay.note(event["relay_seconds"])
        if destination is not None:
            result = await ping_peer(client, destination, timeout)
            peer.note(result.seconds)
            found.append(result.presence is not Presence.ABSENT)
            event |= {"key": str(NodePublic(destination)), "presence": result.presence.value}
            event |= {"seconds": result.seconds} if result.seconds is not None else {}
        say(event)
        if number < count:
            await trio.sleep_until(not_before)


async def _answer(via: str, private: NodePrivate, options: "DialOptions", say: Say) -> None:
    from derp.client.ping import answer_ping
    from derp.client.reconnect import Connected, Disconnected, open_reconnecting_client
    from derp.log import set_up_logging

    # The client's own lines say why there is no connection, and when it tries again; of the first one we say it.
    set_up_logging("json" if say is print_json else "text", "warning")
    logging.getLogger("derp.client").setLevel(logging.ERROR)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with (
            open_reconnecting_client(via, private, options=options, app_name="derp ping") as client,
            trio.open_nursery() as nursery,
        ):

            async def answer() -> None:
                while True:
                    match message := await client.receive():
                        case Connected():
                            say(_connected_event(message, private))
                        case Disconnected():
                            say({"event": "disconnected", "reason": message.reason})
                        case _:
                            await answer_ping(client, message)

            await _come_in(client)
            logging.getLogger("derp.client").setLevel(logging.WARNING)
            nursery.start_soon(answer)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _come_in(client: "ReconnectingClient") -> None:
    """Wait for the first connection; one that does not come about is a mistake in the URL or the key, and no outage."""
    from derp.client.reconnect import Phase

    status = client.status
    while status.phase is not Phase.CONNECTED:
        if status.failures:
            raise ConnectError(status.reason)
        status = await client.wait_status_change(status)


def _relay_event(client: "DerpClient", private: NodePrivate) -> Event:
    event = {
        "event": "relay",
        "url": client.address.label(),
        "relay_key": str(NodePublic(client.server_key)),
        "our_key": str(private.public()),
        "carrier": client.carrier.value,
        "tls": client.tls_version or None,
    }
    return event | ({"health": client.health} if client.health else {})


def _connected_event(connected: Any, private: NodePrivate) -> Event:
    return {
        "event": "relay",
        "url": connected.address.label(),
        "relay_key": str(NodePublic(connected.server_key)),
        "our_key": str(private.public()),
        "carrier": connected.carrier.value,
        "connection": connected.generation,
    }


def _say(event: Event) -> None:
    console = open_console()
    match event["event"]:
        case "relay":
            tls = f", {event['tls']}" if event.get("tls") else ""
            again = f", connection {event['connection']}" if event.get("connection", 1) > 1 else ""
            console.print(f"relay {event['url']} ({event['carrier']}{tls}{again}) has {event['relay_key']}")
            console.print(f"we are {event['our_key']}")
            if "health" in event:
                console.print(f"it says: {event['health']}", style="yellow")
        case "disconnected":
            console.print(f"disconnected: {event['reason']}", style="yellow")
        case "summary":
            console.print(_summary(event), style="bold")
        case _:
            line, style = _ping_line(event)
            console.print(line, style=style)


def _ping_line(event: Event) -> tuple[str, str]:
    """One ping as a line, and its colour."""
    seconds = event["relay_seconds"]
    relay = f"relay {seconds * 1000:.2f} ms" if seconds is not None else "no answer from the relay"
    if "presence" not in event:
        return f"{event['number']}: {relay}", "green" if seconds is not None else "red"
    text, style = {
        "answered": (f"answered in {event.get('seconds', 0.0) * 1000:.2f} ms", "green"),
        "silent": ("is there, and silent", "green"),
        "absent": ("is not on this relay", "red"),
    }[event["presence"]]
    return f"{event['number']}: {NodePublic.parse(event['key']).short()} {text}; {relay}", style


def _summary(event: Event) -> str:
    of = "relay" if event["of"] == "relay" else NodePublic.parse(event["of"]).short()
    counts = f"{of}: {event['sent']} sent, {event['received']} received, {event['lost_percent']:g} % lost"
    if "median_seconds" not in event:
        return counts
    times = "/".join(f"{event[f'{name}_seconds'] * 1000:.2f}" for name in ("min", "median", "max"))
    return f"{counts}; min/median/max {times} ms"
