"""The file of administrators' tokens: what it may hold, and that no message repeats a token."""

from pathlib import Path

import pytest

from tailnet.config import load_config
from tailnet.config.admin_tokens import MAX_TOKENS, load_admin_tokens, parse_admin_tokens
from tailnet.errors import ConfigError

GOOD = "a" * 40
OTHER = "b" * 40


def test_lines() -> None:
    found = parse_admin_tokens(f"# who\n\nplane: {GOOD}\n backup_1@x.y:{OTHER} \n")
    assert [each.name for each in found] == ["plane", "backup_1@x.y"]
    assert len({each.digest for each in found}) == 2
    assert GOOD not in repr(found)
    assert found[0].digest.hex() not in repr(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no line NAME:TOKEN"),
        ("# nobody\n", "has no line NAME:TOKEN"),
        (GOOD, "line 1: wants NAME:TOKEN"),
        (f"\n:{GOOD}", "line 2: wants NAME:TOKEN"),
        (f"a b:{GOOD}", "line 1: wants NAME:TOKEN"),
        (f"plane:{GOOD[:31]}", "line 1: wants a token of 32"),
        (f"plane:{GOOD} {GOOD}", "line 1: wants a token of 32"),
        (f"plane:{GOOD}é", "line 1: wants a token of 32"),
        (f"plane:{GOOD}\t{GOOD}", "line 1: wants a token of 32"),
        (f"plane:{'a' * 1025}", "line 1: wants a token of 32"),
        (f"plane:{GOOD}\nplane:{OTHER}", "has a name twice"),
        (f"plane:{GOOD}\nother:{GOOD}", "has a token twice"),
        ("\n".join(f"n{n}:{n:040}" for n in range(MAX_TOKENS + 1)), "has 101 tokens"),
    ],
)
def test_what_it_may_not_hold(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_admin_tokens(text)
    assert GOOD[:31] not in str(caught.value)
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(ConfigError) as told:
        load_admin_tokens(path)
    assert str(told.value).startswith(f"{path}: ")


def test_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text(f"plane:{GOOD}\n")
    path.chmod(0o600)
    config = load_config({"admin_token_file": str(path), "admin_listen": "127.0.0.1:3001"}, {})
    assert [each.name for each in config.admin_tokens] == ["plane"]
    assert config.admin_listen == (("127.0.0.1", 3001),)
    assert GOOD not in repr(config)
    path.chmod(0o644)
    told = load_config({"admin_token_file": str(path)}, {}).notices
    assert any(str(path) in notice for notice in told)
    with pytest.raises(ConfigError, match="--admin-token-file"):
        load_config({"admin_listen": "127.0.0.1:3001"}, {})
    with pytest.raises(ConfigError, match="cannot read"):
        load_config({"admin_token_file": str(tmp_path / "none")}, {})
    assert load_config({}, {}).admin_tokens == ()
