"""deploy/relay.toml: it loads, it names every setting, and what it shows as defaults are the defaults."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path

from derp.config import RelayConfig, load_config
from derp.config.settings import SETTINGS
from derp.keys import NodePrivate

SAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "relay.toml"
# Examples rather than defaults.
EXAMPLES = {
    "hostname", "cert_mode", "cert_dir", "tls_cert", "tls_key", "tls_self_signed", "http_port",
    "acme_dns_hook", "acme_directory_url", "acme_eab_key",
    "verify_client_url", "allow_keys", "admission_keys", "key_set", "key_set_file", "key_set_token_file",
    "invitations", "admission_log",
    "mesh_psk_file", "mesh_with", "rate_config", "rate_keys", "limits", "ledger",
}  # fmt: skip


def uncommented() -> dict[str, object]:
    """Everything the sample shows, with the # taken away."""
    text = "\n".join(re.sub(r"^# (?=[a-z_]+ = )", "", line) for line in SAMPLE.read_text().splitlines())
    return tomllib.loads(text)


def load(tmp_path: Path, text: str) -> RelayConfig:
    path = tmp_path / "relay.toml"
    path.write_text(text.replace("/var/lib/derp", str(tmp_path)))
    return load_config({}, {}, str(path), open_files=1 << 20)


def test_it_loads_as_it_is(tmp_path: Path) -> None:
    config = load(tmp_path, SAMPLE.read_text())
    assert config.listen == (("127.0.0.1", 3340),)
    assert (tmp_path / "derper.key").exists()


def test_it_names_every_setting_once_and_no_other() -> None:
    assert set(uncommented()) == set(SETTINGS.by_name)


def test_every_value_it_shows_is_taken() -> None:
    for name, value in uncommented().items():
        SETTINGS.by_name[name].parse(value)


def test_what_it_shows_as_defaults_are_the_defaults(tmp_path: Path) -> None:
    shown = {name: value for name, value in uncommented().items() if name not in EXAMPLES}
    text = "\n".join(f"{name} = {_toml(value)}" for name, value in shown.items())
    config = load(tmp_path, text)
    defaults = RelayConfig(NodePrivate.generate(), listen=config.listen)
    assert replace(config, private_key=defaults.private_key, notices=()) == defaults


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if not isinstance(value, str) else f'"{value}"'
