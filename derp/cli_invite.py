"""`derp invite`: a private DERP map for machines whose keys nobody knows yet (layer L4).

It talks to the relay by the file of --invitations alone, and tries the relay as clients will.  Next hop:
server/invitations.py, client/snippet.py.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click
import trio

from derp.cli_admission import seconds_of, tenant_of
from derp.cli_output import open_console, print_json
from derp.cli_run import FILE
from derp.config import load_config, parse
from derp.errors import ConfigError
from derp.map import DERPMap, DERPNode, is_address
from derp.server.pages import INVITED_PATH
from derp.text import bracketed, error_text, host_port, printable, utc

if TYPE_CHECKING:
    from derp.config import RelayConfig
    from derp.server.invitations import InvitationFile

_NO_ADDRESS: Final = "none"


def bytes_of(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """10GB, 500MiB, 1000: a number of bytes, for click."""
    if text is None:
        return None
    try:
        return parse.size(text)
    except ValueError as error:
        raise click.BadParameter(error_text(error)) from None


@click.group("invite", invoke_without_command=True)
@click.option("--config", type=FILE, metavar="FILE", help="the relay's settings; DERP_CONFIG names it too")
@click.option(
    "--invitations", type=FILE, metavar="FILE", help="the relay's --invitations, if its settings are not here"
)
@click.option("--url", default="", metavar="URL", help="where clients find the relay; by its settings if left out")
@click.option("--for", "life", default="24h", show_default=True, callback=seconds_of, metavar="DURATION")
@click.option("--bytes", "most", callback=bytes_of, metavar="SIZE", help="what may be relayed, both ways; any number")
@click.option("--machines", default=100, show_default=True, type=click.IntRange(1, 10_000), help="keys that may use it")
@click.option("--tenant", default="", callback=tenant_of, metavar="NAME", help="whose limits they share (--limits)")
@click.option("--note", default="", metavar="TEXT", help="for whom it is; the list shows it")
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
@click.pass_context
def invite(
    context: click.Context,
    config: str | None,
    invitations: str | None,
    url: str,
    life: float,
    most: int | None,
    machines: int,
    tenant: str,
    note: str,
    as_json: bool,
) -> None:
    """Invite machines whose keys nobody knows yet: print the URL of a DERP map that is theirs alone.

    Whoever has the URL may use the relay until the invitation ends, its bytes are used up, or it is revoked.  On a
    terminal the URL is shown as a QR code too.  It is printed once: the relay keeps its digest.
    """
    context.obj = partial(_open, config, invitations)
    if context.invoked_subcommand is not None:
        return
    from derp.server.invitations import UNLIMITED

    file: InvitationFile = context.obj()
    base = url.rstrip("/").removesuffix("/derp") if url else _url_of(_settings(config, invitations))
    derp_map, notes = trio.run(_make_map, base)
    now = time.time()
    made, token = file.add(
        printable(note),
        now,
        now + life,
        UNLIMITED if most is None else most,
        machines,
        json.dumps(derp_map.to_json()),
        tenant,
    )
    address = f"{base}{INVITED_PATH}{token}"
    if as_json:
        print_json({"id": made.id, "url": address, "ends": utc(made.ends_at), "bytes": most, "machines": machines})
        return
    click.echo(address)
    console = open_console(stderr=True)
    for each in notes:
        console.print(f"# {each}", style="yellow")
    console.print(f"# invitation {made.id} ends at {utc(made.ends_at)}; `derp invite revoke {made.id}` ends it now")
    if sys.stdout.isatty():
        import segno

        segno.make(address, micro=False).terminal(compact=True)


@invite.command("list")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_obj
def list_invitations(open_file: Callable[[], "InvitationFile"], as_json: bool) -> None:
    """Invitations, the oldest first: until when, how much of their bytes is used, by how many machines."""
    from derp.server.invitations import UNLIMITED

    now = time.time()
    for one in open_file().load():
        most = None if one.max_bytes == UNLIMITED else one.max_bytes
        state = one.why_not(now) or "good"
        if as_json:
            counts = {"used_bytes": one.used_bytes, "bytes": most, "machines": len(one.keys), "most": one.max_keys}
            who = {"tenant": one.tenant, "note": one.note}
            print_json({"id": one.id, "state": state, "ends": utc(one.ends_at), **counts, **who})
            continue
        of = f" of {most:,}" if most is not None else ""
        used = f"{one.used_bytes:,}{of} bytes, {len(one.keys)} of {one.max_keys} machines"
        whose = f", of {one.tenant}" if one.tenant else ""
        click.echo(f"{one.id}  {state}, ends {utc(one.ends_at)}, {used}{whose}{f', {one.note}' if one.note else ''}")


@invite.command("revoke")
@click.argument("ident", metavar="ID")
@click.pass_obj
def revoke(open_file: Callable[[], "InvitationFile"], ident: str) -> None:
    """End an invitation: its machines are sent away within a second.  Exit status 1: there is none by this ID."""
    if not open_file().revoke(ident, time.time()):
        click.echo(f"derp: no invitation {printable(ident)!r} that could be revoked", err=True)
        sys.exit(1)
    click.echo(f"{ident} is revoked")


def _open(config: str | None, invitations: str | None) -> "InvitationFile":
    from derp.server.invitations import InvitationFile

    path = Path(invitations) if invitations else _settings(config, None).invitations
    if path is None:
        raise ConfigError("the relay takes no invitations: set --invitations in its settings, or name the file here")
    return InvitationFile(path)


def _settings(config: str | None, invitations: str | None) -> "RelayConfig":
    flags = {"invitations": invitations} if invitations else {}
    return load_config(flags, config_file=config, is_running=True)


def _url_of(settings: "RelayConfig") -> str:
    """Where clients find a relay with these settings."""
    name = settings.hostname or (settings.tls.hostname if settings.tls is not None else "")
    if not name:
        raise ConfigError("flags: --url: is not set, and the relay's settings have no --hostname")
    port = settings.listen[0][1]
    scheme, usual = ("https", 443) if settings.tls is not None else ("http", 80)
    return f"{scheme}://{bracketed(name) if port == usual else host_port(name, port)}"


async def _make_map(url: str) -> tuple[DERPMap, tuple[str, ...]]:
    """The map of the relay that runs there, with its addresses, since nobody can look up a name with a token in it."""
    from derp.client.snippet import make_snippet, snippet_base

    made = await make_snippet(snippet_base(f"{url}/derp", pin="", stun_port=0, region_id=900, code="invited", name=""))
    (region,) = made.derp_map.regions.values()
    node = await _with_addresses(region.nodes[0])
    # That a key which nobody knows was turned away is as it should be.
    notes = tuple(note for note in made.notes if "a key that nobody knows" not in note)
    if is_address(node.host_name):
        notes += (
            "stock clients want a certificate for the name that has the token: give the relay a name in --hostname",
        )
    return replace(made.derp_map, regions={region.region_id: replace(region, nodes=(node,))}), notes


async def _with_addresses(node: DERPNode) -> DERPNode:
    if is_address(node.host_name):
        return node
    try:
        found = await trio.socket.getaddrinfo(node.host_name, None, type=trio.socket.SOCK_STREAM)
    except OSError:
        host = urlsplit(f"//{node.host_name}").hostname
        raise ConfigError(f"{host}: has no address, and machines that are invited need one in their map") from None
    addresses = [str(address[4][0]) for address in found]
    return replace(
        node,
        ipv4=next((each for each in addresses if ":" not in each), _NO_ADDRESS),
        ipv6=next((each for each in addresses if ":" in each), _NO_ADDRESS),
    )
