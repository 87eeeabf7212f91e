"""`derp probe`: does every relay of a map do what clients need?  For people and for monitoring (layer L4).

Next hop: client/probe.py, client/probe_metrics.py, client/scrape.py.
"""

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import trio

from derp.cli_output import MAX_NAME, milliseconds, open_console, print_json, print_mistakes
from derp.cli_run import FILE
from derp.errors import ConfigError, TransportError
from derp.text import error_text, host_port, printable

if TYPE_CHECKING:
    from derp.client.probe import ProbeOptions, ProbeResult
    from derp.client.probe_metrics import RunTotals
    from derp.client.scrape import ScrapePort
    from derp.map import DERPMap

_STYLES: Final = {"good": "green", "bad": "red", "skipped": "yellow"}


@dataclass(frozen=True, slots=True)
class _Output:
    """Where results go."""

    as_json: bool
    quiet: bool
    prometheus: str | None
    listen: tuple[str, int] | None

    @property
    def is_stdout_taken(self) -> bool:
        return self.prometheus == "-"


@dataclass(frozen=True, slots=True)
class _Source:
    """What is probed."""

    name: str
    pin: str
    stun_port: int
    region_ids: tuple[int, ...]
    needs_one_region: bool
    """The mesh key is one region's: the others must not be shown it."""

    async def load(self) -> "DERPMap":
        """Raises ConfigError and TransportError."""
        from derp.client.mapsource import load_map

        derp_map = await load_map(self.name, pin=self.pin, stun_port=self.stun_port)
        if self.region_ids:
            missing = [str(region_id) for region_id in self.region_ids if region_id not in derp_map.regions]
            if missing:
                there = ", ".join(map(str, derp_map.region_ids())) or "none"
                raise ConfigError(f"--region {missing[0]}: not in {self.name}, which has {there}")
            regions = {region_id: derp_map.regions[region_id] for region_id in self.region_ids}
            derp_map = replace(derp_map, regions=regions)
        if not any(region.nodes for region in derp_map.regions.values()):
            raise ConfigError(f"{self.name}: names no relay, so there is nothing to probe")
        if self.needs_one_region and len(derp_map.regions) > 1:
            raise ConfigError(
                f"--mesh-psk-file is the key of one region, and {self.name} has {len(derp_map.regions)}: "
                "name the regions whose relays may see it with --region"
            )
        return derp_map


@click.command()
@click.argument("source", type=FILE, metavar="MAP|URL")
@click.option("--once", is_flag=True, help="one run, which is the default")
@click.option("--every", metavar="SECONDS", type=click.FloatRange(1, 86_400), help="run again and again, until SIGTERM")
@click.option("--region", "region_ids", metavar="ID", type=int, multiple=True, help="only this region; may be repeated")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per probe, and one for the run")
@click.option("--quiet", is_flag=True, help="say only what is bad")
@click.option(
    "--prometheus", type=FILE, metavar="FILE", help="write metrics for Prometheus there after each run; - is stdout"
)
@click.option(
    "--listen", metavar="HOST:PORT", help="with --every: serve the last run as /metrics, such as 127.0.0.1:9101"
)
@click.option(
    "--key-file", "key_files", type=FILE, metavar="FILE", multiple=True, help="a key that relays admit; twice for pairs"
)
@click.option(
    "--mesh-psk-file", type=FILE, metavar="FILE", help="the region's mesh key, which relays with admission let in"
)
@click.option("--bandwidth-bytes", default=1_000_000, show_default=True, type=click.IntRange(0, 10**9), help="0: none")
@click.option("--delay-packets", default=20, show_default=True, type=click.IntRange(0, 10_000), help="0: none")
@click.option("--min-valid-days", default=7.0, show_default=True, type=click.FloatRange(0), help="for certificates")
@click.option("--pin", metavar="PIN", default="", help="for a URL: the certificate's sha256-raw:<hex>, as in CertName")
@click.option("--stun-port", default=0, type=click.IntRange(-1, 65_535), help="for a URL: 0 means 3478, -1 no STUN")
def probe(source: str, once: bool, every: float | None, **how: Any) -> None:
    """Try every relay of a map, or the one at a URL: TLS, STUN, packets through each node and each pair of nodes.

    Packets are sent as clients send them: a single one, a train for the delay in queues, a burst for the bandwidth.
    A relay with admission needs --key-file (one key sends to itself, two also go from node to node; keys that nobody
    else uses), or the mesh key of its region.  The mesh key goes only where TLS proves who answers.

    Exit status 0: everything was good, except for what is shown as skipped: that could not be tried from here.  1: it
    was not, or the map's address did not answer.  2: asked wrongly, or the map cannot be read.  With --every, SIGTERM
    ends it with 0.
    """
    if once and every is not None:
        raise ConfigError("--once and --every: give one of them")
    if how["listen"] is not None and every is None:
        raise ConfigError("--listen: needs --every, as there is nothing to fetch after the last run")
    if how["prometheus"] == "-" and how["as_json"]:
        raise ConfigError("--json and --prometheus -: only one of them can have stdout; give --prometheus a file")
    wanted = _Source(
        source,
        how["pin"],
        how["stun_port"],
        how["region_ids"],
        needs_one_region=bool(how["mesh_psk_file"] and not how["region_ids"]),
    )
    output = _Output(how["as_json"], how["quiet"], how["prometheus"], _address(how["listen"]))
    if not trio.run(_probe, wanted, _options(how), every, output):
        sys.exit(1)


def _options(how: dict[str, Any]) -> "ProbeOptions":
    from derp.client.probe import ProbeOptions
    from derp.config import load_mesh_key, load_private_key

    key_files = how["key_files"]
    if len(key_files) > 2:
        raise ConfigError("--key-file: two keys at most, one that sends and one that receives")
    keys = [load_private_key(Path(name)) for name in key_files]
    if len(set(keys)) < len(keys):
        raise ConfigError("--key-file: twice the same key: the relays would take both ends for one client")
    return ProbeOptions(
        keys=keys,
        mesh_key=load_mesh_key(Path(how["mesh_psk_file"])) if how["mesh_psk_file"] else None,
        bandwidth_bytes=how["bandwidth_bytes"],
        delay_packets=how["delay_packets"],
        min_valid_seconds=how["min_valid_days"] * 86_400,
    )


def _address(listen: str | None) -> tuple[str, int] | None:
    from derp.config.parse import address

    if listen is None:
        return None
    try:
        return address(listen)
    except ValueError as error:
        raise ConfigError(f"--listen: {error_text(error)}") from None


async def _probe(source: _Source, options: "ProbeOptions", every: float | None, output: _Output) -> bool:
    from derp.client.probe import is_good, probe_map
    from derp.client.probe_metrics import RunTotals

    if every is None:
        derp_map = await source.load()
        print_mistakes(derp_map)
        started = trio.current_time()
        results = await probe_map(derp_map, options)
        _say(output, results, trio.current_time() - started, None)
        return is_good(results)
    totals = RunTotals()
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with _scrape_port(output) as scrapes, trio.open_nursery() as nursery:
            nursery.start_soon(_probe_for_ever, source, options, every, output, totals, scrapes)
            await anext(signals)
            nursery.cancel_scope.cancel()
    return True


async def _probe_for_ever(
    source: _Source,
    options: "ProbeOptions",
    every: float,
    output: _Output,
    totals: "RunTotals",
    scrapes: "ScrapePort | None",
) -> None:
    from derp.client.probe import probe_map

    derp_map: DERPMap | None = None
    is_late = False
    while True:
        started = trio.current_time()
        try:
            # Read again for each run: a map changes while a monitor runs for months.
            fresh = await source.load()
            if fresh != derp_map:
                print_mistakes(fresh)
            derp_map = fresh
        except (ConfigError, TransportError) as error:
            if derp_map is None:
                raise
            totals.map_failures += 1
            open_console(stderr=True).print(f"keeping the last good map: {error}", style="yellow")
        results = await probe_map(derp_map, options)
        seconds = trio.current_time() - started
        totals.note_run(results, seconds)
        _say(output, results, seconds, totals, scrapes)
        if seconds > every and not is_late:
            is_late = True  # said once: it is the map that is large, or a relay that hangs
            console = open_console(stderr=True)
            console.print(f"a run took {seconds:.0f} s: --every {every:g} is not kept", style="yellow")
        await trio.sleep_until(started + every)


@asynccontextmanager
async def _scrape_port(output: _Output) -> "AsyncIterator[ScrapePort | None]":
    if output.listen is None:
        yield None
        return
    from derp.client.scrape import open_scrape_port

    async with open_scrape_port(*output.listen) as scrapes:
        host, port = scrapes.address
        if output.as_json:
            print_json({"event": "listening", "kind": "metrics", "host": host, "port": port})
        else:
            open_console(stderr=output.is_stdout_taken).print(f"metrics at http://{host_port(host, port)}/metrics")
        if (warning := exposure(host, port)) is not None:
            open_console(stderr=True).print(warning, style="yellow")
        yield scrapes


def exposure(host: str, port: int) -> str | None:
    """What to know about a listening address; None for loopback."""
    if ip_address(host).is_loopback:
        return None
    return f"port {port} is open to everybody who reaches {host}: the names of relays, and how they are"


# --- results ---


def _say(
    output: _Output,
    results: Sequence["ProbeResult"],
    seconds: float,
    totals: "RunTotals | None",
    scrapes: "ScrapePort | None" = None,
) -> None:
    ended = time.time()
    if output.prometheus is not None or scrapes is not None:
        from derp.client.probe_metrics import exposition

        text = exposition(results, ended, totals)
        if scrapes is not None:
            scrapes.show(text)
        if output.prometheus is not None:
            _write_metrics(output.prometheus, text)
    if output.is_stdout_taken:
        return
    shown = [result for result in results if not output.quiet or result.outcome.value == "bad"]
    counts = {name: sum(result.outcome.value == name for result in results) for name in _STYLES}
    if output.as_json:
        for result in shown:
            print_json(_document(result))
        print_json({"event": "run", "at": ended, "seconds": seconds, "probes": len(results), **counts})
    else:
        _print_table(shown)
        if shown or not output.quiet or not counts["good"]:
            _print_sum(len(results), counts, ended if totals is not None else None)


def _write_metrics(place: str, text: bytes) -> None:
    if place == "-":
        click.echo(text, nl=False)
        return
    # Renamed into place: node_exporter must never read half a file.
    fresh = Path(f"{place}.{os.getpid()}.tmp")
    try:
        fresh.write_bytes(text)
        fresh.replace(place)
    except OSError as error:
        raise ConfigError(f"--prometheus {place}: cannot be written: {error_text(error)}") from None


def _print_table(results: Sequence["ProbeResult"]) -> None:
    console = open_console()
    # Made printable before it is aligned.
    rows = [
        (
            result,
            printable(result.region, MAX_NAME),
            printable(result.node if result.to in ("", result.node) else f"{result.node} -> {result.to}", MAX_NAME),
            f"{result.kind.value}{f' v{result.family}' if result.family else ''}",
        )
        for result in results
    ]
    # At least so wide, so that the runs of --every stand below each other.
    region_width = max([10, *(len(region) for _, region, _, _ in rows)])
    way_width = max([14, *(len(way) for _, _, way, _ in rows)])
    for result, region, way, kind in rows:
        outcome = result.outcome.value
        console.print(
            f"{outcome:<7}  {region:<{region_width}} {way:<{way_width}} {kind:<12} "
            f"{result.reason or _measured(result)}",
            style=_STYLES[outcome],
        )


def _print_sum(count: int, counts: dict[str, int], ended: float | None) -> None:
    when = f"{datetime.fromtimestamp(ended).astimezone().isoformat(' ', 'seconds')}  " if ended is not None else ""
    skipped = f", {counts['skipped']} skipped" if counts["skipped"] else ""
    nothing = "; nothing could be tried" if not counts["good"] and not counts["bad"] else ""
    open_console().print(f"{when}{count} probes, {counts['bad'] or 'none'} bad{skipped}{nothing}", style="bold")


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
