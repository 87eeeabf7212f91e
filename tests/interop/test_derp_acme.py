"""`derp serve --certmode letsencrypt` against a genuine ACME server, and the genuine client against the result."""

import socket
import ssl
import stat
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from cryptography import x509

from tests.support.authority import EAB_KEY, EAB_KID, Authority, open_authority
from tests.support.certificates import issue
from tests.support.gobuild import AUTOCERT_CACHE
from tests.support.peers import Node, open_peers, require
from tests.support.relay_command import HOST
from tests.support.relays import Relay, free_port, open_relay, port_of_nobody

pytestmark = pytest.mark.interop

NAME = "relay.example"
# All on one of two workers: once in 2,000 runs, and then the test is only weaker.
MANY = 12
PATIENCE_SECONDS = 120  # a hang guard; machines that run this beside other work are slow

# Posts TXT records to pebble's name server, as an operator's hook would to his provider's API.
HOOK = """#!{python}
import json, sys, urllib.request
verb, name, value = sys.argv[1:]
path = "set-txt" if verb == "add" else "clear-txt"
body = json.dumps({{"host": name + ".", "value": value}}).encode()
urllib.request.urlopen("{url}/" + path, body, timeout=10).read()
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
    authority: Authority,
    http_port: int,
    monkeypatch: pytest.MonkeyPatch,
    *extra: str,
    hostname: str = NAME,
    port: int = 0,
) -> AsyncIterator[Relay]:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.trusted))
    flags = ("-certmode=letsencrypt", f"-http-port={http_port}", f"-acme-directory-url={authority.directory_url}")
    async with open_relay("ours", hostname=hostname, port=port, extra=(*flags, *extra)) as relay:
        yield relay


async def said(relay: Relay, text: str) -> str:
    """Wait for a line of the relay's that holds `text`."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while True:
            for line in relay.output().splitlines():
                if text in line:
                    return line
            await trio.sleep(0.05)
    pytest.fail(f"nobody said {text!r}:\n{relay.output()}")


def metrics(relay: Relay) -> str:
    context = ssl._create_unverified_context()
    with (
        socket.create_connection((HOST, relay.port), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname=NAME) as tls,
    ):
        tls.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        return b"".join(iter(lambda: tls.recv(65536), b"")).decode()


def served(relay: Relay, name: str = NAME) -> x509.Certificate:
    context = ssl._create_unverified_context()
    with (
        socket.create_connection((HOST, relay.port), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname=name or None) as tls,
    ):
        der = tls.getpeercert(True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


async def test_http_01_and_the_genuine_client(tmp_path: Path, trust: pytest.MonkeyPatch) -> None:
    http_port = free_port(socket.SOCK_STREAM)
    async with open_authority(http_port) as authority:
        certs = tmp_path / "certs"
        async with relay_that_asks(
            authority, http_port, trust, f"-certdir={certs}", "-acme-email=ops@x.example"
        ) as relay:
            await said(relay, "a temporary self-signed certificate is served, which clients refuse")
            await said(relay, f"new certificate for {NAME}, valid until")
            await said(relay, f"certificate read again from {certs / NAME}.crt")
            assert "need this DERP map" not in relay.output()
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


@pytest.mark.parametrize("is_http", [True, False], ids=["http-01", "tls-alpn-01"])
async def test_several_workers_ask_once_and_all_show_what_they_got(
    is_http: bool, tmp_path: Path, trust: pytest.MonkeyPatch
) -> None:
    port, certs = free_port(socket.SOCK_STREAM), tmp_path / "certs"
    http_port = free_port(socket.SOCK_STREAM) if is_http else -1
    async with open_authority(max(http_port, 0), port) as authority:
        flags = (f"-certdir={certs}", "--workers=2")
        async with relay_that_asks(authority, http_port, trust, *flags, port=port) as relay:
            await said(relay, f"new certificate for {NAME}, valid until")
            with trio.fail_after(PATIENCE_SECONDS):
                while relay.output().count("certificate read again from") < 2:  # noqa: ASYNC110  # other processes
                    await trio.sleep(0.05)
            assert relay.output().count("new certificate for") == 1
            new = x509.load_pem_x509_certificate((certs / f"{NAME}.crt").read_bytes())
            assert {served(relay).serial_number for _ in range(MANY)} == {new.serial_number}
            async with open_peers(trusted=await authority.root()) as peers:
                all_peers = [await peers.connect(str(number), Node(NAME, relay.port)) for number in range(MANY)]
                for one, other in pairwise(all_peers):
                    await one.send(other.key, b"hello")
                    assert await other.receive_packet() == (one.key, b"hello")


async def test_tls_alpn_01_while_clients_come(tmp_path: Path, trust: pytest.MonkeyPatch) -> None:
    """The proof is shown at the port that clients use; they see the old certificate until the new one is there."""
    port = free_port(socket.SOCK_STREAM)
    certs = tmp_path / "certs"
    certs.mkdir()
    old = issue(NAME, issuer=issue("some root", is_authority=True), valid=(timedelta(days=-80), timedelta(days=1)))
    (certs / f"{NAME}.crt").write_bytes(old.pem)
    (certs / f"{NAME}.key").write_bytes(old.key_pem)
    (certs / f"{NAME}.key").chmod(0o600)
    seen: set[int] = set()
    async with open_authority(0, port) as authority:
        flags = (f"-certdir={certs}",)
        async with relay_that_asks(authority, -1, trust, *flags, port=port) as relay, trio.open_nursery() as nursery:

            async def visit() -> None:
                while True:
                    found = await trio.to_thread.run_sync(served, relay)
                    seen.add(found.serial_number)

            nursery.start_soon(visit)
            await said(relay, f"new certificate for {NAME}, valid until")
            await said(relay, "certificate read again")
            async with open_peers(trusted=await authority.root()) as peers:
                await peers.connect("a", Node(NAME, relay.port))
            nursery.cancel_scope.cancel()
        new = x509.load_pem_x509_certificate((certs / f"{NAME}.crt").read_bytes())
        assert new.serial_number != old.certificate.serial_number
        assert old.certificate.serial_number in seen
        assert seen <= {old.certificate.serial_number, new.serial_number}


@pytest.mark.parametrize("works", ["http-01", "tls-alpn-01"])
async def test_the_other_proof_when_one_is_not_seen(tmp_path: Path, trust: pytest.MonkeyPatch, works: str) -> None:
    # Each time nobody listens where the first proof is looked at.
    port, http_port = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_STREAM)
    looked_at = (0, port) if works == "tls-alpn-01" else (http_port, 0)
    first = f"-certdir={tmp_path}/certs"
    async with (
        open_authority(*looked_at) as authority,
        relay_that_asks(authority, http_port, trust, first, port=port) as relay,
    ):
        await said(relay, f"new certificate for {NAME}, valid until")
    async with open_authority() as authority:
        again = f"-certdir={tmp_path}/others"
        async with relay_that_asks(authority, http_port, trust, again, port=port) as relay:
            line = await said(relay, "no new certificate")
            for kind in ("http-01", "tls-alpn-01"):
                assert f"could not see that {NAME} is ours by {kind}: " in line
            assert "trying again in 1" in line  # two proofs a time, at half the pace
            page = await trio.to_thread.run_sync(metrics, relay)
            assert "derp_certificate_renewal_failures 1.0" in page


async def test_a_certificate_for_an_address(tmp_path: Path, trust: pytest.MonkeyPatch) -> None:
    http_port, port = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_STREAM)
    for number, looked_at in enumerate(((http_port, 0), (0, port))):
        async with open_authority(*looked_at) as authority:
            flags = (f"-certdir={tmp_path}/{number}", "-acme-ip-certs")
            async with relay_that_asks(authority, http_port, trust, *flags, hostname=HOST, port=port) as relay:
                await said(relay, f"new certificate for {HOST}, valid until")
                await said(relay, "certificate read again")
                leaf = served(relay, "")
                assert leaf.not_valid_after_utc - leaf.not_valid_before_utc < timedelta(days=7)
                async with open_peers(trusted=await authority.root()) as peers:
                    await peers.connect("a", Node(HOST, relay.port))


async def test_dns_01_by_a_hook(tmp_path: Path, trust: pytest.MonkeyPatch) -> None:
    # nobody listens where http-01 would be looked at
    async with open_authority() as authority:
        hook, log = tmp_path / "hook", tmp_path / "log"
        hook.write_text(HOOK.format(python=sys.executable, url=authority.dns_management, log=log))
        hook.chmod(0o700)
        flags = (f"-certdir={tmp_path}/certs", "-acme-challenge=dns-01", f"-acme-dns-hook={hook}")
        async with relay_that_asks(authority, -1, trust, *flags) as relay:
            await said(relay, f"new certificate for {NAME}, valid until")
            await said(relay, "certificate read again")
            async with open_peers(trusted=await authority.root()) as peers:
                await peers.connect("a", Node(NAME, relay.port))
            assert log.read_text().splitlines() == [f"add _acme-challenge.{NAME}", f"remove _acme-challenge.{NAME}"]


async def test_the_certificate_that_derper_kept_is_taken_over(tmp_path: Path, trust: pytest.MonkeyPatch) -> None:
    """By the library that derper keeps it with: the relay that replaces it asks nobody."""
    certs, http_port = tmp_path / "certs", free_port(socket.SOCK_STREAM)
    async with open_authority(http_port) as authority:
        arguments = {
            "directory": authority.directory_url,
            "trusted": str(authority.trusted),
            "name": NAME,
            "dir": str(certs),
            "listen": f"{HOST}:{http_port}",
        }
        command = [str(require(AUTOCERT_CACHE)), *(f"-{name}={value}" for name, value in arguments.items())]
        with trio.fail_after(PATIENCE_SECONDS):
            done = await trio.run_process(command, capture_stderr=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        assert {NAME, "acme_account+key"} <= {path.name for path in certs.iterdir()}
        async with relay_that_asks(authority, http_port, trust, f"-certdir={certs}") as relay:
            await said(relay, "the certificate that derper kept here is used")
            async with open_peers(trusted=await authority.root()) as peers:
                await peers.connect("a", Node(NAME, relay.port))
            assert "asking" not in relay.output()
        # When it has to be renewed, that is done with derper's account.
        (certs / f"{NAME}.crt").unlink()
        async with relay_that_asks(authority, http_port, trust, f"-certdir={certs}") as relay:
            await said(relay, f"new certificate for {NAME}, valid until")


async def test_an_authority_that_knows_its_customers(tmp_path: Path, trust: pytest.MonkeyPatch) -> None:
    http_port = free_port(socket.SOCK_STREAM)
    certs = f"-certdir={tmp_path}/certs"
    async with open_authority(http_port, eab_required=True) as authority:
        host = authority.directory_url.removeprefix("https://").removesuffix("/dir")
        async with relay_that_asks(authority, http_port, trust, certs) as relay:
            line = await said(relay, "no new certificate")
            assert f"{host} wants to know whose account this is: set --acme-eab-kid and --acme-eab-key" in line
            assert "clients refuse the temporary one; trying again in 1" in line
        wrong = (certs, f"-acme-eab-kid={EAB_KID}", "-acme-eab-key=d3Jvbmc")
        async with relay_that_asks(authority, http_port, trust, *wrong) as relay:
            assert f"{host} refused: " in await said(relay, "no new certificate")
        right = (certs, f"-acme-eab-kid={EAB_KID}", f"-acme-eab-key={EAB_KEY}")
        async with relay_that_asks(authority, http_port, trust, *right) as relay:
            await said(relay, f"new certificate for {NAME}, valid until")
            assert EAB_KEY not in relay.output()


async def failure(relay: Relay, old: x509.Certificate, minutes: int = 1) -> str:
    """The sentence of a failed renewal, after which the old certificate is still served to genuine clients' eyes."""
    line = await said(relay, "no new certificate")
    assert served(relay) == old
    assert (
        f"the one in service lasts until {old.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; trying again in {minutes}"
        in line
    )
    return line


async def test_failures_leave_the_old_certificate_in_service(tmp_path: Path, trust: pytest.MonkeyPatch) -> None:
    certs = tmp_path / "certs"
    certs.mkdir()
    # issued long ago: due, and good for another day
    old = issue(NAME, issuer=issue("some root", is_authority=True), valid=(timedelta(days=-80), timedelta(days=1)))
    (certs / f"{NAME}.crt").write_bytes(old.pem)
    (certs / f"{NAME}.key").write_bytes(old.key_pem)
    (certs / f"{NAME}.key").chmod(0o600)
    before = {path.name: path.read_bytes() for path in certs.iterdir()}
    http_port = free_port(socket.SOCK_STREAM)
    flag = f"-certdir={certs}"
    async with open_authority() as authority:
        host = authority.directory_url.removeprefix("https://").removesuffix("/dir")
        async with relay_that_asks(authority, http_port, trust, flag) as relay:
            line = await failure(relay, old.certificate)
            assert f"{host} could not see that {NAME} is ours by http-01: " in line
            assert "connection refused" in line.lower()
        with port_of_nobody() as nowhere:
            gone = f"-acme-directory-url=https://{HOST}:{nowhere}/dir"
            async with relay_that_asks(authority, http_port, trust, flag, gone) as relay:
                line = await failure(relay, old.certificate)
                assert f"{HOST}:{nowhere} cannot be reached: " in line
                assert "nothing listens on that port" in line
        hook = tmp_path / "hook"
        hook.write_text("#!/bin/sh\necho 'no such zone' >&2\nexit 4\n")
        hook.chmod(0o700)
        dns = (flag, "-acme-challenge=dns-01", f"-acme-dns-hook={hook} --verbose")
        async with relay_that_asks(authority, http_port, trust, *dns) as relay:
            line = await failure(relay, old.certificate, minutes=5)
            assert f"the hook {hook} --verbose add ended with status 4: no such zone" in line
            await relay.says("remove ended with status 4: no such zone; the TXT record")
    after = {path.name: path.read_bytes() for path in certs.iterdir()}
    assert after.pop("acme-account.key")
    assert after == before


async def test_a_name_the_authority_will_not_have(tmp_path: Path, trust: pytest.MonkeyPatch) -> None:
    http_port = free_port(socket.SOCK_STREAM)
    async with open_authority(http_port) as authority:
        flags = (f"-certdir={tmp_path}/certs", "-hostname=blocked.example")
        async with relay_that_asks(authority, http_port, trust, *flags) as relay:
            line = await said(relay, "no new certificate")
            assert " refused: " in line
            assert "blocked.example" in line
