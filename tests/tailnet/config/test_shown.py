"""Settings as they may be shown: every one by name, nothing secret."""

import json
from pathlib import Path

from derp.keys import MeshKey, NodePrivate
from tailnet.config import SETTINGS, CoordinatorConfig, load_config
from tailnet.config.shown import shown_settings

MESH = MeshKey(b"\x5a" * 32)
KEY = NodePrivate(b"\x11" * 32)


def test_defaults() -> None:
    shown = shown_settings(CoordinatorConfig())
    assert list(shown) == [row.name for row in SETTINGS]
    assert shown["derp_region_id"] == 999
    assert shown["listen"] == [["127.0.0.1", 3000]]
    json.dumps(shown)


def test_what_was_given(tmp_path: Path) -> None:
    (tmp_path / "mesh").write_text(MESH.raw.hex())
    (tmp_path / "mesh").chmod(0o600)
    flags = {
        "store": "postgresql+psycopg://u:hunter2@db/x?password=hunter3",
        "derp_map_url": "https://a:hunter4@maps.example/x?token=hunter5",
        "relay_mesh_psk_file": str(tmp_path / "mesh"),
        "relay_allow_keys": str(KEY.public()),
        "relay_verify_client_url": "https://x.example/check?key=hunter6",
        "announcement_banners": "Welcome",
        "hostname": "a.example",
        "tls_self_signed": "true",
    }
    shown = shown_settings(load_config(flags, {}, open_files=1 << 20))
    text = json.dumps(shown)
    assert "hunter" not in text
    assert MESH.raw.hex() not in text
    assert shown["relay_allow_keys"] == "1 values"
    assert shown["tls_self_signed"] is True, "a part of what is built from several"
    assert "maps.example" in text


def test_a_text_under_the_name_of_a_secret_is_not_shown() -> None:
    """Whatever settings are yet to come: a plain word under such a name never passes."""
    from derp.config import parse
    from derp.config.setting import Setting
    from tailnet.config import shown

    for name in ("auth_secret", "api_token", "mesh_psk", "password", "signing_key"):
        assert shown._shown(Setting(name, parse.string, "TEXT", ""), "plainword") == "<secret>"
    assert shown._shown(Setting("auth_secret_file", parse.path, "FILE", ""), Path("/etc/secret")) == "/etc/secret"
