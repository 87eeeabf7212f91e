"""`derp ledger`: what is exported adds up, is signed, and is found to be changed when it was."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from derp.admission.receipt import sign_receipt
from derp.admission.signed import IssuerPrivate
from derp.cli import cli
from derp.errors import ConfigError
from derp.keys import NodePrivate
from derp.relay.usage import OTHERS, Usage
from derp.server.ledger import LedgerFile
from tests.derp.test_cli_admission import issuer
from tests.support.command import run_derp
from tests.support.missing import missing

DOCS = Path(__file__).resolve().parents[2] / "docs"
KEY = NodePrivate(b"k" * 32).public()


def written(folder: Path) -> str:
    path = folder / "ledger"
    rows = {
        ("2026-11-29", "acme", KEY.raw): Usage(1, 100, 2, 200, 3, 300),
        ("2026-11-30", "acme", KEY.raw): Usage(1, 10, 2, 20, 3, 30),
        ("2026-11-30", "default", OTHERS): Usage(7, 70),
    }
    LedgerFile(path).add(rows, "")
    return str(path)


@pytest.mark.parametrize("form", ["csv", "json"])
async def test_what_is_exported_is_signed(tmp_path: Path, form: str) -> None:
    private, public = await issuer(tmp_path)
    options = ("--issuer", private, "--format", form, "--from", "2026-11-30")
    exported = await run_derp("ledger", "export", written(tmp_path), *options)
    lines = exported.out.splitlines()
    rows = list(csv.DictReader(lines[:-1])) if form == "csv" else [json.loads(line) for line in lines[:-1]]
    assert [(row["day"], row["tenant"], row["key"], int(row["bytes_in"])) for row in rows] == [
        ("2026-11-30", "acme", str(KEY), 10),
        ("2026-11-30", "default", "", 70),
    ]
    document, keys = tmp_path / "document", ("--admission-keys", str(tmp_path / "issuers"))
    document.write_text(exported.out)
    good = await run_derp("ledger", "verify", str(document), *keys)
    assert (good.status, good.err) == (0, "")
    assert "OK, 2 rows, signed at " in good.out
    assert str(public) in good.out
    told = json.loads((await run_derp("ledger", "verify", "--json", str(document), *keys)).out)
    assert (told["ok"], told["from"], told["to"], told["rows"]) == (True, "2026-11-30", None, 2)
    document.write_text(exported.out.replace("70", "71", 1))
    bad = await run_derp("ledger", "verify", str(document), *keys)
    assert (bad.status, bad.out) == (1, f"{document}: was changed after it was signed\n")
    bad = await run_derp("ledger", "verify", "--json", str(document), *keys)
    assert (bad.status, json.loads(bad.out)["ok"]) == (1, False)


def test_the_check_without_this_program_is_as_the_document_says(tmp_path: Path) -> None:
    if not all(map(shutil.which, ("bash", "openssl", "basenc"))):
        missing("no openssl or coreutils here")
    private, text = IssuerPrivate(b"i" * 32), "day,tenant\n2026-11-30,acme\n"
    for rows in range(1, 5):  # payloads of each length that padding knows
        line = sign_receipt(private, text.encode(), {"rows": 10**rows}).decode()
        (tmp_path / "november.csv").write_text(f"{text}# {line}\n")
        (tmp_path / "billing.pub").write_text(f"{private.public()}\n")
        (commands,) = re.findall(r"With OpenSSL:\n\n((?:    .+\n)+)", (DOCS / "limits.md").read_text())
        done = subprocess.run(["bash", "-c", commands], cwd=tmp_path, capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (0, b"Signature Verified Successfully\nRows are as signed\n"), (
            done.stderr
        )
        (tmp_path / "november.csv").write_text(f"{text.replace('acme', 'mine')}# {line}\n")
        done = subprocess.run(["bash", "-c", commands], cwd=tmp_path, capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (1, b"Signature Verified Successfully\n")


def test_totals_by_tenant_key_and_day(tmp_path: Path) -> None:
    path = written(tmp_path)

    def totals(*words: str) -> list[str]:
        done = CliRunner().invoke(cli, ["ledger", "totals", *words])
        if done.exception is not None:
            raise done.exception
        return done.output.splitlines()

    assert totals(path) == [
        "acme  110 bytes in, 220 out, 330 dropped (2, 4 and 6 packets)",
        "default  70 bytes in, 0 out, 0 dropped (7, 0 and 0 packets)",
        "2 together  180 bytes in, 220 out, 330 dropped (9, 4 and 6 packets)",
    ]
    by_key = totals(path, "--by", "key", "--from", "2026-11-30")
    assert [line.split("  ")[0] for line in by_key] == ["(others)", str(KEY), "2 together"]
    by_day = totals(path, "--by", "day", "--json")
    assert [(row["day"], row["bytes_in"]) for row in map(json.loads, by_day)] == [
        ("2026-11-29", 100),
        ("2026-11-30", 80),
    ]
    with pytest.raises(ConfigError, match="there is no ledger"):
        totals(str(tmp_path / "none"))


async def test_days_and_files_that_are_none(tmp_path: Path) -> None:
    private, _ = await issuer(tmp_path)
    wrong = await run_derp("ledger", "export", written(tmp_path), "--issuer", private, "--to", "30.11.2026")
    assert wrong.status == 2
    assert "wants a day such as 2026-11-30" in wrong.err
    missing = await run_derp("ledger", "export", str(tmp_path / "none"), "--issuer", private)
    assert missing.status == 2
    assert "there is no ledger: name the file of the relay's --ledger" in missing.err
    assert not (tmp_path / "none").exists()
