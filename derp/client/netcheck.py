"""Measuring the regions of a DERP map from here: STUN over UDP, else HTTPS, and whether a portal is in the way.

Layer L3, on the cores netcheck/plan.py (what to ask) and netcheck/report.py (what it means).  One netcheck ends within
5 s.  Verdicts are those of genuine clients, with one exception: when UDP is blocked these also send pings, where the
system lets them, and count a host that answers although it may relay nothing; none is sent here.
Used by cli_netcheck.py and by node libraries that look for a home.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final

import trio

from derp.client.dial import DialOptions, RelayAddress, open_relay_tcp, secure_relay_stream
from derp.client.region import region_addresses, region_label, walk
from derp.client.stun import StunClient, open_stun
from derp.errors import ConnectError, RemoteProtocolError, TransportError
from derp.map import DERPMap, DERPRegion
from derp.netcheck.plan import (
    PORTAL_DELAY_SECONDS,
    STUN_SECONDS,
    PortalCheck,
    Probe,
    ProbeSet,
    https_regions,
    plan_stun,
    portal_checks,
)
from derp.netcheck.report import (
    REPORT_SECONDS,
    History,
    LastHeard,
    Measurements,
    Report,
    is_captive_answer,
)
from derp.text import MAX_SHOWN_CHARS, without_secrets
from derp.transport.http import ClientHttp, exchange
from derp.transport.stream import mapped_errors

# A portal stands on the local network, so whoever takes longer is none.
PORTAL_SECONDS: Final = 3.0
# The answer has no body; a portal's page is of no interest.
_MAX_BODY_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class NetcheckOptions:
    """How to measure.

    enough_regions: once so many have answered, the others get little more time; None waits for all, up to 3 s.
    dial: for HTTPS; its proxy is used as for relays.  portal_port: where relays answer /generate_204; for tests.
    """

    enough_regions: int | None = 3
    dial: DialOptions = field(default_factory=DialOptions)
    portal_port: int = 80


class Netcheck:
    """Netchecks one after the other, with the memory that keeps the home from flapping.

    `open_stun`: what STUN goes by, for nodes that want to know how others see the sockets that they have.
    """

    def __init__(
        self,
        options: NetcheckOptions | None = None,
        *,
        open_stun: Callable[[], AbstractAsyncContextManager[StunClient]] = open_stun,
    ) -> None:
        self._options = options or NetcheckOptions()
        self._open_stun = open_stun
        self._history = History()

    async def report(self, derp_map: DERPMap, *, last_heard: LastHeard = lambda _: None) -> Report:
        """Measure now; never raises for what the network does.  One call at a time.

        last_heard: when the relay connection to a region last gave a frame, in trio.current_time; a home that was heard
        stays home although its STUN answer got lost.
        """
        started, home = trio.current_time(), self._history.home
        is_full = self._history.wants_full(started)
        found = Measurements(incremental=not is_full)
        plan = plan_stun(derp_map, last=None if is_full else self._history.last, home=home)
        with trio.move_on_after(REPORT_SECONDS):
            async with self._open_stun() as stun, trio.open_nursery() as nursery:
                is_reachable = trio.Event()
                if is_full:
                    checks = portal_checks(derp_map, home)
                    nursery.start_soon(self._look_for_portal, checks, found, is_reachable)
                await self._measure_stun(stun, plan, found)
                if found.udp:
                    is_reachable.set()
                else:
                    for region in https_regions(derp_map):
                        nursery.start_soon(self._measure_https, region, found)
        report = found.finish(os_has_ipv6=_has_ipv6())
        return self._history.settle(report, derp_map, started=started, now=trio.current_time(), last_heard=last_heard)

    # --- below: STUN ---

    async def _measure_stun(self, stun: StunClient, plan: Sequence[ProbeSet], found: Measurements) -> None:
        with trio.move_on_after(STUN_SECONDS) as stage:
            async with trio.open_nursery() as nursery:
                for probes in plan:
                    nursery.start_soon(self._run_set, stun, probes, found, stage)

    async def _run_set(self, stun: StunClient, probes: ProbeSet, found: Measurements, stage: trio.CancelScope) -> None:
        """Over with the first answer, or when no request could be sent."""
        async with trio.open_nursery() as nursery:
            for probe in probes:
                nursery.start_soon(self._run_probe, stun, probe, found, stage, nursery.cancel_scope)

    async def _run_probe(
        self, stun: StunClient, probe: Probe, found: Measurements, stage: trio.CancelScope, rest: trio.CancelScope
    ) -> None:
        await trio.sleep(probe.delay_seconds)
        family = probe.target.family
        if not found.would_help(probe.region_id, family):
            rest.cancel()
            return
        found.note_asked()
        try:
            address = await stun.resolve(probe.target)
            answers = await stun.send(family, address)
        except TransportError:
            return  # no such address, no route: then another node, family or HTTPS answers
        found.note_sent(family)
        with answers:
            answer = await answers.receive()
        found.add_stun(probe.region_id, answer.seconds, answer.ip, answer.port)
        seconds = found.seconds_for_the_rest(self._options.enough_regions)
        if seconds is not None:
            stage.deadline = min(stage.deadline, trio.current_time() + seconds)
        rest.cancel()

    # --- below: HTTPS ---

    async def _measure_https(self, region: DERPRegion, found: Measurements) -> None:
        # A node that hangs should still be named in the report, so stop just before that is cut off.
        left = (trio.current_effective_deadline() - trio.current_time()) * 0.95
        try:
            seconds, family = await measure_over_https(region, self._options.dial, left)
        except ConnectError as error:
            found.add_failure(region.region_id, str(error))
        else:
            found.add_https(region.region_id, seconds, family)

    # --- below: captive portals ---

    async def _look_for_portal(
        self, checks: Sequence[PortalCheck], found: Measurements, is_reachable: trio.Event
    ) -> None:
        with trio.move_on_after(PORTAL_DELAY_SECONDS):
            await is_reachable.wait()
            return
        if not checks:
            return
        # As genuine clients say it: no portal showed itself.  Whether a relay did is not told.
        found.captive_portal = False
        with trio.move_on_after(PORTAL_SECONDS):
            async with trio.open_nursery() as nursery:
                for check in checks:
                    nursery.start_soon(self._check_portal, check, found, nursery.cancel_scope)

    async def _check_portal(self, check: PortalCheck, found: Measurements, rest: trio.CancelScope) -> None:
        # Both fresh, so that no cache can answer it.  Genuine clients send the relay's address, and the time.
        challenge = f"derp-{os.urandom(8).hex()}"
        path = f"/generate_204?t={int(time.time())}"
        http = ClientHttp(max_body_bytes=_MAX_BODY_BYTES, head_only=True)
        headers = [
            ("Host", check.host),
            ("Cache-Control", "no-cache, no-store, must-revalidate, no-transform, max-age=0"),
            ("X-Tailscale-Challenge", challenge),
            ("Connection", "close"),
        ]
        try:
            with mapped_errors(f"captive-portal check at {check.host}", connecting=True):
                stream = await trio.open_tcp_stream(check.host, self._options.portal_port)
                async with stream:
                    answer = await exchange(stream, http, http.send_request("GET", path, headers))
        except TransportError:
            return  # nothing there is no portal
        answered = answer.headers.get("x-tailscale-response", "")
        if is_captive_answer(answer.status, answered, challenge):
            found.captive_portal = True
            rest.cancel()


async def measure_over_https(region: DERPRegion, options: DialOptions, seconds: float) -> tuple[float, int]:
    """(seconds, address family) of one latency check at a region, as clients do it where no STUN answers.

    Raises ConnectError within `seconds`: no relay of it answers.
    """

    async def reach(
        address: RelayAddress, seconds: float, tcp_seconds: float | None
    ) -> tuple[RelayAddress, trio.abc.Stream]:
        with mapped_errors(f"{address.label()} within {seconds:.1f} s", connecting=True), trio.fail_after(seconds):
            return address, await open_relay_tcp(address, options, tcp_seconds)

    deadline = trio.current_time() + seconds
    behind = ""
    try:
        addresses = region_addresses(region)
        address, stream = await walk(addresses, reach, timeout_seconds=seconds, what=region_label(region))
        if address is not addresses[-1]:
            behind = "; clients go no further than the first node that accepts a connection"
        with mapped_errors(f"{address.label()} within {seconds:.1f} s", connecting=True), trio.fail_at(deadline):
            return await latency_over_https(stream, address, options)
    except (TransportError, RemoteProtocolError) as error:
        raise ConnectError(f"{error}{behind}") from error


async def latency_over_https(stream: trio.abc.Stream, address: RelayAddress, options: DialOptions) -> tuple[float, int]:
    """(seconds, address family) of one /derp/latency-check over `stream`, a TCP connection, which is closed.

    TLS is not counted.  The caller sets the deadline.  Raises ConnectError: somebody else answers, or TLS fails.
    """
    stream, _ = await secure_relay_stream(stream, address, options)
    try:
        if not address.host:
            raise ConnectError(f"{address.label()}: clients cannot measure a node without HostName over HTTPS: set it")
        if ":" in address.host:
            raise ConnectError(
                f"{address.label()}: clients cannot measure a HostName that is an IPv6 address over HTTPS, since they "
                "write it into a URL without brackets: give the relay a name"
            )
        http = ClientHttp(max_body_bytes=_MAX_BODY_BYTES, head_only=True)
        headers = [("Host", address.host_header()), *options.extra_headers()]
        request = http.send_request("GET", "/derp/latency-check", headers)
        started = trio.current_time()
        with mapped_errors(f"latency check at {address.label()}", connecting=True):
            response = await exchange(stream, http, request)
        seconds = trio.current_time() - started
        if 300 <= response.status <= 399:
            where = without_secrets(response.headers.get("location", ""))[:MAX_SHOWN_CHARS]
            raise ConnectError(
                f"{address.label()} answers /derp/latency-check with a redirect ({response.status}) to {where!r}: no "
                "relay, or a portal that has to be logged in to"
            )
        if response.status > 299:
            raise ConnectError(
                f"{address.label()} answers /derp/latency-check with status {response.status}: no relay, or something "
                "on the way that intercepts TLS"
            )
        return seconds, _family_of(stream)
    finally:
        await trio.aclose_forcefully(stream)


def _family_of(stream: trio.abc.Stream) -> int:
    """Of the connection below TLS; through a proxy it is the proxy's."""
    below: Any = stream
    while hasattr(below, "transport_stream"):
        below = below.transport_stream
    address = ip_address(below.socket.getpeername()[0])
    return 4 if address.version == 4 or getattr(address, "ipv4_mapped", None) is not None else 6


def _has_ipv6() -> bool:
    """Whether the system lets us use IPv6 at all, if only on loopback."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
