"""The files that settings name: derper's forms, errors without secrets, and a key that is made once."""

import json
import os
import stat
from pathlib import Path

import pytest

from derp.config.files import (
    load_mesh_key,
    load_private_key,
    load_rate_config,
    make_key_file,
    parse_mesh_key,
    readable_by_others,
)
from derp.config.relay import Rate
from derp.errors import ConfigError
from derp.keys import MeshKey


def test_rate_config_is_read_as_derper_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "rate.json"
    path.write_text('{"perclientratelimitbytespersec": 5, "Other": [], "PerClientRateBurstBytes": null}')
    assert load_rate_config(path) == Rate(5, 65_568)
    path.write_text('{"PerClientRateLimitBytesPerSec": 5, "PerClientRateBurstBytes": 65569}')
    assert load_rate_config(path) == Rate(5, 65_569)
    path.write_text('{"PerClientRateBurstBytes": 9}')
    assert load_rate_config(path) == Rate()
    for text in ("[]", "{", '{"PerClientRateBurstBytes": -1}', '{"PerClientRateLimitBytesPerSec": 1.5}'):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"rate\.json: "):
            load_rate_config(path)
    with pytest.raises(ConfigError, match=r"/nonexistent: cannot read the limits: No such file"):
        load_rate_config(Path("/nonexistent"))


def test_a_key_is_made_for_its_owner_only_and_never_over_another(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "derper.key"
    make_key_file(path)
    key = load_private_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    make_key_file(path)
    assert load_private_key(path) == key
    assert [entry.name for entry in path.parent.iterdir()] == ["derper.key"]


def test_a_key_that_cannot_be_made_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"^/proc/none/key: cannot make the private key's file: "):
        make_key_file(Path("/proc/none/key"))


def test_a_mesh_key_in_a_file_and_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "mesh"
    path.write_text("\n" + "ab" * 32 + "\n")
    assert load_mesh_key(path) == MeshKey(b"\xab" * 32)
    path.write_text("ab" * 31)
    with pytest.raises(ConfigError) as caught:
        load_mesh_key(path)
    assert str(caught.value).startswith(f"{path}: mesh key: a mesh key has 64 hex digits")
    assert "abab" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"^flags: x: a mesh key"):
        parse_mesh_key("12", "flags: x")


def test_who_can_read_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(json.dumps({}))
    for mode, told in ((0o600, False), (0o640, True), (0o604, True), (0o400, False)):
        os.chmod(path, mode)
        assert (readable_by_others(path) is not None) is told
    assert readable_by_others(tmp_path / "none") is None
