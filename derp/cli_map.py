"""`derp map`: mistakes in a DERP map, a map at a glance, weights of its regions, a map for a running relay (layer L4).

Next hop: netcheck/lint.py, client/mapsource.py, client/snippet.py.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import trio

from derp.cli_output import MAX_NAME, open_console, print_json
from derp.cli_run import FILE
from derp.config.limits import weight
from derp.errors import ConfigError
from derp.text import error_text, printable

if TYPE_CHECKING:
    from derp.map import DERPMap, DERPNode


# Of a sentence about a region: why each of its relays does not say more may be in it.
MAX_LINE: Final = 1000


@click.group("map")
def map_commands() -> None:
    """Check, show, steer and make DERP maps.

    A map is a file (JSON, with comments and trailing commas if you like, or TOML), - for standard input, or an address.
    """


@map_commands.command("lint")
@click.argument("source", type=FILE, metavar="MAP")
@click.option("--overlay", is_flag=True, help="it will be laid over another map: null drops a region of that one")
@click.option("--strict", is_flag=True, help="warnings fail too")
@click.option("--json", "as_json", is_flag=True, help="one JSON object per finding")
def lint_map(source: str, overlay: bool, strict: bool, as_json: bool) -> None:
    """Name every mistake with its place.

    An error is what clients refuse, or a relay or region that would be silently dead.  A warning works, though probably
    not as meant.  Exit status 0: no errors, with --strict no warnings either; 1: there are, or the address of MAP does
    not answer; 2: MAP cannot be read.
    """
    from derp.client.mapsource import read_map_source
    from derp.netcheck.lint import errors, lint_text

    findings = lint_text(trio.run(read_map_source, source), overlay=overlay)
    console = open_console()
    for finding in findings:
        severity = finding.severity.value
        if as_json:
            print_json({"severity": severity, "place": finding.place, "reason": finding.reason})
        else:
            console.print(f"{severity}: {finding}", style="red" if severity == "error" else "yellow")
    if not findings and not as_json:
        console.print("no mistakes", style="green")
    if findings if strict else errors(findings):
        sys.exit(1)


@map_commands.command("show")
@click.argument("source", type=FILE, metavar="MAP")
@click.option("--json", "as_json", is_flag=True, help="the map as plain JSON, as clients are given it")
def show_map(source: str, as_json: bool) -> None:
    """What clients read in a map: regions, relays, ports, trust.  Exit status 2: it is no map that clients can read."""
    from derp.client.mapsource import load_map

    derp_map = trio.run(load_map, source)
    if as_json:
        click.echo(json.dumps(derp_map.to_json(), indent=2))
    else:
        _print_map(derp_map)


@map_commands.command("steer")
@click.argument("source", type=FILE, metavar="MAP")
@click.option(
    "--weight", "weights", multiple=True, metavar="REGION=N", help="look N times as near; 1 as it is; repeat it"
)
@click.option("--prefer", multiple=True, type=int, metavar="REGION", help="the same as --weight REGION=2")
@click.option("--drain", multiple=True, type=int, metavar="REGION", help="nobody shall have it as home any more")
@click.option(
    "--load",
    "loads",
    multiple=True,
    type=int,
    metavar="REGION",
    help="ask its relays, and let it look farther while it is full; repeat it",
)
@click.option("--state", type=FILE, metavar="FILE", help="for --load: where is kept what was found until the next run")
def steer_map(
    source: str,
    weights: tuple[str, ...],
    prefer: tuple[int, ...],
    drain: tuple[int, ...],
    loads: tuple[int, ...],
    state: str | None,
) -> None:
    """Give regions of a map weights, by which stock clients choose their home: the map on standard output.

    A client leaves its home only for a region that then looks 10 ms and a third nearer, once, at its next report.
    Relays of one region cannot be weighed: clients take the first that answers.

    With --load relays are asked for /debug/load, so their --debug-allow has to name this machine.  Run it every minute
    or so: a region at its limit rises by a fifth each three minutes, and after that nothing changes for an hour.  What
    it knows goes to standard error.
    """
    from derp.client.mapsource import load_map
    from derp.netcheck.steering import PREFER_WEIGHT, steered

    if bool(loads) != bool(state):
        raise ConfigError("--load and --state go together: what was found is needed at the next run")
    wanted = dict.fromkeys(prefer, PREFER_WEIGHT) | dict(map(_weight, weights))
    derp_map = trio.run(load_map, source)
    if unknown := sorted({*wanted, *drain, *loads} - derp_map.regions.keys()):
        raise ConfigError(f"{printable(source)}: has no region {unknown[0]}")
    derp_map = steered(derp_map, weights=wanted, drain=drain)
    if state:
        derp_map = _steer_by_load(derp_map, loads, Path(state))
    click.echo(json.dumps(derp_map.to_json(), indent=2))


def _steer_by_load(derp_map: "DERPMap", loads: tuple[int, ...], state: Path) -> "DERPMap":
    """One round: what is known, what relays say now, what follows.  Raises ConfigError: the file of the state."""
    from derp.client.dial import DialOptions
    from derp.client.load import note_loads
    from derp.config.files import write_whole
    from derp.netcheck.load import LoadScores
    from derp.netcheck.steering import pushed_away

    # Of a clock that goes on between two runs.
    now = time.time()
    try:
        scores = LoadScores.restore(json.loads(state.read_bytes()), now) if state.exists() else LoadScores(now)
    except (OSError, ValueError, RecursionError) as error:
        why = error_text(error)
        raise ConfigError(f"{state}: {why}; remove it to begin anew, from the scores of the map") from None
    scores.follow(derp_map, loads)
    regions = [derp_map.regions[each] for each in dict.fromkeys(loads)]
    trio.run(note_loads, scores, regions, DialOptions(), time.time)
    scores.handle_timeout(time.time())
    try:
        write_whole(state, json.dumps(scores.save(), indent=1).encode())
    except OSError as error:
        raise ConfigError(f"{state}: cannot be written: {error_text(error)}") from None
    console = open_console(stderr=True)
    for line in scores.explain(time.time()):
        console.print(f"# {printable(line, MAX_LINE)}")
    return pushed_away(derp_map, scores.factors)


def _weight(text: str) -> tuple[int, float]:
    region, _, number = text.partition("=")
    try:
        return int(region), weight(number)
    except ValueError:
        raise click.BadParameter(
            f"wants REGION=N with N from 0.001 to 1000, got {printable(text, 40)!r}", param_hint="--weight"
        ) from None


@map_commands.command("snippet")
@click.argument("url")
@click.option("--region-id", default=900, show_default=True, type=click.IntRange(1, (1 << 31) - 1))
@click.option("--code", default="custom", show_default=True, help="short name of the region, such as fra")
@click.option("--name", default="", help="name of the region for people; default: the host")
@click.option("--stun-port", default=0, type=click.IntRange(-1, 65_535), help="0 means 3478, -1 no STUN")
@click.option("--pin", metavar="PIN", default="", help="the certificate's sha256-raw:<hex>, as the relay printed it")
@click.option("--key-file", type=FILE, metavar="FILE", help="come as this key, for relays that admit not everybody")
def map_snippet(url: str, region_id: int, code: str, name: str, stun_port: int, pin: str, key_file: str | None) -> None:
    """Make a map for the relay that runs at URL: the map on standard output, what to know on standard error.

    The relay is tried as clients would: a certificate that this machine does not trust is pinned, STUN is switched off
    if it does not answer.  Exit status 1: no relay answers there, so there is no map.
    """
    from derp.client.snippet import make_snippet, snippet_base
    from derp.config import load_private_key

    private = load_private_key(Path(key_file)) if key_file else None
    base = snippet_base(url, pin=pin, stun_port=stun_port, region_id=region_id, code=code, name=name)
    snippet = trio.run(make_snippet, base, private)
    click.echo(json.dumps(snippet.derp_map.to_json(), indent=2))
    console = open_console(stderr=True)
    for note in snippet.notes:
        console.print(f"# {note}", style="yellow")


def _print_map(derp_map: "DERPMap") -> None:
    console = open_console()
    if not derp_map.regions:
        console.print("no regions")
    scores = derp_map.home_params.region_score if derp_map.home_params is not None else {}
    for region_id in derp_map.region_ids():
        region = derp_map.regions[region_id]
        flags = [
            "never home" if region.no_measure_no_home else "",
            "avoid" if region.avoid else "",
            f"score {scores[region_id]:g}" if region_id in scores else "",
        ]
        said = "".join(f", {flag}" for flag in flags if flag)
        code, name = printable(region.region_code, MAX_NAME), printable(region.region_name)
        console.print(f"region {region_id} {code} ({name}){said}", style="bold")
        for node in region.nodes:
            console.print(f"  {printable(node.name, MAX_NAME):<10} {_node_line(node)}")
    if derp_map.omit_default_regions:
        console.print("without the regions that clients know by themselves")


def _node_line(node: "DERPNode") -> str:
    stun = "no STUN" if node.stun_port < 0 else f"STUN {node.stun_port or 3478}"
    derp = "STUN only" if node.stun_only else f"{'http' if node.force_http else 'https'} {node.derp_port or 443}"
    quic = f"QUIC {node.quic_port}" if node.quic_port else ""
    addresses = " ".join(f"{family}={text}" for family, text in (("IPv4", node.ipv4), ("IPv6", node.ipv6)) if text)
    if node.insecure_for_tests:
        trust = "INSECURE: TLS is not verified"
    elif node.cert_name.startswith("sha256-raw:"):
        trust = f"pin {node.cert_name.removeprefix('sha256-raw:')[:12]}..."
    else:
        trust = f"certificate for {node.cert_name}" if node.cert_name else ""
    parts = (node.host_name, derp, quic, stun, addresses or "addresses by DNS", trust)
    return ", ".join(part for part in parts if part)
