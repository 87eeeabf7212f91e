"""`derp ledger`: what each key and tenant carried, added up, and as signed text that others can check (layer L4).

Next hop: server/ledger.py, admission/receipt.py.
"""

import csv
import functools
import io
import json
import sys
import time
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import click

from derp.admission.receipt import check_receipt, sign_receipt
from derp.cli_admission import load_private
from derp.cli_output import print_json
from derp.cli_run import FILE
from derp.config.files import load_issuers
from derp.config.sources import read_file
from derp.errors import ConfigError, SignedFormatError
from derp.keys import NodePublic
from derp.relay.usage import Usage
from derp.text import printable, utc

if TYPE_CHECKING:
    from derp.server.ledger import Row

# 100,000 keys on each of 93 days are more than anybody sends away in one text; a tenth of that is 130 MB.
_MAX_BYTES = 256 * 1024 * 1024
_COLUMNS = ("day", "tenant", "key", *Usage._fields)


def _day(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """2026-11-30, for click."""
    try:
        return date.fromisoformat(text).isoformat() if text is not None else None
    except ValueError:
        raise click.BadParameter(f"wants a day such as 2026-11-30, got {printable(text or '', 40)!r}") from None


@click.group("ledger")
def ledger_commands() -> None:
    """What each key and tenant carried on each day, by the file of a relay's --ledger."""


@ledger_commands.command("totals")
@click.argument("ledger", type=FILE, metavar="LEDGER")
@click.option("--from", "first", callback=_day, metavar="DAY", help="the first day, such as 2026-11-01; all")
@click.option("--to", "last", callback=_day, metavar="DAY", help="the last day; until now")
@click.option("--by", type=click.Choice(["tenant", "key", "day"]), default="tenant", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
def totals(ledger: str, first: str | None, last: str | None, by: str, as_json: bool) -> None:
    """Add up the file LEDGER: how much each tenant, key or day carried, the most first, and all together."""
    sums: dict[str, Usage] = {}
    for row in _rows(ledger, first, last):
        name = str(_fields(row)[_COLUMNS.index(by)])
        sums[name] = sums.get(name, Usage()).plus(row[3])
    for name, usage in sorted(sums.items(), key=lambda each: -(each[1].bytes_in + each[1].bytes_out)):
        if as_json:
            print_json({by: name, **usage._asdict()})
        else:
            click.echo(f"{name or '(others)'}  {_text(usage)}")
    if not as_json:
        click.echo(f"{len(sums)} together  {_text(functools.reduce(Usage.plus, sums.values(), Usage()))}")


def _text(usage: Usage) -> str:
    return (
        f"{usage.bytes_in:,} bytes in, {usage.bytes_out:,} out, {usage.bytes_dropped:,} dropped "
        f"({usage.packets_in:,}, {usage.packets_out:,} and {usage.packets_dropped:,} packets)"
    )


@ledger_commands.command("export")
@click.argument("ledger", type=FILE, metavar="LEDGER")
@click.option("--issuer", type=FILE, required=True, metavar="FILE", help="the private key that signs")
@click.option("--from", "first", callback=_day, metavar="DAY", help="the first day, such as 2026-11-01; all")
@click.option("--to", "last", callback=_day, metavar="DAY", help="the last day; until now")
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
def export(ledger: str, issuer: str, first: str | None, last: str | None, form: str) -> None:
    """Print the file LEDGER, one row for each day of UTC, tenant and key, with a signature in the last line.

    Days that are over do not change any more.  An empty key stands for those for whom there was no room.
    """
    private = load_private(issuer)
    rows = list(_rows(ledger, first, last))
    text = (_csv if form == "csv" else _json)(rows)
    about = {"from": first, "to": last, "rows": len(rows), "at": utc(time.time())}
    line = sign_receipt(private, text.encode(), about).decode()
    click.echo(text + (f"# {line}" if form == "csv" else json.dumps({"signature": line})))


@ledger_commands.command("verify")
@click.argument("document", type=FILE, metavar="FILE")
@click.option("--admission-keys", type=FILE, required=True, metavar="FILE", help="public keys of those who may sign")
@click.option("--json", "as_json", is_flag=True, help="one JSON object")
def verify(document: str, admission_keys: str, as_json: bool) -> None:
    """Check what `derp ledger export` gave: OK and who signed it, or what is wrong.  Exit status 1: it is not good."""
    try:
        signer, about = check_receipt(
            read_file(Path(document), "exported ledger", _MAX_BYTES), load_issuers(Path(admission_keys))
        )
    except SignedFormatError as error:
        if as_json:
            print_json({"ok": False, "fault": str(error)})
        else:
            click.echo(f"{document}: {error}")
        sys.exit(1)
    if as_json:
        print_json({"ok": True, "issuer": str(signer), **about})
    else:
        click.echo(f"{document}: OK, {about['rows']} rows, signed at {about['at']} by {signer}")


def _rows(ledger: str, first: str | None, last: str | None) -> "Iterable[Row]":
    from derp.server.ledger import LedgerFile

    if not Path(ledger).is_file():  # it would be made
        raise ConfigError(f"{ledger}: there is no ledger: name the file of the relay's --ledger")
    return LedgerFile(Path(ledger)).read(first or "", last or "9999")


def _fields(row: "Row") -> tuple[str | int, ...]:
    day, tenant, key, usage = row
    return day, tenant, str(NodePublic(key)) if key else "", *usage


def _csv(rows: Iterable["Row"]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(map(_fields, rows))
    return text.getvalue()


def _json(rows: Iterable["Row"]) -> str:
    return "".join(f"{json.dumps(dict(zip(_COLUMNS, _fields(row), strict=True)))}\n" for row in rows)
