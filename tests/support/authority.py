"""A genuine ACME server on loopback: pebble, with a name server that answers 127.0.0.1 for every name.

`async with open_authority(http_port, tls_port) as authority`: it validates http-01 and tls-alpn-01 at these; 0: where
nobody listens.  Its own HTTPS certificate is `authority.trusted`, its issuing root what `authority.root()` fetches.
"""

import json
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.support.certificates import issue
from tests.support.gobuild import CHALLTESTSRV, PEBBLE
from tests.support.peers import require
from tests.support.relay_command import HOST
from tests.support.relays import free_port, free_port_of_both, port_of_nobody

START_SECONDS = 30.0
EAB_KID, EAB_KEY = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"


@dataclass(frozen=True, slots=True)
class Authority:
    """A running pebble.  `dns_management` is the URL by which a hook sets TXT records."""

    directory_url: str
    management_url: str
    dns_management: str
    trusted: Path
    folder: Path
    name_server: tuple[str, int]

    async def root(self) -> Path:
        """The PEM file of the root that its certificates lead to."""
        pem = await trio.to_thread.run_sync(self._fetch, f"{self.management_url}/roots/0")
        path = self.folder / "root.pem"
        path.write_bytes(pem)
        return path

    def _fetch(self, url: str) -> bytes:
        context = ssl.create_default_context(cafile=str(self.trusted))
        with urllib.request.urlopen(url, timeout=START_SECONDS, context=context) as answer:
            content: bytes = answer.read()
            return content


@asynccontextmanager
async def open_authority(
    http_port: int = 0, tls_port: int = 0, *, eab_required: bool = False, valid_seconds: int = 86_400
) -> AsyncIterator[Authority]:
    """Start pebble and its name server; end both by their ids."""
    pebble, name_server = require(PEBBLE), require(CHALLTESTSRV)
    with tempfile.TemporaryDirectory(prefix="authority-") as name, port_of_nobody() as nowhere:
        folder = Path(name)
        authority_key = issue("acme root", is_authority=True)
        leaf = issue(HOST, issuer=authority_key)
        for file, content in (("trusted", authority_key.pem), ("cert", leaf.pem), ("key", leaf.key_pem)):
            (folder / f"{file}.pem").write_bytes(content)
        port, management, dns_management = (free_port(socket.SOCK_STREAM) for _ in range(3))
        dns_port = free_port_of_both()  # pebble asks over TCP, we over UDP
        settings = {
            "listenAddress": f"{HOST}:{port}",
            "managementListenAddress": f"{HOST}:{management}",
            "certificate": str(folder / "cert.pem"),
            "privateKey": str(folder / "key.pem"),
            "httpPort": http_port or nowhere,
            "tlsPort": tls_port or nowhere,
            "externalAccountBindingRequired": eab_required,
            "externalAccountMACKeys": {EAB_KID: EAB_KEY},
            "keyAlgorithm": "ecdsa",
            "domainBlocklist": ["blocked.example"],
            "retryAfter": {"authz": 1, "order": 1},
            "profiles": {
                "default": {"description": "for names", "validityPeriod": valid_seconds},
                "shortlived": {"description": "for addresses", "validityPeriod": 6 * 86_400},
            },
        }
        (folder / "pebble.json").write_text(json.dumps({"pebble": settings}))
        environment = os.environ | {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0"}
        async with AsyncExitStack() as stack:
            nowhere = ("-http01=", "-https01=", "-tlsalpn01=", "-doh=", "-defaultIPv6=")
            arguments = (f"-dnsserver={HOST}:{dns_port}", f"-management={HOST}:{dns_management}", *nowhere)
            log = stack.enter_context((folder / "output").open("wb"))
            ports = (dns_management, dns_port)
            await stack.enter_async_context(_running([str(name_server), *arguments], log.fileno(), {}, *ports))
            command = [str(pebble), f"-config={folder / 'pebble.json'}", f"-dnsserver={HOST}:{dns_port}"]
            await stack.enter_async_context(_running(command, log.fileno(), environment, port))
            yield Authority(
                f"https://{HOST}:{port}/dir",
                f"https://{HOST}:{management}",
                f"http://{HOST}:{dns_management}",
                folder / "trusted.pem",
                folder,
                (HOST, dns_port),
            )


@asynccontextmanager
async def _running(command: list[str], output: int, environment: dict[str, str], *ports: int) -> AsyncIterator[None]:
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment or None
    )
    try:
        waiting = list(ports)
        with trio.fail_after(START_SECONDS):
            while waiting:
                assert process.poll() is None, f"{command[0]} ended with {process.returncode}"
                try:
                    stream = await trio.open_tcp_stream(HOST, waiting[-1])
                except OSError:
                    await trio.sleep(0.02)
                    continue
                await stream.aclose()
                waiting.pop()
        yield
    finally:
        with trio.CancelScope(shield=True):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            with trio.move_on_after(START_SECONDS):
                await process.wait()
            if process.poll() is None:
                process.kill()
                await process.wait()
