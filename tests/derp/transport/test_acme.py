"""What is no authority, or says no at once, each as one sentence; the rest is in tests/interop/test_derp_acme.py."""

import http.server
import json
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from derp.config.relay import AcmeConfig
from derp.transport.acme import AcmeError, AcmeOrder
from tests.support.certificates import Issued, issue, server_context

KEY = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
ROOT = issue("root", is_authority=True)


@contextmanager
def web_server(status: int, content: bytes, leaf: Issued) -> Iterator[str]:
    """Answers every request alike, over TLS on loopback; its base URL."""

    class Answering(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_POST = do_GET  # noqa: N815  # the names the base class looks for

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        server.socket = server_context(leaf).wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def says(url: str, folder: Path) -> str:
    """The one sentence of a failed `begin`."""
    with pytest.raises(AcmeError) as caught:
        AcmeOrder(AcmeConfig(f"{url}/dir"), "relay.example", folder / "account.key", "http-01").begin(KEY)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(url.removeprefix("https://"), "HOST")


@pytest.fixture(autouse=True)
def trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "roots.pem").write_bytes(ROOT.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
    for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def test_nobody_there(tmp_path: Path) -> None:
    assert says("https://127.0.0.1:1", tmp_path).startswith("HOST cannot be reached: ")
    assert "nothing listens on that port" in says("https://127.0.0.1:1", tmp_path)


def test_a_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    with web_server(200, b"{}", issue("127.0.0.1")) as url:
        text = says(url, tmp_path)
    assert text.startswith("HOST has a certificate that is not trusted here (")
    assert text.endswith("): SSL_CERT_FILE names other roots")


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (200, b"<html>welcome</html>"),
        (200, b"{}"),
        (200, b"[]"),
        (200, json.dumps({"newNonce": 1, "newAccount": 2, "newOrder": 3}).encode()),
        (404, b"not found"),
    ],
)
def test_something_else_than_acme(tmp_path: Path, status: int, content: bytes) -> None:
    with web_server(status, content, issue("127.0.0.1", issuer=ROOT)) as url:
        text = says(url, tmp_path)
    assert text.startswith("HOST ")
    assert "is the directory's URL right?" in text


def test_an_authority_that_is_busy_is_quoted(tmp_path: Path) -> None:
    problem = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too\nmany\x1b[31m requests" + "x" * 1000}
    with web_server(429, json.dumps(problem).encode(), issue("127.0.0.1", issuer=ROOT)) as url:
        text = says(url, tmp_path)
    assert text.startswith("HOST refused: too many\\x1b[31m requests")
    assert len(text) < 600


def test_the_account_s_key_is_made_once_for_our_eyes(tmp_path: Path) -> None:
    says("https://127.0.0.1:1", tmp_path)
    account = tmp_path / "account.key"
    first = account.read_bytes()
    assert stat.S_IMODE(account.stat().st_mode) == 0o600
    says("https://127.0.0.1:1", tmp_path)
    assert account.read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"half a key"])
def test_an_account_s_key_that_is_none_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "account.key").write_bytes(content)
    assert says("https://127.0.0.1:1", tmp_path).startswith(f"{tmp_path}/account.key: is no account key on P-256")
    assert (tmp_path / "account.key").read_bytes() == content
