"""The file of keys: what is taken, what is refused without a word of a key, and how keys are added."""

import stat
from base64 import b64encode
from pathlib import Path

import pytest

from derp.errors import ConfigError
from tailnet.config.key_file import KEY_BYTES, MAX_KEYS, add_key, read_key_file
from tailnet.store import sealing

ONE, TWO = bytes(range(KEY_BYTES)), bytes(reversed(range(KEY_BYTES)))


def line(key: bytes) -> str:
    return b64encode(key).decode()


def test_one_length_for_both() -> None:
    assert KEY_BYTES == sealing.KEY_BYTES


def test_the_first_one_stands_first(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of June\n  {line(TWO)}  \n\n# of May\n{line(ONE)}")
    assert read_key_file(path) == (TWO, ONE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has 0 keys"),
        ("# none\n", "has 0 keys"),
        ("hunter2\n", "line 1: wants a key"),
        (f"{line(ONE)}\n{line(ONE[1:])}\n", "line 2: wants a key"),
        (f"{line(ONE)}\n{line(ONE)}\n", "line 2: this key stands there twice"),
        ("".join(f"{line(bytes([number]) * 32)}\n" for number in range(MAX_KEYS + 1)), f"has {MAX_KEYS + 1} keys"),
        ("\xe9\xe9", "line 1"),
    ],
)
def test_what_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        read_key_file(path)
    assert "hunter2" not in caught.value.args[0].partition(": ")[2]
    assert line(ONE) not in str(caught.value)


def test_a_key_is_added_on_top(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    assert add_key(path) == 1
    first = read_key_file(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert add_key(path) == 2
    assert read_key_file(path)[1:] == first
    two = read_key_file(path)
    assert add_key(path, last=True) == 3
    assert read_key_file(path)[:2] == two
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("broken")
    with pytest.raises(ConfigError, match="line 1"):
        add_key(path)
    assert path.read_text() == "broken"
    with pytest.raises(ConfigError, match="cannot make"):
        add_key(tmp_path / "absent" / "keys")
