"""Names and reasons that strangers, maps and servers choose move no cursor: every output writes them out."""

import json
import logging
from pathlib import Path

import pytest
import trio

from derp.client.probe import Outcome, ProbeKind, ProbeResult
from derp.client.probe_metrics import RunTotals, exposition
from derp.keys import NodePrivate
from derp.protocol.messages import Health, encode
from tests.derp.server.test_door import last_get
from tests.derp.server.world import ask, call, open_server
from tests.support.command import run_derp
from tests.support.inprocess import node_of, open_relay_here, port_of
from tests.support.sites import Site, answer

# Clears the screen, sets the title, moves up, in one byte as C1, turns the reading direction, poses as another line.
HOSTILE = "evil\x1b[2J\x1b]0;owned\x07\x9b1A\u202e\r\n0 all is well"
WRITTEN = "evil\\x1b[2J\\x1b]0;owned\\x07\\x9b1A\\u202e\\r\\n0 all is well"


def is_clean(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n")) and "\n0 all is well" not in text


def hostile_map(*nodes: dict[str, object]) -> str:
    document = {"RegionID": 900, "RegionCode": HOSTILE, "RegionName": HOSTILE, "Nodes": list(nodes)}
    return json.dumps({"Regions": {"900": document}, HOSTILE: 1})


@pytest.mark.parametrize("command", [("map", "show"), ("map", "lint"), ("netcheck",), ("probe",)], ids=" ".join)
async def test_names_of_a_map(command: tuple[str, ...], tmp_path: Path) -> None:
    node = {"Name": HOSTILE, "RegionID": 900, "HostName": HOSTILE, "CertName": HOSTILE, "IPv4": "127.0.0.1"}
    (tmp_path / "map.json").write_text(hostile_map(node | {"DERPPort": 1, "STUNPort": 1, "IPv6": HOSTILE}))
    ran = await run_derp(*command, str(tmp_path / "map.json"))
    assert is_clean(ran.out + ran.err), ran.out + ran.err
    assert "evil" in ran.out + ran.err
    assert "Traceback" not in ran.err


async def test_a_good_region_with_a_hostile_name(tmp_path: Path) -> None:
    async with open_relay_here(tls=False) as server:
        (tmp_path / "map.json").write_text(hostile_map(node_of(server, 900).to_json()))
        for command in ("netcheck", "probe"):
            ran = await run_derp(command, str(tmp_path / "map.json"))
            assert ran.status == 0, ran.out + ran.err
            assert is_clean(ran.out + ran.err)
            assert "evil\\x1b" in ran.out


def test_labels_of_metrics() -> None:
    result = ProbeResult(ProbeKind.TLS, 900, HOSTILE, HOSTILE, outcome=Outcome.GOOD)
    totals = RunTotals()
    totals.note_run([result], 1.0)
    totals.note_run([result], 1.0)
    assert list(totals.tries.values()) == [(2, 0)]  # and it is known again
    page = exposition([result], 0.0, totals).decode()
    assert is_clean(page)
    assert "evil" in page


@pytest.mark.parametrize("kind", ["title", "reason", "location"])
async def test_what_a_server_answers_in_place_of_a_relay(kind: str, nursery: trio.Nursery) -> None:
    site = Site()
    said = HOSTILE.replace("\r\n", " ")
    page = f"<html><title>{said}</title>".encode()
    site.respond = lambda head: {
        "title": answer(page, "Content-Type: text/html", status="403 Forbidden"),
        "reason": answer(page, status="403 For\x7fbidden"),
        "location": answer(b"", f"Location: http://x/{said}".replace("\x07", ""), status="302 Found"),
    }[kind]
    await nursery.start(site.serve)
    ran = await run_derp("ping", "--count", "1", "--via", site.url.removesuffix("/map.json"))
    assert ran.status == 1
    assert is_clean(ran.err)


async def test_what_a_relay_says_of_its_health(nursery: trio.Nursery) -> None:
    async with open_relay_here(tls=False) as server:

        async def complain(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            while not server.relay.router.clients:
                await trio.lowlevel.checkpoint()
            for client in server.relay.router.clients.values():
                server.relay.router.send(client, encode(Health(HOSTILE)))
            server.relay.host.flush()

        await nursery.start(complain)
        ran = await run_derp("ping", "--count", "2", f"--via=http://127.0.0.1:{port_of(server)}")
        assert ran.status == 0
        assert is_clean(ran.out + ran.err)


async def test_pages_and_log_of_a_relay(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "derp")
    async with open_server() as server:
        caller = await call(server)
        (client,) = server.relay.router.clients.values()
        client.app_name = HOSTILE
        stranger = NodePrivate.generate()
        server.relay.sessions.departures.note(stranger.public().raw, 0.0, HOSTILE)
        server.relay.sessions.departures.note(caller.key[::-1], 0.0, HOSTILE, was_refused=True)
        hostile_query = last_get(b"/debug/why?key=%1b%5B2J%0A0%20all%20is%20well")
        paths = [*server.pages.pages, f"/debug/why?key=nodekey:{caller.key[::-1].hex()}"]
        pages = [await ask(server, last_get(path.encode())) for path in paths]
        pages.append(await ask(server, hostile_query))
        await caller.aclose()
    for page in pages:
        assert is_clean(page.decode().replace("\r\n", "\n").replace("\t", " ")), page
    assert any(WRITTEN in page.decode() for page in pages)
