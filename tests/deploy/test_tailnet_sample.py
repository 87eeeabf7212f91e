"""deploy/tailnet.toml: it loads, it names every setting, and what it shows as defaults are the defaults."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

from tailnet.config import SETTINGS, CoordinatorConfig, load_config

SAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "tailnet.toml"
# Examples rather than defaults.
EXAMPLES = {
    "store", "access_url", "tls_cert", "tls_key", "trusted_proxies", "stun_servers", "derp_map", "derp_map_url",
    "region_scores", "region_weights", "prefer_regions", "avoid_regions", "steer_by_load",
    "stun_listen", "agent_inactive",
    "announcement_banners", "identity_anchors", "external_auth", "secrets_key_file",
    "events", "cors_origins", "webhook_url",
    "webhook_secret_file",
    "admin_token_file", "admin_listen",
    "auth_url", "auth_secret_file", "auth_jwks", "auth_issuer", "auth_audience",
    "hostname", "cert_mode", "cert_dir", "tls_self_signed", "acme_dns_hook",
    "acme_directory_url", "acme_eab_key", "relay_rate_config", "relay_rate_keys", "relay_limits", "relay_ledger",
    "relay_verify_client_url", "relay_allow_keys", "relay_mesh_psk_file", "relay_mesh_with",
    "relays_token_file", "relay_admission_keys", "relay_key_set", "relay_key_set_file", "relay_key_set_token_file",
    "relay_admission_log", "bus", "bus_key_file", "cluster_name", "replica_name", "replica_listen", "replica_address",
    "replica_notice", "replica_drain",
    "insecure_bus",
}  # fmt: skip


def uncommented() -> dict[str, object]:
    """Everything the sample shows, with the # taken away."""
    text = "\n".join(re.sub(r"^# (?=[a-z_]+ = )", "", line) for line in SAMPLE.read_text().splitlines())
    return tomllib.loads(text)


def load(tmp_path: Path, text: str) -> CoordinatorConfig:
    path = tmp_path / "tailnet.toml"
    path.write_text(text)
    return load_config({}, {}, str(path), open_files=1 << 20)


def test_it_loads_as_it_is(tmp_path: Path) -> None:
    config = load(tmp_path, SAMPLE.read_text())
    assert config.listen == (("127.0.0.1", 3000),)
    assert config.store == "sqlite:////var/lib/tailnet/tailnet.db"


def test_it_names_every_setting_once_and_no_other() -> None:
    assert set(uncommented()) == set(SETTINGS.by_name)


def test_every_value_it_shows_is_taken() -> None:
    for name, value in uncommented().items():
        SETTINGS.by_name[name].parse(value)


def test_what_it_shows_as_defaults_are_the_defaults(tmp_path: Path) -> None:
    shown = {name: value for name, value in uncommented().items() if name not in EXAMPLES}
    text = "\n".join(f"{name} = {_toml(value)}" for name, value in shown.items())
    assert replace(load(tmp_path, text), notices=()) == CoordinatorConfig()


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if not isinstance(value, str) else f'"{value}"'
