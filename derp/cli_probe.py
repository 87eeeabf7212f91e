"""`derp probe`: does every relay of a map do what clients need?  For people and for monitoring (layer L4).

Next hop: client/probe.py, client/probe_metrics.py.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import trio

from derp.cli_output import milliseconds, open_console, print_json
from derp.errors import ConfigError, TransportError

if TYPE_CHECKING:
    from derp.client.probe import ProbeOptions, ProbeResult
    from derp.map import DERPMap

_STYLES = {"good": "green", "bad": "red", "skipped": "yellow"}


@click.command()
@click.argument("source", metavar="MAP|URL")
@click.option("--once", is_flag=True, help="one run, which is the default")
@click.option("--every", metavar="SECONDS", type=click.FloatRange(1, 86_400), help="run again and again")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per probe")
@click.option("--prometheus", metavar="FILE", help="write metrics for Prometheus there after each run; - is stdout")
@click.option("--key-file", "key_files", metavar="FILE", multiple=True, help="a key that relays admit; twice for pairs")
@click.option("--bandwidth-bytes", default=1_000_000, show_default=True, type=click.IntRange(0, 10**9), help="0: none")
@click.option("--delay-packets", default=20, show_default=True, type=click.IntRange(0, 10_000), help="0: none")
@click.option("--min-valid-days", default=7.0, show_default=True, type=click.FloatRange(0), help="for certificates")
@click.option("--pin", metavar="PIN", default="", help="for a URL: the certificate's sha256-raw:<hex>, as in CertName")
@click.option("--stun-port", default=0, type=click.IntRange(-1, 65_535), help="for a URL: 0 means 3478, -1 no STUN")
def probe(source: str, once: bool, every: float | None, as_json: bool, prometheus: str | None, **how: Any) -> None:
    """Try every relay of a map, or the one at a URL: TLS, STUN, packets through each node and each pair of nodes.

    Packets are sent as clients send them: a single one, a train for the delay in queues, a burst for the bandwidth.
    A relay with admission needs --key-file: one key sends to itself, two also go from node to node.  Exit status 0:
    everything was good (in the last run); what could not be tried from here is shown as skipped.
    """
    from derp.client.probe import ProbeOptions
    from derp.config import load_private_key

    if once and every is not None:
        raise ConfigError("--once and --every: give one of them")
    key_files = how["key_files"]
    if len(key_files) > 2:
        raise ConfigError("--key-file: two keys at most, one that sends and one that receives")
    options = ProbeOptions(
        keys=[load_private_key(Path(name)) for name in key_files],
        bandwidth_bytes=how["bandwidth_bytes"],
        delay_packets=how["delay_packets"],
        min_valid_seconds=how["min_valid_days"] * 86_400,
    )
    if not trio.run(_probe, source, how["pin"], how["stun_port"], options, every, as_json, prometheus):
        sys.exit(1)


async def _probe(
    source: str,
    pin: str,
    stun_port: int,
    options: "ProbeOptions",
    every: float | None,
    as_json: bool,
    prometheus: str | None,
) -> bool:
    from derp.client.mapsource import load_map
    from derp.client.probe import Outcome, probe_map

    derp_map: DERPMap | None = None
    while True:
        started = trio.current_time()
        try:
            # Read again for each run: a map changes while a monitor runs for months.
            derp_map = await load_map(source, pin=pin, stun_port=stun_port)
        except (ConfigError, TransportError) as error:
            if derp_map is None:
                raise
            open_console(stderr=True).print(f"keeping the last good map: {error}", style="yellow")
        results = await probe_map(derp_map, options)
        if prometheus is not None:
            _write_metrics(prometheus, results)
        if prometheus != "-":
            _print(results, as_json)
        if every is None:
            return all(result.outcome is not Outcome.BAD for result in results)
        await trio.sleep_until(started + every)


def _write_metrics(place: str, results: Sequence["ProbeResult"]) -> None:
    from derp.client.probe_metrics import exposition

    text = exposition(results, time.time())
    if place == "-":
        click.echo(text, nl=False)
        return
    # Renamed into place: node_exporter must never read half a file.
    fresh = Path(f"{place}.{os.getpid()}.tmp")
    try:
        fresh.write_bytes(text)
        fresh.replace(place)
    except OSError as error:
        raise ConfigError(f"--prometheus {place}: cannot be written: {error.strerror}") from None


def _print(results: Sequence["ProbeResult"], as_json: bool) -> None:
    console = open_console()
    for result in results:
        if as_json:
            print_json(_document(result))
            continue
        way = result.node if result.to in ("", result.node) else f"{result.node} -> {result.to}"
        kind = f"{result.kind.value}{f' v{result.family}' if result.family else ''}"
        outcome = result.outcome.value
        console.print(
            f"{outcome:<7}  {result.region:<10} {way:<14} {kind:<12} {result.reason or _measured(result)}",
            style=_STYLES[outcome],
        )
    bad = sum(result.outcome.value == "bad" for result in results)
    if not as_json:
        console.print(f"{len(results)} probes, {bad} bad" if bad else f"{len(results)} probes, none bad", style="bold")


def _document(result: "ProbeResult") -> dict[str, Any]:
    document = {
        "event": "probe",
        "kind": result.kind.value,
        "region_id": result.region_id,
        "region": result.region,
        "node": result.node,
        "to": result.to or None,
        "family": result.family or None,
        "outcome": result.outcome.value,
        "reason": result.reason or None,
    }
    return {name: value for name, value in document.items() if value is not None} | dict(result.values)


def _measured(result: "ProbeResult") -> str:
    values = result.values
    parts = []
    if "seconds" in values:
        parts.append(milliseconds(values["seconds"]))
    if "expires_at" in values:
        parts.append(f"certificate ends in {(values['expires_at'] - time.time()) / 86_400:.0f} days")
    if "median_seconds" in values:
        parts.append(f"median {milliseconds(values['median_seconds'])}, worst {milliseconds(values['worst_seconds'])}")
    if "bytes_per_second" in values:
        parts.append(f"{values['bytes_per_second'] * 8 / 1e6:.1f} Mbit/s")
    return ", ".join(parts)
