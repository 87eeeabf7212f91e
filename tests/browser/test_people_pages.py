"""Pages for people in a real browser: signing in, all agents, one agent live, without scripts too, by keyboard, on a
phone; and whatever an agent says of itself is shown and does nothing."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from selenium.common.exceptions import StaleElementReferenceException

from derp.keys import NodePrivate
from tailnet.client.coordination import client_door, make_node, open_coordination, own_id
from tailnet.client.rpc import open_rpc_client
from tailnet.proto.generated import agent_pb2 as proto
from tailnet.types import PeerID
from tests.support.browser import LAPTOP, PATIENCE_SECONDS, PHONE, Window, look, require_browser
from tests.support.reporting_agent import ReportingAgent, open_reporting_agent
from tests.support.seeds import definitions, make_id
from tests.support.tailnet_servers import Agent, Seed, Server, User, running_server

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
# What a terminal obeys: a colour, a title, a cleared screen; and a character that turns the rest of a line round.
TERMINAL = "\x1b[31mred\x1b[0m \x1b]0;title\x07after\x1b[2J \u202etxet \x00"


@dataclass(frozen=True)
class Place:
    server: Server
    alice: User
    main: Agent  # has apps, scripts and metadata
    spare: Agent  # has nothing, and never comes

    @property
    def main_page(self) -> str:
        return f"{self.server.url}/agents/{self.main.id}"


@asynccontextmanager
async def place(folder: Path) -> AsyncIterator[Place]:
    require_browser()
    seed = Seed()
    alice = seed.add_user("alice")
    main, spare = seed.add_agent(alice), seed.add_agent(alice)
    seed.definitions[main.id] = definitions()
    with running_server("ours", folder, seed) as server:
        yield Place(server, alice, main, spare)


@asynccontextmanager
async def agent_of(place: Place) -> AsyncIterator[ReportingAgent]:
    async with open_reporting_agent(place.server.url, place.main.token, PeerID(place.main.id.bytes)) as agent:
        await agent.start()
        await agent.meet(999, {"999-v4": 0.013})
        yield agent


def sign_in(window: Window, place: Place, path: str = "/") -> None:
    window.go(place.server.url + path)
    window.fill("form[action='/login']", token=place.alice.token)


def wait_until(window: Window, holds: Callable[[], bool]) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    # Between two documents an element of the first one is stale.
    WebDriverWait(window.driver, PATIENCE_SECONDS, ignored_exceptions=[StaleElementReferenceException]).until(
        lambda _: holds()
    )


async def test_signing_in_and_out(tmp_path: Path) -> None:
    async with place(tmp_path) as here:

        def use(window: Window) -> None:
            window.go(here.main_page)
            assert "Sign in to see your agents" in window.text()
            window.fill("form", token="0123456789-0123456789012345678901")
            assert "That did not work." in window.text()
            window.fill("form", token=here.alice.token)
            assert window.driver.current_url == here.main_page, "back to what was asked for"
            assert window.driver.execute_script("return document.cookie") == "", "no script reads the token"
            cookie = window.driver.get_cookie("coder_session_token")
            assert (cookie["value"], cookie["httpOnly"], cookie["sameSite"]) == (here.alice.token, True, "Lax")
            window.click("all agents")
            assert window.texts("td a") == [here.main.name, here.spare.name]
            window.press("header button")
            assert window.driver.get_cookies() == []
            window.go(here.server.url)
            assert "Sign in to see your agents" in window.text()

        await look(use)


async def test_an_agent_is_shown_live(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        opened, came, more, gone = (trio.Event() for _ in range(4))
        token = trio.lowlevel.current_trio_token()

        def reach(event: trio.Event) -> None:
            token.run_sync_soon(event.set)

        def use(window: Window) -> None:
            sign_in(window, here)
            window.go(here.main_page)
            wait_until(window, lambda: "Live." in window.texts("#live"))
            assert "connecting" in window.texts("#state")[0]
            reach(opened)
            wait_until(window, lambda: "connected" in window.texts("#state")[0].split())
            wait_until(window, lambda: "13 ms, its home" in window.texts("#state")[0])
            wait_until(window, lambda: "line 19" in window.texts("#logs")[0])
            wait_until(window, lambda: "42 %" in window.texts("#metadata")[0])
            wait_until(window, lambda: "healthy" in window.texts("#apps")[0].split())
            wait_until(window, lambda: "192.0.2.7" in window.texts("#connections")[0])
            reach(came)
            wait_until(window, lambda: "the last line" in window.texts("#logs")[0])
            lines = [each.partition(" ")[2] for each in window.texts("#logs p")]
            assert lines == [*(f"line {number}" for number in range(20)), "error the last line"]
            reach(more)
            wait_until(window, lambda: "disconnected" in window.texts("#state")[0])
            assert "agent has lost connection" in window.texts("#state")[0]
            assert window.complaints() == []
            reach(gone)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, use)
            with trio.fail_after(120):
                await opened.wait()
                async with agent_of(here) as agent:
                    await agent.log(*(f"line {number}" for number in range(20)))
                    await agent.metadata({"cpu": "42 %"})
                    await agent.health(make_id("editor of main"), proto.HEALTHY)
                    await agent.status("shell", "at work")
                    await agent.session("192.0.2.7", "bye")
                    await agent.lifecycle(proto.Lifecycle.READY)
                    await came.wait()
                    await agent.log("the last line", level=proto.Log.ERROR)
                    await more.wait()
                await gone.wait()


async def test_the_list_is_live(tmp_path: Path) -> None:
    async with place(tmp_path) as here:
        opened, seen = trio.Event(), trio.Event()
        token = trio.lowlevel.current_trio_token()

        def use(window: Window) -> None:
            sign_in(window, here)
            wait_until(window, lambda: "Live." in window.texts("#live"))
            link = window.driver.find_element("link text", here.main.name)
            window.driver.execute_script("arguments[0].focus()", link)
            token.run_sync_soon(opened.set)
            wait_until(window, lambda: "connected" in window.texts("#agents tr:nth-child(1) td:nth-child(3)"))
            row = window.texts("#agents tbody tr")[0]
            assert "v2.20.0" in row
            assert "ago" in row
            focused = window.driver.execute_script("return document.activeElement.textContent")
            assert focused == here.main.name, "who goes through it by keyboard stays where he is"
            window.shoot("people-laptop-list")
            token.run_sync_soon(seen.set)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look, use)
            with trio.fail_after(120):
                await opened.wait()
                async with agent_of(here):
                    await seen.wait()


async def say_everything(agent: ReportingAgent) -> None:
    """And all of it as somebody would who means harm."""
    await agent.log(HOSTILE, TERMINAL, "ordinary", level=proto.Log.WARN)
    await agent.metadata({"cpu": HOSTILE, "disk": "one\ntwo" + TERMINAL})
    await agent.health(make_id("editor of main"), proto.UNHEALTHY)
    await agent.status("shell", HOSTILE)
    await agent.session("192.0.2.7", HOSTILE)
    await agent.lifecycle(proto.Lifecycle.START_ERROR)


@pytest.mark.parametrize(("name", "size"), [("laptop", LAPTOP), ("phone", PHONE)])
async def test_hostile_text_is_text_and_every_page_fits(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    async with place(tmp_path) as here, agent_of(here) as agent:
        await say_everything(agent)
        async with open_rpc_client(here.server.url, client_door(agent.peer_id), here.alice.token) as client:
            client_id = await own_id(client)
            coordination = await open_coordination(client)
            await coordination.announce(make_node(NodePrivate.generate(), client_id, 999))
            await coordination.add_tunnel(agent.peer_id)
            await coordination.receive()

            def use(window: Window) -> None:
                window.go(here.server.url)
                window.shoot(f"people-{name}-sign-in")
                assert window.overflow() <= 0
                sign_in(window, here)
                wait_until(window, lambda: "Live." in window.texts("#live"))
                window.shoot(f"people-{name}-agents")
                assert window.overflow() <= 0
                window.click(here.main.name)
                wait_until(window, lambda: HOSTILE in window.texts("#logs")[0])
                wait_until(window, lambda: HOSTILE in window.texts("#metadata")[0])
                wait_until(window, lambda: HOSTILE in window.texts("#connections")[0])
                assert "red after \\u202etxet \ufffd" in window.texts("#logs")[0]
                assert "Each has a tunnel" in window.text() or f"{client_id} has a tunnel" in window.text()
                window.fill("form[action='#why']", peer=str(make_id("nobody")))
                assert "No tunnel joins" in window.texts("#why")[0]
                wait_until(window, lambda: "Live." in window.texts("#live"))
                window.shoot(f"people-{name}-agent")
                assert window.overflow() <= 0
                assert window.driver.find_elements("css selector", "#logs img, td img, td script") == []
                assert window.complaints() == [], "the policy had nothing to forbid"

            await look(use, size)


async def test_without_scripts_pages_are_whole(tmp_path: Path) -> None:
    async with place(tmp_path) as here, agent_of(here) as agent:
        await say_everything(agent)

        def use(window: Window) -> None:
            sign_in(window, here)
            window.click(here.main.name)

            def shown() -> bool:
                window.driver.refresh()
                return "ordinary" in window.texts("#logs")[0] and "192.0.2.7" in window.texts("#connections")[0]

            wait_until(window, shown)
            assert "reload for news" in window.text()
            assert "start error" in window.texts("#state")[0]
            window.press("header button")
            assert "Sign in" in window.text()

        await look(use, LAPTOP, "--blink-settings=scriptEnabled=false")


async def test_by_keyboard_alone(tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    async with place(tmp_path) as here:

        def use(window: Window) -> None:
            def type_keys(*keys: str) -> None:
                window.driver.switch_to.active_element.send_keys(*keys)

            def tab_to(text: str) -> None:
                for _ in range(20):
                    type_keys(Keys.TAB)
                    element = window.driver.switch_to.active_element
                    if element.tag_name != "body" and text in (element.get_attribute("outerHTML") or ""):
                        return
                raise AssertionError(f"nothing with {text} is reached")

            window.go(here.server.url)
            tab_to("password")
            type_keys(here.alice.token, Keys.ENTER)
            wait_until(window, lambda: "Agents" in window.texts("h1"))
            tab_to(f"/agents/{here.main.id}")
            type_keys(Keys.ENTER)
            wait_until(window, lambda: window.texts("h1")[0].startswith(here.main.name))
            tab_to('id="logs"')
            tab_to('name="peer"')
            type_keys("x", Keys.ENTER)
            wait_until(window, lambda: "That is no id of a peer" in window.text())
            tab_to("Sign out")
            type_keys(Keys.ENTER)
            wait_until(window, lambda: "Sign in to see your agents" in window.text())

        await look(use)
