"""The value itself: what follows from the settings, and that the embedded relay has them all."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from derp.admission.signed import Issuer
from derp.config.relay import LOOPBACK, MeshPeer, Rate, RelayConfig, RelayRules, ServerConfig, TlsConfig
from derp.keys import MeshKey, NodePrivate
from derp.relay.limits import Limits
from tailnet.config.coordinator import CoordinatorConfig

PRIVATE = NodePrivate.generate()
# A value of each attribute that is not its default.
OTHERS: dict[str, Any] = {
    "listen": (("127.0.0.1", 1),),
    "hostname": "a.example",
    "tls": TlsConfig(self_signed=True),
    "notices": ("a",),
    "given": {"a": 1},
    "log_format": "json",
    "log_level": "debug",
    "debug_allow": LOOPBACK[:1],
    "trusted_proxies": LOOPBACK,
    "http_port": 8080,
    "mesh_key": MeshKey(b"k" * 32),
    "mesh_with": (MeshPeer("a", 1, "a"),),
    "bootstrap_dns_names": ("a",),
    "unpublished_bootstrap_dns_names": (("a", ""),),
    "tailscaled_socket": "/run/s",
    "verify_client_url": "https://a",
    "allow_keys": frozenset({b"k" * 32}),
    "deny_keys": frozenset({b"k" * 32}),
    "rate": Rate(1, 2),
    "rate_by_key": {b"k" * 32: Rate(1, 2)},
    "limits": Limits(Rate(1)),
    "ledger": Path("/var/lib/ledger"),
    "connections_remedy": "raise it",
    "issuers": (Issuer(b"i" * 32),),
    "key_set": "/keys",
    "key_set_file": Path("/kept"),
    "key_set_token": "s3cret",
    "admission_log": Path("/log"),
}


def other(value: Any, name: str) -> Any:
    if name in OTHERS:
        return OTHERS[name]
    return not value if isinstance(value, bool) else value + 1


@pytest.mark.parametrize("name", [each.name for each in fields(ServerConfig)])
def test_the_embedded_relay_has_each_setting_of_whoever_listens(name: str) -> None:
    config = CoordinatorConfig()
    value = other(getattr(config, name), name)
    assert getattr(replace(config, **{name: value}).relay_config(PRIVATE), name) == value


@pytest.mark.parametrize("name", [each.name for each in fields(RelayRules)])
def test_the_embedded_relay_has_each_rule(name: str) -> None:
    value = other(getattr(RelayRules(), name), name)
    relay = CoordinatorConfig(relay=RelayRules(**{name: value})).relay_config(PRIVATE)
    assert getattr(relay, name) == value
    assert relay != CoordinatorConfig().relay_config(PRIVATE)


def test_it_listens_on_our_port_and_never_on_its_own() -> None:
    relay = CoordinatorConfig(listen=(("127.0.0.1", 1),)).relay_config(PRIVATE)
    assert (relay.private_key, relay.stun_hosts) == (PRIVATE, ())
    # What it has beside those two: nothing that could be forgotten.
    own = {each.name for each in fields(RelayConfig)} - {e.name for k in (ServerConfig, RelayRules) for e in fields(k)}
    assert own == {"private_key", "stun_enabled", "stun_port", "home", "invitations", "workers"}


def test_stun_is_beside_the_listeners_unless_told() -> None:
    listen = (("127.0.0.1", 1), ("127.0.0.1", 2), ("::1", 1))
    assert CoordinatorConfig(listen=listen).stun_addresses == (("127.0.0.1", 3478), ("::1", 3478))
    assert CoordinatorConfig(stun_listen=()).stun_addresses == ()


def test_silence_of_agents() -> None:
    assert CoordinatorConfig().inactive_seconds == 30
    assert CoordinatorConfig(agent_ping_seconds=0.5).inactive_seconds == 2
    assert CoordinatorConfig(agent_inactive_seconds=60.0).inactive_seconds == 60
