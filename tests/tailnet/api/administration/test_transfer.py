"""Streams of lines over HTTP: results in order, and an export that a bulk change takes."""

import json
from typing import Any

from tailnet.services.administration.service import Administration
from tests.support.administration import AdminWorld, agent_line, everything
from tests.support.seeds import make_id, peer_id


def results(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


async def test_a_result_for_each_line_in_order(world: AdminWorld) -> None:
    lines = [agent_line(f"agent {number}") for number in range(600)]
    lines[300] = b"{malformed\n"
    async with world.client() as client:
        response = await client.post("bulk", content=b"".join(lines))
        assert response.headers["content-type"] == "application/x-ndjson"
        found = results(response.text)
        assert [each["line"] for each in found] == list(range(1, 601))
        wrong = found.pop(300)
        assert (wrong["status"], wrong["problem"]["code"], "result" in wrong) == (400, "invalid", False)
        assert {each["status"] for each in found} == {201}
        again = results((await client.post("bulk", content=b"".join(lines))).text)
        assert [each["status"] for each in again] == [200] * 300 + [400] + [200] * 299
        assert [each["etag"] for each in again if "etag" in each] == [each["etag"] for each in found]
        shown = await client.get(f"agents/{make_id('agent 599')}")
        assert shown.headers["etag"] == f'"{found[-1]["etag"]}"'


async def test_lines_come_in_pieces(world: AdminWorld) -> None:
    text = agent_line("one") + agent_line("two")

    async def pieces() -> Any:
        for at in range(0, len(text), 11):
            yield text[at : at + 11]

    async with world.client() as client:
        found = results((await client.post("bulk", content=pieces())).text)
    assert [each["result"] for each in found] == ["created", "created"]
    assert world.store.callers.get_agent(peer_id("two")) is not None


async def test_no_line_and_no_sense(world: AdminWorld) -> None:
    async with world.client() as client:
        assert (await client.post("bulk", content=b"")).text == ""
        assert (await client.post("bulk", content=b"\n\n")).text == ""
        before = everything(world.store)
        found = results((await client.post("bulk", content=b"[]\nnull\n\xff\n" + b"[" * 10_000)).text)
        assert [each["status"] for each in found] == [400] * 4
        response = await client.post("bulk", content=agent_line("one"), headers={"Idempotency-Key": "5ac0"})
        assert (response.status_code, response.json()["errors"][0]["field"]) == (400, "Idempotency-Key")
        assert everything(world.store) == before


async def test_an_export_is_what_bulk_takes(world: AdminWorld) -> None:
    async with world.client() as client:
        response = await client.get("export")
        assert response.headers["content-type"] == "application/x-ndjson"
        found = results((await client.post("bulk", content=response.content)).text)
        assert len(found) == len(response.text.splitlines()) > 5
        assert {each["result"] for each in found} == {"unchanged"}
        assert (await client.get("export")).content == response.content
    assert isinstance(world.services.administration, Administration)
