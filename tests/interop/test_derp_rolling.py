"""100 genuine clients that talk in pairs while every relay of their region is replaced: nothing is lost."""

from functools import partial
from typing import Any, Literal

import pytest
import trio

from derp.relay.mailbox import MAILBOX_SECONDS
from tests.support.gobuild import DERPROLLING, DERPROLLING_WEBSOCKET
from tests.support.peers import PATIENCE_SECONDS, require
from tests.support.regions import Region, open_region
from tests.support.relay_command import RelayKind
from tests.support.relays import Relay, open_relay
from tests.support.rolling import roll

pytestmark = pytest.mark.interop

Way = Literal["SIGTERM", "SIGUSR2"]


def mesh_connections(region: Region) -> int:
    """How often relays of the region have told that they meshed with another one."""
    return sum((folder / "output").read_text().count('"event": "mesh_connected"') for folder in region.folders)


async def wait_meshed(region: Region, count: int) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while mesh_connections(region) < count:  # noqa: ASYNC110  # other processes tell by what they write
            await trio.sleep(0.02)


async def replace(region: Region, number: int, way: Way) -> None:
    if way == "SIGUSR2":
        await region.hand_over(number)
        return
    meshed = mesh_connections(region)
    await region.stop(number)
    await region.start(number, "ours")
    await wait_meshed(region, meshed + 2)


async def replace_all(region: Region, way: Way, elsewhere: Relay | None = None) -> dict[str, Any]:
    """What the clients saw while one relay after the other was replaced."""
    home = None if elsewhere is None else (region.stun_ports, (elsewhere.port, elsewhere.stun_port))
    turn = partial(replace, region, way=way)
    with trio.fail_after(3 * PATIENCE_SECONDS):
        return await roll(require(DERPROLLING), region.ports, turn, clients=100, period="200ms", home=home)


@pytest.mark.parametrize(("count", "way"), [(2, "SIGTERM"), (2, "SIGUSR2"), (1, "SIGUSR2")])
async def test_genuine_clients_lose_nothing(count: int, way: Way) -> None:
    kinds: list[RelayKind] = ["ours"] * count
    async with open_region(*kinds) as region, open_relay("ours", tls=True, stun=True) as elsewhere:
        await wait_meshed(region, count * (count - 1))
        found = await replace_all(region, way, elsewhere)
    assert found["connects"] >= 200, "everybody came again"
    seen = {name: found[name] for name in ("lost", "refused", "twice", "gone")}
    if any(seen.values()) and found["silence_ms"]["max"] > 1000 * MAILBOX_SECONDS / 2:
        pytest.skip(f"this machine stood still for longer than a relay keeps packets: {found}")
    assert seen == {"lost": 0, "refused": 0, "twice": 0, "gone": 0}
    assert found["reports"] > 1
    assert found["home_moves"] == 0, "a genuine netcheck stays with the region"


@pytest.mark.parametrize("records", ["openssl", "own"])
async def test_genuine_websocket_clients_lose_nothing(records: str) -> None:
    async with open_region("ours", extra=(f"--tls-records={records}",)) as region:
        with trio.fail_after(3 * PATIENCE_SECONDS):
            found = await roll(
                require(DERPROLLING_WEBSOCKET),
                region.ports,
                partial(replace, region, way="SIGUSR2"),
                clients=20,
                period="100ms",
                trusted=region.authority,
            )
    assert found["connects"] == (20 if records == "own" else 40)
    seen = {name: found[name] for name in ("lost", "refused", "twice", "gone")}
    assert seen == {"lost": 0, "refused": 0, "twice": 0, "gone": 0}


async def test_genuine_clients_go_along_where_tls_records_are_ours() -> None:
    async with open_region("ours", extra=("--tls-records=own",)) as region:
        found = await replace_all(region, "SIGUSR2")
    seen = {name: found[name] for name in ("connects", "lost", "refused", "twice", "gone")}
    assert seen == {"connects": 100, "lost": 0, "refused": 0, "twice": 0, "gone": 0}
