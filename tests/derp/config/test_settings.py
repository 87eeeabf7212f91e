"""The table of names: no two alike, nothing of derper's forgotten, and what it says of defaults is so."""

import re
from dataclasses import fields

from derp.config.relay import RelayConfig
from derp.config.settings import BY_NAME, REFUSED, SETTINGS

# `derper -help` of v1.102.5.
DERPER_FLAGS = """
a accept-connection-burst accept-connection-limit ace acme-eab-key acme-eab-kid acme-email acme-ip-certs
bootstrap-dns-names c certdir certmode derp dev home hostname http-port mesh-psk-file mesh-with rate-config
secrets-cache-dir secrets-path-prefix secrets-url socket stun stun-port tcp-keepalive-time tcp-user-timeout
tcp-write-timeout unpublished-bootstrap-dns-names verify-client-url verify-client-url-fail-open verify-clients version
"""
UNITS = {"s": 1, "m": 60, "h": 3600, "MiB": 1024 * 1024, "": 1}


def test_every_flag_of_derper_is_taken_or_refused_with_a_sentence() -> None:
    derper = set(DERPER_FLAGS.split())
    ours = {flag for setting in SETTINGS for flag in setting.flags if setting.from_derper}
    refused = {entry.flag for entry in REFUSED}
    assert ours & refused == set()
    # --version is an option of the command, not a setting; the last four are long names of derper's short ones.
    assert (ours | refused | {"version"}) - derper == {"listen", "key-file", "cert-mode", "cert-dir"}
    assert derper <= ours | refused | {"version"}


def test_no_name_means_two_things() -> None:
    flags = [flag for setting in SETTINGS for flag in setting.flags]
    assert len(flags) == len(set(flags))
    assert len(BY_NAME) == len(SETTINGS)
    assert all(setting.environment.startswith("DERP_") for setting in SETTINGS)


def test_the_defaults_in_the_help_are_the_defaults() -> None:
    defaults = {field.name: field.default for field in fields(RelayConfig)}
    attribute = {"tcp_keepalive_time": "tcp_keepalive_seconds"}
    checked = 0
    for setting in SETTINGS:
        said = re.search(r"([0-9]+) ?(s|m|h|MiB|) by default", setting.meaning)
        if said is None or setting.name in ("listen", "http_port", "key_file"):
            continue
        name = attribute.get(setting.name, setting.name)
        actual = defaults.get(name, defaults.get(f"{name}_seconds"))
        assert actual == int(said[1]) * UNITS[said[2]], setting.name
        checked += 1
    assert checked >= 12


def test_dangerous_switches_are_off_and_say_so() -> None:
    dangerous = [setting for setting in SETTINGS if "insecure" in setting.name or "fail_open" in setting.name]
    assert [setting.name for setting in dangerous] == ["verify_client_url_fail_open"]
    assert "false by default" in dangerous[0].meaning
    assert {field.name: field.default for field in fields(RelayConfig)}["verify_client_url_fail_open"] is False
