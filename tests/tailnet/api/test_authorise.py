"""Agents in paths, origins of browsers, operators by address or token."""

from ipaddress import ip_network

import pytest
import trio
from trio.testing import MockClock

from derp.config.relay import LOOPBACK
from tailnet import refusals
from tailnet.api.authorise import authorise_agent, check_operator, check_origin
from tailnet.auth.callers import CHECK_SECONDS
from tailnet.refusals import Refused
from tailnet.store.rows import Right, Role
from tests.support.administration import grant
from tests.support.api_world import World
from tests.support.seeds import NOW, make_id, peer_id, user_token

pytestmark = pytest.mark.stores

PROXY = (ip_network("10.0.0.0/8"),)


@pytest.mark.parametrize("text", [str(peer_id("main")), str(peer_id("main")).upper()])
async def test_an_agent_of_ones_own(world: World, text: str) -> None:
    alice = await world.services.callers.user(user_token("alice"))
    agent = await authorise_agent(world.services.callers, alice, text, Right.SSH)
    assert agent.id == peer_id("main")


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("x", 400, 'Invalid UUID "x".'),
        ("g" * 36, 400, f'Invalid UUID "{"g" * 36}".'),
        ("x" * 5000, 400, f'Invalid UUID "{"x" * 80}".'),
        (str(peer_id("nobody")), 404, refusals.NO_SUCH_AGENT),
        (str(peer_id("web")), 404, refusals.NO_SUCH_AGENT),  # bob's: no difference to see
    ],
)
async def test_agents_that_are_not_there_for_the_caller(world: World, text: str, status: int, message: str) -> None:
    alice = await world.services.callers.user(user_token("alice"))
    with pytest.raises(Refused) as caught:
        await authorise_agent(world.services.callers, alice, text, Right.READ)
    assert (caught.value.status, caught.value.message) == (status, message)
    assert bool(caught.value.detail) == (status == 400)


async def test_what_others_were_granted(world: World, autojump_clock: MockClock) -> None:
    async def may(right: Right) -> int:
        bob = await world.services.callers.user(user_token("bob"))
        try:
            await authorise_agent(world.services.callers, bob, str(peer_id("main")), right)
        except Refused as refused:
            return refused.status if refused.message == refusals.NO_SUCH_RESOURCE else -refused.status
        return 200

    assert [await may(right) for right in Right] == [-404] * 4  # as if there were no such agent
    grant(world.store, "dev", "bob", Right.UPDATE)
    await trio.sleep(CHECK_SECONDS)
    assert [await may(right) for right in Right] == [200, 404, 404, 200]


@pytest.mark.parametrize(
    ("origin", "host", "fine"),
    [
        ("", "tailnet.example.com", True),
        ("https://tailnet.example.com", "tailnet.example.com", True),
        ("https://TAILNET.example.com", "tailnet.example.com", True),
        ("http://127.0.0.1:3000", "127.0.0.1:3000", True),
        ("https://public.example.com", "inner:3000", True),  # the access URL, behind a proxy
        ("https://evil.example.com", "tailnet.example.com", False),
        ("https://tailnet.example.com.evil.example.com", "tailnet.example.com", False),
        ("https://tailnet.example.com:8443", "tailnet.example.com", False),
        ("null", "tailnet.example.com", False),
        ("null", "", False),
        ("http://[broken", "tailnet.example.com", False),
    ],
)
def test_origins(origin: str, host: str, fine: bool) -> None:
    headers = {"origin": origin, "host": host} if origin else {"host": host}
    if fine:
        check_origin(headers, "https://public.example.com")
    else:
        with pytest.raises(Refused) as caught:
            check_origin(headers, "https://public.example.com")
        assert caught.value.status == 403


@pytest.mark.parametrize(
    ("address", "headers", "fine"),
    [
        ("127.0.0.1", {}, True),
        ("::1", {}, True),
        ("::ffff:127.0.0.1", {}, True),
        ("203.0.113.9", {}, False),
        ("", {}, False),
        # A proxy on our own machine that nobody declared: everybody would look like it.
        ("127.0.0.1", {"x-forwarded-for": "203.0.113.9"}, False),
        ("127.0.0.1", {"x-forwarded-for": "127.0.0.1"}, False),
        ("127.0.0.1", {"x-real-ip": "127.0.0.1"}, False),
        ("127.0.0.1", {"forwarded": "for=127.0.0.1"}, False),
        ("127.0.0.1", {"via": "1.1 proxy"}, False),
        ("127.0.0.1", {"x-forwarded-for": ""}, False),  # somebody stands between, and says nothing
        ("10.0.0.1", {"x-forwarded-for": "127.0.0.1:51234"}, True),
        ("10.0.0.1", {"x-forwarded-for": "203.0.113.9:51234"}, False),
        ("10.0.0.1", {"x-forwarded-for": "[::1]:443"}, True),
        # A proxy that is trusted says who it saw; what stands further left is the caller's own invention.
        ("10.0.0.1", {"x-forwarded-for": "127.0.0.1"}, True),
        ("10.0.0.1", {"x-forwarded-for": "127.0.0.1, 10.0.0.2"}, True),
        ("10.0.0.1", {"x-forwarded-for": "127.0.0.1, 203.0.113.9"}, False),
        ("10.0.0.1", {"x-forwarded-for": "nonsense"}, False),
        ("10.0.0.1", {"x-forwarded-for": "10.0.0.2"}, False),
        ("10.0.0.1", {"x-real-ip": "127.0.0.1"}, False),
    ],
)
async def test_operators_by_address(world: World, address: str, headers: dict[str, str], fine: bool) -> None:
    async def check() -> None:
        await check_operator(world.services.callers, address, headers, {}, LOOPBACK, PROXY)

    if fine:
        await check()
    else:
        with pytest.raises(Refused) as caught:
            await check()
        assert caught.value.status == 403


async def test_operators_by_a_name_that_is_not_ours(world: World) -> None:
    async def check(host: str, address: str = "127.0.0.1") -> None:
        await check_operator(world.services.callers, address, {"host": host}, {}, LOOPBACK, PROXY, ("coord.example",))

    await check("coord.example:3000")
    await check("localhost:3000")
    with pytest.raises(Refused, match="Closed to strangers") as caught:
        await check("evil.example:3000")
    assert "'evil.example:3000'" in caught.value.detail


async def test_operators_by_token(world: World) -> None:
    async def check(token: str) -> None:
        await check_operator(world.services.callers, "203.0.113.9", {"coder-session-token": token}, {}, LOOPBACK, ())

    world.store.callers.update_user(make_id("alice"), NOW, role=Role.ADMIN)
    await check(user_token("alice"))
    for token in (user_token("bob"), "nonsense", user_token("alice")[:-1] + "z"):
        with pytest.raises(Refused) as caught:
            await check(token)
        assert caught.value.status == 403


async def test_an_operator_hears_of_a_store_that_fails(world: World) -> None:
    with world.store.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE counters RENAME TO lost")
    with pytest.raises(Refused) as caught:
        await check_operator(
            world.services.callers, "203.0.113.9", {"coder-session-token": user_token("alice")}, {}, LOOPBACK, ()
        )
    assert caught.value.status == 503
