"""What an operator sees of a relay with several workers, whichever of them answers."""

import json
from pathlib import Path

from derp.keys import NodePrivate
from derp.protocol.messages import RecvPacket
from tests.derp.server.workers_world import call_many, clients_by_worker, open_workers, page
from tests.derp.server.world import Caller, ask, call

MANY = 12
# Whoever answers: the kernel chooses anew with each request.
ASKED = 6


async def test_every_page_is_of_all_workers(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers:
        here, there = (await clients_by_worker(relay)).values()
        assert here
        assert there
        assert {*here, *there} >= {caller.key for caller in callers}
        sender = next(caller for caller in callers if caller.key in here)
        receiver = next(caller for caller in callers if caller.key in there)
        await sender.send(receiver.key, b"12345")
        assert (await receiver.receive_a(RecvPacket)).packet == b"12345"
        for _ in range(ASKED):
            numbers = numbers_of(await page(relay, "/metrics"))
            own = numbers["derp_connections"] - MANY
            assert own in (0, 1, 2), "the check of each worker is a client, and not counted"
            assert numbers["derp_clients"] == numbers["derp_connections"]
            assert numbers["derp_clients_remote"] == 0
            listed = json.loads(await page(relay, "/debug/clients/?all=1&format=json"))
            assert {row["key"] for row in listed["clients"]} >= {f"nodekey:{caller.key.hex()}" for caller in callers}
            assert listed["conns"] == len(listed["clients"])
            assert "<h2>Workers</h2>" in await page(relay, "/debug/")
            assert (await page(relay, "/debug/check")).endswith(" okay\n")
            why = await page(relay, f"/debug/why?from=nodekey:{sender.key.hex()}&to=nodekey:{receiver.key.hex()}")
            assert "is here since" in why
            assert "packets go to the worker that has the second" in why


async def test_a_key_that_is_on_two_workers_is_one_client(tmp_path: Path) -> None:
    private, callers = NodePrivate.generate(), list[Caller]()
    async with open_workers(tmp_path) as relay:
        on: set[int] = set()
        while len(on) < 2:
            callers.append(await call(relay, private=private))
            await callers[-1].ping()
            on = {slot for slot, keys in (await clients_by_worker(relay)).items() if callers[0].key in keys}
        for _ in range(ASKED):
            numbers = numbers_of(await page(relay, "/metrics"))
            assert (numbers["derp_clients"], numbers["derp_duplicate_keys"]) == (1, 1)
            assert numbers["derp_connections"] == len(callers)
        for caller in callers:
            await caller.aclose()


async def test_the_list_of_the_busiest_has_all_clients_of_all_workers(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, 5 * MANY) as callers:
        rows = json.loads(await page(relay, "/debug/clients"))
        assert {row["key"] for row in rows} >= {f"nodekey:{caller.key.hex()}" for caller in callers}


async def test_a_page_of_clients_goes_on_where_the_one_before_ended(tmp_path: Path) -> None:
    async with open_workers(tmp_path) as relay, call_many(relay, MANY) as callers:
        got: list[str] = []
        query = "?app=&sort=key&limit=5&format=json"
        while query:
            found = json.loads(await page(relay, f"/debug/clients/{query}"))
            got += [row["key"] for row in found["clients"]]
            assert found["conns"] == MANY
            query = found.get("next", "")
        assert got == sorted(f"nodekey:{caller.key.hex()}" for caller in callers)


async def test_strangers_have_nobody_asked(tmp_path: Path) -> None:
    settings = tmp_path / "settings.toml"
    settings.write_text(f'listen = "127.0.0.1:0"\nkey_file = "{tmp_path}/key"\nstun_port = 0\ndebug_allow = []\n')
    async with open_workers(tmp_path) as relay:
        answer = await ask(relay, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403")


def numbers_of(text: str) -> dict[str, float]:
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
    }
