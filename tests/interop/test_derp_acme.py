"""`derp serve --certmode letsencrypt` against a genuine ACME server, and the genuine client against the result."""

import os
import re
import socket
import ssl
import stat
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography import x509

from tests.support.authority import EAB_KEY, EAB_KID, Authority, open_authority
from tests.support.peers import Node, PeerError, open_peers
from tests.support.relay_command import HOST
from tests.support.relays import Relay, free_port, open_relay

pytestmark = pytest.mark.interop

NAME = "relay.example"
PATIENCE_SECONDS = 60.0

# Posts TXT records to pebble's name server, as an operator's hook would to his provider's API.
HOOK = """#!{python}
import json, sys, urllib.request
verb, name, value = sys.argv[1:]
path, body = ("set-txt", {{"host": name + ".", "value": value}}) if verb == "add" else ("clear-txt", {{"host": name + "."}})
urllib.request.urlopen("{url}/" + path, json.dumps(body).encode(), timeout=10).read()
with open("{log}", "a") as log:
    print(verb, name, file=log)
"""


@pytest.fixture(autouse=True)
def trust(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@asynccontextmanager
async def relay_that_asks(
    authority: Authority, http_port: int, monkeypatch: pytest.MonkeyPatch, *extra: str, hostname: str = NAME
) -> AsyncIterator[Relay]:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.trusted))
    flags = ("-certmode=letsencrypt", f"-http-port={http_port}", f"-acme-directory-url={authority.directory_url}")
    async with open_relay("ours", hostname=hostname, extra=(*flags, *extra)) as relay:
        yield relay


async def said(relay: Relay, text: str) -> str:
    """Wait for a line of the relay's that holds `text`."""
    with trio.fail_after(PATIENCE_SECONDS):
        while True:
            for line in relay.output().splitlines():
                if text in line:
                    return line
            await trio.sleep(0.05)


def served(relay: Relay) -> x509.Certificate:
    context = ssl._create_unverified_context()
    with socket.create_connection((HOST, relay.port), timeout=10) as sock:
        with context.wrap_socket(sock, server_hostname=NAME) as tls:
            der = tls.getpeercert(True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


async def test_http_01_and_the_genuine_client(tmp_path: Path, trust: pytest.MonkeyPatch) -> None:
    http_port = free_port(socket.SOCK_STREAM)
    async with open_authority(http_port) as authority:
        certs = tmp_path / "certs"
        async with relay_that_asks(authority, http_port, trust, f"-certdir={certs}", "-acme-email=ops@x.example") as relay:
            await said(relay, "a temporary self-signed certificate is served, which clients refuse")
            await said(relay, f"new certificate for {NAME}, valid until")
            await said(relay, f"certificate read again from {certs / NAME}.crt")
            assert "these DERP map" not in relay.output()
            async with open_peers(trusted=await authority.root()) as peers:
                node = Node(NAME, relay.port)
                a, b = await peers.connect("a", node), await peers.connect("b", node)
                await a.send(b.key, b"hello")
                assert await b.receive_packet() == (a.key, b"hello")
                # learnt from the meta certificate behind the chain
                assert a.hello["meta_key"] == a.hello["server_key"]
            files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in certs.iterdir()}
            assert files == {f"{NAME}.crt": 0o600, f"{NAME}.key": 0o600, "acme-account.key": 0o600}
            first = served(relay)
        # At the next start the certificate is there: nobody is asked.
        async with relay_that_asks(authority, http_port, trust, f"-certdir={certs}") as relay:
            assert served(relay) == first
            assert "asking" not in relay.output()
