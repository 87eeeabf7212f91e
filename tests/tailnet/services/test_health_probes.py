"""Probes by themselves; with every fault planted in a server they are in tests/tailnet/server/test_health.py."""

from dataclasses import replace

import pytest
import trio

from tailnet.health.codes import Check
from tailnet.health.readings import AddressReading, Failed, OutboxReading, Skipped, StoreReading
from tailnet.server.server import CoordinatorServer
from tailnet.services import health_probes
from tailnet.services.health import Health
from tests.support.certificates import issue
from tests.support.proxies import open_page


async def test_every_check_has_its_probe(server: CoordinatorServer) -> None:
    assert list(server.probes.table()) == list(Check)
    for check, probe in server.probes.table().items():
        assert (await probe()).check is check


async def test_without_a_relay_its_checks_are_skipped(server: CoordinatorServer) -> None:
    probes = replace(server.probes, relay=None, region=None)
    for probe in (probes.reach_relay, probes.websocket, probes.stun):
        assert isinstance(await probe(), Skipped)


async def test_a_path_before_ours_is_kept(server: CoordinatorServer) -> None:
    async with open_page(lambda request: b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nOK\n") as page:
        reading = await replace(server.probes, access_url=f"{page.url}/tail/").address()
    assert isinstance(reading, AddressReading)
    assert reading.problem == ""
    assert [request.target for request in page.requests] == ["/tail/healthz"]


async def test_an_address_that_says_nothing(server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_probes, "DIAL_SECONDS", 0.05)
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 0))
        silent.listen()
        reading = await replace(server.probes, access_url=f"http://127.0.0.1:{silent.getsockname()[1]}").address()
    assert isinstance(reading, AddressReading)
    assert "no answer in time" in reading.problem


async def test_a_store_that_hangs_holds_up_its_own_check_alone(
    server: CoordinatorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read stays in its thread; the report does not wait for it."""
    gate = trio.Event()
    token = trio.lowlevel.current_trio_token()
    monkeypatch.setattr("tailnet.services.health.CHECK_SECONDS", 0.2)
    look = server.store.database.dialect.look

    def hang() -> None:
        trio.from_thread.run(gate.wait, trio_token=token)
        look()

    monkeypatch.setattr(server.store.database.dialect, "look", hang)
    table = server.probes.table()
    report = await Health({Check.STORE: table[Check.STORE], Check.LOG: table[Check.LOG]}).report()
    gate.set()
    assert isinstance(report.results[0].reading, Failed)
    monkeypatch.undo()
    reading = await server.probes.read_store()
    assert isinstance(reading, StoreReading)
    assert reading.problem == ""


async def test_an_outbox_without_reports(server: CoordinatorServer) -> None:
    await server.outbox.flush()
    reading = await server.probes.read_outbox()
    assert isinstance(reading, OutboxReading)
    assert (reading.waiting, reading.oldest_seconds, reading.lost) == (0, 0.0, {})


def test_certificates_are_measured_by_the_time_of_day() -> None:
    found = health_probes._certificate("here", issue("a.example").certificate)
    assert found.life_seconds == pytest.approx(31 * 86_400.0)
    assert found.left_seconds == pytest.approx(30 * 86_400.0, abs=60.0)
