"""`/`: a page for whoever comes by, which says no more than the probes do."""

import pytest

from tests.support.api_world import STRANGER, World


@pytest.mark.parametrize("reasons", [[], ["the store <does> not answer"]])
async def test_what_this_is_is_it_well_and_where_to_look(world: World, reasons: list[str]) -> None:
    world.reasons.extend(reasons)
    async with world.client(STRANGER) as client:
        answer = await client.get("/")
        head = await client.head("/")
        ready = await client.get("/readyz")
    assert answer.status_code == head.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = answer.text
    assert "A tailnet&#x27;s coordinator" in page or "A tailnet's coordinator" in page
    assert ("not ready: the store &lt;does&gt; not answer" in page) is bool(reasons)
    assert (ready.status_code == 200) is not bool(reasons)
    for path in ("/healthz", "/readyz", "/debug/", "/metrics", "/api/v2/openapi.json"):
        assert f'href="{path}"' in page


async def test_it_tells_strangers_no_version(world: World) -> None:
    from tailnet import __version__

    async with world.client(STRANGER) as client:
        assert __version__ not in (await client.get("/")).text


async def test_other_paths_are_still_no_page(world: World) -> None:
    async with world.client(STRANGER) as client:
        answer = await client.get("/nowhere")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json; charset=utf-8")
