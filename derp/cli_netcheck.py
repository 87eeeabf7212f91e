"""`derp netcheck`: what a client would find out about a map from this machine (layer L4).

Next hop: client/netcheck.py, client/mapsource.py.
"""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click
import trio

from derp.cli_output import MAX_NAME, milliseconds, open_console, print_json, print_mistakes
from derp.cli_run import FILE
from derp.text import printable

if TYPE_CHECKING:
    from derp.map import DERPMap
    from derp.netcheck.report import Report

# As long as a client waits for TCP, TLS and an answer when it measures over HTTPS.
_RELAY_SECONDS: Final = 5.0


@click.command()
@click.argument("source", type=FILE, metavar="MAP")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per check, times in seconds")
@click.option("--every", metavar="SECONDS", type=click.FloatRange(1, 86_400), help="check again and again")
@click.option("--pin", metavar="PIN", default="", help="for a URL: the certificate's sha256-raw:<hex>, as in CertName")
@click.option("--stun-port", default=0, type=click.IntRange(-1, 65_535), help="for a URL: 0 means 3478, -1 no STUN")
def netcheck(source: str, as_json: bool, every: float | None, pin: str, stun_port: int) -> None:
    """Measure the regions of MAP from here, and say which one clients would choose as home.

    MAP is a file (JSON, with comments if you like, or TOML), - for standard input, the address of a map, or the URL of
    one relay.  STUN is tried first; if no answer comes, HTTPS.  With --every the choice of the home shows its
    stickiness, as in a client that runs for long.  Of a relay's URL the relay itself is asked too: STUN may be another
    program's.  Exit status 0: there is a home, and the relay answers if its URL was given; 1: not so, or the address of
    MAP does not answer; 2: MAP cannot be read, or has no regions.
    """
    if not trio.run(_netcheck, source, as_json, every, pin, stun_port):
        sys.exit(1)


async def _netcheck(source: str, as_json: bool, every: float | None, pin: str, stun_port: int) -> bool:
    from derp.client.mapsource import is_relay_url, load_map, source_name

    derp_map = await load_map(source, pin=pin, stun_port=stun_port)
    return await show_netchecks(derp_map, source_name(source), as_json, every, asks_relay=is_relay_url(source))


async def show_netchecks(
    derp_map: "DERPMap", name: str, as_json: bool, every: float | None, *, asks_relay: bool = False
) -> bool:
    """Measure once and say whether there is a home, or again and again.  `asks_relay`: of a map with one region,
    whether a relay is behind its STUN.  Raises ConfigError: there is nothing to measure."""
    from derp.client.netcheck import Netcheck, NetcheckOptions
    from derp.errors import ConfigError
    from derp.netcheck.report import verdicts

    if not derp_map.regions:
        raise ConfigError(f"{name}: the map has no regions, so there is nothing to measure")
    print_mistakes(derp_map)
    # All regions, however far: whoever runs this wants the table, not only a home.
    checks = Netcheck(NetcheckOptions(enough_regions=None))
    while True:
        started = trio.current_time()
        report = await checks.report(derp_map)
        said = verdicts(report, derp_map)
        missing = await _missing_relay(derp_map, report) if asks_relay else ""
        if missing:
            said.append(missing)
        if as_json:
            print_json({"event": "netcheck", **as_document(report), "verdicts": said})
        else:
            _print_table(report, derp_map, said)
        if every is None:
            return report.preferred in derp_map.regions and not missing
        await trio.sleep_until(started + every)


async def _missing_relay(derp_map: "DERPMap", report: "Report") -> str:
    """That no relay answers behind the STUN that did, as a sentence; empty: one does, or nothing answered at all."""
    from derp.client.dial import DialOptions
    from derp.client.netcheck import measure_over_https
    from derp.errors import ConnectError

    (region,) = derp_map.regions.values()
    if not report.udp or region.region_id not in report.region_seconds:
        return ""  # HTTPS was tried, and the report says what came of it
    try:
        await measure_over_https(region, DialOptions(), _RELAY_SECONDS)
    except ConnectError as error:
        return f"STUN answers, but no relay: {error}; clients would make it their home and reach nobody there"
    return ""


def as_document(report: "Report") -> dict[str, Any]:
    """The report for JSON: its own names, region ids as text."""
    return asdict(report)


def _print_table(report: "Report", derp_map: "DERPMap", said: list[str]) -> None:
    console = open_console()
    stun = "yes" if report.udp else "no" if report.stun_asked else "not asked: the map names no STUN"
    console.print(f"UDP             {stun}")
    console.print(f"IPv4            {_family(report.ipv4, report.global_ipv4, report.ipv4_can_send)}")
    ipv6 = _family(report.ipv6, report.global_ipv6, report.ipv6_can_send)
    console.print(f"IPv6            {ipv6 if report.os_has_ipv6 else 'no, this machine has none'}")
    varies = {None: "unknown", True: "varies with the destination", False: "the same for all"}[report.mapping_varies]
    console.print(f"seen address    {varies}")
    portal = {None: "not checked", True: "YES", False: "none"}[report.captive_portal]
    console.print(f"captive portal  {portal}")
    home = derp_map.regions.get(report.preferred)
    chosen = f"{report.preferred}, which the map does not have" if report.preferred else "none"
    console.print(f"home            {f'{report.preferred} ({home.region_code})' if home else chosen}", style="bold")
    if report.preferred_because:
        console.print(f"because         {report.preferred_because}")
    console.print("")
    console.print(f"  {'region':<7} {'code':<10} {'latency':>10} {'STUN v4':>10} {'STUN v6':>10}  name", style="bold")
    unknown = float("inf")
    for region_id in sorted(derp_map.regions, key=lambda one: (report.region_seconds.get(one, unknown), one)):
        region = derp_map.regions[region_id]
        cells = [
            milliseconds(table.get(region_id))
            for table in (report.region_seconds, report.region_ipv4_seconds, report.region_ipv6_seconds)
        ]
        mark = "*" if region_id == report.preferred else " "
        note = " (never home)" if region.no_measure_no_home else ""
        code = printable(region.region_code, MAX_NAME)
        console.print(
            f"{mark} {region_id:<7} {code:<10.10} {cells[0]:>10} {cells[1]:>10} {cells[2]:>10}  "
            f"{printable(region.region_name)}{note}"
        )
    for sentence in said:
        console.print(f"! {sentence}", style="yellow")


def _family(works: bool, seen_as: str, can_send: bool) -> str:
    if works:
        return f"yes, seen as {seen_as}" if seen_as else "yes"
    return "no answer came back" if can_send else "no"
