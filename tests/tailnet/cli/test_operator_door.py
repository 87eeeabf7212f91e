"""Where a running server is asked, and that a token goes to nobody who should not see it."""

from pathlib import Path

import pytest

from derp.config import TlsConfig
from tailnet.cli.operator_door import open_door, own_url, read_token
from tailnet.config import CoordinatorConfig
from tailnet.errors import ConfigError


@pytest.mark.parametrize(
    ("listen", "tls", "expected"),
    [
        (("127.0.0.1", 3000), None, "http://127.0.0.1:3000"),
        (("0.0.0.0", 80), None, "http://127.0.0.1:80"),
        (("::", 443), TlsConfig(self_signed=True), "https://[::1]:443"),
        (("192.0.2.7", 443), TlsConfig(self_signed=True), "https://192.0.2.7:443"),
    ],
)
def test_our_own_server(listen: tuple[str, int], tls: TlsConfig | None, expected: str) -> None:
    assert own_url(CoordinatorConfig(listen=(listen,), tls=tls)) == expected


@pytest.mark.parametrize(
    "url", ["", "a.example", "ftp://a.example", "http://", "http://a:b", "http://a?token=s3cret99"]
)
def test_what_is_no_server(url: str) -> None:
    with pytest.raises(ConfigError, match="must look like") as caught:
        open_door(url, "")
    assert "s3cret99" not in str(caught.value)


def test_a_token_never_travels_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="in the clear"):
        open_door("http://a.example", "token")


def test_the_token_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" abc\n")
    assert read_token(str(tmp_path / "token")) == "abc"
    assert read_token(None) == ""
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(str(tmp_path / "missing"))
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(str(tmp_path / "token"))
