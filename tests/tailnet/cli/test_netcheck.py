"""`tailnet netcheck` on a real coordinator."""

import json

import trio
from click.testing import CliRunner, Result

from tailnet.cli.root import cli
from tests.support.seeds import user_token
from tests.tailnet.client.test_rpc import url_of
from tests.tailnet.conftest import Serve


async def netcheck(url: str, *words: str) -> Result:
    return await trio.to_thread.run_sync(
        lambda: CliRunner().invoke(cli, ["netcheck", "--url", url, "--token", user_token("alice"), *words])
    )


async def test_what_a_user_is_told(serve: Serve) -> None:
    server = await serve(stun_listen=(("127.0.0.1", 0),))
    said = await netcheck(url_of(server))
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert "UDP             yes" in lines
    assert "home            999 (embedded)" in lines
    assert any(line.startswith("* 999") and " ms" in line for line in lines)


async def test_json_for_programs_where_stun_is_off(serve: Serve) -> None:
    said = await netcheck(url_of(await serve()), "--json")
    document = json.loads(said.stdout)
    assert (said.exit_code, document["event"], document["preferred"]) == (0, "netcheck", 999)
    assert set(document["region_seconds"]) == {"999"}
    assert document["verdicts"] == ["the map names no relay with STUN: whether UDP works is unknown"]


async def test_a_map_with_nothing_to_measure(serve: Serve) -> None:
    said = await netcheck(url_of(await serve(derp_enabled=False)))
    assert said.exit_code != 0
    assert "has no regions" in str(said.exception)
