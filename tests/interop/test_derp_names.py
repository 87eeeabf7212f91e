"""Names of relays as maps have them, with a final dot or none at all: the genuine client and ours agree on each."""

import ssl
from pathlib import Path

import pytest
import trio

from derp.client.dial import DialOptions, RelayAddress, dial_relay
from derp.config import TlsConfig
from derp.errors import ConnectError
from derp.map import DERPMap
from derp.netcheck.lint import errors, lint
from derp.transport import tls_client
from tests.support.certificates import issue
from tests.support.inprocess import HOST, map_of, node_of, open_relay_here, port_of
from tests.support.netchecks import compare
from tests.support.peers import Node, PeerError, open_peers

pytestmark = pytest.mark.interop

ROOT = issue(is_authority=True, common_name="root")


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "roots.pem"
    path.write_bytes(ROOT.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    tls_client._context.cache_clear()
    return path


@pytest.mark.parametrize("require_sni", [False, True])
async def test_the_genuine_client_and_ours_connect_by_the_same_names(
    require_sni: bool, roots: Path, tmp_path: Path
) -> None:
    leaf = issue("relay.example", issuer=ROOT)
    files = tmp_path / "relay.crt", tmp_path / "relay.key"
    files[0].write_bytes(leaf.pem)
    files[1].write_bytes(leaf.key_pem)
    tls = TlsConfig(*files, "relay.example", require_sni=require_sni)
    differ, connected = [], set()
    async with open_relay_here(tls=tls) as server, open_peers(trusted=roots) as peers:
        port = port_of(server)
        for number, (host, cert_name, insecure) in enumerate(
            (host, cert_name, insecure)
            for host in ("relay.example.", "Relay.Example.", "relay.example", "", "other.example.")
            for cert_name, insecure in (("", False), (leaf.pin, False), ("relay.example", False), ("", True))
        ):
            try:
                peer = await peers.connect(f"p{number}", Node(host, port, cert_name, insecure=insecure))
                await peer.close()
                theirs = True
            except PeerError:
                theirs = False
            address = RelayAddress(host, port, ipv4=HOST, ipv6="none", cert_name=cert_name, insecure_for_tests=insecure)
            try:
                dialled = await dial_relay(address, DialOptions(environment=None), timeout_seconds=10)
                await trio.aclose_forcefully(dialled.stream)
                ours = True
            except ConnectError:
                ours = False
            if theirs:
                connected.add(host)
            if theirs is not ours:
                differ.append((host, cert_name, insecure, theirs, ours))
    assert differ == []
    assert {"relay.example.", "Relay.Example.", "relay.example", ""} <= connected


async def test_a_node_without_a_name_is_measured_as_genuine_clients_do(roots: Path) -> None:
    async with open_relay_here() as server:
        for stun_port in (port_of(server, "stun"), -1):
            derp_map: DERPMap = map_of(node_of(server, 900, host_name="", stun_port=stun_port))
            (report,) = await compare(derp_map)
            assert report.preferred == (900 if stun_port > 0 else 0)
            assert errors(lint(derp_map.to_json())) == []


def test_python_would_send_the_dot() -> None:
    """Why it has to be taken off: what Go does by itself, Python does not."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="relay.example.")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    assert b"relay.example." in outgoing.read()
