"""`tailnet serve --cert-mode letsencrypt` against a genuine ACME server: one certificate for API, RPC and relay."""

import json
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE

import pytest
import trio
from cryptography import x509

from derp.client.client import open_derp_client
from derp.client.dial import DialOptions
from derp.keys import NodePrivate
from tests.support.authority import Authority, open_authority
from tests.support.relay_command import HOST
from tests.support.relays import free_port

pytestmark = pytest.mark.interop

NAME = "tailnet.example"
PATIENCE_SECONDS = 120  # a hang guard; machines that run this beside other work are slow
_SKIPPED = ("http_proxy", "https_proxy", "all_proxy")


@asynccontextmanager
async def coordinator_that_asks(
    authority: Authority, folder: Path, port: int, *extra: str
) -> AsyncIterator[trio.MemoryReceiveChannel[str]]:
    """What it says in its log, line by line, as long as it runs."""
    environ = {name: text for name, text in os.environ.items() if name.lower() not in _SKIPPED}
    flags = (f"--hostname={NAME}", f"--listen={HOST}:{port}", "--stun-listen=off", f"--store=sqlite:///{folder}/t.db")
    acme = (
        "--cert-mode=letsencrypt",
        f"--cert-dir={folder / 'certs'}",
        f"--acme-directory-url={authority.directory_url}",
    )
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "tailnet", "serve", "--log-format=json", *flags, *acme, *extra],
        stderr=PIPE,
        stdout=PIPE,
        env=environ | {"SSL_CERT_FILE": str(authority.trusted)},
    )
    tell, lines = trio.open_memory_channel[str](1000)
    try:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert process.stderr is not None
                rest = b""
                async for part in process.stderr:
                    *whole, rest = (rest + part).split(b"\n")
                    for line in whole:
                        await tell.send(json.loads(line)["message"])

            nursery.start_soon(read)
            yield lines
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for stream in (process.stdout, process.stderr):
                assert stream is not None
                await stream.aclose()


async def said(lines: trio.MemoryReceiveChannel[str], text: str) -> None:
    """Wait for the next line that holds `text`."""
    with trio.fail_after(PATIENCE_SECONDS):
        while text not in await lines.receive():
            pass


def served(port: int) -> x509.Certificate:
    context = ssl._create_unverified_context()
    with (
        socket.create_connection((HOST, port), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname=NAME) as tls,
    ):
        der = tls.getpeercert(True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


@pytest.mark.parametrize("challenge", ["tls-alpn-01", "http-01"])
async def test_a_certificate_is_obtained_and_the_relay_has_it(challenge: str, tmp_path: Path) -> None:
    port, http_port = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_STREAM)
    plain = [f"--http-port={http_port}", "--acme-challenge=http-01"] if challenge == "http-01" else []
    async with open_authority(http_port if plain else 0, 0 if plain else port) as authority:
        async with coordinator_that_asks(authority, tmp_path, port, *plain) as lines:
            await said(lines, "a temporary self-signed certificate is served, which clients refuse")
            await said(lines, f"new certificate for {NAME}, valid until")
            await said(lines, "certificate read again from")
            root = await authority.root()
            context = ssl.create_default_context(cafile=root)
            options = DialOptions(context=context, dial_host=HOST)
            with trio.fail_after(PATIENCE_SECONDS):
                async with open_derp_client(
                    f"https://{NAME}:{port}/derp", NodePrivate.generate(), options=options
                ) as client:
                    await client.ping()
            certificate = served(port)
            assert certificate.issuer != certificate.subject
        assert sorted(path.name for path in (tmp_path / "certs").iterdir()) == [
            "acme-account.key",
            f"{NAME}.crt",
            f"{NAME}.key",
        ]
