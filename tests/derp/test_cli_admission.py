"""`derp admission`: what it signs is believed by a relay, and a changed log is found."""

import json
import time
from pathlib import Path

from click.testing import CliRunner

from derp.admission.keyset import open_key_set
from derp.admission.signed import Issuer
from derp.admission.ticket import open_ticket
from derp.cli import cli
from derp.keys import NodePrivate
from derp.server.decisions import DecisionLog
from tests.support.command import run_derp

NOW = 1_800_000_000.0


async def issuer(folder: Path) -> tuple[str, Issuer]:
    """The file that signs, and whose it is."""
    made = await run_derp("admission", "new-issuer")
    path = folder / "issuer.key"
    path.write_text(made.out)
    (folder / "issuers").write_text(made.err)
    return str(path), Issuer.parse(made.err)


async def test_a_key_set_is_signed_and_shown(tmp_path: Path) -> None:
    private, public = await issuer(tmp_path)
    good, bad = NodePrivate.generate().public(), NodePrivate.generate().public()
    keys = tmp_path / "keys"
    keys.write_text(f"{good} acme  # the first\n\n{bad} acme\n")
    signed = await run_derp("admission", "sign", str(keys), "--issuer", private, "--for", "2h", "--revoke", str(bad))
    key_set = open_key_set(signed.out.encode(), [public])
    assert (key_set.keys, key_set.revoked, key_set.tenants) == ({good.raw}, {bad.raw}, {good.raw: "acme"})
    assert key_set.ends_at - key_set.issued_at == 7200
    assert "with 1 keys" in signed.err
    (tmp_path / "set").write_text(signed.out)
    shown = await run_derp("admission", "show", str(tmp_path / "set"), "--admission-keys", str(tmp_path / "issuers"))
    assert (json.loads(shown.out)["keys"], json.loads(shown.out)["tenants"]) == ([str(good)], {str(good): "acme"})
    (tmp_path / "set").write_text(signed.out.replace("a", "b"))
    shown = await run_derp("admission", "show", str(tmp_path / "set"), "--admission-keys", str(tmp_path / "issuers"))
    assert (shown.status, shown.out) == (2, "")
    assert "derp: " in shown.err
    for words, reason in (
        ("a/b", "line 2: wants a name of up to 63"),
        ("acme more", "line 2: wants a key and the name"),
    ):
        keys.write_text(f"# keys\n{good} {words}\n")
        refused = CliRunner().invoke(cli, ["admission", "sign", str(keys), "--issuer", private])
        assert (refused.output, reason in str(refused.exception)) == ("", True), refused.exception


async def test_a_ticket_is_for_its_key(tmp_path: Path) -> None:
    private, public = await issuer(tmp_path)
    key = NodePrivate.generate().public()
    made = await run_derp("admission", "ticket", str(key), "--issuer", private, "--for", "1h")
    assert open_ticket(made.out.strip(), key.raw, [public], time.time()).key == key.raw
    words = ["admission", "ticket", str(key), "--issuer", private, "--tenant"]
    of_acme = CliRunner().invoke(cli, [*words, "acme"]).output
    assert open_ticket(of_acme.strip(), key.raw, [public], time.time()).tenant == "acme"
    too_long = CliRunner().invoke(cli, [*words, "x" * 40])
    assert too_long.output == ""
    assert str(too_long.exception) == "--tenant: has 40 characters, and a ticket has room for 39"
    wrong = await run_derp("admission", "ticket", "nodekey:ab", "--issuer", private)
    assert (wrong.status, wrong.out) == (2, "")
    assert "NODEKEY: a node public key has 64 hex digits" in wrong.err
    wrong = await run_derp("admission", "ticket", str(key), "--issuer", str(tmp_path / "issuers"))
    assert wrong.status == 2
    assert "an issuer's private key is" in wrong.err


async def test_a_log_is_whole_or_broken_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = DecisionLog(path, clock=lambda: NOW)
    log.open()
    for number in range(4):
        log.note("admitted", bytes(32), "192.0.2.1", str(number))
    log.write()
    good = await run_derp("admission", "check-log", str(path))
    assert (good.status, good.out.startswith(f"{path}: OK, 5 lines, the last one is 5 ")) == (0, True)
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "older").write_text("".join(lines[:2]))
    (tmp_path / "newer").write_text("".join(lines[2:]))
    (tmp_path / "gap").write_text("".join(lines[3:]))
    parts = await run_derp("admission", "check-log", str(tmp_path / "older"), str(tmp_path / "newer"))
    assert (parts.status, parts.out.count("OK")) == (0, 2)
    missing = await run_derp("admission", "check-log", "--json", str(tmp_path / "older"), str(tmp_path / "gap"))
    assert missing.status == 1
    assert [json.loads(line)["ok"] for line in missing.out.splitlines()] == [True, False]
    path.write_text(path.read_text().replace('"because":"2"', '"because":"9"'))
    changed = await run_derp("admission", "check-log", str(path))
    assert (changed.status, changed.out) == (1, f"{path}: broken: line 4: was changed: its hash does not fit\n")
    nowhere = await run_derp("admission", "check-log", str(tmp_path / "nowhere"))
    assert nowhere.status == 2
