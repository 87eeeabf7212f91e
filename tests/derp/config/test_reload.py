"""What a running server takes on SIGHUP, and what is named because it waits for the next start."""

import json
from pathlib import Path

import pytest

from derp.config.load import load_config
from derp.config.relay import Rate, RelayConfig
from derp.config.reload import compare
from derp.config.settings import SETTINGS
from derp.keys import NodePrivate

ONE, TWO = (NodePrivate.generate().public() for _ in range(2))


def load(flags: dict[str, str], *, is_running: bool = False) -> RelayConfig:
    flags = {"dev": "true", "listen": "127.0.0.1:0"} | flags
    return load_config(flags, {}, open_files=1 << 20, is_running=is_running)


def test_nothing_has_changed() -> None:
    """Not even the key, which --dev makes anew each time it is asked."""
    before = load({"rate_keys": f"{ONE}=1"})
    changes = compare(SETTINGS, before, load({"rate_keys": f"{ONE}=1"}))
    assert (changes.applied, changes.waiting) == ((), ())
    assert changes.config == before


def test_what_can_be_taken_is_and_the_rest_is_named_in_the_table_s_order() -> None:
    before = load({"rate_keys": f"{ONE}=1", "keepalive": "50s"})
    after = load({"rate_keys": f"{TWO}=2", "queue_depth": "7", "hostname": "relay.example"})
    changes = compare(SETTINGS, before, after)
    assert changes.applied == ("--rate-keys",)
    assert changes.waiting == ("--hostname", "--keepalive", "--queue-depth")
    assert changes.config.rate_by_key == {TWO.raw: Rate(2, 0)}
    assert (changes.config.queue_depth, changes.config.keepalive_seconds) == (before.queue_depth, 50.0)
    # What was applied is what is compared with the next time.
    assert compare(SETTINGS, changes.config, after).applied == ()
    assert compare(SETTINGS, changes.config, load({})).applied == ("--rate-keys",)


def test_what_stands_in_a_file_counts_as_the_setting(tmp_path: Path) -> None:
    rate, mesh, key = tmp_path / "rate", tmp_path / "mesh", tmp_path / "key"
    flags = {"rate_config": str(rate), "mesh_psk_file": str(mesh), "key_file": str(key)}
    rate.write_text('{"PerClientRateLimitBytesPerSec": 100}')
    mesh.write_text("ab" * 32)
    before = load(flags)
    assert compare(SETTINGS, before, load(flags)).waiting == ()
    rate.write_text('{"PerClientRateLimitBytesPerSec": 200}')
    mesh.write_text("cd" * 32)
    key.write_text(json.dumps({"PrivateKey": NodePrivate.generate().text()}))
    changes = compare(SETTINGS, before, load(flags))
    assert changes.applied == ("--rate-config",)
    assert changes.waiting == ("--key-file", "--mesh-psk-file")
    assert changes.config.rate.bytes_per_second == 200
    assert changes.config.mesh_key == before.mesh_key


def test_what_is_to_be_known_of_new_settings_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "rate"
    path.write_text('{"PerClientRateLimitBytesPerSec": 100}')
    before = load({"rate_config": str(path)})
    path.write_text('{"PerClientRateLimitBytesPerSecond": 100}')  # which is not its name
    changes = compare(SETTINGS, before, load({"rate_config": str(path)}))
    assert changes.notices == (f"{path}: sets no limit, as it has no PerClientRateLimitBytesPerSec",)
    assert compare(SETTINGS, changes.config, load({"rate_config": str(path)})).notices == ()


@pytest.mark.parametrize(
    ("before", "after", "named"),
    [
        ({}, {"tls_cert": "/c", "tls_key": "/k"}, ("--tls-cert", "--tls-key")),
        ({"tls_cert": "/c", "tls_key": "/k"}, {"tls_cert": "/c", "tls_key": "/l"}, ("--tls-key",)),
        ({"tls_self_signed": "true"}, {}, ("--tls-self-signed",)),
        ({"tls_self_signed": "true"}, {"tls_self_signed": "true", "cert_dir": "/c"}, ("--cert-dir",)),
    ],
)
def test_of_settings_that_make_one_value_those_are_named_that_changed(
    before: dict[str, str], after: dict[str, str], named: tuple[str, ...]
) -> None:
    assert compare(SETTINGS, load(before), load(after)).waiting == named


def test_a_key_that_is_gone_is_not_made_anew_while_we_run(tmp_path: Path) -> None:
    path = tmp_path / "key"
    load({"key_file": str(path)})
    path.unlink()
    with pytest.raises(Exception, match="cannot read the private key: No such file"):
        load({"key_file": str(path)}, is_running=True)
    assert not path.exists()
