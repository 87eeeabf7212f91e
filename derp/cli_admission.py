"""`derp admission`: keys of issuers, key sets and tickets that they sign, and the log of decisions (layer L4).

A control plane signs by itself (docs/admission.md); these are for who has none, and for tests.  Next hop: admission/.
"""

import sys
import time
from pathlib import Path

import click

from derp.admission.chain import check
from derp.admission.keyset import MAX_DOCUMENT_BYTES, KeySet, open_key_set, sign_key_set
from derp.admission.signed import IssuerPrivate
from derp.admission.terms import tenant_name
from derp.admission.ticket import MAX_TENANT_CHARS, sign_ticket
from derp.cli_output import print_json
from derp.cli_run import FILE, keep_stdout_from_others
from derp.config import parse
from derp.config.files import load_issuers
from derp.config.sources import read_file
from derp.errors import ConfigError, KeyFormatError, SignedFormatError
from derp.keys import NodePublic
from derp.text import error_text, utc

YEAR_SECONDS = 366 * 86_400.0


def seconds_of(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """A duration such as 24h, for click."""
    try:
        return parse.duration(60, YEAR_SECONDS)(text)
    except ValueError as error:
        raise click.BadParameter(error_text(error)) from None


def tenant_of(context: click.Context, parameter: click.Parameter, text: str) -> str:
    """The name of a tenant, or nothing, for click."""
    try:
        return tenant_name(text) if text else ""
    except ValueError as error:
        raise click.BadParameter(error_text(error)) from None


@click.group("admission")
def admission_commands() -> None:
    """Keys, key sets and tickets for a relay that asks nobody, and its log of decisions."""


@admission_commands.command("new-issuer")
def new_issuer() -> None:
    """Make an issuer's key pair: the private half on standard output, the public one on standard error.

    `derp admission new-issuer > issuer.key` makes the file that signs; the line on standard error is one of a relay's
    --admission-keys.
    """
    import secrets

    private = IssuerPrivate(secrets.token_bytes(32))
    if not keep_stdout_from_others():
        click.echo("derp: others on this machine can read the file with this secret: chmod 600 it", err=True)
    click.echo(private.text())
    click.echo(str(private.public()), err=True)


@admission_commands.command("sign")
@click.argument("keys", type=FILE, metavar="KEYS")
@click.option("--issuer", type=FILE, required=True, metavar="FILE", help="the issuer's private key")
@click.option("--for", "life", default="24h", show_default=True, callback=seconds_of, metavar="DURATION")
@click.option("--revoke", multiple=True, metavar="NODEKEY", help="this key may come in no more; repeat it")
def sign(keys: str, issuer: str, life: float, revoke: tuple[str, ...]) -> None:
    """Sign a key set of the file KEYS, one nodekey:<hex> a line: what a relay's --key-set names.

    The name of a tenant may follow a key: whose limits it shares (--limits).

    Its version is the time in milliseconds, so a later one is believed in place of an earlier one.
    """
    private, now = load_private(issuer), time.time()
    lines = read_file(Path(keys), "keys of nodes").decode("utf-8", "replace").splitlines()
    named = [(f"{keys}: line {number}", line.partition("#")[0].split()) for number, line in enumerate(lines, 1)]
    known = {_node_key(words[0], place): _tenant(words[1:], place) for place, words in named if words}
    revoked = frozenset(_node_key(text, "--revoke") for text in revoke)
    tenants = {key: tenant for key, tenant in known.items() if tenant and key not in revoked}
    key_set = KeySet(int(now * 1000), now, now + life, frozenset(known) - revoked, revoked, tenants=tenants)
    click.echo(sign_key_set(private, key_set).decode())
    click.echo(f"{key_set}, {len(revoked)} revoked", err=True)


@admission_commands.command("show")
@click.argument("document", type=FILE, metavar="KEY-SET")
@click.option("--admission-keys", type=FILE, required=True, metavar="FILE", help="public keys of issuers")
def show(document: str, admission_keys: str) -> None:
    """What is in a key set, if one of the issuers signed it, as JSON."""
    try:
        key_set = open_key_set(
            read_file(Path(document), "key set", MAX_DOCUMENT_BYTES), load_issuers(Path(admission_keys))
        )
    except SignedFormatError as error:
        raise ConfigError(f"{document}: {error}") from None
    print_json(
        {
            "version": key_set.version,
            "issued": utc(key_set.issued_at),
            "ends": utc(key_set.ends_at),
            "issuer": str(key_set.issuer),
            "keys": sorted(str(NodePublic(key)) for key in key_set.keys),
            "revoked": sorted(str(NodePublic(key)) for key in key_set.revoked),
            "tenants": {str(NodePublic(key)): tenant for key, tenant in sorted(key_set.tenants.items())},
        }
    )


@admission_commands.command("ticket")
@click.argument("key", metavar="NODEKEY")
@click.option("--issuer", type=FILE, required=True, metavar="FILE", help="the issuer's private key")
@click.option("--for", "life", default="24h", show_default=True, callback=seconds_of, metavar="DURATION")
@click.option("--tenant", default="", callback=tenant_of, metavar="NAME", help="whose limits it shares (--limits)")
def ticket(key: str, issuer: str, life: float, tenant: str) -> None:
    """Make a ticket for one key: labels that stand before the relay's name as the HostName of a DERP map."""
    if len(tenant) > MAX_TENANT_CHARS:
        raise ConfigError(f"--tenant: has {len(tenant)} characters, and a ticket has room for {MAX_TENANT_CHARS}")
    now = time.time()
    click.echo(sign_ticket(load_private(issuer), _node_key(key, "NODEKEY"), now, now + life, tenant))


@admission_commands.command("check-log")
@click.argument("files", type=FILE, metavar="FILE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="one JSON object a file")
def check_log(files: tuple[str, ...], as_json: bool) -> None:
    """Check logs of decisions, the oldest first: OK, or the line where one is broken.

    Lines cut off at the end leave a whole chain: compare the number and the hash of the last one with what the relay's
    own log said at its end.  Exit status 1: broken.
    """
    before = None
    is_broken = False
    for name in files:
        try:
            with open(name, encoding="utf-8", errors="replace") as file:
                found = check(file)
        except OSError as error:
            raise ConfigError(f"{name}: cannot read the log of decisions: {error_text(error)}") from None
        fault = found.fault
        if not fault and before is not None and found.lines and found.begin != before:
            fault = f"line 1: does not follow the file before it, which ends with {before.number}"
        is_broken |= bool(fault)
        before = found.end
        if as_json:
            last = {"last": found.end.number, "hash": found.end.hash}
            print_json({"file": name, "ok": not fault, "lines": found.lines, "fault": fault, **last})
        elif fault:
            click.echo(f"{name}: broken: {fault}")
        else:
            click.echo(f"{name}: OK, {found.lines} lines, the last one is {found.end.number} {found.end.hash}")
    if is_broken:
        sys.exit(1)


def load_private(path: str) -> IssuerPrivate:
    """The private key of an issuer, off its file.  Raises ConfigError."""
    text = read_file(Path(path), "issuer's key").decode("ascii", "replace")
    try:
        return IssuerPrivate.parse(text)
    except KeyFormatError as error:
        raise ConfigError(f"{path}: {error}") from None


def _node_key(text: str, place: str) -> bytes:
    try:
        return NodePublic.parse(text).raw
    except KeyFormatError as error:
        raise ConfigError(f"{place}: {error}") from None


def _tenant(words: list[str], place: str) -> str:
    """What stands behind a key: nothing, or the name of its tenant."""
    if len(words) > 1:
        raise ConfigError(f"{place}: wants a key and the name of its tenant, got {len(words) + 1} words")
    try:
        return tenant_name(words[0]) if words else ""
    except ValueError as error:
        raise ConfigError(f"{place}: {error_text(error)}") from None
