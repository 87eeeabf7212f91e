"""The fault behind every code of docs/health.md, planted in a running server and found by its report."""

import errno
import json
import logging
import os
import shutil
from collections import namedtuple
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio

from derp import log
from derp.client import probe
from derp.config import TlsConfig
from derp.keys import NodePrivate
from tailnet.config import load_config
from tailnet.coordinator import arrivals
from tailnet.health import judge
from tailnet.health.codes import Check, Code, Severity
from tailnet.health.flaps import FLAPPING
from tailnet.server.server import CoordinatorServer
from tailnet.services import health_probes, store_watch
from tailnet.services.health import Health, HealthReport
from tailnet.services.own_node import Unreachable
from tailnet.store import outbox
from tailnet.store.keys import ROTATE_AFTER
from tailnet.store.store import Store
from tests.support.certificates import client_context, issue, server_context
from tests.support.disks import full_disk
from tests.support.proxies import Front, open_front, open_page
from tests.support.seeds import agent_token, came, peer_id
from tests.support.tailnet_driver import AGENT, AGENT_DOOR, open_peer, wait_for
from tests.tailnet.server.test_store_away import REPORTS, until_not_ready

Serve = Callable[..., Awaitable[CoordinatorServer]]
WARNING, ERROR = Severity.WARNING, Severity.ERROR
MAIN = peer_id("main")


async def found(server: CoordinatorServer) -> dict[Code, tuple[Severity, str]]:
    """What a new report says, without the warning that every server of these tests deserves."""
    report = await server.health.report(0.0)
    return {each.code: (each.severity, each.what) for each in report.findings if each.code is not Code.ADDRESS_UNSET}


async def severities(server: CoordinatorServer) -> dict[Code, Severity]:
    return {code: severity for code, (severity, _) in (await found(server)).items()}


@pytest.fixture(autouse=True)
def _busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ping may take half a second where other tests run; the test of slow pings moves this bound itself."""
    monkeypatch.setattr(judge, "SLOW_RELAY_SECONDS", 60.0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes a moment."""
    monkeypatch.setattr(probe, "STUN_SECONDS", 0.4)  # our own answers on a busy machine too
    monkeypatch.setattr(store_watch, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(store_watch, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(outbox, "RETRY_SECONDS", (0.05,))
    monkeypatch.setattr(outbox, "WRITE_SECONDS", 0.05)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    async with open_front() as opened:
        yield opened


@pytest.fixture
async def behind(serve: Serve, front: Front) -> CoordinatorServer:
    """A server behind a proxy, by whose address peers reach it."""
    server = await serve(access_url=front.url)
    front.target = server.listening[0].port
    return server


async def test_a_server_that_is_well(behind: CoordinatorServer) -> None:
    report = await behind.health.report()
    assert report.findings == []
    assert [each.check for each in report.results] == list(Check)


@pytest.mark.stores
async def test_its_store_is_looked_at(server: CoordinatorServer, store_kind: str) -> None:
    assert await found(server) == {}
    assert server.health.last is not None
    readings: dict[Check, Any] = {each.check: each.reading for each in server.health.last.results}
    assert readings[Check.STORE].read_seconds > 0
    if store_kind == "postgresql":
        assert abs(readings[Check.CLOCK].ahead_seconds) < 5
        assert "own machine" in readings[Check.DISK].reason
    else:
        assert readings[Check.CLOCK].ahead_seconds is None
        assert readings[Check.DISK].free_bytes > 0


# --- from outside


async def test_an_address_that_the_settings_do_not_name(server: CoordinatorServer) -> None:
    [finding] = (await server.health.report()).findings
    assert (finding.code, finding.severity) == (Code.ADDRESS_UNSET, WARNING)
    assert str(server.listening[0].port) in finding.what


async def test_an_address_that_nobody_answers(serve: Serve) -> None:
    with trio.socket.socket() as closed:
        await closed.bind(("127.0.0.1", 0))
        server = await serve(access_url=f"http://127.0.0.1:{closed.getsockname()[1]}")
        faults = await found(server)
    assert {code: severity for code, (severity, _) in faults.items()} == dict.fromkeys(
        (Code.ADDRESS_UNREACHABLE, Code.RELAY_UNREACHABLE, Code.WEBSOCKET_UNREACHABLE), ERROR
    )
    assert all("nothing listens" in what for _, what in faults.values())


async def test_an_address_that_somebody_else_answers(serve: Serve) -> None:
    async with open_page(lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello") as page:
        server = await serve(access_url=page.url, derp_enabled=False, derp_map=())
        faults = await found(server)
    assert faults[Code.ADDRESS_UNREACHABLE][0] is ERROR
    assert "not as a coordinator" in faults[Code.ADDRESS_UNREACHABLE][1]


async def test_a_relay_that_the_proxy_keeps_away(behind: CoordinatorServer, front: Front) -> None:
    front.pass_on = lambda head: b"HTTP/1.1 502 Bad Gateway" if head.startswith(b"GET /derp") else head
    faults = await severities(behind)
    assert faults == {Code.RELAY_UNREACHABLE: ERROR, Code.WEBSOCKET_UNREACHABLE: ERROR}


async def test_a_relay_of_another_server(serve: Serve, behind: CoordinatorServer, front: Front, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    Store.open(other).close()
    front.target = (await serve(store=other)).listening[0].port
    assert await severities(behind) == {Code.RELAY_ANOTHER: ERROR}


async def test_a_proxy_that_drops_an_upgrade_it_does_not_know(behind: CoordinatorServer, front: Front) -> None:
    front.pass_on = lambda head: head.replace(b"Upgrade: DERP", b"X-Dropped: yes")
    faults = await found(behind)
    assert faults.keys() == {Code.RELAY_WITHOUT_UPGRADE}
    assert faults[Code.RELAY_WITHOUT_UPGRADE][0] is WARNING


async def test_a_proxy_that_passes_no_websocket_on(behind: CoordinatorServer, front: Front) -> None:
    front.pass_on = lambda head: b"HTTP/1.1 400 Bad Request" if b"sec-websocket-key" in head.lower() else head
    assert await severities(behind) == {Code.WEBSOCKET_UNREACHABLE: ERROR}


async def test_a_relay_that_is_slow(behind: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the world were smaller.
    monkeypatch.setattr(judge, "SLOW_RELAY_SECONDS", 0.0)
    assert await severities(behind) == {Code.RELAY_SLOW: WARNING}


async def test_a_relay_that_admits_nobody_admits_this_look(serve: Serve, front: Front) -> None:
    relay = load_config({"relay_allow_keys": str(NodePrivate.generate().public())}, {}, open_files=1 << 20).relay
    server = await serve(access_url=front.url, relay=relay)
    front.target = server.listening[0].port
    assert await severities(server) == {}


async def test_a_stun_server_that_is_silent(impatient: None, serve: Serve) -> None:
    with trio.socket.socket(type=trio.socket.SOCK_DGRAM) as deaf:
        await deaf.bind(("127.0.0.1", 0))
        server = await serve(stun_listen=(("127.0.0.1", 0),), stun_servers=(deaf.getsockname(),))
        faults = await found(server)
    assert faults.keys() == {Code.STUN_SILENT}
    assert f"UDP port {server.config.stun_servers[0][1]}" in faults[Code.STUN_SILENT][1], "our own one answers"


def put_certificate(folder: Path, days: float) -> TlsConfig:
    leaf = issue("127.0.0.1", valid=(timedelta(days=-80), timedelta(days=days)))
    (folder / "cert.pem").write_bytes(leaf.pem)
    (folder / "key.pem").write_bytes(leaf.key_pem)
    (folder / "key.pem").chmod(0o600)
    return TlsConfig(folder / "cert.pem", folder / "key.pem")


@pytest.mark.parametrize(("days", "severity"), [(30, None), (6, WARNING), (0.5, ERROR)])
async def test_a_certificate_that_ends(serve: Serve, tmp_path: Path, days: float, severity: Severity | None) -> None:
    server = await serve(tls=put_certificate(tmp_path, days))
    faults = await found(server)
    assert faults.pop(Code.CERTIFICATE_EXPIRES, (None, ""))[0] is severity


async def test_a_certificate_of_the_proxy_that_ends(serve: Serve, behind: CoordinatorServer) -> None:
    authority = issue(common_name="authority", is_authority=True)
    leaf = issue("127.0.0.1", issuer=authority, valid=(timedelta(days=-80), timedelta(hours=5)))
    context = server_context(leaf)
    async with open_page(lambda request: b"HTTP/1.1 404 Not Found\r\n\r\n", tls=context) as proxy:
        behind.probes.access_url = f"https://127.0.0.1:{proxy.port}"
        behind.probes.dial = health_probes.DialOptions(context=client_context(authority))
        faults = await found(behind)
    severity, what = faults[Code.CERTIFICATE_EXPIRES]
    assert severity is ERROR
    assert f"at https://127.0.0.1:{proxy.port}" in what


async def test_a_certificate_that_is_not_renewed(serve: Serve, tmp_path: Path) -> None:
    server = await serve(tls=put_certificate(tmp_path, 30))

    class Keeper:
        failures = 3

    server.probes.keeper = Keeper()
    assert (await severities(server))[Code.CERTIFICATE_RENEWAL] is WARNING


# --- the store


@pytest.mark.stores("sqlite")
async def test_a_store_that_takes_nothing(
    impatient: None, server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "LAG_SECONDS", (0.0, 60.0))
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        with full_disk():
            await until_not_ready(server)
            await peer.call(AGENT + REPORTS[0][0], REPORTS[0][1], REPORTS[0][2])
            await wait_for(lambda: server.outbox.readings()["logs"].waiting == 1)
            faults = await found(server)
    assert faults.keys() == {Code.STORE_AWAY, Code.OUTBOX_LAG}
    assert faults[Code.STORE_AWAY][0] is ERROR
    assert "the disk refuses" in faults[Code.STORE_AWAY][1]
    assert faults[Code.OUTBOX_LAG][0] is WARNING
    assert "(logs)" in faults[Code.OUTBOX_LAG][1] or "(presence)" in faults[Code.OUTBOX_LAG][1]


@pytest.mark.stores("sqlite")
async def test_reports_that_are_given_up(impatient: None, serve: Serve) -> None:
    server = await serve(max_waiting_report_bytes=100)
    async with open_peer(server, AGENT_DOOR, agent_token("main")) as peer:
        with full_disk():
            await until_not_ready(server)
            for _ in range(5):
                await peer.call(AGENT + REPORTS[0][0], REPORTS[0][1], REPORTS[0][2])
            faults = await severities(server)
    assert faults[Code.OUTBOX_LOST] is WARNING


async def test_a_store_that_is_slow(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "SLOW_READ_SECONDS", (0.0, 60.0))
    assert await severities(server) == {Code.STORE_SLOW: WARNING}


@pytest.mark.stores("sqlite")
async def test_two_servers_on_one_file(impatient: None, serve: Serve) -> None:
    first, second = await serve(), await serve()
    await wait_for(lambda: second.store_watch.servers == 2)
    assert await severities(second) == {Code.STORE_ISLANDS: ERROR}
    assert await severities(first) == {}, "the file is its own"


@pytest.mark.stores("postgresql")
@pytest.mark.parametrize(("off_by", "severity"), [(6, WARNING), (-120, ERROR)])
async def test_a_clock_that_is_not_the_databases(
    server: CoordinatorServer, off_by: float, severity: Severity, store_kind: str
) -> None:
    server.probes.clock = lambda: datetime.now(UTC) + timedelta(seconds=off_by)
    faults = await found(server)
    assert faults[Code.CLOCK_OFF][0] is severity
    assert ("ahead of" if off_by > 0 else "behind") in faults[Code.CLOCK_OFF][1]


@pytest.mark.stores
async def test_a_clock_that_went_back(server: CoordinatorServer, store_kind: str) -> None:
    came(server.store, MAIN, datetime.now(UTC) + timedelta(hours=2))
    assert await severities(server) == {Code.CLOCK_WENT_BACK: WARNING}


# --- the map


async def test_a_map_without_a_relay(serve: Serve) -> None:
    server = await serve(derp_enabled=False)
    assert await severities(server) == {Code.MAP_EMPTY: ERROR}


async def test_a_source_that_cannot_be_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with trio.socket.socket() as closed:
        await closed.bind(("127.0.0.1", 0))
        server = await serve(derp_map_url=(f"http://u:hunter2@127.0.0.1:{closed.getsockname()[1]}/",))
        severity, what = (await found(server))[Code.MAP_SOURCE_FAILED]
    assert severity is ERROR
    assert "hunter2" not in what


async def test_a_file_that_was_good_and_is_not(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text('{"Regions":{}}')
    server = await serve(derp_map=(path,))
    path.write_text("{")
    server.maps.reload_nowait()
    await wait_for(lambda: not server.maps.statuses[0].ok)
    severity, what = (await found(server))[Code.MAP_SOURCE_FAILED]
    assert severity is WARNING
    assert str(path) in what


async def test_a_map_with_a_slip_of_the_pen(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    node = {"Name": "901a", "RegionID": 901, "HostName": "r.example", "IPv4": "192.0.2.1", "HostNam": "r.example"}
    region = {"RegionID": 901, "RegionCode": "x", "RegionName": "X", "Nodes": [node]}
    path.write_text(json.dumps({"Regions": {"901": region}}))
    severity, what = (await found(await serve(derp_map=(path,))))[Code.MAP_LINT]
    assert severity is WARNING
    assert f"{path}: Regions.901.Nodes[0].HostNam" in what, "in the text of the file"
    assert "Regions.999" in what, "and in the whole"


# --- who is here, and what this machine does


async def test_an_agent_that_comes_again_and_again(server: CoordinatorServer) -> None:
    for _ in range(FLAPPING):
        assert await severities(server) == {}
        async with open_peer(server, AGENT_DOOR, agent_token("main")):
            await wait_for(lambda: server.presence.is_here(MAIN))
        await wait_for(lambda: not server.presence.is_here(MAIN))
    faults = await found(server)
    assert faults.keys() == {Code.AGENTS_FLAP}
    assert str(MAIN) in faults[Code.AGENTS_FLAP][1]


async def test_two_processes_with_one_id(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "HOLD_SECONDS", 0.01)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            peer = await stack.enter_async_context(open_peer(server, AGENT_DOOR, agent_token("main")))
            await peer.coordinate()
        await wait_for(lambda: server.entrance.fights.current(server.reactor.now))
        severity, what = (await found(server))[Code.PEER_FOUGHT_FOR]
    assert severity is WARNING
    assert f"{MAIN} 2 times, from 127.0.0.1:" in what


async def test_a_server_that_cannot_reach_into_agents(serve: Serve) -> None:
    server = await serve(derp_enabled=False)
    with trio.fail_after(60), pytest.raises(Unreachable):
        async with server.own_node.dial(MAIN, 4, "alice"):
            pass
    faults = await found(server)
    assert faults.keys() == {Code.MAP_EMPTY, Code.OWN_NODE_LOST}
    assert faults[Code.OWN_NODE_LOST] == (ERROR, f"agents cannot be reached into: {server.own_node.trouble}")


@pytest.mark.stores
async def test_resume_keys_that_nobody_replaced(serve: Serve, filled_url: str, store_kind: str) -> None:
    store = Store.open(filled_url)
    long_ago = datetime.now(UTC) - ROTATE_AFTER - timedelta(days=2)
    store.keys.rotate("resume token", long_ago, os.urandom)
    store.close()
    assert await severities(await serve()) == {Code.RESUME_KEYS_OLD: WARNING}


async def test_resume_keys_that_were_not_read(server: CoordinatorServer) -> None:
    with trio.fail_after(20):
        while True:
            planted = server.keys.read_at = datetime.now(UTC) - timedelta(minutes=31)
            faults = await severities(server)
            # A server reads them once more after its first look at callers, which may be now.
            if server.keys.read_at == planted:
                break
    assert faults == {Code.RESUME_KEYS_UNREAD: WARNING}


@pytest.mark.stores("sqlite")  # the disk of another server is not ours to look at
@pytest.mark.parametrize(("free", "severity"), [(1 << 29, WARNING), (1 << 20, ERROR)])
async def test_a_disk_that_is_nearly_full(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, severity: Severity
) -> None:
    usage = namedtuple("usage", "total used free")
    asked: list[Path] = []

    def disk_usage(path: Path) -> Any:
        asked.append(path)
        return usage(1 << 40, 0, free)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert await severities(server) == {Code.DISK_FULL: severity}
    assert asked == [tmp_path]


async def test_log_lines_that_nobody_reads(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    handler = log._Lines(stream, log._TextLine())
    root.handlers = [handler]
    try:
        monkeypatch.setattr(log, "MAX_HELD_BYTES", 100)
        for _ in range(3):
            logging.getLogger("derp").error("x" * 60)
        assert handler.writer.dropped_count > 0
        faults = await found(server)
    finally:
        root.handlers = before
        handler.writer.flush(1.0)
        stream.close()
        os.close(reader)
    assert faults[Code.LOG_LOST][0] is WARNING


async def test_keys_that_peers_of_two_tenants_announce(server: CoordinatorServer) -> None:
    server.relay_keys.contested += 3
    assert (await found(server))[Code.RELAY_KEYS_CONTESTED][0] is WARNING


# --- the checks themselves


async def test_a_check_that_breaks_is_told_and_the_others_go_on(server: CoordinatorServer) -> None:
    async def broken() -> Any:
        raise OSError(errno.EIO, "the disk has a fault")

    report: HealthReport = await Health(dict(server.probes.table()) | {Check.DISK: broken}).report()
    failed = {each.code: each.what for each in report.findings}
    assert failed[Code.CHECK_FAILED] == "disk: the disk has a fault"
    assert len(report.results) == len(Check)
