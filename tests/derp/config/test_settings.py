"""The table of names: no two alike, nothing of derper's forgotten, and what it says of defaults is so."""

import re
from dataclasses import fields

from derp.config.relay import RelayConfig
from derp.config.settings import REFUSED, SETTINGS

# `derper -help` of v1.102.5.
DERPER_FLAGS = """
a accept-connection-burst accept-connection-limit ace acme-eab-key acme-eab-kid acme-email acme-ip-certs
bootstrap-dns-names c certdir certmode derp dev home hostname http-port mesh-psk-file mesh-with rate-config
secrets-cache-dir secrets-path-prefix secrets-url socket stun stun-port tcp-keepalive-time tcp-user-timeout
tcp-write-timeout unpublished-bootstrap-dns-names verify-client-url verify-client-url-fail-open verify-clients version
"""


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
    assert all(setting.environment.startswith("DERP_") for setting in SETTINGS)


def test_defaults_stand_once_and_help_takes_them_from_there() -> None:
    by_hand = [
        row.name for row in SETTINGS if re.search(r"[0-9]+\S* by default|(true|false),? by default", row.meaning)
    ]
    # These have one default or another, by what stands beside them.
    assert by_hand == ["http_port"]
    helps = {row.name: row.help for row in SETTINGS}
    assert "{" not in "".join(helps.values()).replace('{"PrivateKey": ...}', "")
    assert helps["listen"].startswith("where to serve, :443 by default")
    assert helps["tcp_keepalive_time"].endswith(", 10m by default")
    assert helps["queue_bytes"].endswith(", 2 MiB by default")
    assert helps["accept_connection_limit"] == "new connections per second, 5000 by default; inf: no limit"


def test_every_attribute_is_a_setting() -> None:
    attributes = {row.path for row in SETTINGS}
    declared = {field.name for field in fields(RelayConfig)}
    assert attributes <= declared
    # What follows from others; jitter is of no use to be set.
    derived = {"notices", "given", "connections_remedy", "stun_may_move", "keepalive_jitter_seconds"}
    assert declared - attributes == derived


def test_dangerous_switches_are_off_and_say_so() -> None:
    dangerous = [row for row in SETTINGS if "insecure" in row.name or "fail_open" in row.name]
    assert [setting.name for setting in dangerous] == ["verify_client_url_fail_open"]
    assert "false by default" in dangerous[0].help
    assert {field.name: field.default for field in fields(RelayConfig)}["verify_client_url_fail_open"] is False
